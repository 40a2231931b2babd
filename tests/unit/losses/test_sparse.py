"""Records of a teacher's distribution in the head, against float64 and against all of the teacher's logits."""

import pytest
import torch
import torch.nn.functional as F
from plain_divergences import DIVERGENCES, kl, plain_top_k
from torch.distributed._tools.mem_tracker import MemTracker

from distill_tune import losses
from distill_tune.losses import (
    DenseLogits,
    LinearProjection,
    SampledTokens,
    SumOfTeachers,
    TeacherOfEachRow,
    TopTokens,
    distillation_loss,
    head,
    rows,
    unserved,
)

N, D, V, K = 41, 16, 53, 7
PLAIN = {name: pair for name, pair in DIVERGENCES.items() if not isinstance(pair[0], losses.TopK)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 4 * V * 15})
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * V * 4)


def example(n=N, teacher_vocab=V, seed=0):
    """Hidden states, output layer, targets, a peaked teacher's logits."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, D, generator=generator).requires_grad_()
    weight = (torch.randn(V, D, generator=generator) / 2).requires_grad_()
    targets = torch.randint(0, min(V, teacher_vocab), (n,), generator=generator)
    return hidden, weight, targets, torch.randn(n, teacher_vocab, generator=generator) * 3


def ours(example_of, signal, softcap=None, **settings):
    hidden, weight, targets, _ = example_of
    sums = distillation_loss(hidden, LinearProjection(weight, softcap=softcap), targets, signal, **settings)
    return sums, torch.autograd.grad(sums.loss, [hidden, weight])


def exact(example_of, divergence_of, kd_ratio=0.5, temperature=1.0, softcap=None, common_vocab_size=V):
    """(kd, loss, gradients) in float64; ``divergence_of(log q at the temperature)`` gives one number a row."""
    hidden, weight, targets, _ = example_of
    logits = hidden.double() @ weight.double().T
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    ce = F.cross_entropy(logits, targets, reduction="sum")
    kd = divergence_of((logits[:, :common_vocab_size] / temperature).log_softmax(-1)).sum()
    loss = (1 - kd_ratio) * ce + kd_ratio * temperature**2 * kd
    return kd, loss, torch.autograd.grad(loss, [hidden, weight])


def assert_exact(found, wanted, tolerance=1e-5):
    sums, gradients = found
    kd, loss, exact_gradients = wanted
    assert sums.kd.item() == pytest.approx(kd.item(), rel=1e-5)
    assert sums.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for gradient, right in zip(gradients, exact_gradients, strict=True):
        assert (gradient - right).norm() / right.norm() < tolerance


SETTINGS = [
    {},
    {"kd_ratio": 1.0},
    {"temperature": 2.0},
    {"temperature": 0.7},
    {"temperature": 2.0, "kd_ratio": 1.0},
    {"softcap": 3.0},
    {"softcap": 3.0, "temperature": 0.7},
    {"common_vocab_size": 40},
    {"common_vocab_size": 40, "temperature": 2.0, "softcap": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_top_tokens_have_the_divergence_of_k_events_and_the_rest(name, settings):
    divergence, formula = PLAIN[name]
    settings = {"kd_ratio": 0.5, **settings}
    x = example(teacher_vocab=settings.get("common_vocab_size", V))
    temperature = settings.get("temperature", 1.0)
    signal = TopTokens.of(x[3], K, temperature)
    p = (x[3].double() / temperature).log_softmax(-1)
    wanted = exact(x, lambda q: plain_top_k(p, q, K, formula), **settings)
    assert_exact(ours(x, signal, divergence=divergence, **settings), wanted)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", PLAIN)
def test_top_tokens_are_top_k_of_the_logits(name, temperature):
    divergence, x = PLAIN[name][0], example()
    settings = {"kd_ratio": 0.5, "temperature": temperature}
    dense = ours(x, DenseLogits(x[3]), divergence=losses.TopK(K, divergence), **settings)
    for signal, asked in [
        (TopTokens.of(x[3], K, temperature), divergence),
        (TopTokens.of(x[3], K, temperature), losses.TopK(K, divergence)),
        (TopTokens.of(x[3], 2 * K, temperature), losses.TopK(K, divergence)),
    ]:
        sums, gradients = ours(x, signal, divergence=asked, **settings)
        assert sums.kd.item() == pytest.approx(dense[0].kd.item(), rel=1e-6)
        assert sums.loss.item() == pytest.approx(dense[0].loss.item(), rel=1e-6)
        for gradient, wanted in zip(gradients, dense[1], strict=True):
            assert (gradient - wanted).norm() / wanted.norm() < 1e-6


def in_common(x, record):
    """Of reverse KL: the sum of q log(q / p) - q + p over the record's tokens and the rest, for a student's log q."""
    log_p = x[3].double().log_softmax(-1)
    is_token = torch.zeros(N, V, dtype=torch.bool).scatter(1, record.ids.long(), True)

    def generalised(log_q):
        terms = log_q.exp() * (log_q - log_p) - log_q.exp() + log_p.exp()
        q_rest, p_rest = (of.exp().masked_fill(is_token, 0).sum(-1) for of in (log_q, log_p))
        of_rest = q_rest * (q_rest / p_rest).log() - q_rest + p_rest
        return terms.masked_fill(~is_token, 0).sum(-1) + of_rest

    return generalised


def test_with_the_students_likeliest_beside_reverse_kl_is_the_generalised_one_over_the_tokens_of_both():
    x = example()
    of_student = (x[0] @ x[1].T).topk(5).indices
    alone, both = TopTokens.of(x[3], 5), TopTokens.of(x[3], 5, others=of_student)
    assert both.ids.shape == (N, 10) and (both.is_token.sum(-1) < 10).any()  # some are the teacher's as well
    settings = {"kd_ratio": 1.0, "divergence": losses.ReverseKL()}
    wanted = exact(x, in_common(x, both), kd_ratio=1.0)
    found = ours(x, both, **settings)
    assert_exact(found, wanted)
    of_few, of_both, of_all = (ours(x, signal, **settings)[0].kd for signal in (alone, both, DenseLogits(x[3].clone())))
    assert 0 < of_few < of_both < of_all


def test_tokens_put_beside_a_record_are_those_of_one_that_was_made_with_them():
    x = example()
    others = torch.randint(0, V, (N, 6), generator=torch.Generator().manual_seed(3))
    log_probs = x[3].log_softmax(-1).gather(1, others)
    found, wanted = TopTokens.of(x[3], K).beside(others, log_probs), TopTokens.of(x[3], K, others=others)
    assert torch.equal(found.ids, wanted.ids) and torch.equal(found.is_token, wanted.is_token)
    torch.testing.assert_close(found.log_probs, wanted.log_probs)
    torch.testing.assert_close(found.log_rest, wanted.log_rest, rtol=1e-4, atol=1e-4)
    sure = TopTokens(found.ids[:, :1], torch.zeros(N, 1), torch.full((N,), -40.0), 1.0, V)
    assert torch.equal(sure.beside(others, torch.full_like(log_probs, -50.0)).log_rest, sure.log_rest)


def test_top_tokens_of_a_whole_vocabulary_are_all_of_the_teacher():
    x = example()
    p = x[3].double().log_softmax(-1)
    assert_exact(ours(x, TopTokens.of(x[3], 100), kd_ratio=0.5), exact(x, lambda q: kl(p, q)))


@pytest.mark.parametrize("sure", [30.0, 60.0])
def test_a_rest_that_the_student_holds_impossible_keeps_its_gradient(sure):
    """A difference from 1 would leave no digit of its probability."""
    hidden, weight, targets, teacher = example()
    with torch.no_grad():
        weight[0] = 0
        hidden[:, 0] = sure
        weight[:, 0] = 0
        weight[0, 0] = 1.0
        teacher[:, 0] = 4.0
    x = hidden, weight, targets, teacher
    p = teacher.double().log_softmax(-1)
    wanted = exact(x, lambda q: plain_top_k(p, q, K, kl), kd_ratio=1.0)
    assert_exact(ours(x, TopTokens.of(teacher, K), kd_ratio=1.0), wanted)


@pytest.mark.parametrize("divergence", [losses.ForwardKL, losses.SymmetricKL])
def test_a_rest_that_float32_cannot_tell_from_nothing_is_very_unlikely_and_not_impossible(divergence):
    """The student is surer than 1e-38 leaves room for; its logits still say how unlikely the rest is, 110 nats."""
    teacher, student = torch.zeros(3, 1000), torch.zeros(3, 1000)
    teacher[:, 0], student[:, 0] = 12.0, 110.0
    found = []
    for signal, of in (
        (DenseLogits(teacher), divergence()),
        (DenseLogits(teacher), losses.TopK(5, divergence())),
        (TopTokens.of(teacher, 5), losses.TopK(5, divergence())),
    ):
        targets, head_of = torch.zeros(3, dtype=torch.long), LinearProjection(torch.eye(1000))
        found.append(
            distillation_loss(student.clone(), head_of, targets, signal, kd_ratio=1.0, divergence=of).kd.item()
        )
    assert found == pytest.approx([found[0]] * 3, rel=0.2)  # 87 nats in place of 103


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("proposal_temperature", [None, 1.5])
def test_sampled_tokens_have_the_value_and_gradient_of_their_formula(settings, proposal_temperature):
    settings = {"kd_ratio": 0.5, **settings}
    x = example(teacher_vocab=settings.get("common_vocab_size", V))
    generator = torch.Generator().manual_seed(1)
    signal = SampledTokens.drawn(x[3], 20, settings.get("temperature", 1.0), generator, proposal_temperature)
    assert (signal.weights[:, -1] == 0).any()  # padding is part of what is tested

    def formula(q):
        return -(signal.weights.double() * q.gather(1, signal.ids.long())).sum(-1) - signal.entropy.double()

    assert_exact(ours(x, signal, **settings), exact(x, formula, **settings))


def over_draws(x, draws, temperature=1.0, proposal_temperature=None, repeats=300):
    """Of each of ``repeats`` records: the value, and the gradient along some random directions, ``[repeats, 1 + 8]``;
    and what they are of all of the teacher's logits."""
    generator = torch.Generator().manual_seed(2)
    settings = {"kd_ratio": 0.9, "temperature": temperature}
    directions = [torch.randn(8, *tensor.shape, generator=generator) / tensor.numel() ** 0.5 for tensor in x[:2]]

    def seen(signal):
        sums, gradients = ours(x, signal, **settings)
        along = sum((d * g).flatten(1).sum(1) for d, g in zip(directions, gradients, strict=True))
        return torch.cat([sums.kd.detach()[None], along]).double()

    found = [
        seen(SampledTokens.drawn(x[3], draws, temperature, generator, proposal_temperature)) for _ in range(repeats)
    ]
    return torch.stack(found), seen(DenseLogits(x[3]))


