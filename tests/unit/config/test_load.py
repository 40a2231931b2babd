from pathlib import Path

import pytest

from distill_tune.config.load import load_config
from distill_tune.errors import UserError

YAML = """
kd_ratio: 0.5
name: 名字
folder: ${root}/a
root: /tmp
model:
  _component_: torchtune.models.llama3_2.llama3_2_1b
  rank: 8
dataset:
  - {source: a.json}
  - {source: b.json}
"""


@pytest.fixture
def load(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(YAML, encoding="utf-8")
    return lambda *overrides: load_config(tmp_path / "config.yaml", overrides)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("kd_ratio=1e-1", "kd_ratio", 0.1),
        ("kd_ratio=null", "kd_ratio", None),
        ("kd_ratio='0.1'", "kd_ratio", "0.1"),
        ("name=值 with=sign", "name", "值 with=sign"),
        ("root=/data", "folder", "/data/a"),
        ("new=[1, 2]", "new", [1, 2]),
        ("+new={a: {b: 1}}", "new", {"a": {"b": 1}}),
        ("model.rank=16", "model", {"_component_": "torchtune.models.llama3_2.llama3_2_1b", "rank": 16}),
        ("model=my.model", "model", {"_component_": "my.model", "rank": 8}),
        ("+model.alpha=2", "model", {"_component_": "torchtune.models.llama3_2.llama3_2_1b", "rank": 8, "alpha": 2}),
        ("dataset.1.source=c.json", "dataset", [{"source": "a.json"}, {"source": "c.json"}]),
        ("~dataset.0", "dataset", [{"source": "b.json"}]),
        ("name=${root}", "name", "/tmp"),
    ],
)
def test_an_override_sets_adds_replaces_or_removes(load, override, key, value):
    assert load(override)[key] == value


def test_overrides_apply_in_order(load):
    config = load("~model", "model=my.model")
    assert config.model == "my.model"
    assert "rank" not in load("~model.rank").model


def test_all_bad_overrides_are_told_together(load):
    with pytest.raises(UserError) as caught:
        load("kd_ratio", "~nothing", "+kd_ratio=1")
    assert str(caught.value).startswith("3 faults in the command line")
