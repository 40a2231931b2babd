"""Byte-prefix mass against its definition on dictionaries of byte strings, in float64, value and gradient."""

import dataclasses
import itertools
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_divergences import DIVERGENCES, kl
from toy_tokenizers import Toy, masses, written

from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.alignment.vocabulary_map import VocabularyMap
from distill_tune.losses import (
    Aligned,
    BytePrefixMass,
    DenseLogits,
    LinearProjection,
    MixtureOfTeachers,
    SumOfTeachers,
    TeacherCertainty,
    TeacherOfEachRow,
    distillation_loss,
    head,
    rows,
)
from distill_tune.losses.pieces import pieces_between_cuts

D = 8


def parts(toy, seed=0, scale=1.5, padding=2):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(toy.student_row), D, generator=generator) * scale
    weight = torch.randn(len(toy.student) + padding, D, generator=generator)
    teacher = torch.randn(len(toy.teacher_row), len(toy.teacher) + padding, generator=generator) * 2 * scale
    return hidden.requires_grad_(), weight.requires_grad_(), teacher


def by_definition(toy, logits, teacher, formula, temperature=1.0):
    """Of each row, float64, for autograd."""
    log_q, log_p = ((of.double() / temperature).log_softmax(-1) for of in (logits, teacher))
    values = []
    for pair in masses(toy, log_q, log_p):
        # No fewer events than a formula asks for.
        padded = [] if pair is None else [torch.nn.functional.pad(of, (0, 6), value=-torch.inf)[None] for of in pair]
        values.append(formula(*padded)[0] if padded else log_q.new_zeros(()))
    return torch.stack(values)


def compare(toy, name="forward", temperature=1.0, kd_ratio=1.0, seed=0, tolerance=1e-5, caps=(None, None)):
    divergence, formula = DIVERGENCES[name]
    hidden, weight, teacher = parts(toy, seed)
    targets = torch.tensor(toy.student_row)
    sums = distillation_loss(
        hidden,
        LinearProjection(weight, softcap=caps[0]),
        targets,
        toy.signal(teacher, caps[1]),
        kd_ratio=kd_ratio,
        temperature=temperature,
        divergence=divergence,
    )
    found = torch.autograd.grad(sums.loss, [hidden, weight])
    capped = [
        of if cap is None else cap * (of / cap).tanh()
        for of, cap in zip((hidden.double() @ weight.double().T, teacher.double()), caps, strict=True)
    ]
    kd = by_definition(toy, *capped, formula, temperature).sum()
    ce = torch.nn.functional.cross_entropy(capped[0], targets, reduction="sum")
    wanted = torch.autograd.grad((1 - kd_ratio) * ce + kd_ratio * temperature**2 * kd, [hidden, weight])
    assert sums.kd.item() == pytest.approx(kd.item(), rel=tolerance, abs=1e-6)
    for gradient, exact in zip(found, wanted, strict=True):
        assert (gradient - exact).norm() < tolerance * exact.norm() + 1e-6


@pytest.mark.parametrize("seed", range(40))
def test_value_and_gradient_are_those_of_the_definition(seed):
    compare(written(seed), seed=seed)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("seed", range(3))
def test_of_any_divergence(name, seed):
    compare(written(seed, length=24), name, seed=seed)


@pytest.mark.parametrize("seed", range(40))
def test_of_a_student_that_begins_with_a_space(seed):
    compare(written(seed, length=3, most=(3, 1 + seed % 3), space_before=True), seed=seed)
    compare(written(seed, b"ab ", length=6, extra=0, space_before=True), "jsd 0.5", 2.0, kd_ratio=0.5, seed=seed)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_of_a_student_that_begins_with_a_space_and_any_divergence(name):
    compare(written(1, length=2, space_before=True), name)


@pytest.mark.parametrize("name", ["forward", "jsd 0.5", "mse"])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_at_a_temperature_beside_cross_entropy_and_under_caps(name, temperature):
    compare(written(1, length=24), name, temperature, kd_ratio=0.3, caps=(3.0, 5.0))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(0, 30),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_of_any_two_vocabularies(seed, most, most_of_teacher, extra, length, space_before):
    space_before = space_before and length > 0
    toy = written(seed, length=length, most=(most, most_of_teacher), extra=extra, space_before=space_before)
    compare(toy, seed=seed % 1000)