def assert_mean_is(found, wanted):
    standard_error = found.std(0) / len(found) ** 0.5
    off = (found.mean(0) - wanted).abs() / standard_error
    assert off.max() < 4, f"{off.tolist()} standard errors, which are {standard_error.tolist()}, from {wanted.tolist()}"
    return standard_error


@pytest.mark.parametrize(
    ("draws", "temperature", "proposal_temperature"), [(1, 1.0, None), (12, 2.0, None), (12, 1.0, 1.5), (3, 2.0, 1.0)]
)
def test_the_mean_over_draws_is_the_value_and_gradient_of_the_whole_distribution(
    draws, temperature, proposal_temperature, monkeypatch
):
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 2**20)
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 2**20)
    found, wanted = over_draws(example(), draws, temperature, proposal_temperature)
    standard_error = assert_mean_is(found, wanted)
    # Sharp enough to tell it from what drops the tail.
    assert standard_error[0] < 0.05 * wanted[0], f"standard error {standard_error[0]} of {wanted[0]}"


def test_the_value_is_a_divergence_not_a_cross_entropy():
    """Nothing where both agree, though of few draws it is above or below."""
    hidden, weight, targets, _ = example()
    x = hidden, weight, targets, (hidden @ weight.T).detach()
    found, wanted = over_draws(x, 12, repeats=100)
    assert abs(wanted[0]) < 1e-4
    standard_error = assert_mean_is(found[:, :1], wanted[:1])
    entropy = SampledTokens.drawn(x[3]).entropy.sum()
    assert standard_error[0] < 0.01 * entropy and found[:, 0].min() < 0 < found[:, 0].max()


