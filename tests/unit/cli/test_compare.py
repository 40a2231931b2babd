"""Held-out rows in every format that the recipes read, and who can read them."""

import argparse
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from architectures import write_architecture
from tiny import ROWS
from tiny_tokenizer import write_tokenizer

from distill_tune.cli.held_out import held_out_plan
from distill_tune.cli.main import main
from distill_tune.cli.model_folder import ModelFolder
from distill_tune.config.files import demo_model_folder, find_recipe
from distill_tune.data.datasets import dataset_for
from distill_tune.errors import UserError
from distill_tune.models import load_model

TURNS = [{"role": "user", "content": "Is 7 a prime?"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def plan_of(folder: Path, rows: list[dict], num_rows: int = 10, max_seq_len: int = 64, dataset: str | None = None):
    (folder / "rows.json").write_text(json.dumps(rows))
    source = None if dataset else str(folder / "rows.json")
    return held_out_plan(
        folder, argparse.Namespace(source=source, dataset=dataset, rows=num_rows, default_rows=10), max_seq_len
    )


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"source": "nothere.json"}, "--source nothere.json: no such file or folder"),
        ({"source": "empty.json"}, "--source empty.json: has no row to train on"),
        ({"dataset": "{_component_: distill_tune.data.chat, source: no.json}"}, "--dataset no.json: no such file"),
    ],
)
def test_what_is_wrong_with_rows_names_the_option_that_gave_them(tokenizer_folder, monkeypatch, given, wrong):
    monkeypatch.chdir(tokenizer_folder)
    Path("empty.json").write_text("[]")
    options = argparse.Namespace(**{"source": None, "dataset": None, "rows": 4, "default_rows": 4} | given)
    with pytest.raises(UserError) as told:
        held_out_plan(tokenizer_folder, options, 64)
    assert str(told.value).startswith(wrong)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": TURNS}, "chat"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "chat"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "chat"),
        ({"instruction": "a", "output": "b", "text": "a b"}, "instruct"),
        ({"prompt": "a", "completion": "b"}, "instruct"),
        ({"messages": None, "question": "a", "answer": "b"}, "instruct"),
        ({"text": "a", "prompt": None}, "text"),
        ({"other": "a"}, "instruct"),
    ],
)
def test_the_dataset_is_the_one_that_reads_such_rows(row, kind):
    assert dataset_for(row) == kind


@pytest.mark.parametrize(
    "row",
    [{"messages": TURNS}, {"instruction": "Is 7 a prime?", "output": "yes"}, {"text": "yes"}],
    ids=["chat", "instruct", "text"],
)
def test_rows_of_each_format_are_read_up_to_their_number(tokenizer_folder, row):
    plan = plan_of(tokenizer_folder, [row] * 6, num_rows=5)
    assert sum(len(batch.lengths) for batch in plan.epoch()) == 5


def test_bad_rows_are_left_out_and_named_without_keys_of_a_run(tokenizer_folder, capsys):
    plan = plan_of(tokenizer_folder, [{"messages": TURNS}, {"messages": 3}])
    told = capsys.readouterr().out
    assert "1 row, " in told
    assert "1 bad row left out" in told
    assert "rows.json, row 2: " in told
    assert "on_bad_row" not in told
    assert sum(len(batch.lengths) for batch in plan.epoch()) == 1


def test_a_dataset_of_a_config_is_read_with_its_arguments(tokenizer_folder):
    dataset = (
        f"{{_component_: distill_tune.data.instruct, source: {tokenizer_folder}/rows.json, "
        "column_map: {prompt: q, response: a}}"
    )
    plan = plan_of(tokenizer_folder, [{"q": "Is 7 a prime?", "a": "yes"}] * 3, num_rows=2, dataset=dataset)
    assert sum(len(batch.lengths) for batch in plan.epoch()) == 2


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("[1", "not valid YAML"),
        ("rows.json", "must be a dataset as configs have it"),
        ("{_component_: distill_tune.data.chat, sorce: a.json}", "no such argument, did you mean source"),
    ],
)
def test_what_is_no_dataset_is_told(tokenizer_folder, dataset, message):
    with pytest.raises(UserError, match=message):
        plan_of(tokenizer_folder, [], dataset=dataset)


