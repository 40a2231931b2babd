"""A component in another's place, and what `validate` and `run` see of a config in one list."""

import sys

import pytest

from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, find_recipe
from distill_tune.errors import Faults


@pytest.fixture
def checked(write_config, rows_file):
    dataset = {"_component_": "distill_tune.data.docstrings", "num_rows": 64, "min_characters": 40}
    path = write_config(
        dataset=dataset,
        model={
            "_component_": "torchtune.models.llama3_2.lora_llama3_2_1b",
            "lora_attn_modules": ["q_proj"],
            "lora_rank": 4,
        },
        augmentations=[{"_component_": "distill_tune.data.DropTokens", "rate": 0.1}],
    )

    def check(*overrides: str, imports: str = "all"):
        return checked_config(find_recipe("kd_single_device"), str(path), overrides, imports)

    return check


def test_arguments_of_the_file_that_the_new_component_does_not_take_are_dropped_and_named(checked, rows_file, capsys):
    for overrides in (["dataset=distill_tune.data.instruct"], ["dataset._component_=distill_tune.data.instruct"]):
        config = checked(*overrides, f"dataset.source={rows_file}")
        assert config.dataset == {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
        assert capsys.readouterr().out == (
            "dataset: distill_tune.data.instruct does not take num_rows, min_characters, which the file gives "
            "distill_tune.data.docstrings: left out\n"
        )


def test_the_checkpointer_of_a_model_that_is_replaced_by_a_folder_is_left_out(checked, teacher_folder, capsys):
    of_teacher = [
        f"teacher_model.{name}" for name in ("_component_=distill_tune.models.from_hf", f"path={teacher_folder}")
    ]
    config = checked(*of_teacher)
    assert "teacher_checkpointer" not in config
    assert "checkpointer" in config
    assert (
        "teacher_checkpointer: is of the model that the file names; teacher_model.path has" in capsys.readouterr().out
    )
    assert "teacher_checkpointer" in checked(*of_teacher, "teacher_checkpointer.checkpoint_files=[model.safetensors]")


def test_what_both_take_is_kept(checked, capsys):
    config = checked("optimizer=torch.optim.SGD")
    assert config.optimizer == {"_component_": "torch.optim.SGD", "lr": 1e-3}
    assert capsys.readouterr().out == ""


def test_what_the_command_line_gives_is_never_dropped(checked, rows_file):
    for overrides in (
        ["dataset=distill_tune.data.instruct", "dataset.num_rows=3"],
        ["dataset.num_rows=3", "dataset=distill_tune.data.instruct"],
        ["dataset={_component_: distill_tune.data.instruct, num_rows: 3}"],
    ):
        with pytest.raises(Faults) as told:
            checked(*overrides, f"dataset.source={rows_file}")
        (fault,) = told.value.faults
        assert fault.startswith("dataset.num_rows: distill_tune.data.instruct has no such argument")


def test_a_component_that_is_not_replaced_keeps_a_wrong_argument(checked):
    with pytest.raises(Faults, match=r"dataset\.nm_rows: .* did you mean num_rows"):
        checked("dataset.nm_rows=3")
    with pytest.raises(Faults, match=r"dataset\.nm_rows"):
        checked("dataset=distill_tune.data.docstrings", "dataset.nm_rows=3")


def test_components_in_components_and_lists_may_be_replaced(checked, capsys):
    checked("augmentations.0._component_=distill_tune.training.Linear", "+augmentations.0.start=1")
    assert "augmentations.0: distill_tune.training.Linear does not take rate, which" in capsys.readouterr().out


def test_a_list_may_be_longer_than_the_files(checked):
    entries = ", ".join(f"{{_component_: distill_tune.data.DropTokens, rate: 0.{number}}}" for number in (1, 2))
    assert len(checked(f"augmentations=[{entries}]").augmentations) == 2


def test_a_strangers_component_is_not_imported_for_it(checked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "strange.py").write_text("open('was_run', 'w')\ndef rows(tokenizer, source): ...")
    config = checked("dataset=strange.rows", "dataset.source=a", imports="known")
    assert "num_rows" in config.dataset
    assert not (tmp_path / "was_run").exists()
    assert "num_rows" not in checked("dataset=strange.rows", "dataset.source=a").dataset
    assert "does not take num_rows, min_characters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "models/Qwen2.5-0.5B-Instruct: {}; get it: distill-tune download Qwen/Qwen2.5-0.5B-Instruct"),
        (
            ["models_dir=/data/hub"],
            "/data/hub/Qwen2.5-7B-Instruct: {}; get it: distill-tune download Qwen/Qwen2.5-7B-Instruct "
            "--output /data/hub/Qwen2.5-7B-Instruct",
        ),
    ],
)
def test_a_models_folder_that_is_not_there_names_the_command_that_gets_it(tmp_path, monkeypatch, overrides, told):
    monkeypatch.chdir(tmp_path)
    text = find_config("qwen2_5/7B_to_0.5B_lora").read_text()
    (tmp_path / "mine.yaml").write_text(text.partition("\n\n")[2])
    with pytest.raises(Faults) as faults:
        checked_config(find_recipe("kd_single_device"), "mine.yaml", overrides)
    missing = "no such folder, or it has no config.json; name a Hugging Face model folder"
    assert any(fault.endswith(told.format(missing)) for fault in faults.value.faults)


def test_a_head_that_a_user_wrote_names_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = find_config("qwen2_5/7B_to_0.5B_lora").read_text()
    (tmp_path / "mine.yaml").write_text("#   distill-tune download we/ours-1B\n" + text)
    with pytest.raises(Faults) as faults:
        checked_config(find_recipe("kd_single_device"), "mine.yaml", ["model.path=models/ours-1B"])
    assert any(fault.endswith("get it: distill-tune download we/ours-1B") for fault in faults.value.faults)


def test_what_a_run_leaves_names_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Faults) as faults:
        checked_config(find_recipe("kd_single_device"), "on_policy", ["model.path=outputs/tiny/model"])
    (fault,) = faults.value.faults
    assert fault.endswith("; it is what this leaves: distill-tune run kd_single_device --config tiny")


def test_another_folder_names_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Faults) as faults:
        checked_config(find_recipe("kd_single_device"), "qwen2_5/7B_to_0.5B_lora", ["model.path=models/mine"])
    (fault,) = [fault for fault in faults.value.faults if fault.startswith("model.path")]
    assert fault.endswith("name a Hugging Face model folder")


def test_a_users_own_component_is_found_in_the_current_folder_by_every_command(checked, tmp_path, monkeypatch):
    (tmp_path / "rows_of_mine.py").write_text("def rows(tokenizer): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    assert checked("dataset=rows_of_mine.rows").dataset == {"_component_": "rows_of_mine.rows"}