def test_draws_are_distinct_tokens_with_their_share():
    logits = example(200)[3]
    probs = logits.double().softmax(-1)
    record = SampledTokens.drawn(logits, 50, generator=torch.Generator().manual_seed(0))
    of_all = torch.zeros(200, V).scatter_add_(1, record.ids.long(), record.weights)
    assert torch.equal((of_all > 0).sum(1), (record.weights > 0).sum(1)), "a token stands twice"
    torch.testing.assert_close(of_all.sum(1), torch.ones(200))
    assert ((of_all - probs).abs() * 50).max() < 2
    torch.testing.assert_close(record.entropy.double(), -(probs * probs.log()).sum(1), rtol=1e-5, atol=1e-6)
    assert record.ids.dtype == torch.int32 and record.ids.shape[1] < 50


def test_draws_from_another_distribution_are_weighed_by_their_ratio():
    logits = example(200)[3]
    record = SampledTokens.drawn(logits, 50, 2.0, torch.Generator().manual_seed(0), proposal_temperature=1.0)
    ratio = (logits / 2).softmax(-1) / logits.softmax(-1)
    counts = record.weights / ratio.gather(1, record.ids.long()) * 50
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(counts.sum(1), torch.full((200,), 50.0), rtol=1e-4, atol=0)
    assert record.temperature == 2.0


