"""The methods between tokenizers through the head, wherever it cuts rows."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from aligned_rows import SPANS, compared, example
from toy_tokenizers import Toy, written

from distill_tune.losses import (
    Aligned,
    ChunkLikelihood,
    DenseLogits,
    Gold,
    LinearProjection,
    SumOfTeachers,
    TargetProbability,
    TokenLikelihoods,
    UniversalLogit,
    distillation_loss,
    head,
    rows,
)

METHODS = [ChunkLikelihood(), ChunkLikelihood(1.0), UniversalLogit(), Gold(), Gold(0.0)]
D = 12


@pytest.mark.parametrize("rows_of_a_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_value_and_gradients_do_not_depend_on_where_rows_are_cut(method, rows_of_a_chunk, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 4 * 42 * rows_of_a_chunk})
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * 21 * max(1, rows_of_a_chunk // 2))
    _, teacher, targets, word, _ = example(SPANS * 2, masked=[4, 14])
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(len(targets), D, generator=generator).requires_grad_()
    weight = (torch.randn(19, D, generator=generator) / 2).requires_grad_()
    signal = Aligned(DenseLogits(teacher), word.targets, word.on_cpu, word.classes)
    sums = distillation_loss(
        hidden, LinearProjection(weight), targets, signal, kd_ratio=0.6, temperature=2.0, divergence=method
    )

    logits = hidden @ weight.T
    values, gradient = compared(method, logits.detach(), teacher, targets, word, temperature=2.0)
    ce = F.cross_entropy(logits, targets, reduction="sum")
    assert sums.kd.item() == pytest.approx(values.sum().item(), rel=1e-5)
    assert sums.loss.item() == pytest.approx((0.4 * ce + 0.6 * 4 * values.sum()).item(), rel=1e-5)
    wanted = torch.autograd.grad(0.4 * ce + (0.6 * 2 * gradient * logits).sum(), [hidden, weight])
    for found, right in zip(torch.autograd.grad(sums.loss, [hidden, weight]), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows_of_a_chunk", [3, 100])
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_the_likelihoods_of_its_own_tokens_are_all_that_chunk_likelihood_asks(tau, rows_of_a_chunk, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 4 * 42 * rows_of_a_chunk})
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * 21 * max(1, rows_of_a_chunk // 2))
    student, teacher, targets, word, _ = example(SPANS * 2, masked=[4, 14])
    projection = LinearProjection(student.T.contiguous())
    capped = 3.0 * (teacher / 3.0).tanh()
    found = []
    for signal in (DenseLogits(teacher, softcap=3.0), TokenLikelihoods.of(capped, word.targets, 2.0)):
        hidden = torch.eye(len(targets)).requires_grad_()
        aligned = Aligned(signal, word.targets, word.on_cpu, word.classes)
        settings = {"kd_ratio": 0.6, "temperature": 2.0, "divergence": ChunkLikelihood(tau)}
        sums = distillation_loss(hidden, projection, targets, SumOfTeachers([aligned, aligned], [0.5, 0.5]), **settings)
        found.append((sums.loss.detach(), sums.kd, torch.autograd.grad(sums.loss, hidden)[0]))
    for live, recorded in zip(*found, strict=True):
        torch.testing.assert_close(recorded, live, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"divergence": Gold()}, "a likelihood record serves ChunkLikelihood, .* not Gold: .* or kind hidden"),
        ({"divergence": None}, "not ForwardKL"),
        ({"temperature": 1.0}, "made at temperature 2 serves no other, and the loss is at 1: make one at 1"),
        ({"token_weight": TargetProbability()}, "TargetProbability is of a teacher's own tokens"),
        ({"rows": 3}, "a likelihood record of 3 rows, where the teacher has"),
    ],
)
def test_what_likelihoods_cannot_serve_is_told(settings, told):
    student, teacher, targets, word, _ = example(SPANS)
    settings = {"divergence": ChunkLikelihood(), "temperature": 2.0, "rows": len(teacher)} | settings
    n_t = settings.pop("rows")
    record = TokenLikelihoods.of(teacher[:n_t], word.targets[:n_t], 2.0)
    signal = Aligned(record, word.targets, word.on_cpu, word.classes)
    with pytest.raises(ValueError, match=told):
        distillation_loss(student, LinearProjection(torch.eye(19)), targets, signal, kd_ratio=1.0, **settings)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_token_that_begins_with_a_space_before_the_teachers_text_is_left_out(method, seed):
    toy = written(seed, length=20, space_before=True)
    hidden = torch.randn(len(toy.student_row), len(toy.student), requires_grad=True)
    teacher, projection = (
        torch.randn(len(toy.teacher_row), len(toy.teacher)),
        LinearProjection(torch.eye(len(toy.student))),
    )
    found = []
    for one in (toy, dataclasses.replace(toy, masked=(0,))):
        targets = torch.tensor(one.student_row)
        sums = distillation_loss(hidden, projection, targets, one.signal(teacher), kd_ratio=1.0, divergence=method)
        found.append((sums.kd.item(), torch.autograd.grad(sums.loss, hidden)[0]))
    assert found[0][0] == found[1][0] > 0
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_several_teachers_of_several_tokenizers_add_up(method, monkeypatch):
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * 21)
    student, first, targets, word, _ = example(SPANS)
    # The other one's tokens have other lengths, and another vocabulary.
    merged = [(mine, [sum(theirs)]) for mine, theirs in SPANS]
    _, second, _, other, _ = example(merged, v_t=29, seed=3)
    hidden = torch.eye(len(targets))

    def kd(signal):
        projection = LinearProjection(student.T.contiguous())
        return distillation_loss(hidden, projection, targets, signal, kd_ratio=1.0, divergence=method).kd.item()

    signals = [
        Aligned(DenseLogits(teacher), of.targets, of.on_cpu, of.classes)
        for teacher, of in ((first, word), (second, other))
    ]
    apart = [kd(signal) for signal in signals]
    assert kd(SumOfTeachers(signals, [0.7, 0.3])) == pytest.approx(0.7 * apart[0] + 0.3 * apart[1], rel=1e-5)


@pytest.mark.parametrize("student_merges", [False, True])
@pytest.mark.parametrize(("method", "is_zero"), [(METHODS[0], True), (UniversalLogit(), False), (Gold(), False)])
def test_one_distribution_over_texts_of_which_one_side_merges_pairs(method, is_zero, student_merges):
    """The probability of a span is that of its text, however it is cut; sorted probabilities are of tokens."""
    letters, pairs = [b"a", b"b", b"c", None], [x + y for x in (b"a", b"b", b"c") for y in (b"a", b"b", b"c")] + [None]
    of_pairs = torch.tensor([0.05, 0.2, 0.1, 0.05, 0.03, 0.12, 0.15, 0.1, 0.1, 0.1])  # any text of pairs, then the end
    of_first = torch.cat([of_pairs[:9].view(3, 3).sum(1), of_pairs[9:]])
    of_second = F.pad(of_pairs[:9].view(3, 3) / of_first[:3, None], (0, 1))
    text = [1, 8, 3, 0, 9]
    rows_of_pairs = torch.stack([of_pairs] * len(text)).log()
    spelled = [letters.index(bytes([byte])) for pair in text[:-1] for byte in pairs[pair]] + [3]
    rows_of_letters = [of_second[spelled[i - 1]] if i % 2 else of_first for i in range(len(spelled))]
    sides = [(letters, spelled, torch.stack(rows_of_letters).log().clamp(min=-50)), (pairs, text, rows_of_pairs)]
    (mine, my_row, logits), (its, its_row, teacher) = sides[::-1] if student_merges else sides
    toy = Toy(mine, its, my_row, its_row)
    projection = LinearProjection(logits.T.contiguous())
    hidden, targets = torch.eye(len(my_row)).requires_grad_(), torch.tensor(my_row)
    sums = distillation_loss(hidden, projection, targets, toy.signal(teacher), kd_ratio=1.0, divergence=method)
    (gradient,) = torch.autograd.grad(sums.loss, hidden)
    assert (sums.kd.item() < 1e-6) == is_zero
    assert (gradient.abs().max().item() < 1e-5) == is_zero
