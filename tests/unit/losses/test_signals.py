"""Several teachers in one loss, against the formula in float64."""

import pytest
import torch
import torch.nn.functional as F

from distill_tune import losses
from distill_tune.losses import DenseLogits, HiddenStates, LinearProjection, distillation_loss, head, rows

N, V = 41, 29
WEIGHTS = [0.7, 0.3]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 4 * V * 30})
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * V * 3)


def example():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, 16, generator=generator).requires_grad_()
    weight = torch.randn(V, 16, generator=generator).requires_grad_()
    of_teachers = [(torch.randn(N, d, generator=generator), torch.randn(V, d, generator=generator)) for d in (8, 24)]
    return hidden, weight, torch.randint(V, (N,), generator=generator), of_teachers


def signals_of(of_teachers, softcap=None):
    return [HiddenStates(h, LinearProjection(w, softcap=softcap)) for h, w in of_teachers]


def compare(signal, wanted, temperature=2.0, kd_ratio=0.6, **settings):
    """Value and both gradients against ``wanted(student logits, teachers' logits)``, all float64."""
    hidden, weight, targets, of_teachers = example()
    projection = LinearProjection(weight)
    sums = distillation_loss(
        hidden, projection, targets, signal(of_teachers), kd_ratio=kd_ratio, temperature=temperature, **settings
    )
    found = torch.autograd.grad(sums.loss, [hidden, weight])
    logits = hidden.double() @ weight.double().T
    kd = wanted(logits, [h.double() @ w.double().T for h, w in of_teachers])
    ce = F.cross_entropy(logits, targets, reduction="sum")
    exact = (1 - kd_ratio) * ce + kd_ratio * temperature**2 * kd
    assert sums.loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert sums.kd.item() == pytest.approx(kd.item(), rel=1e-5)
    for gradient, right in zip(found, torch.autograd.grad(exact, [hidden, weight]), strict=True):
        assert (gradient - right).norm() / right.norm() < 1e-5


def kl(teacher_log_probs, student_log_probs):
    return F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)


def test_a_mixture_is_one_teacher():
    def wanted(logits, teachers):
        mixed = sum(w * t.softmax(-1) for w, t in zip(WEIGHTS, teachers, strict=True)).log()
        return kl((mixed / 2).log_softmax(-1), (logits / 2).log_softmax(-1))

    compare(lambda of_teachers: losses.MixtureOfTeachers(signals_of(of_teachers), WEIGHTS), wanted)


@pytest.mark.parametrize("divergence", [losses.ForwardKL(), losses.ReverseKL()])
def test_a_sum_has_a_divergence_from_each(divergence):
    def wanted(logits, teachers):
        q = (logits / 2).log_softmax(-1)
        ps = [(t / 2).log_softmax(-1) for t in teachers]
        pairs = [(p, q) if isinstance(divergence, losses.ForwardKL) else (q, p) for p in ps]
        return sum(w * kl(*pair) for w, pair in zip(WEIGHTS, pairs, strict=True))

    compare(lambda of_teachers: losses.SumOfTeachers(signals_of(of_teachers), WEIGHTS), wanted, divergence=divergence)


def test_one_teachers_gradient_does_not_lie_where_the_next_ones_is_made():
    def wanted(logits, teachers):
        q = logits.softmax(-1)
        return sum(0.5 * w * (t.softmax(-1) - q).abs().sum() for w, t in zip(WEIGHTS, teachers, strict=True))

    settings = {"divergence": losses.TotalVariation(), "temperature": 1.0, "kd_ratio": 1.0}
    compare(lambda of_teachers: losses.SumOfTeachers(signals_of(of_teachers), WEIGHTS), wanted, **settings)


def test_each_row_has_its_own_teacher():
    owner = torch.arange(N) % 3 == 0
    rows = [owner.nonzero()[:, 0], (~owner).nonzero()[:, 0]]

    def signal(of_teachers):
        own = [(h[at], w) for (h, w), at in zip(of_teachers, rows, strict=True)]
        return losses.TeacherOfEachRow(signals_of(own), rows)

    def wanted(logits, teachers):
        chosen = torch.where(owner[:, None], teachers[0], teachers[1])
        return kl((chosen / 2).log_softmax(-1), (logits / 2).log_softmax(-1))

    compare(signal, wanted)


def test_caps_and_smaller_vocabularies_of_one_teacher_are_kept():
    hidden, weight, targets, of_teachers = example()
    (h, w), (h2, w2) = of_teachers
    capped = HiddenStates(h, LinearProjection(w, softcap=3.0))
    plain = DenseLogits(3.0 * ((h @ w.T) / 3.0).tanh())
    smaller = DenseLogits(h2 @ w2[:20].T)
    with_cap, without = (
        distillation_loss(
            hidden,
            LinearProjection(weight),
            targets,
            losses.MixtureOfTeachers([one, smaller], WEIGHTS),
            kd_ratio=1.0,
            common_vocab_size=20,
        )
        for one in (capped, plain)
    )
    assert with_cap.loss.item() == pytest.approx(without.loss.item(), rel=1e-5)