@pytest.mark.parametrize("v", [53, 4096])
def test_parts_of_the_rows_are_drawn_alike(v, monkeypatch):
    from distill_tune.losses import sparse

    logits = torch.randn(20, v, generator=torch.Generator().manual_seed(0)) * 3
    whole = TopTokens.of(logits, 5)
    monkeypatch.setattr(sparse, "_PART_BYTES", 8 * v * 3)
    parts = TopTokens.of(logits, 5)
    assert torch.equal(whole.ids, parts.ids) and torch.equal(whole.log_rest, parts.log_rest)
    drawn = SampledTokens.drawn(logits, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.weights.sum(1), torch.ones(20))


def test_tokens_that_only_fill_a_row_count_nothing():
    """Also where token 0, with which it is filled, is one of the row's own."""
    x = example()
    x[3][::2, 0] = 9.0
    record = TopTokens.of(x[3], 3)
    filled = TopTokens(
        F.pad(record.ids, (0, 2)), F.pad(record.log_probs, (0, 2), value=-torch.inf), record.log_rest, 1.0, V
    )
    drawn = SampledTokens.drawn(x[3], generator=torch.Generator().manual_seed(0))
    more = SampledTokens(F.pad(drawn.ids, (0, 5)), F.pad(drawn.weights, (0, 5)), drawn.entropy, 1.0, V)
    for plain, padded, divergences in [(record, filled, PLAIN), (drawn, more, ["forward"])]:
        for name in divergences:
            settings = {"kd_ratio": 0.5, "divergence": PLAIN[name][0]}
            (sums, gradients), (wanted, wanted_gradients) = ours(x, padded, **settings), ours(x, plain, **settings)
            assert sums.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
            for gradient, right in zip(gradients, wanted_gradients, strict=True):
                torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-6)


