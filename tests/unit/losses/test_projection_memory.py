"""The memory in which logits are made, which generation and losses share."""

import pytest
import torch

from distill_tune import losses
from distill_tune.losses import projection


@pytest.mark.parametrize("grown", [False, True])
def test_a_loss_writes_where_logits_were_made_to_generate(monkeypatch, grown):
    monkeypatch.setattr(projection, "_kept", {})
    student = losses.LinearProjection(torch.randn(11, 4, requires_grad=True))
    hidden, teacher = torch.randn(8, 4, requires_grad=True), losses.LinearProjection(torch.randn(11, 4))
    signal = losses.HiddenStates(torch.randn(8, 4), teacher)

    def loss():
        return losses.distillation_loss(hidden, student, torch.arange(8), signal, kd_ratio=1.0).loss

    if grown:
        loss()
    with torch.inference_mode():
        for slot in range(2):
            student.logits(torch.randn(64, 4), student.memory(64, slot, hidden.dtype))
    loss().backward()
    assert hidden.grad.isfinite().all()
