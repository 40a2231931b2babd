"""Which token is chosen: distributions against their definitions, in float64."""

import pytest
import torch

from distill_tune.errors import UserError
from distill_tune.generation import sampling as sampling_module
from distill_tune.generation.sampling import Sampling, choose, seeds_of, stream_of

V = 600  # more than two blocks of a race, and no multiple
LOGITS = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 2
SEEDS = seeds_of(torch.arange(20_000), torch.arange(20_000) % 7)


def frequencies(sampling: Sampling, seen: torch.Tensor | None = None) -> torch.Tensor:
    n = len(SEEDS)
    tokens, log_probs = choose(LOGITS.repeat(n, 1), sampling, SEEDS, None if seen is None else seen.repeat(n, 1))
    torch.testing.assert_close(log_probs, LOGITS.log_softmax(-1)[tokens], rtol=0, atol=1e-5)
    return torch.bincount(tokens, minlength=V) / n


def kept(probabilities: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    probabilities = probabilities * which
    return probabilities / probabilities.sum()


def assert_distribution(sampling: Sampling, wanted: torch.Tensor, seen: torch.Tensor | None = None) -> None:
    """By chi-squared: of what is never to come, nothing comes; of the rest, rare tokens together."""
    found = frequencies(sampling, seen).double()
    assert found[wanted == 0].sum() == 0
    order = wanted.argsort()
    rare = order[wanted[order].cumsum(0) * len(SEEDS) < 20]
    often = wanted.clone().index_fill(0, rare, 0) * len(SEEDS)
    counts = torch.cat([found[often > 0] * len(SEEDS), found[rare].sum()[None] * len(SEEDS)])
    expected = torch.cat([often[often > 0], wanted[rare].sum()[None] * len(SEEDS)])
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = max(1, len(counts) - 1)
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 4 * (2 * degrees) ** 0.5 + 4


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
    tokens, _ = choose(LOGITS[None].clone(), Sampling(temperature=0, repetition_penalty=1.5), SEEDS[:1], seen[None])
    assert tokens == penalised.argmax()


def test_temperature_zero_takes_the_likeliest():
    tokens, log_probs = choose(LOGITS[None].clone(), Sampling(temperature=0), SEEDS[:1])
    assert tokens == LOGITS.argmax()
    torch.testing.assert_close(log_probs[0], LOGITS.log_softmax(-1).max())


def test_what_is_impossible_is_never_chosen():
    logits = torch.full((2, V), -torch.inf)
    logits[0, 5], logits[1, 77] = 0.0, 3.0
    tokens, log_probs = choose(logits.repeat(1000, 1), Sampling(), SEEDS[:2000])
    assert tokens.view(1000, 2).unique(dim=0).tolist() == [[5, 77]]
    assert log_probs.unique().tolist() == [0]


def test_rounding_of_logits_hardly_ever_chooses_another_token():
    """Not even where many tokens are about as likely as each other: some once in a million."""
    n, generator = 3000, torch.Generator().manual_seed(0)
    logits = torch.randn(2000, generator=generator) * 0.5
    noise = torch.randn(n, 2000, generator=generator) * 1e-6
    wanted, _ = choose(logits.repeat(n, 1), Sampling(), SEEDS[:n])
    found, _ = choose(logits + noise, Sampling(), SEEDS[:n])
    assert torch.equal(found, wanted)


def test_each_position_of_a_stream_is_drawn_by_itself():
    """Pairs of tokens that follow each other, and that neighbouring streams draw, come as often as independent ones."""
    n, p = 40_000, torch.tensor([0.5, 0.3, 0.2]).double()
    streams = torch.tensor([stream_of(3, row, 0) for row in range(n)])
    here, next_one = (
        choose(p.log().float().repeat(n, 1), Sampling(), seeds_of(streams, torch.full((n,), position)))[0]
        for position in (0, 1)
    )
    for pairs in (here * 3 + next_one, here[:-1] * 3 + here[1:]):
        expected = torch.outer(p, p).flatten() * len(pairs)
        assert ((torch.bincount(pairs, minlength=9) - expected) ** 2 / expected).sum() < 27  # 1 in 1,000 above 26


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
