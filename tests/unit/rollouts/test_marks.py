"""What student and teacher think of each token, against the plain formulas in float64."""

import dataclasses

import pytest
import torch
from tiny import VOCAB_SIZE, model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import losses, models, teachers
from distill_tune.data.batch import Row, joined
from distill_tune.rollouts.marks import likeliest_of, marks_of

from torchtune.models.llama3_2 import llama3_2


class Recorded(teachers.Teacher):
    """Keeps of a live teacher's logits what ``keep`` makes of them."""

    def __init__(self, live, keep) -> None:
        self.live, self.keep = live, keep

    def __call__(self, batch):
        signal = self.live(batch)
        n = len(batch.for_teacher.supervised_positions)
        return self.keep(signal.logits(0, n, signal.memory(n)))


@pytest.fixture(scope="module")
def batch():
    draws = torch.Generator().manual_seed(1)
    rows = []
    for length in (12, 30):
        tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=draws, dtype=torch.int32)
        rows.append(Row(tokens, torch.where(torch.arange(length) < 5, -100, tokens)))
    return joined(rows)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    student, teacher = llama3_2(**model_arguments()), llama3_2(**model_arguments(width=64, layers=3))
    for parameter in [*student.parameters(), *teacher.parameters()]:
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else None
    head = models.take_output_head(student)
    return student.eval(), head, teachers.LiveTeacher(teacher)


def logits(model, head, batch):
    hidden = model(batch.tokens, **batch.attention())[0, batch.supervised_positions]
    return head.project(hidden).double()


def test_they_are_those_of_whole_distributions(pair, batch):
    student, head, teacher = pair
    q = logits(student, head, batch).log_softmax(-1)
    p = logits(teacher.model, teacher.head, batch).log_softmax(-1)
    targets = batch.targets[0, batch.supervised_positions, None]
    marks = marks_of(student, head, teacher, batch)
    torch.testing.assert_close(marks.log_prob.double(), q.gather(1, targets)[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(marks.log_ratio.double(), (p - q).gather(1, targets)[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(marks.student_entropy.double(), -(q.exp() * q).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(marks.teacher_entropy.double(), -(p.exp() * p).sum(-1), atol=1e-5, rtol=1e-5)
    of_both = [set(x.topk(16).indices.tolist()) & set(y.topk(16).indices.tolist()) for x, y in zip(q, p, strict=True)]
    assert marks.overlap.tolist() == [len(both) / 16 for both in of_both]


def test_they_do_not_depend_on_the_chunks(pair, batch, monkeypatch):
    whole = marks_of(*pair, batch)
    monkeypatch.setitem(losses.head.CHUNK_BYTES, "cpu", 40 * VOCAB_SIZE * 4 * 4)
    cut = marks_of(*pair, batch)
    for name, values in vars(whole).items():
        torch.testing.assert_close(getattr(cut, name), values, msg=name)


def test_a_teacher_that_is_the_student_agrees_with_it(pair, batch):
    student, head, _ = pair
    marks = marks_of(student, head, teachers.LiveTeacher(student), batch)
    assert marks.log_ratio.abs().max() == 0
    assert marks.overlap.tolist() == [1.0] * len(marks.overlap)
    assert torch.equal(marks.student_entropy, marks.teacher_entropy)


def test_of_a_record_of_likeliest_tokens_it_is_told_what_the_record_tells(pair, batch):
    student, head, teacher = pair
    whole = marks_of(student, head, teacher, batch)
    sparse = marks_of(student, head, Recorded(teacher, lambda found: losses.TopTokens.of(found, k=32)), batch)
    told = ~sparse.log_ratio.isnan()
    assert 0 < told.sum() < len(told)
    torch.testing.assert_close(sparse.log_ratio[told], whole.log_ratio[told], atol=1e-5, rtol=1e-5)
    assert sparse.overlap.tolist() == whole.overlap.tolist()
    assert sparse.teacher_entropy.isnan().all()


def test_tokens_that_the_student_has_named_are_not_the_teachers_likeliest(pair, batch):
    student, head, teacher = pair
    named = likeliest_of(student, head, batch, 16, None)
    overlaps = [
        marks_of(student, head, Recorded(teacher, keep), asked).overlap
        for keep, asked in (
            (lambda found: losses.TopTokens.of(found, k=4), batch),
            (lambda found: losses.TopTokens.of(found, 4, others=named), dataclasses.replace(batch, likeliest=named)),
        )
    ]
    assert torch.equal(*overlaps) and overlaps[0].mean() < 0.25


def test_a_batch_without_supervised_tokens_has_none(pair):
    assert len(marks_of(*pair, joined([])).log_prob) == 0


def test_the_students_likeliest_tokens_are_those_of_its_logits(pair, batch):
    student, head, _ = pair
    wanted = logits(student, head, batch)
    assert torch.equal(likeliest_of(student, head, batch, 5, None), wanted.topk(5).indices)
    assert torch.equal(likeliest_of(student, head, batch, 3, 20), wanted[:, :20].topk(3).indices)
    assert likeliest_of(student, head, joined([]), 3, None).shape == (0, 3)


def test_of_several_teachers_one_with_another_tokenizer_tells_nothing(pair, batch):
    student, head, teacher = pair
    other = losses.Aligned(losses.DenseLogits(torch.zeros(0, 1)), None, None, None)
    alone = marks_of(student, head, teacher, batch)
    beside = marks_of(student, head, lambda of: losses.SumOfTeachers([teacher(of), other], [0.25, 0.75]), batch)
    torch.testing.assert_close(vars(beside), vars(alone))
    nothing = marks_of(student, head, lambda of: other, batch)
    assert nothing.log_ratio.isnan().all() and nothing.teacher_entropy.isnan().all()
    torch.testing.assert_close(nothing.student_entropy, alone.student_entropy)
