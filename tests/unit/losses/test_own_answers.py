"""Cross-entropy of the data's answers alone, beside the divergence of all, against float64."""

import pytest
import torch
import torch.nn.functional as F

from distill_tune.losses import DenseLogits, LinearProjection, ReverseKL, TopTokens, distillation_loss, head

N, D, V, OWN = 23, 8, 41, 9


@pytest.mark.parametrize("kind", ["logits", "record"])
@pytest.mark.parametrize("num_own", [0, OWN, N])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_answers_of_the_students_own_have_no_cross_entropy(monkeypatch, kind, num_own, temperature):
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 4 * V * 8})  # some rows at a time
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=draws).requires_grad_()
    weight = torch.randn(V, D, generator=draws).requires_grad_()
    targets, of_teacher = torch.randint(0, V, (N,), generator=draws), torch.randn(N, V, generator=draws)
    signal = DenseLogits(of_teacher.clone()) if kind == "logits" else TopTokens.of(of_teacher, V, temperature)
    settings = {"kd_ratio": 0.7, "temperature": temperature, "divergence": ReverseKL(), "num_own": num_own}
    found = distillation_loss(hidden, LinearProjection(weight), targets, signal, **settings)

    logits = hidden.double() @ weight.double().T
    log_q = (logits / temperature).log_softmax(-1)
    log_p = (of_teacher.double() / temperature).log_softmax(-1)
    kd = (log_q.exp() * (log_q - log_p)).sum()
    ce = F.cross_entropy(logits[num_own:], targets[num_own:], reduction="sum")
    wanted = 0.3 * ce + 0.7 * temperature**2 * kd
    torch.testing.assert_close([found.ce.double(), found.kd.double()], [ce, kd], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss.double(), wanted, rtol=1e-5, atol=1e-5)
    for mine, its in zip(*(torch.autograd.grad(loss, [hidden, weight]) for loss in (found.loss, wanted)), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


def test_without_a_divergence_there_is_nothing_to_learn_of_them():
    hidden, weight = torch.randn(3, D), torch.randn(V, D)
    with pytest.raises(ValueError, match="with a kd_ratio of 0 nothing is learned"):
        distillation_loss(hidden, LinearProjection(weight), torch.zeros(3, dtype=torch.long), num_own=1)