@pytest.mark.parametrize("masked", [(0,), (3, 4, 5), (9,)])
def test_a_row_of_which_nothing_is_known_has_no_divergence(masked):
    toy = dataclasses.replace(written(5, length=24), masked=masked)
    compare(toy, kd_ratio=0.5)


@pytest.mark.parametrize("name", ["forward", "reverse", "adaptive"])
def test_tokens_of_the_same_bytes_are_one(name):
    toy = written(3)
    student, teacher = [*toy.student, b"ab", b"a", *toy.student[:4]], [*toy.teacher, b"ab", b"ab", b"b"]
    compare(dataclasses.replace(toy, student=student, teacher=teacher), name)


@pytest.mark.parametrize("shift", ["at", "both"])
def test_an_alignment_that_is_off_by_one_is_another_loss(shift):
    toy = written(2, length=24)
    hidden, weight, teacher = parts(toy)
    signal = toy.signal(teacher)
    wanted = by_definition(toy, hidden @ weight.T, teacher, kl).sum()
    right = distillation_loss(hidden, LinearProjection(weight), torch.tensor(toy.student_row), signal, kd_ratio=1.0)
    assert right.kd.item() == pytest.approx(wanted.item(), rel=1e-5)
    positions = signal.positions
    shifted = dataclasses.replace(
        positions,
        at=(positions.at + 1).clamp(max=len(toy.teacher_row) - 1),
        last=(positions.last + (shift == "both")).clamp(max=len(toy.teacher_row) - 1),
    )
    wrong = distillation_loss(
        hidden,
        LinearProjection(weight),
        torch.tensor(toy.student_row),
        dataclasses.replace(signal, positions=shifted),
        kd_ratio=1.0,
    )
    assert abs(wrong.kd.item() / wanted.item() - 1) > 0.05


# The true probabilities of texts, where they can be had.


class Writer:
    """A teacher that writes texts of so many tokens, each by the one before it."""

    def __init__(self, tokens, length, seed=0):
        self.tokens = tokens
        logits = torch.randn(len(tokens) + 1, len(tokens), generator=torch.Generator().manual_seed(seed)) * 2
        self.log_probs = logits.double().log_softmax(-1)
        self.texts: dict[bytes, float] = {}
        table = self.log_probs.exp().tolist()
        for several in itertools.product(range(len(tokens)), repeat=length):
            text = b"".join(tokens[token] for token in several)
            steps = zip((-1, *several), several, strict=False)
            self.texts[text] = self.texts.get(text, 0.0) + math.prod(table[before][token] for before, token in steps)

    def probability(self, text):
        """That a text begins so."""
        return sum(p for whole, p in self.texts.items() if whole.startswith(text))

    def logits(self, row):
        return self.log_probs[[-1, *row[:-1]]].float()


