"""One optimizer step's gradient: against torchtune's modules run by hand, and however the step is cut."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB_SIZE, model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import data, losses, models, teachers
from distill_tune.data.tokenised_rows import TokenisedRows

from torchtune.models.llama3_2 import llama3_2


def student_and_teacher():
    torch.manual_seed(0)
    return llama3_2(**model_arguments()), llama3_2(**model_arguments(width=64, layers=3))


def rows_of_very_different_lengths(packed: bool = False) -> TokenisedRows:
    generator = torch.Generator().manual_seed(3)
    lengths = [5, 60, 9, 31, 17, 48, 3, 26]
    tokens = torch.randint(3, VOCAB_SIZE, (sum(lengths),), generator=generator, dtype=torch.int32)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    labels = tokens.clone()
    for start, length in zip(offsets, lengths, strict=False):
        labels[start : start + length // 2] = -100
    return TokenisedRows(tokens, labels, offsets, packed=packed, max_seq_len=70)


def gradient_of_step(batch_size: int, accumulation: int, packed: bool = False) -> torch.Tensor:
    student, teacher_model = student_and_teacher()
    head = models.take_output_head(student)
    teacher = teachers.LiveTeacher(teacher_model)
    rows = rows_of_very_different_lengths(packed)
    plan = data.StepPlan([rows], batch_size=batch_size, gradient_accumulation_steps=accumulation, shuffle=False)
    batches = plan.micro_batches(0, 0)
    num_tokens = data.num_supervised(batches)
    for batch in batches:
        attention = batch.attention()
        hidden = student(batch.tokens, **attention)[0, batch.supervised_positions]
        sums = losses.distillation_loss(
            hidden,
            head.projection_for_loss(),
            batch.targets[0, batch.supervised_positions],
            teacher(batch),
            kd_ratio=0.5,
            temperature=2.0,
        )
        (sums.loss / num_tokens).backward()
    return torch.cat([p.grad.flatten() for p in student.parameters()])


def test_it_is_that_of_torchtunes_modules_run_by_hand():
    student, teacher = student_and_teacher()
    rows = rows_of_very_different_lengths()
    total, num_tokens = torch.zeros(()), 0
    for index in range(len(rows)):
        tokens, labels = rows[index][:2]
        targets = labels[1:].long()
        logits = student(tokens[None].long())[0, :-1]
        with torch.no_grad():
            teacher_logits = teacher(tokens[None].long())[0, :-1]
        ce = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
        kd = F.kl_div(
            (logits / 2).log_softmax(-1), (teacher_logits / 2).log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        total = total + 0.5 * ce + 0.5 * 4 * kd[targets != -100].sum()
        num_tokens += int((targets != -100).sum())
    (total / num_tokens).backward()
    by_hand = torch.cat([p.grad.flatten() for p in student.parameters()])
    ours = gradient_of_step(8, 1)
    assert (ours - by_hand).norm() / by_hand.norm() < 1e-5


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "packed"),
    [(4, 2, False), (2, 4, False), (1, 8, False), (4, 1, True), (2, 2, True), (1, 4, True)],
)
def test_it_does_not_depend_on_how_the_step_is_cut(batch_size, accumulation, packed):
    whole = gradient_of_step(8, 1)
    rows = rows_of_very_different_lengths(packed=True)
    if packed:  # the same eight rows, in four packs
        assert data.StepPlan([rows], batch_size=1).steps_per_epoch == 4
    cut = gradient_of_step(batch_size, accumulation, packed)
    assert (cut - whole).norm() / whole.norm() < 1e-6


def test_the_head_agrees_with_the_models_own_logits(student_folder: Path):
    model, _ = student_and_teacher()
    tokens = torch.randint(0, VOCAB_SIZE, (2, 9))
    wanted = model(tokens)
    head = models.take_output_head(model)
    torch.testing.assert_close(head.project(model(tokens)), wanted)
