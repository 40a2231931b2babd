"""Held-out rows in every format that the recipes read, and models that are compared on them."""

import argparse
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from architectures import write_architecture
from tiny import ROWS, write_model_of_another_tokenizer
from tiny_tokenizer import write_tokenizer

from distill_tune.cli.held_out import dataset_of, named_as_given
from distill_tune.cli.main import main
from distill_tune.config.files import find_recipe
from distill_tune.data import hf_tokenizer
from distill_tune.data.datasets import dataset_for
from distill_tune.errors import UserError
from distill_tune.evaluation import NamedModel, Reading, read_documents

TURNS = [{"role": "user", "content": "Is 7 a prime?"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def read(folder: Path, rows: list[dict] | None = None, num_rows: int = 10, dataset: str | None = None, source=None):
    if rows is not None:
        (folder / "rows.json").write_text(json.dumps(rows))
        source = None if dataset else str(folder / "rows.json")
    options = argparse.Namespace(source=source, dataset=dataset, rows=num_rows, default_rows=10)
    with named_as_given(options):
        return read_documents(dataset_of(options), [Reading(hf_tokenizer(str(folder)))], key="dataset", most=num_rows)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"source": "nothere.json"}, "--source nothere.json: no such file or folder"),
        ({"source": "empty.json"}, "--source empty.json: is empty: there is no row to read"),
        ({"dataset": "{_component_: distill_tune.data.chat, source: no.json}"}, "--dataset no.json: no such file"),
    ],
)
def test_what_is_wrong_with_rows_names_the_option_that_gave_them(tokenizer_folder, monkeypatch, given, wrong):
    monkeypatch.chdir(tokenizer_folder)
    Path("empty.json").write_text("[]")
    with pytest.raises(UserError) as told:
        read(tokenizer_folder, **given)
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
    assert len(read(tokenizer_folder, [row] * 6, num_rows=5)) == 5


def test_a_dataset_of_a_config_is_read_with_its_arguments(tokenizer_folder):
    dataset = (
        f"{{_component_: distill_tune.data.instruct, source: {tokenizer_folder}/rows.json, "
        "column_map: {prompt: q, response: a}}"
    )
    assert len(read(tokenizer_folder, [{"q": "Is 7 a prime?", "a": "yes"}] * 3, num_rows=2, dataset=dataset)) == 2


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
        read(tokenizer_folder, [], dataset=dataset)


def test_rows_cannot_be_read_by_single_tokens(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "demo:teacher", "demo:student", "--max-seq-len", "1"])
    assert "--max-seq-len 1: must be 2 or more" in capsys.readouterr().err


def test_where_the_tables_go_is_looked_at_first(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["compare", "demo:teacher", "demo:student", "--output", str(tmp_path / "file" / "table.md")])
    told = capsys.readouterr()
    assert f"--output={tmp_path}/file: cannot be written: Not a directory" in told.err and not told.out


def model_folder(folder: Path, **config: int) -> Path:
    write_architecture(folder, "llama3", **{"vocab_size": 400, "max_position_embeddings": 128} | config)
    write_tokenizer(folder)
    return folder


def test_a_student_that_reads_a_token_of_the_rows_otherwise_is_refused(tmp_path, capsys):
    teacher, student = model_folder(tmp_path / "t"), model_folder(tmp_path / "s")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student / name).write_text((student / name).read_text().replace("<|im_end|>", "<|end|>"))
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": TURNS}]))
    with pytest.raises(SystemExit):
        main(["compare", str(teacher), str(student), "--source", str(tmp_path / "rows.json")])
    told = capsys.readouterr().err
    assert f"{student}: its tokenizer is not that of {teacher}" in told and "'<|end|>'" in told


def test_rows_that_are_longer_than_a_student_reads_are_read_in_windows(tmp_path):
    teacher, student = model_folder(tmp_path / "t"), model_folder(tmp_path / "s", max_position_embeddings=8)
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": TURNS}] * 3))
    output = tmp_path / "made" / "t.md"
    of_teacher, of_student = table_of(teacher, student, "--source", tmp_path / "rows.json", output=output)
    assert of_teacher["perplexity"] != of_student["perplexity"]
    again, _ = table_of(
        teacher, student, "--source", tmp_path / "rows.json", "--max-seq-len", 8, output=tmp_path / "t.md"
    )
    assert again["perplexity"] == of_student["perplexity"]  # the same weights, so the same windows