def test_log_probabilities_that_storage_has_rounded_are_one_distribution():
    x = example()
    record = TopTokens.of(x[3], K)
    coarse = TopTokens(record.ids, (record.log_probs * 8).round() / 8, (record.log_rest * 8).round() / 8, 1.0, V)
    mass = coarse.log_probs.exp().sum(1) + coarse.log_rest.exp()
    assert (mass - 1).abs().max() > 0.02

    def formula(q):
        rest = torch.ones_like(q, dtype=torch.bool).scatter(1, coarse.ids.long(), False)
        rest = q.where(rest, -torch.inf).logsumexp(-1)
        events = torch.cat([coarse.log_probs, coarse.log_rest[:, None]], 1).double().log_softmax(-1)
        return kl(events, torch.cat([q.gather(1, coarse.ids.long()), rest[:, None]], 1))

    assert_exact(ours(x, coarse, kd_ratio=1.0), exact(x, formula, kd_ratio=1.0))


def test_each_of_several_records_has_its_share():
    x = example()
    others = example(seed=5)[3]
    signals = [TopTokens.of(x[3], K), TopTokens.of(others, K)]
    dense = [DenseLogits(x[3]), DenseLogits(others)]
    topk = losses.TopK(K, losses.ReverseKL())
    wanted = ours(x, SumOfTeachers(dense, [0.7, 0.3]), kd_ratio=0.5, divergence=topk)
    for mixed in (signals, [signals[0], dense[1]], [dense[0], signals[1]]):
        sums, gradients = ours(x, SumOfTeachers(mixed, [0.7, 0.3]), kd_ratio=0.5, divergence=topk)
        assert sums.loss.item() == pytest.approx(wanted[0].loss.item(), rel=1e-6)
        for gradient, right in zip(gradients, wanted[1], strict=True):
            assert (gradient - right).norm() / right.norm() < 1e-5


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_each_row_has_the_record_of_its_own_teacher(kind):
    hidden, weight, targets, teacher = example()
    owner = torch.arange(N) % 3 == 0
    owned = [owner.nonzero()[:, 0], (~owner).nonzero()[:, 0]]
    if kind == "top_k":
        records = [TopTokens.of(teacher[rows], k) for rows, k in zip(owned, (3, 6), strict=True)]
    else:
        records = [SampledTokens.drawn(teacher[rows], draws) for rows, draws in zip(owned, (4, 30), strict=True)]
    x = hidden, weight, targets, teacher
    sums, gradients = ours(x, TeacherOfEachRow(records, owned), kd_ratio=0.5)
    alone = []
    for record, of in zip(records, owned, strict=True):
        alone.append(ours((hidden[of], weight, targets[of], None), record, kd_ratio=0.5))
    assert sums.loss.item() == pytest.approx(sum(one.loss.item() for one, _ in alone), rel=1e-6)
    torch.testing.assert_close(gradients[1], alone[0][1][1] + alone[1][1][1], rtol=1e-5, atol=1e-5)
    for (_, (of_hidden, _)), of in zip(alone, owned, strict=True):
        torch.testing.assert_close(gradients[0][of], of_hidden, rtol=1e-5, atol=1e-6)


def test_the_certainty_of_a_sampled_teacher_is_that_of_its_logits():
    x = example()
    signal = SampledTokens.drawn(x[3], 20, generator=torch.Generator().manual_seed(0))
    p = x[3].double().softmax(-1)
    certainty = 1 - torch.special.entr(p).sum(-1) / torch.tensor(float(V)).log()

    def formula(q):
        return certainty * (-(signal.weights * q.gather(1, signal.ids.long())).sum(-1) - signal.entropy)

    found = ours(x, signal, kd_ratio=0.5, token_weight=losses.TeacherCertainty())
    assert_exact(found, exact(x, formula))


