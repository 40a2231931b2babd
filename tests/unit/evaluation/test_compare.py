import dataclasses
import functools
import gc
import math
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB_SIZE, model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import joined
from distill_tune.evaluation import (
    Entrant,
    compare,
    comparison_markdown,
    few_rows,
    gap_sentence,
    share_of_gap_closed,
)
from distill_tune.teachers import LiveTeacher

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


def entrant(name: str, seed: int, load=None) -> Entrant:
    model = build(seed)
    return Entrant(name, sum(p.numel() for p in model.parameters()), name, load or (lambda: LiveTeacher(build(seed))))


def test_the_measures_are_those_of_whole_logits(batches):
    _, found = compare(entrant("teacher", 2), [entrant("student", 1)], batches, torch.device("cpu"))
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
    of_teacher, same = compare(entrant("teacher", 2), [entrant("same", 2)], batches, torch.device("cpu"))
    for found in (of_teacher, same):
        assert (found.agreement, found.kl) == (1.0, pytest.approx(0.0, abs=1e-5))
    assert same.perplexity == pytest.approx(of_teacher.perplexity, rel=1e-6)
    table = comparison_markdown([of_teacher])
    assert "| teacher | 0." in table
    assert "1.000" in table


def test_each_model_is_loaded_once_and_the_teacher_stays_alone_beside_it(batches):
    alive, most, loads = weakref.WeakSet(), [], []

    def load(name):
        loads.append(name)
        model = LiveTeacher(build(1))
        alive.add(model)
        gc.collect()
        most.append(len(alive))
        return model

    entrants = [entrant(name, 1, functools.partial(load, name)) for name in ("teacher", "a", "b")]
    list(compare(entrants[0], entrants[1:], batches, torch.device("cpu")))
    assert loads == ["teacher", "a", "b"]
    assert most == [1, 2, 2]


def test_hidden_states_are_there_of_one_batch_at_a_time(batches):
    class Watched(LiveTeacher):
        before = None

        def __call__(self, batch):
            assert self.before is None or self.before() is None
            signal = super().__call__(batch)
            self.before = weakref.ref(signal.hidden)
            return signal

    entrants = [entrant(name, 1, lambda: Watched(build(1))) for name in ("teacher", "student")]
    assert len(list(compare(entrants[0], entrants[1:], 3 * batches, torch.device("cpu")))) == 2


def test_models_read_their_own_prompts_beside_a_teacher_with_another(batches):
    """The answers are the same; the teacher's prompt is longer."""
    row, longer = torch.arange(3, 12), torch.cat([torch.arange(20, 30), torch.arange(3, 12)])
    labels = torch.cat([torch.full((4,), -100), row[4:]])
    longer_labels = torch.cat([torch.full((14,), -100), row[4:]])
    both, plain, teachers_own = (
        joined([rows]) for rows in ((row, labels, longer, longer_labels), (row, labels), (longer, longer_labels))
    )
    of_teacher, of_student = compare(entrant("t", 2), [entrant("s", 1)], [both], torch.device("cpu"))
    assert of_teacher.perplexity == pytest.approx(math.exp(loss_of(build(2), teachers_own)), rel=1e-5)
    assert of_student.perplexity == pytest.approx(math.exp(loss_of(build(1), plain)), rel=1e-5)


def loss_of(model, batch):
    with torch.no_grad():
        return F.cross_entropy(whole_logits(model, [batch]), batch.targets[0, batch.supervised_positions]).item()


def test_speed_and_memory_are_told_once_of_models_of_one_shape(batches):
    entrants = [entrant(name, seed) for seed, name in enumerate(("teacher", "base", "trained"))]
    entrants[2] = dataclasses.replace(entrants[2], shape=entrants[1].shape)
    comparisons = list(compare(entrants[0], entrants[1:], batches, torch.device("cpu")))
    assert [found.tokens_per_second is None for found in comparisons] == [False, False, True]
    assert [found.peak_memory_bytes is None for found in comparisons] == [False, False, True]
    assert comparison_markdown(comparisons).splitlines()[-1].endswith("| same | same |")


def test_speed_is_the_median_of_several_passes(batches, monkeypatch):
    """One pass of five that takes a hundred times as long changes nothing."""
    clock = iter([0, 1, 10, 11, 20, 120, 130, 131, 140, 141])
    monkeypatch.setattr(sys.modules[compare.__module__], "_seconds", lambda device: next(clock))
    (found,) = compare(entrant("teacher", 2), [], batches, torch.device("cpu"))
    assert found.tokens_per_second == sum(batch.tokens.numel() for batch in batches)


def test_the_gap_is_measured_in_log_perplexity(batches):
    assert share_of_gap_closed(base=100, teacher=25, student=50) == pytest.approx(0.5)
    (teacher,) = compare(entrant("teacher", 2), [], batches, torch.device("cpu"))
    assert "no gap to close" in gap_sentence(teacher, teacher, [teacher])


def test_percentages_on_few_rows_get_a_note():
    assert few_rows(1).startswith("On 1 row alone")
    assert few_rows(99).startswith("On 99 rows alone")
    assert few_rows(100) == ""
