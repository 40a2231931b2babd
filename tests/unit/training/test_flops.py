"""Counted products against PyTorch's own counter over a real step."""

import pytest
import torch
from tiny import VOCAB_SIZE, model_arguments
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.shape import Shape
from distill_tune.losses import HiddenLoss
from distill_tune.teachers import LiveTeacher, SeveralTeachers
from distill_tune.training.flops import ModelFlops, StepFlops, Utilisation

from torchtune.models.llama3_2 import llama3_2, lora_llama3_2

TOKENS = torch.randint(3, VOCAB_SIZE, (1, 96), generator=torch.Generator().manual_seed(0))
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 8}


@pytest.mark.parametrize("kind", ["forward", "trained", "lora"])
def test_the_count_is_that_of_the_step(kind):
    model = lora_llama3_2(**LORA, **model_arguments()) if kind == "lora" else llama3_2(**model_arguments())
    models.freeze_all_but_adapters(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(TOKENS)
        if kind != "forward":
            logits.sum().backward()
    shape = Shape((96,), (96,))
    counted = ModelFlops.of_model(model, trains=kind != "forward").of(shape)
    # PyTorch's plain attention computes the other half, too, which the mask then hides.
    attention = ModelFlops.of_model(model, trains=kind != "forward").per_attended_pair * 96 * 95 / 2
    # With LoRA the frozen embeddings ask for no gradient, which saves a bit of the first layer's.
    assert counted + attention == pytest.approx(counter.get_total_flops(), rel=0.07 if kind == "lora" else 0.02)


def test_utilisation_is_told_where_the_peak_is_known(monkeypatch):
    model, teacher = llama3_2(**model_arguments()), LiveTeacher(llama3_2(**model_arguments()))
    shape = Shape((96,), (90,))
    assert Utilisation(model, teacher, torch.device("cpu"), torch.bfloat16).of_step(shape, 1.0) == {}
    monkeypatch.setattr("distill_tune.training.flops.peak_flops", lambda device, dtype: 1e9)
    told = Utilisation(model, teacher, torch.device("cuda"), torch.bfloat16, num_devices=2).of_step(shape, 0.5)
    flops = sum(ModelFlops.of_model(model, trains).of(shape) for trains in (True, False))
    assert told == {"model_flops_utilization": pytest.approx(flops / 0.5 / 2e9)}


def test_the_teacher_is_counted_with_what_it_reads_itself():
    teacher, student = (llama3_2(**model_arguments(width=width)) for width in (64, 32))
    its, own = ModelFlops.of_model(teacher, trains=False), ModelFlops.of_model(student, trains=True)
    shape = Shape((10, 20), (5, 6), teacher_lengths=(90, 40))
    flops = StepFlops(student, LiveTeacher(teacher))
    assert flops.of_teacher(shape) == its.of(Shape((90, 40), (5, 6))) != its.of(Shape((10, 20), (5, 6)))
    assert flops.of(shape) == own.of(shape) + its.of(Shape((90, 40), (5, 6)))


def test_where_rows_choose_their_teacher_each_is_counted_with_its_own():
    student, *others = (llama3_2(**model_arguments(width=width)) for width in (32, 32, 64))
    shape = Shape((10, 20, 30), (5, 6, 7), teacher_ids=(1, 0, 1))
    checked = [LiveTeacher(other) for other in others]

    def counted(combination):
        return StepFlops(student, SeveralTeachers(checked, [1, 1], ["a", "b"], combination)).of_teacher(shape)

    small, large = (ModelFlops.of_model(other, trains=False) for other in others)
    assert counted("by_row") == small.of(Shape((20,), (6,))) + large.of(Shape((10, 30), (5, 7)))
    assert counted("mixture") == small.of(shape) + large.of(shape)


def test_projectors_of_a_loss_between_layers_are_counted():
    student, teacher = llama3_2(**model_arguments()), LiveTeacher(llama3_2(**model_arguments(width=64, layers=3)))
    before = ModelFlops.of_model(student, trains=True)
    models.match_layers(student, teacher, HiddenLoss("last"))
    after = ModelFlops.of_model(student, trains=True)
    assert after.per_supervised_token - before.per_supervised_token == 6 * 32 * 64
