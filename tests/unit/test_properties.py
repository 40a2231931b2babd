"""What holds for any override, config, row or batch; hypothesis looks for one for which it does not."""

import json
import os
import string
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distill_tune.config import instantiate, without_secrets
from distill_tune.config.check import checked_config
from distill_tune.config.files import configs_folder, recipes_folder
from distill_tune.config.load import load_config
from distill_tune.data import Batch, StepPlan, describe_rows, prepare_rows
from distill_tune.data.batch import joined
from distill_tune.errors import UserError
from distill_tune.losses import LossSums
from distill_tune.training import LossWatch
from distill_tune.training.state import TrainingState, plain_config

# Derandomised, a change is not refused for what it did not touch; DISTILL_TUNE_EXAMPLES=20000 looks further by chance.
EXAMPLES = int(os.environ.get("DISTILL_TUNE_EXAMPLES", "0"))
FEW = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MANY = settings(FEW, max_examples=EXAMPLES or 300)

names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(lambda name: name not in ("y", "n"))
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(string.printable + "äß好🙂", max_size=20).filter(lambda text: "$" not in text)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(names, values, min_size=1, max_size=5)


def written(folder: Path, config: object) -> Path:
    path = folder / "config.yaml"
    # OmegaConf reads 0E0 as a number where YAML 1.1 has a text: its own writer puts such a text in quotes.
    path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    return path


@MANY
@given(config=configs, path=st.lists(names, min_size=1, max_size=3), value=st.none() | st.booleans() | numbers)
def test_an_override_sets_its_key_and_no_other(tmp_path, config, path, value):
    config[path[0]] = {}  # so that the path can be there
    found = load_config(written(tmp_path, config), [f"{'.'.join(path)}={json.dumps(value)}"])
    assert OmegaConf.select(found, ".".join(path)) == value
    for key in set(config) - {path[0]}:
        assert OmegaConf.to_container(found)[key] == config[key]


@MANY
@given(config=configs, overrides=st.lists(st.text(max_size=30), max_size=3))
def test_whatever_the_command_line_has_there_is_a_config_or_a_message(tmp_path, config, overrides):
    try:
        load_config(written(tmp_path, config), overrides)
    except UserError as error:
        assert str(error)


@FEW
@given(key=st.sampled_from(["kd_ratio", "optimizer.lr", "model", "dataset.source", "epochs", "x"]), value=values)
def test_a_shipped_config_with_any_value_is_valid_or_refused_by_its_key(key, value):
    override = f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000).splitlines()[0]}"
    try:
        checked_config(recipes_folder() / "kd_single_device.py", str(configs_folder() / "tiny/tiny.yaml"), [override])
    except UserError as error:
        assert key.partition(".")[0] in str(error) or "not valid YAML" in str(error)


@MANY
@given(config=configs)
def test_a_state_knows_its_own_config_and_hiding_secrets_twice_changes_nothing(tmp_path, config):
    cfg = OmegaConf.create(config)
    assert without_secrets(without_secrets(cfg)) == without_secrets(cfg)
    state = TrainingState(1, 0, {}, plain_config(cfg))
    state.write(tmp_path)
    TrainingState.read(tmp_path).require_same_config(tmp_path, cfg, False)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    config = OmegaConf.create(
        {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file), "max_seq_len": 64}
    )
    return instantiate(config), config


rows = st.lists(
    st.dictionaries(st.sampled_from(["instruction", "input", "output", "text", "messages"]), values, max_size=4)
    | st.fixed_dictionaries({"instruction": texts, "output": texts}),
    min_size=1,
    max_size=6,
)


@FEW
@given(rows=rows, lines=st.booleans())
def test_whatever_rows_there_are_each_is_read_counted_or_named(tmp_path, tokenizer, rows, lines):
    path = tmp_path / ("rows.jsonl" if lines else "rows.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    dataset = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(path)})
    try:
        (found,), _ = prepare_rows(dataset, *tokenizer, on_bad_row="skip")
    except UserError as error:
        assert "has no row to train on" in str(error)
        return
    assert len(found) + found.num_bad + found.num_cut == len(rows)
    assert describe_rows([found])
    assert len(found.tokens) == len(found.labels) == found.offsets[-1]
    assert (found.supervised > 0).all() and (found.lengths <= 64).all()
    kept = [int(found.origin(row).rpartition(" ")[2]) for row in range(len(found))]
    assert kept == sorted(kept) and set(kept) <= set(range(1, len(rows) + 1))
    (batch,) = StepPlan([found], batch_size=len(found), shuffle=False).micro_batches(0, 0)
    assert batch.places == tuple((0, row) for row in sorted_as(batch, found))


def sorted_as(batch: Batch, found) -> list[int]:
    """The rows of a batch by their content's order in it."""
    order, at = [], 0
    for (_, row), length in zip(batch.places, batch.lengths, strict=True):
        assert batch.tokens[0, at : at + length].equal(found[row].tokens.long())
        order.append(row)
        at += length
    return order


@MANY
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=9))
def test_the_halves_of_a_batch_are_the_batch(lengths):
    batch = joined([(torch.full((n,), row), torch.full((n,), row)) for row, n in enumerate(lengths)])
    halves = batch.halves()
    assert len(halves) == min(2, len(lengths))
    assert torch.cat([half.tokens for half in halves], 1).equal(batch.tokens)
    assert torch.cat([half.targets for half in halves], 1).equal(batch.targets)
    assert sum((half.lengths for half in halves), ()) == batch.lengths
    assert sum((half.places for half in halves), ()) == batch.places


@MANY
@given(losses=st.lists(st.floats(width=32), max_size=60), most=st.integers(1, 5))
def test_a_watch_that_is_resumed_knows_what_one_that_ran_on_knows(losses, most):
    whole = LossWatch(max_bad_steps=most)
    for at, loss in enumerate(losses):
        history = [{"loss": value, "grad_norm": 1.0} for value in losses[:at]]
        resumed = LossWatch(history, max_bad_steps=most)
        good = whole.is_good(loss, 1.0)
        assert resumed.is_good(loss, 1.0) == good
        assert (resumed.spike, resumed.is_lost) == (whole.spike, whole.is_lost)


@MANY
@given(parts=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_total_of_some_sums_is_their_sum(parts):
    total = LossSums.total([LossSums(*map(torch.tensor, part)) for part in parts])
    assert [float(value) for value in total.values()] == pytest.approx(
        [sum(column) for column in zip(*parts, strict=True)], abs=1e-2
    )
