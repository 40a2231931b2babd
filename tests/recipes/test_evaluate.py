"""The recipe evaluate: a config's own models and others, on one device or several, and what it leaves."""

import json
import math
import shutil

import numpy as np
import pytest
from tiny import ROWS, write_model_of_another_tokenizer
from tiny_gguf import write_gguf

TEST = {"_component_": "distill_tune.data.instruct", "source": "unseen.json"}
UNSEEN = [row | {"category": "even" if number % 2 == 0 else "odd"} for number, row in enumerate(ROWS[40:49])]
FAST = (
    "measure_speed=False",
    "num_answers=3",
    "sampling={_component_: distill_tune.generation.Sampling, max_new_tokens: 6}",
)


def read(folder):
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "results.json").read_text(encoding="utf-8")), list(map(json.loads, lines))


@pytest.fixture
def evaluated(config, run, tmp_path):
    """What a run of the recipe leaves."""
    (tmp_path / "unseen.json").write_text(json.dumps(UNSEEN))
    config(dataset_test=TEST)

    def go(*overrides: str, fast=FAST):
        run("evaluate", *fast, *overrides)
        return read(tmp_path / "out" / "evaluation")

    return go


def test_before_training_the_teacher_and_the_student_are_measured_and_the_rest_is_told(evaluated, tmp_path, capsys):
    found, lines = evaluated(fast=FAST[1:])
    told = capsys.readouterr().out
    assert "after: output_dir=" in told and "has no model yet, and is left out" in told
    assert "9 documents" in told and told.count("Supervised tokens are those") == 1
    assert (
        list(found["models"]) == ["teacher", "before"] and found["teacher"] == "teacher" and found["base"] == "before"
    )
    assert found["data"]["documents"] == len(lines) == 9
    teacher, before = found["models"].values()
    assert teacher["to_teacher"] is None and before["to_teacher"]["forward_kl"]["mean"] > 0
    for label, model in found["models"].items():
        of = [line["models"][label] for line in lines]
        supervised = model["supervised"]
        assert supervised["nll"] == pytest.approx(math.fsum(one["nll"] for one in of))
        assert supervised["tokens"] == sum(one["tokens"] for one in of)
        assert supervised["bytes"] == sum(len(row["output"].encode()) for row in UNSEEN)
        assert supervised["perplexity"] == pytest.approx(math.exp(supervised["nll"] / supervised["tokens"]))
        bits = supervised["text_nll"] / math.log(2) / supervised["bytes"]
        assert supervised["bits_per_byte"] == pytest.approx(bits)
        assert supervised["text_nll"] < supervised["nll"] < model["all"]["nll"]
        assert {name: part["documents"] for name, part in model["categories"].items()} == {"even": 5, "odd": 4}
        assert set(model["speed"]["decode_tokens_per_second"]) == {"1", "9"} and model["peak_memory_bytes"] > 0
        assert model["answers"]["documents"] == 3 and [one["answer"] is None for one in of] == [False] * 3 + [True] * 6
        low, high = model["intervals"]["supervised.bits_per_byte"]
        assert low < supervised["bits_per_byte"] < high
    shown = lines[0]["tokens"]
    assert "".join(token["text"] for token in shown).removesuffix("</s>").strip() == UNSEEN[0]["output"]
    kl = math.fsum(token["forward_kl"]["before"] for token in shown)
    assert kl == pytest.approx(lines[0]["models"]["before"]["forward_kl"])
    assert "tokens" not in lines[5]
    assert "| before |" in (tmp_path / "out" / "evaluation" / "table.md").read_text()


def test_models_of_every_kind_are_measured_beside_each_other_on_one_rank_as_on_two(
    evaluated, cli, tmp_path, student_folder, tokenizer_file
):
    shutil.copytree(student_folder, tmp_path / "out" / "model")
    write_model_of_another_tokenizer(tmp_path / "other", tokenizer_file, seed=5)
    write_gguf(student_folder, tmp_path / "student.gguf", "F32")
    named = "models={shipped: student.gguf, other: other}"
    found, lines = evaluated(named)
    assert list(found["models"]) == ["teacher", "before", "after", "shipped", "other"]
    kinds = [model["kind"] for model in found["models"].values()]
    assert kinds == ["hugging face folder", "hugging face folder", "run", "gguf", "hugging face folder"]
    before, after, shipped, other = (found["models"][label] for label in ("before", "after", "shipped", "other"))
    assert after["supervised"] == before["supervised"]
    assert shipped["supervised"]["nll"] == pytest.approx(before["supervised"]["nll"], rel=1e-4)
    assert other["to_teacher"] is None and other["supervised"]["bytes"] == before["supervised"]["bytes"]
    assert other["supervised"]["tokens"] != before["supervised"]["tokens"]
    words = {pair["words"] for pair in found["pairs"] if {pair["first"], pair["second"]} == {"before", "after"}}
    assert all(word.startswith("no difference: ") for word in words) and words
    done = cli(
        "run", "--nproc_per_node", "2", "evaluate", "--config", "config.yaml", *FAST, named, "+evaluation_folder=two"
    )
    assert done.returncode == 0, done.stderr
    of_two, lines_of_two = read(tmp_path / "two")
    for label, model in found["models"].items():
        for part in ("supervised", "all", "answers"):
            assert of_two["models"][label][part] == pytest.approx(model[part], rel=1e-6)
    for line, other_line in zip(lines, lines_of_two, strict=True):
        assert other_line["id"] == line["id"]
        for label, of in line["models"].items():
            assert other_line["models"][label]["answer"] == of["answer"]
            assert np.isclose(other_line["models"][label]["nll"], of["nll"], rtol=1e-6)


def test_windows_and_their_stride_are_those_of_the_config(evaluated):
    whole, _ = evaluated("num_answers=0", "~teacher_model")
    cut, _ = evaluated("num_answers=0", "~teacher_model", "window=16", "stride=4")
    (whole_model,), (cut_model,) = whole["models"].values(), cut["models"].values()
    assert whole_model["answers"] is None and whole["teacher"] is None
    assert cut_model["all"]["tokens"] == whole_model["all"]["tokens"]
    assert cut_model["all"]["nll"] != whole_model["all"]["nll"]


def test_what_cannot_be_measured_is_told_before_weights_load(config, cli, tmp_path):
    config()
    (tmp_path / "unseen.json").write_text(json.dumps(UNSEEN))
    line = ("validate", "evaluate", "--config", "config.yaml")
    told = cli(*line, "models={a: nowhere, b: ''}", "window=8", "stride=8")
    assert told.returncode == 2
    for fault in ("dataset_test: missing", "models=", "stride=8: must be below window, 8"):
        assert fault in told.stderr
    config(dataset_test=TEST)
    told = cli(*line, "models={a: nowhere, b: elsewhere.gguf}")
    assert "models.a nowhere: no such folder" in told.stderr and "models.b elsewhere.gguf: no such file" in told.stderr
    assert "valid for evaluate" in cli(*line).stdout