def test_a_cross_entropy_of_ones_own_stands_beside_a_record():
    class Smoothed(losses.CrossEntropy):
        """A tenth of the target spread over all tokens."""

        def __call__(self, student, targets, memory):
            values, gradient = super().__call__(student, targets, memory)
            everywhere = -student.log_probs.mean(-1)
            return 0.9 * values + 0.1 * everywhere, gradient.mul_(0.9).add_(
                0.1 * (student.probs - 1 / student.probs.shape[1])
            )

    x = example()
    p = x[3].double().log_softmax(-1)
    hidden, weight, targets, _ = x
    logits = hidden.double() @ weight.double().T
    ce = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
    kd = plain_top_k(p, logits.log_softmax(-1), K, kl).sum()
    loss = 0.5 * ce + 0.5 * kd
    found = ours(x, TopTokens.of(x[3], K), kd_ratio=0.5, cross_entropy=Smoothed())
    assert_exact(found, (kd, loss, torch.autograd.grad(loss, [hidden, weight])))


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_tokens_that_the_student_excludes_give_no_nan(kind):
    hidden, weight, targets, teacher = example()
    bias = torch.zeros(V)
    bias[40:] = -torch.inf
    targets = targets.clamp(max=39)
    for name in PLAIN if kind == "top_k" else ["forward"]:
        for temperature in (1.0, 2.0):
            of = SampledTokens.drawn if kind == "sampled" else TopTokens.of
            settings = {"kd_ratio": 0.5, "divergence": PLAIN[name][0], "temperature": temperature}
            record = of(teacher, K, temperature)
            sums = distillation_loss(hidden, LinearProjection(weight, bias), targets, record, **settings)
            assert torch.isfinite(sums.loss) and torch.isfinite(torch.autograd.grad(sums.loss, hidden)[0]).all()


META = torch.device("meta")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_a_chunk_has_no_logits_of_the_teacher(kind, temperature, monkeypatch):
    """So twice as many rows have room in it, and nothing of ``[n, v]`` is made for the record."""
    v, n, d, k = 128_256, 4096, 2048, 50
    budget, part = 1024 * 2**20, 64 * 2**20
    monkeypatch.setitem(head.CHUNK_BYTES, "meta", budget)
    monkeypatch.setitem(rows._PART_BYTES, "cuda", part)
    hidden = torch.empty(n, d, device=META).requires_grad_()
    weight = torch.empty(v, d, device=META)
    said = [torch.empty(n, k, device=META), torch.empty(n, device=META)]
    record_of = {"top_k": TopTokens, "sampled": SampledTokens}[kind]
    record = record_of(torch.empty(n, k, dtype=torch.int32, device=META), *said, temperature, v)
    targets = torch.empty(n, dtype=torch.int64, device=META)
    asked, product = [], LinearProjection.logits
    monkeypatch.setattr(
        LinearProjection, "logits", lambda self, rows, memory: asked.append(len(rows)) or product(self, rows, memory)
    )
    with MemTracker() as tracker:
        settings = {"kd_ratio": 0.5, "temperature": temperature}
        distillation_loss(hidden, LinearProjection(weight), targets, record, **settings).loss.backward()
    peak = tracker.get_tracker_snapshot("peak")[META]["Total"]
    given = 4 * v * d + n * (4 * d + 8 + 4 * k + 4 * k + 4)
    gradients = 2 * 4 * n * d
    assert 0.9 * budget < peak - given - gradients < budget + 3 * part
    assert sum(asked) == n and asked[0] == head.chunk_rows(n, head.chunk_bytes_per_row(v, 0, torch.float32), META)


