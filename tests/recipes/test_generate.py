"""Answers of models, as recipes/generate.py writes them, and students that learn from them."""

import json
import os
import signal

import pytest
import torch
from omegaconf import OmegaConf
from stand_in_engines import StandInVLLM
from stored_teacher import losses_of
from tiny import ROWS, put_before, write_model_of_another_tokenizer

from distill_tune import models, teachers
from distill_tune.cli.main import main as command_line
from distill_tune.config.files import configs_folder
from distill_tune.data import hf_tokenizer
from distill_tune.data.conversation import prompt_tokens
from distill_tune.generation.record import SampleFile

from torchtune.models.llama2 import llama2_tokenizer

ASKED = [{"instruction": row["instruction"], "reference": number} for number, row in enumerate(ROWS[:8])]
LEARN = "dataset={_component_: distill_tune.data.chat, source: answers/answers.jsonl}"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def samples_in(folder):
    return [sample for path in sorted((folder / "samples").iterdir()) for sample in read(path)]


@pytest.fixture
def asked(config, tmp_path):
    """A config whose rows have no answers."""

    def write(rows=ASKED, **changes):
        (tmp_path / "asked.json").write_text(json.dumps(rows))
        dataset = {"_component_": "distill_tune.data.instruct", "source": "asked.json"}
        sampling = {"_component_": "distill_tune.generation.Sampling", "max_new_tokens": 8}
        return config(**{"dataset": dataset, "sampling": sampling, "epochs": 1} | changes)

    write()
    return write


def likeliest(folder, turns, count, tokenizer=None):
    """A model's answer, by a whole forward pass for each token."""
    tokenizer = tokenizer or llama2_tokenizer(str(folder / "tokenizer.model"))
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})
    checkpoint = models.open_checkpoint("model", component, None)
    model = models.load_model(component, checkpoint, torch.float32, torch.device("cpu")).eval()
    tokens = prompt_tokens(tokenizer, turns)
    start = len(tokens)
    with torch.no_grad():
        while len(tokens) - start < count and tokens[-1] != tokenizer.eos_id:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[start:]


def test_the_teacher_answers_and_its_answers_and_signal_teach_without_it(run, asked, tmp_path, capsys):
    run("generate", "output_dir=answers", "+sampling.temperature=0.0")
    rows = read(tmp_path / "answers" / "answers.jsonl")
    assert [row["messages"][0]["content"] for row in rows] == [row["instruction"] for row in ASKED]
    assert [row["reference"] for row in rows] == list(range(8))
    for row in rows:
        wanted = likeliest(tmp_path / "teacher", row["messages"][:1], 8)
        assert row["generated"]["tokens"] == wanted
        assert row["finish_reason"] == ("stop" if wanted[-1] == 2 else "length")
        assert row["generated"]["model"] == "teacher" and row["generated"]["seed"] == 0
    assert "8 prompts" in (told := capsys.readouterr().out) and "8 of 8 answers kept" in told
    cut = [row["finish_reason"] for row in rows].count("length")
    run("teacher_cache", "output_dir=cache", "cache.kind=top_k", "cache.k=6", LEARN)
    told = capsys.readouterr().out
    assert f"{cut} answers cut when made, learned without an end" in told
    assert "nobody reads: reference (in 8 rows)" in told
    (tmp_path / "teacher").rename(tmp_path / "gone")
    cached = "teacher_model={_component_: distill_tune.teachers.Cached, path: cache}"
    run("kd_single_device", "output_dir=run", LEARN, cached, "kd_loss={_component_: distill_tune.losses.TopK, k: 6}")
    assert all(line["kd_loss"] > 0 for line in losses_of(tmp_path / "run"))