LETTERS = [b"a", b"b", b"c"]
PAIRS = [one + other for one in LETTERS for other in LETTERS]
TRIPLES = [one + pair for one in LETTERS for pair in PAIRS]
# The teacher's tokens, the student's, a text as the student writes it, and of each of its rows the texts that may
# follow, each with the student's tokens that say so; what is in none is the rest.
EXACT = {
    "one letter of two": (PAIRS, LETTERS, [*"cabbaa"], [[("a", "a"), ("b", "b"), ("c", "c")]] * 6),
    "one letter of three": (
        TRIPLES,
        LETTERS,
        ["b", "b", "a", "c", "a", "b"],
        [[("a", "a"), ("b", "b"), ("c", "c")]] * 6,
    ),
    "two letters of one": (LETTERS, PAIRS, ["ab", "ca"], [[("ab", "ab")], [("ca", "ca")]]),
    "two or one": (
        LETTERS,
        [*LETTERS, b"ab", b"cab"],
        ["ab", "b", "cab"],
        [
            [("ab", "ab"), ("aa", "a"), ("ac", "a"), ("b", "b"), ("c", "c cab")],
            [("a", "a ab"), ("b", "b"), ("c", "c cab")],
            [("a", "a ab"), ("b", "b"), ("cab", "cab"), ("caa", "c"), ("cac", "c"), ("cb", "c"), ("cc", "c")],
        ],
    ),
    "two of three": (
        TRIPLES,
        PAIRS,
        ["ab", "ca", "bc"],
        [
            [(pair, pair) for pair in ["aa", "ab", "ac", "ba", "bb", "bc", "ca", "cb", "cc"]],
            [("ca", "ca")],
            [(pair, pair) for pair in ["aa", "ab", "ac", "ba", "bb", "bc", "ca", "cb", "cc"]],
        ],
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_where_bytes_have_one_spelling_it_is_the_divergence_from_the_true_probabilities(case):
    teacher_tokens, tokens, text, following = EXACT[case]
    row, whole = [tokens.index(token.encode()) for token in text], "".join(text).encode()
    length = len(teacher_tokens[0])
    teacher_row = [teacher_tokens.index(whole[i : i + length]) for i in range(0, len(whole), length)]
    toy, writer = Toy([*tokens], [*teacher_tokens], row, teacher_row), Writer(teacher_tokens, len(teacher_row))
    student = torch.randn(len(row), len(tokens), generator=torch.Generator().manual_seed(1))
    logits, wanted, read = student.double().requires_grad_(), [], b""
    agreeing = torch.full_like(student, -30.0)
    for number, events in enumerate(following):
        masses_of: dict[str, float] = {}
        for after, who in events:
            probability = writer.probability(read + after.encode()) / writer.probability(read)
            masses_of[who] = masses_of.get(who, 0.0) + probability
        groups = [[tokens.index(token.encode()) for token in who.split()] for who in masses_of]
        p = torch.tensor([*masses_of.values()], dtype=torch.float64)
        q = logits[number].softmax(-1)
        q_of = torch.stack([q[group].sum() for group in groups])
        others = [token for token in range(len(tokens)) if not any(token in group for group in groups)]
        if others:
            p, q_of = torch.cat([p, 1 - p.sum(0, True)]), torch.cat([q_of, q[others].sum(0, True)])
        wanted.append((p * (p / q_of).log()).sum())
        for group, mass in zip([*groups, others], p.tolist(), strict=False):
            agreeing[number, group] = math.log(mass / len(group))
        read += tokens[row[number]]
    weight = torch.eye(len(tokens))
    for of_student, loss in ((student, sum(wanted).item()), (agreeing, 0.0)):
        hidden = of_student.clone().requires_grad_()
        signal = toy.signal(writer.logits(teacher_row))
        sums = distillation_loss(hidden, LinearProjection(weight), torch.tensor(row), signal, kd_ratio=1.0)
        assert sums.kd.item() == pytest.approx(loss, rel=1e-5, abs=1e-6)
        found = torch.autograd.grad(sums.loss, hidden)[0]
        exact = torch.autograd.grad(sum(wanted), logits, retain_graph=True)[0] if loss else torch.zeros_like(found)
        assert (found - exact).norm() < 1e-5


def test_a_student_that_writes_the_teachers_texts_behind_a_space_has_no_loss():
    """Each first token of the teacher's has a counterpart of the student's with a space before it, and each later one
    itself: " ab", "c", the end."""
    teacher = [None, *LETTERS, b"ab"]
    student = [None, *LETTERS, b"ab", *(b" " + text for text in teacher[1:])]
    toy = Toy(student, teacher, [8, 3, 0], [4, 3, 0], space_before=True)
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    agreeing = torch.full((3, 9), -30.0)
    agreeing[0, [0, 5, 6, 7, 8]] = logits[0]
    agreeing[1:, :5] = logits[1:]

    def found(hidden):
        hidden = hidden.clone().requires_grad_()
        targets = torch.tensor(toy.student_row)
        sums = distillation_loss(hidden, LinearProjection(torch.eye(9)), targets, toy.signal(logits), kd_ratio=1.0)
        return sums.kd.item(), torch.autograd.grad(sums.loss, hidden)[0]

    loss, gradient = found(agreeing)
    assert loss == pytest.approx(0.0, abs=1e-6)
    assert gradient.norm() < 1e-6
    agreeing[0, 0] += 3  # the end of an empty answer is told from " a"
    assert found(agreeing)[0] > 0.01


# One tokenizer on both sides: the plain divergence.


def one_tokenizer(length=30, seed=4):
    toy = written(seed, length=length, extra=9)
    return Toy(toy.student, toy.student, toy.student_row, toy.student_row)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(("temperature", "kd_ratio"), [(1.0, 1.0), (2.0, 0.4)])
def test_with_one_tokenizer_it_is_the_divergence_itself(name, temperature, kd_ratio):
    toy, divergence = one_tokenizer(), DIVERGENCES[name][0]
    hidden, weight, teacher = parts(toy, padding=0)
    found, wanted = [], []
    for into, signal in ((found, toy.signal(teacher)), (wanted, DenseLogits(teacher))):
        sums = distillation_loss(
            hidden,
            LinearProjection(weight),
            torch.tensor(toy.student_row),
            signal,
            kd_ratio=kd_ratio,
            temperature=temperature,
            divergence=divergence,
        )
        into += [sums.loss, sums.kd, *torch.autograd.grad(sums.loss, [hidden, weight])]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


# How rows are cut.


@pytest.mark.parametrize("rows_of_chunk", [1, 3, 8])
@pytest.mark.parametrize("rows_of_part", [1, 2, 50])
@pytest.mark.parametrize("masked", [(), (4, 5, 6, 7)])
@pytest.mark.parametrize("space_before", [False, True])
def test_how_rows_are_cut_changes_nothing(rows_of_chunk, rows_of_part, masked, space_before, monkeypatch):
    toy = dataclasses.replace(written(8, length=60, space_before=space_before), masked=masked)
    hidden, weight, teacher = parts(toy)

    def results():
        sums = distillation_loss(
            hidden, LinearProjection(weight), torch.tensor(toy.student_row), toy.signal(teacher), kd_ratio=0.5
        )
        return [sums.loss, *torch.autograd.grad(sums.loss, [hidden, weight])]

    whole = results()
    of_row = 4 * (len(weight) + teacher.shape[1])
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", of_row * rows_of_chunk)
    monkeypatch.setitem(rows._PART_BYTES, "cpu", of_row // 2 * rows_of_part)
    for one, other in zip(results(), whole, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_each_of_the_teachers_rows_is_projected_once(monkeypatch):
    toy = written(8, length=200)
    hidden, weight, teacher = parts(toy)
    of_row = 4 * (len(weight) + teacher.shape[1])
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", of_row * 12)
    asked = []

    class Counted(DenseLogits):
        def logits(self, start, stop, memory):
            asked.append((start, stop))
            return super().logits(start, stop, memory)

    signal = dataclasses.replace(toy.signal(teacher), signal=Counted(teacher))
    distillation_loss(hidden, LinearProjection(weight), torch.tensor(toy.student_row), signal, kd_ratio=1.0)
    assert len(asked) > 5
    assert [row for start, stop in asked for row in range(start, stop)] == list(range(len(teacher)))


def test_without_a_common_boundary_a_chunk_is_longer_than_its_budget(monkeypatch):
    toy = Toy([None, b"ab", b"c"], [None, b"a", b"bca", b"bc"], [1, 2] * 6 + [0], [1] + [2] * 5 + [3, 0])
    positions = toy.signal(parts(toy)[2]).positions
    assert pieces_between_cuts(13, 1, [(positions, 1)], 2) == [(0, 12), (12, 13)]
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 1)
    compare(toy)


# Several teachers.


def test_teachers_of_several_tokenizers_are_added_up():
    ours = written(11, length=24)
    other = written(11, length=24, most=(2, 4))
    other = Toy(ours.student, other.teacher, ours.student_row, other.teacher_row)
    hidden, weight, teacher = parts(ours)
    _, _, second = parts(other, seed=3)
    own = torch.randn(len(ours.student_row), len(ours.student) + 2)
    signals = [ours.signal(teacher), other.signal(second), DenseLogits(own)]
    sums = distillation_loss(
        hidden,
        LinearProjection(weight),
        torch.tensor(ours.student_row),
        SumOfTeachers(signals, [0.5, 0.3, 0.2]),
        kd_ratio=1.0,
    )
    logits = hidden.double() @ weight.double().T
    wanted = (
        0.5 * by_definition(ours, logits, teacher, kl).sum()
        + 0.3 * by_definition(other, logits, second, kl).sum()
        + 0.2 * kl(own.double().log_softmax(-1), logits.log_softmax(-1)).sum()
    )
    assert sums.kd.item() == pytest.approx(wanted.item(), rel=1e-5)
    found, exact = (torch.autograd.grad(loss, hidden)[0] for loss in (sums.loss, wanted))
    assert (found - exact).norm() < 1e-5 * exact.norm()


def test_of_each_row_one_teacher_of_another_tokenizer():
    toy = written(12, length=24)
    hidden, weight, teacher = parts(toy)
    cut = int(toy.signal(teacher).positions.cuts()[5:].nonzero()[0]) + 5
    whole = toy.signal(teacher)
    signals, owned = [], []
    for start, stop in ((0, cut), (cut, len(toy.student_row))):
        positions, first, end = whole.positions.cut(start, stop)
        signals.append(Aligned(DenseLogits(teacher[first:end]), whole.targets[first:end], positions, whole.classes))
        owned.append(torch.arange(start, stop))
    sums, wanted = (
        distillation_loss(hidden, LinearProjection(weight), torch.tensor(toy.student_row), signal, kd_ratio=1.0)
        for signal in (TeacherOfEachRow(signals, owned), whole)
    )
    assert sums.kd.item() == pytest.approx(wanted.kd.item(), rel=1e-6)


# What cannot be had.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token_weight": TeacherCertainty()}, "TeacherCertainty is of a teacher's own tokens"),
        ({"common_vocab_size": 3}, "over all of the student's"),
    ],
)
def test_what_is_of_one_vocabulary_is_refused(settings, said):
    toy = written(0)
    hidden, weight, teacher = parts(toy)
    with pytest.raises(ValueError, match=said):
        distillation_loss(
            hidden,
            LinearProjection(weight),
            torch.tensor(toy.student_row),
            toy.signal(teacher),
            kd_ratio=1.0,
            **settings,
        )


def test_positions_of_other_rows_and_classes_of_other_vocabularies_are_refused():
    toy = written(0)
    hidden, weight, teacher = parts(toy)
    targets, signal = torch.tensor(toy.student_row), toy.signal(teacher)
    with pytest.raises(ValueError, match=r"positions of \d+ rows"):
        distillation_loss(hidden[1:], LinearProjection(weight), targets[1:], signal, kd_ratio=1.0)
    with pytest.raises(ValueError, match="classes of "):
        distillation_loss(hidden, LinearProjection(weight[1:]), targets, signal, kd_ratio=1.0)


def test_a_mixture_of_teachers_of_several_tokenizers_is_refused():
    toy = written(0)
    hidden, weight, teacher = parts(toy)
    mixture = MixtureOfTeachers([toy.signal(teacher)], [1.0])
    with pytest.raises(ValueError, match="combine by sum or by_row"):
        distillation_loss(hidden, LinearProjection(weight), torch.tensor(toy.student_row), mixture, kd_ratio=1.0)


def test_a_loss_between_tokenizers_is_refused_for_a_teacher_of_the_same_one():
    toy = one_tokenizer()
    hidden, weight, teacher = parts(toy, padding=0)
    with pytest.raises(ValueError, match="BytePrefixMass is for a teacher of another tokenizer"):
        distillation_loss(
            hidden,
            LinearProjection(weight),
            torch.tensor(toy.student_row),
            DenseLogits(teacher),
            kd_ratio=1.0,
            divergence=BytePrefixMass(),
        )


@pytest.mark.parametrize("name", ["forward", "jsd 0.5", "mse"])
def test_what_a_student_without_any_rest_cannot_say_is_left_out_of_the_teacher(name):
    """As a teacher's control tokens, where all tokens of the student have a class."""
    student = TokenBytes((None, b"a", b"b"), {"<end>": 0})
    teacher = TokenBytes((None, b"a", b"b", None), {"<end>": 0, "<tool>": 3})
    vocabulary = VocabularyMap(student, teacher, 3, 4, {0}, {0})
    positions = vocabulary.positions(numpy.array([[0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 2, 2]]), numpy.array([1, 2]))
    hidden, logits = torch.randn(2, D, requires_grad=True), torch.randn(2, 4)
    logits[:, 3] = 2.0
    divergence, formula = DIVERGENCES[name]
    signal = Aligned(
        DenseLogits(logits), torch.tensor([1, 2]), positions, vocabulary.token_classes(torch.device("cpu"))
    )
    weight = torch.randn(3, D)
    found = distillation_loss(
        hidden, LinearProjection(weight), torch.tensor([1, 2]), signal, kd_ratio=1.0, divergence=divergence
    )
    log_q, log_p = (of.double().log_softmax(-1) for of in (hidden @ weight.T, logits[:, :3]))
    wanted = formula(log_p, log_q).sum()
    assert found.kd.item() == pytest.approx(wanted.item(), rel=1e-5)
    gradients = [torch.autograd.grad(of, hidden)[0] for of in (found.loss, wanted)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)