def test_rows_cannot_be_cut_to_nothing(tokenizer_folder):
    with pytest.raises(UserError, match=r"--max-seq-len 0: must be 1 or more"):
        plan_of(tokenizer_folder, [{"messages": TURNS}], max_seq_len=0)


def model_folder(folder: Path, **config: int) -> Path:
    write_architecture(folder, "llama3", **{"vocab_size": 400, "max_position_embeddings": 128} | config)
    write_tokenizer(folder)
    return folder


def test_a_student_that_reads_a_token_of_the_rows_otherwise_is_refused(tmp_path):
    teacher, student = model_folder(tmp_path / "t"), model_folder(tmp_path / "s")
    plan = plan_of(teacher, [{"messages": TURNS}])
    ModelFolder.open(student).require_rows(teacher, plan)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student / name).write_text((student / name).read_text().replace("<|im_end|>", "<|end|>"))
    with pytest.raises(UserError, match=rf"{student}: its tokenizer is not that of {teacher}.*'<\|end\|>'"):
        ModelFolder.open(student).require_rows(teacher, plan)


def test_rows_that_are_too_long_for_a_student_are_told(tmp_path):
    teacher, student = model_folder(tmp_path / "t"), model_folder(tmp_path / "s", max_position_embeddings=8)
    plan = plan_of(teacher, [{"messages": TURNS}])
    with pytest.raises(UserError, match=rf"--max-seq-len: .*{student} reads 8 at most"):
        ModelFolder.open(student).require_rows(teacher, plan)


def test_chats_are_compared_on_a_model_and_its_adapter(tmp_path, capsys):
    base, adapter = model_folder(tmp_path / "base"), tmp_path / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["v_proj"], lora_alpha=256, init_lora_weights=False)
    ).save_pretrained(adapter)
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": TURNS}] * 3))
    table = tmp_path / "table.md"
    main(["compare", str(base), str(adapter), "--source", str(tmp_path / "rows.json"), "--output", str(table)])
    assert capsys.readouterr().out.count("read with its adapter merged") == 1
    of_base, of_adapter = (line.split(" | ") for line in table.read_text().splitlines()[2:4])
    assert of_base[4] == "0.000"
    assert of_adapter[4] != "0.000"


@pytest.fixture
def rows_file_of_six(tmp_path: Path) -> Path:
    path = tmp_path / "six.json"
    path.write_text(json.dumps(ROWS[:6]))
    return path


