"""Which token is chosen: distributions against their definitions, in float64."""

import pytest
import torch

from distill_tune.errors import UserError
from distill_tune.generation import sampling as sampling_module
from distill_tune.generation.sampling import Sampling, choose, stream_of, uniform

V = 150  # more than two blocks of the distribution function, and no multiple
LOGITS = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 2
RANDOM = (torch.arange(20_000) + 0.5) / 20_000  # every quantile


def frequencies(sampling: Sampling, seen: torch.Tensor | None = None) -> torch.Tensor:
    n = len(RANDOM)
    tokens, log_probs = choose(LOGITS.repeat(n, 1), sampling, RANDOM, None if seen is None else seen.repeat(n, 1))
    torch.testing.assert_close(log_probs, LOGITS.log_softmax(-1)[tokens], rtol=0, atol=1e-5)
    return torch.bincount(tokens, minlength=V) / n


def kept(probabilities: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    probabilities = probabilities * which
    return probabilities / probabilities.sum()


def assert_distribution(sampling: Sampling, wanted: torch.Tensor, seen: torch.Tensor | None = None) -> None:
    torch.testing.assert_close(frequencies(sampling, seen).double(), wanted, rtol=0, atol=1.1 / len(RANDOM))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature):
    assert_distribution(Sampling(temperature=temperature), (LOGITS.double() / temperature).softmax(-1))


@pytest.mark.parametrize("top_k", [1, 7, V])
def test_top_k(top_k):
    p = LOGITS.double().softmax(-1)
    assert_distribution(Sampling(top_k=top_k), kept(p, p >= p.topk(top_k).values[-1]))


@pytest.mark.parametrize("top_p", [0.05, 0.8, 0.9999])
@pytest.mark.parametrize("sizes", [(2, 30), ()])  # what is sorted first on a CPU; elsewhere all at once
def test_top_p_keeps_the_least_number_of_tokens_that_have_so_much(top_p, sizes, monkeypatch):
    monkeypatch.setattr(sampling_module, "_SORTED_FIRST", {"cpu": sizes})
    p = LOGITS.double().softmax(-1)
    order = p.argsort(descending=True)
    number = int((p[order].cumsum(0) < top_p).sum()) + 1
    assert_distribution(Sampling(top_p=top_p), kept(p, torch.zeros(V).index_fill(0, order[:number], 1)))


def test_min_p():
    p = LOGITS.double().softmax(-1)
    assert_distribution(Sampling(min_p=0.1), kept(p, p >= 0.1 * p.max()))


def test_filters_are_taken_in_their_order():
    p = (LOGITS.double() / 0.7).softmax(-1)
    p = kept(p, p >= p.topk(20).values[-1])
    order = p.argsort(descending=True)
    number = int((p[order].cumsum(0) < 0.9).sum()) + 1
    p = kept(p, torch.zeros(V).index_fill(0, order[:number], 1))
    p = kept(p, p >= 0.2 * p.max())
    assert_distribution(Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.2), p)


def test_a_penalty_makes_tokens_of_the_row_less_likely():
    seen = torch.zeros(V, dtype=torch.bool).index_fill(0, LOGITS.topk(9).indices, True)
    seen[LOGITS.argmin()] = True
    penalised = torch.where(seen, torch.where(LOGITS > 0, LOGITS / 1.5, LOGITS * 1.5), LOGITS).double()
    assert_distribution(Sampling(repetition_penalty=1.5), penalised.softmax(-1), seen)
    tokens, _ = choose(LOGITS[None].clone(), Sampling(temperature=0, repetition_penalty=1.5), RANDOM[:1], seen[None])
    assert tokens == penalised.argmax()


def test_temperature_zero_takes_the_likeliest():
    tokens, log_probs = choose(LOGITS[None].clone(), Sampling(temperature=0), RANDOM[:1])
    assert tokens == LOGITS.argmax()
    torch.testing.assert_close(log_probs[0], LOGITS.log_softmax(-1).max())


def test_what_is_impossible_is_never_chosen():
    logits = torch.full((2, V), -torch.inf)
    logits[0, 5], logits[1, 77] = 0.0, 3.0
    for random in (0.0, 1 - 2.0**-24):
        tokens, log_probs = choose(logits.clone(), Sampling(), torch.full((2,), random))
        assert tokens.tolist() == [5, 77]
        assert log_probs.tolist() == [0, 0]


def test_streams_are_uniform_and_independent():
    streams = torch.tensor([stream_of(0, step, row, 0) for step in range(20) for row in range(50)])
    drawn = torch.stack([uniform(streams, torch.full_like(streams, position)) for position in range(100)])
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = torch.histc(drawn, bins=100, min=0, max=1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-squared with 99 degrees of freedom: 1 in 1,000 above 149
    both = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]
    beside = torch.corrcoef(torch.stack([drawn[:, :-1].flatten(), drawn[:, 1:].flatten()]))[0, 1]
    assert max(both.abs(), beside.abs()) < 0.012  # some four standard deviations


def test_a_stream_is_told_by_its_numbers():
    assert stream_of(1, 2, 3) == stream_of(1, 2, 3)
    assert len({stream_of(*numbers) for numbers in ((1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (-1,))}) == 6
    assert all(-(2**63) <= stream_of(seed) < 2**63 for seed in range(100))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", 1),
        ("repetition_penalty", 0),
        ("max_repetitions", 1),
        ("stop", [""]),
    ],
)
def test_values_out_of_range_are_told(name, value):
    with pytest.raises(UserError, match=f"{name}=.*must be"):
        Sampling(**{name: value})