@pytest.mark.parametrize(
    ("kind", "divergence", "settings", "told"),
    [
        ("sampled", losses.ReverseKL(), {}, "serves ForwardKL, not ReverseKL: kind top_k"),
        ("sampled", losses.TopK(5), {}, "serves ForwardKL, not TopK"),
        ("sampled", losses.ForwardKL(), {"temperature": 2.0}, "at temperature 1 serves no other.*at 2: make one at 2"),
        ("top_k", losses.ForwardKL(), {"temperature": 2.0}, "at temperature 1 serves no other"),
        ("top_k", losses.TopK(60), {}, "of 50 tokens cannot serve TopK of 60"),
        ("top_k", losses.ForwardKL(), {"token_weight": losses.TeacherCertainty()}, "kind hidden.*sampled as well"),
        ("top_k", losses.ForwardKL(), {"token_weight": losses.TargetProbability()}, "TargetProbability.*kind hidden"),
        ("sampled", losses.ForwardKL(), {"token_weight": losses.TargetProbability()}, "TargetProbability.*hidden"),
    ],
)
def test_a_loss_that_a_record_cannot_serve_is_refused(kind, divergence, settings, told):
    x = example()
    record = TopTokens.of(x[3], 50) if kind == "top_k" else SampledTokens.drawn(x[3], 50)
    with pytest.raises(ValueError, match=told):
        ours(x, record, kd_ratio=0.5, divergence=divergence, **settings)


@pytest.mark.parametrize("kind", ["top_k", "sampled", "hidden"])
def test_what_a_kind_serves_is_known_before_there_is_a_record(kind):
    assert unserved(kind, losses.ForwardKL(), combination="sum") is None
    assert (unserved(kind, losses.JensenShannon()) is None) == (kind != "sampled")
    assert (unserved(kind, losses.ForwardKL(), temperature=3.0) is None) == (kind == "hidden")
    assert (unserved(kind, losses.ForwardKL(), combination="mixture") is None) == (kind == "hidden")
    assert (unserved(kind, losses.ForwardKL(), losses.TeacherCertainty()) is None) == (kind != "top_k")
    at_two = unserved(kind, losses.ForwardKL(), losses.TeacherCertainty(), temperature=2.0, recorded_temperature=2.0)
    assert (at_two is None) == (kind == "hidden")


def test_records_that_cannot_be_combined_are_refused():
    x = example()
    record, drawn, dense = TopTokens.of(x[3], K), SampledTokens.drawn(x[3]), DenseLogits(x[3])
    with pytest.raises(ValueError, match="mixture needs of its tail: combine by sum or by_row"):
        ours(x, losses.MixtureOfTeachers([dense, record], [0.5, 0.5]), kd_ratio=0.5)
    owned = [torch.arange(20), torch.arange(20, N)]
    for other in (drawn, dense):
        rest = DenseLogits(x[3][20:]) if other is dense else other[20:]
        with pytest.raises(ValueError, match="needs one of the same kind of each other"):
            ours(x, TeacherOfEachRow([record[:20], rest], owned), kd_ratio=0.5)
    warm = TopTokens.of(x[3], K, 2.0)
    with pytest.raises(ValueError, match="several temperatures"):
        ours(x, TeacherOfEachRow([record[:20], warm[20:]], owned), kd_ratio=0.5)


def test_a_record_of_other_rows_or_tokens_is_refused():
    x = example()
    with pytest.raises(ValueError, match="record of 40 rows, where 41 are to be learned"):
        ours(x, TopTokens.of(x[3][1:], K), kd_ratio=0.5)
    with pytest.raises(ValueError, match="53 tokens are to be compared, a model has logits of 50"):
        ours(x, TopTokens.of(x[3][:, :50], K), kd_ratio=0.5)
    padded = F.pad(x[3], (0, 3), value=-20.0)  # never among the first
    ours(x, TopTokens.of(padded, K), kd_ratio=0.5)
    padded[0, -1] = 20.0
    for record in (TopTokens.of(padded, K), SampledTokens.drawn(padded)):
        with pytest.raises(ValueError, match=r"first 53 tokens are to be compared, the \w+ record has token 55"):
            ours(x, record, kd_ratio=0.5)


def test_wrong_settings_of_a_record_are_refused():
    logits = example()[3]
    for make in (lambda: SampledTokens.drawn(logits, 0), lambda: SampledTokens.drawn(logits, 5, 0.0)):
        with pytest.raises(ValueError, match="must be at least 1, and above 0"):
            make()
    for k, temperature in [(0, 1.0), (5, -1.0)]:
        with pytest.raises(ValueError, match="must be at least 1, and above 0"):
            TopTokens.of(logits, k, temperature)
