"""The gradient of a step of rollouts: however it is cut, on however many ranks, and as TRL's GKD has it."""

import pytest
import torch
from fixed_rollouts import FixedRollouts
from tiny import VOCAB_SIZE, model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import data, losses, models, teachers
from distill_tune.data.batch import Batch, Row, joined
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.generation import Request
from distill_tune.rollouts.prompts import answered, prompt_of
from distill_tune.rollouts.rows_on_policy import _shape_of

from torchtune.models.llama3_2 import llama3_2

NUM_ROWS = 12


def model_of(seed: int, **shape: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = llama3_2(**model_arguments(**shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else None
    return model


def prompts() -> TokenisedRows:
    """Rows of prompts of very different lengths, with an answer of one token."""
    draws = torch.Generator().manual_seed(3)
    lengths = [4 + 7 * (number % 5) for number in range(NUM_ROWS)]
    tokens = torch.randint(3, VOCAB_SIZE, (sum(lengths),), generator=draws, dtype=torch.int32)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    labels = torch.full_like(tokens, -100)
    labels[offsets[1:] - 1] = tokens[offsets[1:] - 1]
    return TokenisedRows(tokens, labels, offsets, packed=False, max_seq_len=None)


def plan_of(batch_size: int, accumulation: int, rank: int = 0, num_ranks: int = 1) -> data.StepPlan:
    plan = data.StepPlan(
        [prompts()],
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        shuffle=False,
        rank=rank,
        num_ranks=num_ranks,
    )
    plan.hold([batch_size * tokens for tokens in (60, 60, 20)])
    return plan


def rollouts_of(plan: data.StepPlan) -> list[Row]:
    write = FixedRollouts()
    rows = plan.rows(0, 0)
    requests = [Request(prompt_of(*row[:2]).tolist(), stream) for stream, row in enumerate(rows)]
    return [answered(row, found.tokens) for row, found in zip(rows, write.generate(requests), strict=True)]


def micro_batches(plan: data.StepPlan) -> list[Batch]:
    rows = rollouts_of(plan)
    hands = plan.dealt(_shape_of(rows, follow_teachers=False))
    return [joined([rows[at] for at in hand]) for hand in hands]


def gradient(batches: list[Batch], num_tokens: int, divergence=None, teacher=None) -> tuple[torch.Tensor, float]:
    """Of summed losses over so many tokens, and these."""
    student = model_of(1)
    teacher = teachers.LiveTeacher(model_of(2, width=64, layers=3) if teacher is None else teacher)
    head, total = models.take_output_head(student), 0.0
    for batch in batches:
        hidden = student(batch.tokens, **batch.attention())[0, batch.supervised_positions]
        sums = losses.distillation_loss(
            hidden,
            head.projection_for_loss(),
            batch.targets[0, batch.supervised_positions],
            teacher(batch),
            kd_ratio=1.0,
            divergence=divergence or losses.ReverseKL(),
        )
        (sums.loss / num_tokens).backward()
        total += sums.loss.item() / num_tokens
    return torch.cat([p.grad.flatten() for p in student.parameters()]), total


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 2), (3, 4), (1, 12)])
def test_it_does_not_depend_on_how_the_step_is_cut(batch_size, accumulation):
    whole, cut = (micro_batches(plan_of(*sizes)) for sizes in ((NUM_ROWS, 1), (batch_size, accumulation)))
    assert len(cut) > len(whole) == 1
    num_tokens = data.num_supervised(whole)
    assert num_tokens == data.num_supervised(cut)
    assert distance(gradient(cut, num_tokens)[0], gradient(whole, num_tokens)[0]) < 1e-6


def test_it_does_not_depend_on_the_number_of_ranks():
    whole = micro_batches(plan_of(NUM_ROWS, 1))
    of_ranks = [micro_batches(plan_of(2, 2, rank, 3)) for rank in range(3)]
    assert len({len(batches) for batches in of_ranks}) == 1
    num_tokens = data.num_supervised(whole)
    together = sum(gradient(batches, num_tokens)[0] for batches in of_ranks)
    assert distance(together, gradient(whole, num_tokens)[0]) < 1e-5


@pytest.mark.parametrize("divergence", [losses.ReverseKL(), losses.ForwardKL(), losses.JensenShannon(0.3)])
def test_a_teacher_that_is_the_student_teaches_nothing(divergence):
    batches = micro_batches(plan_of(NUM_ROWS, 1))
    found, loss = gradient(batches, data.num_supervised(batches), divergence, teacher=model_of(1))
    other, _ = gradient(batches, data.num_supervised(batches), divergence)
    assert abs(loss) < 1e-6
    assert found.norm() < 1e-5 * other.norm()


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_it_is_that_of_trls_gkd_at_the_same_rollouts(beta):
    """Padded rows through whole models, TRL's own loss, and its division by the step's tokens."""
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    rows = rollouts_of(plan_of(NUM_ROWS, 1))
    longest = max(len(row.tokens) for row in rows)
    tokens, labels = torch.zeros(len(rows), longest, dtype=torch.int64), torch.full((len(rows), longest), -100)
    for at, row in enumerate(rows):
        tokens[at, : len(row.tokens)], labels[at, : len(row.labels)] = row.tokens, row.labels
    student, teacher = model_of(1), model_of(2, width=64, layers=3)
    num_tokens = (labels != -100).sum()
    with torch.no_grad():
        its = teacher(tokens)[:, :-1]
    mine = student(tokens)[:, :-1]
    loss = gkd.generalized_jsd_loss(mine, its, labels=labels[:, 1:], beta=beta, num_items_in_batch=num_tokens)
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in student.parameters()])
    batches = micro_batches(plan_of(4, 3))
    found, total = gradient(batches, data.num_supervised(batches), losses.JensenShannon(beta))
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert distance(found, wanted) < 1e-5