def table_of(*arguments: object, output: Path) -> list[list[str]]:
    """The cells of each model."""
    main(["compare", *map(str, arguments), "--output", str(output)])
    lines = [line for line in output.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def test_the_models_of_the_demo_are_compared(tmp_path, rows_file_of_six, capsys):
    """They have tokenizer.model alone."""
    folders = [demo_model_folder("teacher"), demo_model_folder("student")]
    teacher, student = table_of(*folders, "--source", rows_file_of_six, output=tmp_path / "table.md")
    assert (teacher[0], teacher[3], student[0]) == ("teacher", "1.000", "student")
    assert "On 6 rows alone" in capsys.readouterr().out


def test_a_config_gives_teacher_tokenizer_rows_and_dtype(
    write_config, tmp_path, student_folder, rows_file, monkeypatch
):
    held_out = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[50:]"}
    optimizer = {"_component_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.95]}
    config = write_config(dataset_val=held_out, dtype="bf16", teacher_dtype="fp32", optimizer=optimizer)
    recipe = tmp_path / "mine.py"  # with a key of its own
    recipe.write_text(find_recipe("kd_single_device").read_text() + "\nREAD = 'my_key'\n")
    other = shutil.copytree(student_folder, tmp_path / "other")
    loaded = []
    monkeypatch.setattr(
        "distill_tune.models.load_model",
        lambda component, checkpoint, dtype, device: (
            loaded.append(dtype) or load_model(component, checkpoint, dtype, device)
        ),
    )
    in_any_order = [other, "optimizer=torch.optim.SGD", "--config", config, recipe, "+my_key=1"]
    teacher, base, trained = table_of(*in_any_order, output=tmp_path / "table.md")
    assert [row[0] for row in (teacher, base, trained)] == ["teacher", "base student", "other"]
    assert base[1:5] == trained[1:5] != teacher[1:5]  # the same weights
    assert trained[5:] == ["same", "same"]
    assert loaded == [torch.bfloat16] * 2
    # The same rows in the same tokens, by folders.
    split = f"{{_component_: distill_tune.data.instruct, source: {rows_file}, split: 'train[50:]'}}"
    plain = table_of("--config", config, other, "dtype=fp32", output=tmp_path / "table.md")
    rows = table_of(
        "--config", config, other, "dtype=fp32", "~dataset_val", "--dataset", split, output=tmp_path / "t.md"
    )
    assert [row[:5] for row in rows] == [row[:5] for row in plain]


@pytest.mark.parametrize("how", ["of the config", "as an option"])
def test_of_docstrings_no_more_are_made_than_are_asked_for(write_config, tmp_path, student_folder, monkeypatch, how):
    asked = []

    def collect(num_rows, **which):
        asked.append(num_rows)
        return ROWS[:num_rows]

    monkeypatch.setattr("distill_tune.data.docstring_rows.collect", collect)
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "cache"))
    dataset = {"_component_": "distill_tune.data.docstrings", "held_out": True}
    if how == "as an option":
        named = ["--config", write_config(), "--dataset", json.dumps(dataset)]
    else:
        named = ["--config", write_config(dataset_val=dataset | {"num_rows": 30})]
    table_of(student_folder, *named, "--rows", 5, output=tmp_path / "table.md")
    assert asked == [5]


@pytest.mark.torchao
def test_a_quantised_teacher_is_compared_as_it_trains(write_config, tmp_path, student_folder, rows_file):
    held_out = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:8]"}
    config = write_config(dataset_val=held_out)
    plain, _, _ = table_of("--config", config, student_folder, output=tmp_path / "table.md")
    quantised, _, _ = table_of(
        "--config", config, student_folder, "+teacher_quantizer._component_=torchao.quantization.Int8WeightOnlyConfig",
        output=tmp_path / "table.md",
    )  # fmt: skip
    assert quantised[1] == plain[1]  # parameters
    assert quantised[2] != plain[2]  # perplexity
    assert float(quantised[2]) == pytest.approx(float(plain[2]), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--source", "nothing.json"], "nothing.json"),
        ({}, [], "dataset_val: missing; compare measures on its rows"),
        ({"kd_ratio": 0}, ["--source", "x.json"], "kd_ratio=0: this run has no teacher"),
        ({}, ["nowhere", "--source", "x.json"], "nowhere: no such folder"),
        ({"output_dir": "none"}, ["--source", "x.json"], "output_dir=none has no model/ yet"),
        ({}, ["a.py", "b.py"], "compare: a.py and b.py: name one recipe"),
        ({}, ["kd_raito=1"], "kd_raito: no such key, did you mean kd_ratio?"),
    ],
)
def test_what_a_config_cannot_be_compared_with_is_told(
    write_config, student_folder, tmp_path, capsys, changes, arguments, message
):
    shutil.copytree(student_folder, tmp_path / "out" / "model")
    with pytest.raises(SystemExit):
        main(["compare", "--config", str(write_config(**changes)), *arguments])
    assert message in capsys.readouterr().err