def test_a_chat_is_compared_on_a_model_and_its_adapter(tmp_path, capsys):
    base, adapter = model_folder(tmp_path / "base"), tmp_path / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["v_proj"], lora_alpha=256, init_lora_weights=False)
    ).save_pretrained(adapter)
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": TURNS}] * 3))
    of_base, of_adapter = table_of(base, adapter, "--source", tmp_path / "rows.json", output=tmp_path / "table.md")
    assert capsys.readouterr().out.count("read with its adapter merged") == 1
    assert of_base["KL to teacher"] == "-"
    assert float(of_adapter["KL to teacher"].split()[0]) > 0


@pytest.fixture
def rows_file_of_six(tmp_path: Path) -> Path:
    path = tmp_path / "six.json"
    path.write_text(json.dumps(ROWS[:6]))
    return path


def table_of(*arguments: object, output: Path) -> list[dict[str, str]]:
    """The cells of each model in the first table, by their headings; of speed and memory nothing is measured."""
    main(["compare", *map(str, arguments), "--output", str(output)])
    lines = output.read_text().partition("\n\n")[2].partition("\n\n")[0].splitlines()
    headings, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    return [dict(zip(headings, row, strict=True)) for row in rows]


def quality(row: dict[str, str]) -> list[str]:
    return [row[name] for name in ("perplexity", "bits per byte", "KL to teacher", "agreement")]


def test_the_models_of_the_demo_are_compared(tmp_path, rows_file_of_six):
    """They have tokenizer.model alone."""
    found = table_of("demo:teacher", "demo:student", "--source", rows_file_of_six, output=tmp_path / "table.md")
    assert [row["model"] for row in found] == ["teacher", "student"]
    teacher, student = found
    assert (teacher["parameters"], student["parameters"]) == ("5.77 M", "0.92 M")
    assert teacher["KL to teacher"] == "-" and float(student["KL to teacher"].split()[0]) > 0
    assert float(teacher["bits per byte"].split()[0]) < float(student["bits per byte"].split()[0])


def test_a_teacher_of_another_tokenizer_is_compared_by_the_bytes_of_the_text(
    tmp_path, tokenizer_file, student_folder, rows_file_of_six, capsys
):
    teacher = write_model_of_another_tokenizer(tmp_path / "teacher", tokenizer_file, seed=3)
    found = table_of(student_folder, teacher, "--source", rows_file_of_six, output=tmp_path / "table.md")
    assert all(float(row["bits per byte"].split()[0]) > 0 for row in found)
    assert "since the tokenizers differ: teacher" in " ".join(capsys.readouterr().out.split())


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
    load = NamedModel.load
    monkeypatch.setattr(
        NamedModel,
        "load",
        lambda self, device: loaded.append(next(self.model.model.parameters()).dtype) or load(self, device),
    )
    in_any_order = [other, "optimizer=torch.optim.SGD", "--config", config, recipe, "+my_key=1"]
    teacher, base, trained = table_of(*in_any_order, output=tmp_path / "table.md")
    assert [row.pop("model") for row in (teacher, base, trained)] == ["teacher", "before", "other"]
    assert base == trained != teacher  # the same weights, speed and memory measured once of a shape
    assert loaded == [torch.float32, torch.bfloat16, torch.bfloat16]
    # The same rows in the same tokens, by folders.
    split = f"{{_component_: distill_tune.data.instruct, source: {rows_file}, split: 'train[50:]'}}"
    plain = table_of("--config", config, other, "dtype=fp32", output=tmp_path / "table.md")
    rows = table_of(
        "--config", config, other, "dtype=fp32", "~dataset_val", "--dataset", split, output=tmp_path / "t.md"
    )
    assert list(map(quality, rows)) == list(map(quality, plain))


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
    assert quantised["parameters"] == plain["parameters"]
    assert quantised["perplexity"] != plain["perplexity"]
    assert float(quantised["perplexity"].split()[0]) == pytest.approx(float(plain["perplexity"].split()[0]), rel=0.05)


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