def test_killed_on_two_ranks_it_goes_on_to_what_one_process_makes_without_loss_or_double(run, asked, cli, tmp_path):
    asked(samples_per_prompt=2)
    run("generate", "output_dir=answers")
    assert cli("cp", "generate", "mine.py").returncode == 0
    put_before(tmp_path / "mine.py", "import time\n", "import os")
    place = "                    progress.expect(expected)\n"
    put_before(tmp_path / "mine.py", place, "if done >= 5:\n    os.kill(os.getpid(), 9)")
    line = ("--config", "config.yaml", "output_dir=killed")
    assert "was ended by SIGKILL" in cli("run", "--nproc_per_node", "2", "mine.py", *line).stderr
    assert 5 <= len(samples_in(tmp_path / "killed")) < 9
    with (tmp_path / "killed" / "samples" / "rank_00001.jsonl").open("a") as torn:
        torn.write('{"key": "abc", "mod')
    run("generate", *line[2:])
    whole, killed = (tmp_path / name / "answers.jsonl" for name in ("answers", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    lines = (line for path in (tmp_path / "killed" / "samples").iterdir() for line in path.open())
    assert sum(line.endswith("\n") for line in lines) == 16  # of a rank that is no more a torn line stays


def test_a_signal_ends_generation_with_the_answers_that_came_and_says_so(run, asked, tmp_path, monkeypatch, capfd):
    add = SampleFile.add

    def added(self, sample):
        add(self, sample)
        if len(samples_in(tmp_path / "answers")) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SampleFile, "add", added)
    with pytest.raises(SystemExit) as ended:
        run("generate", "output_dir=answers")
    assert ended.value.code == 128 + signal.SIGTERM
    told = capfd.readouterr()
    assert "distill-tune: SIGTERM: answers that have come are kept; once more ends now" in told.err
    assert "stopped after answer 3 by SIGTERM; the same command goes on" in told.out
    run("generate", "output_dir=answers")
    assert len(read(tmp_path / "answers" / "answers.jsonl")) == len(samples_in(tmp_path / "answers")) == 8


def test_what_is_there_is_kept_with_more_prompts_samples_and_other_filters(run, asked, tmp_path, capsys):
    asked(ASKED[:4])
    run("generate", "output_dir=answers")
    first = read(tmp_path / "answers" / "answers.jsonl")
    again = {"instruction": ASKED[0]["instruction"], "reference": 9}
    asked([ASKED[7], *ASKED[:4], again], samples_per_prompt=2)
    run("generate", "output_dir=answers")
    assert "1 row left out that ask" in capsys.readouterr().out
    assert len(samples_in(tmp_path / "answers")) == 10
    more = read(tmp_path / "answers" / "answers.jsonl")
    assert len(more) == 10 and more[2::2] == first
    assert all(row["messages"][-1] != other["messages"][-1] for row, other in zip(more[::2], more[1::2], strict=True))
    asked([ASKED[7], *ASKED[:4]], samples_per_prompt=2, score={"_component_": "distill_tune.generation.Likelihood"})
    run("generate", "output_dir=answers")
    assert len(samples_in(tmp_path / "answers")) == 10
    best = read(tmp_path / "answers" / "answers.jsonl")
    for row, pair in zip(best, zip(more[::2], more[1::2], strict=True), strict=True):
        likelier = max(pair, key=lambda one: one["generated"]["log_prob"] / len(one["generated"]["tokens"]))
        assert row["messages"] == likelier["messages"]
    left_out = read(tmp_path / "answers" / "left_out.jsonl")
    assert [row["left_out_by"] for row in left_out] == ["not the best"] * 5
    assert "not the best        5  50.0%" in capsys.readouterr().out


def test_prompts_are_asked_again_until_an_answer_is_right_up_to_a_bound(run, asked, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def right(answer, late):\n    return float(answer.sample >= late and answer.row['reference'] != 3)\n"
    )
    asked(score={"_component_": "mine.right", "late": 2}, min_score=1, samples_per_prompt=2, max_samples_per_prompt=5)
    for _ in range(2):
        run("generate", "output_dir=answers")
        rows = read(tmp_path / "answers" / "answers.jsonl")
        assert [row["reference"] for row in rows] == [0, 1, 2, 4, 5, 6, 7]
        assert all(row["generated"]["sample"] in (2, 3) and row["generated"]["score"] == 1 for row in rows)
        made = [sample["number"] for sample in samples_in(tmp_path / "answers")]
        assert [made.count(number) for number in range(6)] == [8, 8, 8, 8, 1, 0]


def test_several_models_answer_all_prompts_or_those_that_name_them(run, asked, student_folder, tmp_path):
    from_hf = "distill_tune.models.from_hf"
    both = [
        {"_component_": from_hf, "path": "teacher", "name": "large"},
        {"_component_": from_hf, "path": str(student_folder), "name": "small"},
    ]
    rows = [row | {"teacher_id": ("large", "small")[number % 2]} for number, row in enumerate(ASKED)]
    asked(rows, teacher_model=both)
    run("generate", "output_dir=answers")
    found = read(tmp_path / "answers" / "answers.jsonl")
    assert [row["generated"]["model"] for row in found] == ["large", "small"] * 8
    asked(rows, teacher_model=both, teacher_combination="by_row")
    run("generate", "output_dir=by_row")
    chosen = read(tmp_path / "by_row" / "answers.jsonl")
    assert chosen == [row for row in found if row["generated"]["model"] == row["teacher_id"]]
    run("generate", "output_dir=student", "generate_with=model", "~teacher_model", "~teacher_combination")
    alone = read(tmp_path / "student" / "answers.jsonl")
    assert [row["messages"] for row in alone] == [
        row["messages"] for row in found if row["generated"]["model"] == "small"
    ]


def test_the_teachers_own_prompt_is_read_by_it_and_not_by_the_student(run, asked, tmp_path):
    run("generate", "output_dir=plain", "+sampling.temperature=0.0")
    run("generate", "output_dir=told", "+sampling.temperature=0.0", "teacher_prompt_template='{reference}: {input}'")
    plain, told = (read(tmp_path / name / "answers.jsonl") for name in ("plain", "told"))
    assert [row["messages"][0] for row in plain] == [row["messages"][0] for row in told]
    asked_otherwise = {"role": "user", "content": f"3: {ASKED[3]['instruction']}"}
    assert told[3]["generated"]["tokens"] == likeliest(tmp_path / "teacher", [asked_otherwise], 8)


def test_a_model_of_another_tokenizer_is_asked_and_understood_in_its_own_tokens(run, asked, tmp_path, capsys):
    path = write_model_of_another_tokenizer(tmp_path / "other", tmp_path / "teacher" / "tokenizer.model", seed=8)
    from_hf = "distill_tune.models.from_hf"
    asked(teacher_model=[{"_component_": from_hf, "path": str(one)} for one in (tmp_path / "teacher", path)])
    run("generate", "output_dir=answers", "+sampling.temperature=0.0")
    told = f"teacher_model: its tokenizer, that of {path}, is not that of the rows; it is asked in its own tokens"
    assert told in capsys.readouterr().out
    rows, own = read(tmp_path / "answers" / "answers.jsonl"), hf_tokenizer(str(path))
    for row in rows:
        name, tokens = row["generated"]["model"], row["generated"]["tokens"]
        wanted = likeliest(tmp_path / name, row["messages"][:1], 8, own if name == "other" else None)
        assert tokens == wanted
        if name == "other":
            assert row["messages"][1]["content"] == own.decode(tokens, skip_special_tokens=False).rstrip("\ufffd")
    assert [row["generated"]["model"] for row in rows] == ["teacher", "other"] * 8


def test_rows_that_cannot_be_asked_are_told_or_listed_and_tried_again(run, asked, tmp_path, capsys):
    short = {"_component_": "distill_tune.models.from_hf", "path": "teacher", "max_seq_len": 64}
    asked([ASKED[0], {"instruction": " "}, {"instruction": "word " * 64}, {"id": 3}], teacher_model=short)
    with pytest.raises(SystemExit):
        run("generate", "output_dir=answers")
    told = capsys.readouterr().err
    assert "3 rows cannot be asked" in told and "asked.json, row 2: a question is empty" in told
    assert "row 3: the prompt has" in told and "row 4: nothing is asked" in told
    assert not (tmp_path / "answers").exists()
    run("generate", "output_dir=answers", "on_bad_row=skip")
    told = capsys.readouterr().out
    assert "1 prompt, " in told and "3 rows left out that cannot be asked" in told and "failed.jsonl  3 rows" in told
    failed = read(tmp_path / "answers" / "failed.jsonl")
    assert [row["row"].rpartition(", ")[2] for row in failed] == ["row 2", "row 3", "row 4"]
    asked(ASKED[:3])
    run("generate", "output_dir=answers", "on_bad_row=skip")
    assert read(tmp_path / "answers" / "failed.jsonl") == []
    assert len(read(tmp_path / "answers" / "answers.jsonl")) == len(samples_in(tmp_path / "answers")) == 3


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+sampling.top_p=0.9"], "holds answers with sampling.top_p=1.0, this config has 0.9; name another folder"),
        (["seed=1"], "holds answers with seed=0, this config has 1; name another folder"),
        (["dtype=bf16"], "holds answers with dtype of teacher=fp32, this config has bf16"),
        (["output_dir=run"], "output_dir=run: holds something else, metrics.jsonl; name another folder for answers"),
        (["dataset.source=empty.json"], "dataset empty.json: is empty"),
        (["sampling.temperature=-1"], "temperature=-1: must be 0 or more"),
        (
            ["filters=[{_component_: distill_tune.generation.Length}]"],
            "filters.0: distill_tune.generation.Length:",
        ),
    ],
)
def test_what_cannot_be_is_told_before_a_model_loads(run, asked, tmp_path, monkeypatch, capsys, overrides, told):
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "answers" / "samples").mkdir(parents=True)
    run("generate", "output_dir=answers", "prompt=Hello")
    monkeypatch.setattr(models, "load_weights", None)
    with pytest.raises(SystemExit) as ended:
        run("generate", *([] if "output_dir=run" in overrides else ["output_dir=answers"]), *overrides)
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["kd_ratio=0.3"], "kd_ratio: generate does not read it; recipes that train do"),
        (["min_score=1"], "min_score=1: nothing heeds it without score; leave it out"),
        (["samples_per_promt=3"], "samples_per_promt: no such key, did you mean samples_per_prompt or"),
        (["thinking=off"], "thinking=False: must be one of keep, drop, field"),
        (["~teacher_model", "~model"], "model: missing; name the model that answers, or teacher_model"),
        (["~teacher_model", "generate_with=teacher_model"], "teacher_model: missing; generate_with=teacher_model asks"),
        (["~dataset"], "dataset: missing; name rows that are prompts, or one with prompt=..."),
        (["score={_component_: distill_tune.generation.Mach}"], "did you mean Match"),
        (["filters=[{_component_: distill_tune.generation.Length, lest: 3}]"], "did you mean least?"),
        (["sampling.max_new_tokens=0"], "max_new_tokens=0: must be 1 or more"),
        (["dataset={_component_: torchtune.datasets.alpaca_dataset, source: json, data_files: asked.json}"], "turns"),
    ],
)
def test_validate_tells_what_generate_would(asked, capsys, overrides, told):
    with pytest.raises(SystemExit) as ended:
        command_line(["validate", "generate", "--config", "config.yaml", *overrides])
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_validate_needs_no_key_of_training_and_writes_nothing(asked, tmp_path, capsys):
    asked(optimizer=None, batch_size=None, epochs=None, kd_ratio=None, teacher_model=None)
    command_line(["validate", "generate", "--config", "config.yaml", "output_dir=answers"])
    assert "config.yaml: valid for generate" in capsys.readouterr().out
    assert not (tmp_path / "answers").exists()


