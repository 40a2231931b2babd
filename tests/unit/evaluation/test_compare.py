import math

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB_SIZE, model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import joined
from distill_tune.evaluation import compare, comparison_markdown, gap_sentence, share_of_gap_closed

from torchtune.models.llama3_2 import llama3_2


def build(seed: int):
    torch.manual_seed(seed)
    return llama3_2(**model_arguments())


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in (9, 20, 14, 5)]
    return [joined([(row, row) for row in rows[:2]]), joined([(row, row) for row in rows[2:]])]


def whole_logits(model, batches):
    """Row by row, as the model is without any packing."""
    rows = [row for batch in batches for row in batch.tokens[0].split(batch.lengths)]
    supervised = torch.cat([batch.targets[0] != -100 for batch in batches])
    return torch.cat([model(row[None])[0] for row in rows])[supervised]


def test_the_measures_are_those_of_whole_logits(batches):
    found = compare("student", lambda: build(1), build(2), batches, torch.device("cpu"))
    student, teacher = build(1), build(2)
    with torch.no_grad():
        logits, teacher_logits = whole_logits(student, batches), whole_logits(teacher, batches)
    targets = torch.cat([batch.targets[0, batch.supervised_positions] for batch in batches])
    assert found.perplexity == pytest.approx(math.exp(F.cross_entropy(logits, targets).item()), rel=1e-5)
    kl = F.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="batchmean", log_target=True)
    assert found.kl == pytest.approx(kl.item(), rel=1e-4)
    assert found.agreement == pytest.approx((logits.argmax(-1) == teacher_logits.argmax(-1)).float().mean().item())
    assert found.parameters == sum(p.numel() for p in student.parameters())
    assert found.tokens_per_second > 0


def test_a_model_agrees_with_itself(batches):
    found = compare("teacher", lambda: build(2), build(2), batches, torch.device("cpu"))
    assert (found.agreement, found.kl) == (1.0, pytest.approx(0.0, abs=1e-5))
    table = comparison_markdown([found])
    assert "| teacher | 0." in table
    assert "1.000" in table


def test_the_gap_is_measured_in_log_perplexity(batches):
    assert share_of_gap_closed(base=100, teacher=25, student=50) == pytest.approx(0.5)
    teacher = compare("teacher", lambda: build(2), build(2), batches, torch.device("cpu"))
    assert "no gap to close" in gap_sentence(teacher, teacher, [teacher])
