"""The settings of rollouts, and which rows the student answers."""

import re

import pytest

from distill_tune.errors import UserError
from distill_tune.generation import Sampling
from distill_tune.rollouts import OnPolicy
from distill_tune.rollouts.on_policy import own_rows


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_on_average_the_student_answers_its_share(share):
    counts = [int(own_rows(8, share, seed=3, step=step).sum()) for step in range(2000)]
    assert sum(counts) / 16_000 == pytest.approx(share, abs=0.006)
    assert max(counts) - min(counts) <= 1


def test_which_rows_is_a_function_of_seed_and_step():
    drawn = {(seed, step): own_rows(32, 0.5, seed, step).tobytes() for seed in range(2) for step in range(2)}
    assert len(set(drawn.values())) == 4
    assert own_rows(32, 0.5, 1, 1).tobytes() == drawn[1, 1]


def test_every_row_is_chosen_as_often_as_any_other():
    counts = sum(own_rows(4, 0.5, 0, step).astype(int) for step in range(2000))
    assert all(count == pytest.approx(1000, abs=80) for count in counts.tolist())


def test_arguments_of_sampling_serve_as_it_does():
    assert OnPolicy(sampling=None).sampling == OnPolicy().sampling == Sampling()
    assert OnPolicy(sampling={"temperature": 0.9}).sampling == Sampling(temperature=0.9)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lmbda": 1.5}, "rollouts.lmbda=1.5: must be from 0 to 1, or a schedule"),
        ({"samples_per_prompt": 0}, "rollouts.samples_per_prompt=0: must be at least 1"),
        ({"log_every_n_steps": 0}, "rollouts.log_every_n_steps=0: must be at least 1"),
        ({"sampling": {"max_new_tokens": 0}}, "rollouts.sampling.max_new_tokens=0: must be 1 or more"),
        ({"sampling": {"max_new_tokens": 2.5}}, "rollouts.sampling.max_new_tokens=2.5: must be a whole number"),
        ({"sampling": {"max_new_tokens": "x"}}, "rollouts.sampling.max_new_tokens=x: must be a whole number"),
        ({"sampling": {"temperature": "x"}}, "rollouts.sampling.temperature=x: must be a number"),
        ({"sampling": {"top_k": 2.0}}, "rollouts.sampling.top_k=2.0: must be a whole number, or null"),
        ({"sampling": {"stop": 7}}, "rollouts.sampling.stop=7: must be a text, or a list of such"),
        ({"sampling": {"stop": [7]}}, "rollouts.sampling.stop=[7]: must be a text, or a list of such"),
        ({"sampling": {"stop_token_ids": "x"}}, "rollouts.sampling.stop_token_ids=x: must be a token id, or a list of"),
        ({"sampling": 512}, "rollouts.sampling=512: must be arguments, {max_new_tokens: ...}, or null"),
        ({"server": "http://localhost:1"}, "rollouts.server=http://localhost:1: must be a component, {_component_: "),
        ({"server": {"url": "x"}}, "rollouts.server={'url': 'x'}: must be a component"),
        ({"sampling": {"temprature": 1}}, "rollouts.sampling.temprature: no such argument; it takes max_new_tokens, "),
    ],
)
def test_what_cannot_be_is_told_by_its_key(arguments, told):
    with pytest.raises(UserError, match="^" + re.escape(told)):
        OnPolicy(**arguments)