def test_a_server_answers_as_the_teacher_that_it_serves(run, asked, tmp_path):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(tmp_path / "teacher")})
    teacher = teachers.build_teacher(component)
    teacher.load(None, torch.device("cpu"))
    tokenizer = hf_tokenizer(str(tmp_path / "teacher"))
    server = StandInVLLM(teacher, tokenizer.transformers_tokenizer)
    try:
        for name, model in (
            ("served", {"_component_": "distill_tune.generation.Server", "url": server.url}),
            ("answers", component),
        ):
            of_tokenizer = {"_component_": "distill_tune.data.hf_tokenizer", "path": str(tmp_path / "teacher")}
            asked(teacher_model=dict(model), tokenizer=of_tokenizer)
            run("generate", f"output_dir={name}", "+sampling.temperature=0.0")
    finally:
        server.close()
    live, served = (read(tmp_path / name / "answers.jsonl") for name in ("answers", "served"))
    assert [row["messages"] for row in served] == [row["messages"] for row in live]
    assert {row["generated"]["model"] for row in served} == {"tiny"}
    assert json.loads((tmp_path / "served" / "generation.json").read_text())["models"]["tiny"]["ends"] == [2]


@pytest.mark.parametrize("name", ["teacher_answers", "best_of_n"])
def test_a_shipped_config_runs_with_each_of_its_recipes(run, tmp_path, name, capsys):
    (tmp_path / "config.yaml").write_text((configs_folder() / "generate" / f"{name}.yaml").read_text())
    few = ["dataset.num_rows=6", "dataset.min_characters=30", "sampling.max_new_tokens=12"]
    run("generate", *few, "output_dir=answers")
    if name == "best_of_n":
        assert len(samples_in(tmp_path / "answers")) == 24 and "of 24 answers kept" in capsys.readouterr().out
        return
    assert len(read(tmp_path / "answers" / "answers.jsonl")) == 6
    run("kd_single_device", LEARN, "batch_size=4", "epochs=1", "output_dir=run")
    assert losses_of(tmp_path / "run")


@pytest.mark.parametrize("command", ["plan", "data"])
def test_commands_for_training_refuse_a_recipe_that_trains_nothing(asked, capsys, command):
    with pytest.raises(SystemExit):
        command_line([command, "generate", "--config", "config.yaml"])
    assert f"{command} generate: it trains nothing; name a recipe that does" in capsys.readouterr().err
