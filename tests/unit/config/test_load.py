from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill_tune.config.load import load_config
from distill_tune.errors import UserError

MODEL = {"_component_": "torchtune.models.llama3_2.llama3_2_1b", "rank": 8}
YAML = """
kd_ratio: 0.5
name: 名字
folder: ${root}/a
root: /tmp
loss: {_component_: my.loss}
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
        ("prompt=Translate: hello? # say", "prompt", "Translate: hello? # say"),
        ("prompt=[1] what?", "prompt", "[1] what?"),
        ("+prompt=42", "prompt", "42"),
        ("prompt=", "prompt", ""),
        ("prompt=null", "prompt", None),
        ("augmentations=[a.b.C, d.e.F]", "augmentations", [{"_component_": "a.b.C"}, {"_component_": "d.e.F"}]),
        (
            "dataset=[a.b.c,{_component_: d.e, source: x}]",
            "dataset",
            [{"_component_": "a.b.c"}, {"_component_": "d.e", "source": "x"}],
        ),
        (
            "+teacher_model=[{path: ${root}/t}, {path: '${root}'}]",
            "teacher_model",
            [{"path": "/tmp/t"}, {"path": "/tmp"}],
        ),
        ("report=[a.b, c.d]", "report", ["a.b", "c.d"]),
        ("augmentations=['${model}', a.${name}]", "augmentations", [MODEL, {"_component_": "a.名字"}]),
        ("teacher_model=${model}", "teacher_model", MODEL),
        ("model=${loss}", "model", {"_component_": "my.loss"}),
        ("model=my.${name}", "model", {"_component_": "my.名字", "rank": 8}),
        ('+new={a: ${root}-${name}, b: [${oc.env:NOT_SET,"it\'s"}]}', "new", {"a": "/tmp-名字", "b": ["it's"]}),
        ("name=${root}: what? # say", "name", "/tmp: what? # say"),
        ("name='${root}'", "name", "/tmp"),
    ],
)
def test_an_override_sets_adds_replaces_or_removes(load, override, key, value):
    assert load(override)[key] == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("root=~/a", "root", "/home/me/a"),
        ("root=~/a", "folder", "/home/me/a/a"),
        ("model.path=~/a/b.gguf", "model.path", "/home/me/a/b.gguf"),
        ("dataset.1.source=~/rows/*.json", "dataset.1.source", "/home/me/rows/*.json"),
        ("dataset.0.data_files=[~/a.json, b.json]", "dataset.0.data_files", ["/home/me/a.json", "b.json"]),
        ("dataset.0.data_files={train: ~/a.json}", "dataset.0.data_files.train", "/home/me/a.json"),
        ("checkpointer.checkpoint_dir=~/a", "checkpointer.checkpoint_dir", "/home/me/a"),
        ("resume=~/out/checkpoints/step_1", "resume", "/home/me/out/checkpoints/step_1"),
        ("metric_logger.log_dir=~/logs", "metric_logger.log_dir", "/home/me/logs"),
        ("name=a~/b", "name", "a~/b"),
        ("name=~", "name", None),
        ("teacher_system_prompt=~/ is home", "teacher_system_prompt", "~/ is home"),
        ("student_prompt_template=~/{input}", "student_prompt_template", "~/{input}"),
    ],
)
def test_the_home_folder_is_read_in_every_path(load, monkeypatch, override, key, value):
    monkeypatch.setenv("HOME", "/home/me")
    assert OmegaConf.select(load(override), key) == value


def test_a_component_that_the_file_lacks_is_named_as_one_that_it_has(load):
    config = load("dataset_val=distill_tune.data.instruct", "dataset_val.source=unseen.json", "+kd_loss=my.divergence")
    assert config.dataset_val == {"_component_": "distill_tune.data.instruct", "source": "unseen.json"}
    assert config.kd_loss == {"_component_": "my.divergence"}


def test_overrides_apply_in_order(load):
    config = load("~model", "model=my.model")
    assert config.model == {"_component_": "my.model"}
    assert "rank" not in load("~model.rank").model


def test_all_bad_overrides_are_told_together(load):
    with pytest.raises(UserError) as caught:
        load("kd_ratio", "~nothing", "+kd_ratio=1")
    assert str(caught.value).startswith("3 faults in the command line")


def test_a_file_that_cannot_be_read_is_told_so_and_not_as_wrong_yaml(tmp_path):
    with pytest.raises(UserError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"config {tmp_path}: cannot be read: Is a directory"
