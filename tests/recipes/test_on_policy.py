"""Runs with rollouts through the real CLI: killed, resumed, on two processes, with several kinds of teachers."""

import json
import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from stand_in_engines import StandInVLLM
from tiny import MEASURED, ROWS, metrics_of, put_before

from distill_tune import teachers
from distill_tune.cli.main import main

FROM_HF = "distill_tune.models.from_hf"
SAMPLING = {"max_new_tokens": 12, "temperature": 0.9}
# Lines of a recipe that is killed once while the answers of its third and fourth step are written, and once in the
# middle of the fourth, by whose time the weights that wrote them are gone.
KILLS = """\
def kill_once(at):
    if step == at and not (mark := run.path / f"killed_{at}").exists():
        mark.touch()
        __import__("os").kill(__import__("os").getpid(), 9)
def completions(requests, completions=rows._answers._by_student.completions):
    for found in completions(requests):
        yield found
        kill_once(2)
rows._answers._by_student.completions = completions
"""


@pytest.fixture
def config(write_config, student_folder, teacher_folder):
    """config.yaml with half of each step's rows answered by the student, by default."""

    def write(rollouts: dict | None = None, **changes: object):
        settings = {
            "model": {"_component_": FROM_HF, "path": str(student_folder)},
            "teacher_model": {"_component_": FROM_HF, "path": str(teacher_folder)},
            "checkpointer": None,
            "teacher_checkpointer": None,
            "kd_loss": {"_component_": "distill_tune.losses.ReverseKL"},
            "kd_ratio": 1.0,
            "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1},
            "rollouts": {"_component_": "distill_tune.rollouts.OnPolicy", "lmbda": 0.5, "sampling": SAMPLING}
            | {"log_every_n_steps": 2}
            | (rollouts or {}),
        }
        return write_config(**settings | changes)

    return write


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The recipe of one process, in this one; its lines of metrics without what is measured by the clock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["distill-tune"])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def go(*overrides: str, output: str = "out"):
        main(["run", "kd_single_device", "--config", "config.yaml", f"output_dir={output}", *overrides])
        return lines_of(tmp_path / output)

    return go


def lines_of(folder):
    return [{key: line[key] for key in line.keys() - MEASURED} for line in metrics_of(folder)]


def rollouts_of(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def weights_of(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_killed_in_a_rollout_and_in_a_step_a_run_ends_with_the_same_bits(config, cli, tmp_path):
    config({"every": 2}, save_every_n_steps=1, resume="auto", max_steps_per_epoch=5)
    assert cli("run", "kd_single_device", "--config", "config.yaml", "output_dir=whole").returncode == 0
    assert cli("cp", "kd_single_device", "mine.py").returncode == 0
    put_before(tmp_path / "mine.py", "    line, stopped_by = None, 0\n", KILLS)
    put_before(tmp_path / "mine.py", "            sums.append(of_batch.detach())\n", "kill_once(3)")
    codes = [cli("run", "mine.py", "--config", "config.yaml").returncode for _ in range(3)]
    assert codes == [-9, -9, 0]
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")
    assert rollouts_of(tmp_path / "out") == rollouts_of(tmp_path / "whole")
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_take_the_steps_of_one(config, run, cli, tmp_path):
    # 25 rows: the last step has one, and the second process none.
    rows = {"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json"), "split": "train[:25]"}
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    config({"seq_kd": True}, dataset=rows, batch_size=8)
    alone = run()
    config({"seq_kd": True}, dataset=rows, batch_size=4)
    command = ["run", "--nproc_per_node", "2", "kd_distributed", "--config", "config.yaml", "output_dir=two"]
    done = cli(*command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    together = lines_of(tmp_path / "two")
    assert [line["supervised_tokens"] for line in together] == [line["supervised_tokens"] for line in alone]
    for mine, theirs in zip(together, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    mine, theirs = rollouts_of(tmp_path / "two"), rollouts_of(tmp_path / "out")
    assert [line["answer"] for line in mine] == [line["answer"] for line in theirs]
    one, two = weights_of(tmp_path / "out"), weights_of(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_rollouts_are_written_with_the_teachers_marks(config, run, tmp_path, rows_file):
    config()
    lines = run("max_steps_per_epoch=3")
    found = rollouts_of(tmp_path / "out")
    assert [line["step"] for line in found] == [1, 1, 3, 3]
    assert all(1 <= len(line["marks"]) <= 12 and None not in dict(line["marks"]).values() for line in found)
    assert all(line["prompt"].startswith("[INST] What is") and line["row"].startswith(str(rows_file)) for line in found)
    marked = [line for line in lines if "rollout_acceptance" in line]
    assert [line["step"] for line in marked] == [1, 3]
    for line in marked:
        assert 0 < line["rollout_acceptance"] < 1
        assert line["rollout_largest_log_prob_gap"] < 1e-4
        assert line["rollout_student_entropy"] > 0


def test_each_row_follows_its_own_teacher_which_writes_for_it_too(
    config, run, tmp_path, student_folder, teacher_folder
):
    teachers = [
        {"_component_": FROM_HF, "path": str(folder), "name": name}
        for name, folder in (("same", student_folder), ("other", teacher_folder))
    ]
    of_one = [row | {"teacher_id": "same"} for row in ROWS[:4]]
    (tmp_path / "rows.json").write_text(json.dumps([*of_one, *(row | {"teacher_id": "other"} for row in ROWS[4:8])]))
    config(
        {"seq_kd": True},
        teacher_model=teachers,
        teacher_combination="by_row",
        dataset={"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json")},
        shuffle=False,
    )
    of_same, of_other = run("max_steps_per_epoch=2", "optimizer.lr=0.0")
    assert abs(of_same["loss"]) < 1e-6 < of_other["loss"]


def test_the_student_as_it_was_teaches_it_nothing(config, run):
    teacher = {"_component_": "distill_tune.teachers.EMA", "decay": 0.0}
    config({"lmbda": 1.0}, teacher_model=teacher)
    assert all(abs(line["loss"]) < 1e-6 and line["grad_norm"] < 1e-5 for line in run("max_steps_per_epoch=2"))


def test_a_privileged_prompt_teaches_the_student_what_it_has_not_read(config, run):
    teacher = {"_component_": "distill_tune.teachers.EMA", "decay": 0.0}
    config({"lmbda": 1.0}, teacher_model=teacher, teacher_prompt_template="{input} Know this: {output}")
    first = run("max_steps_per_epoch=1")[0]
    assert first["loss"] > 1e-3


def test_a_served_teacher_judges_what_was_just_written(run, write_config, demo_teacher_url):
    """Of whole hidden states as the teacher itself; of likeliest tokens and the rest never less than 0, nor more,
    and nearer with the student's likeliest."""
    write_config()
    of_few = ["--config", "on_policy", "dataset.num_rows=16", "dataset.min_characters=30", "batch_size=4"]
    of_few += ["rollouts.sampling.max_new_tokens=12", "max_steps_per_epoch=2", "optimizer.lr=0.0"]
    served = "teacher_model={_component_: distill_tune.teachers.Served, url: " + demo_teacher_url + ", kind: %s}"

    def losses(output, *overrides):
        return [line["loss"] for line in run(*of_few, *overrides, output=output)]

    exact = losses("exact")
    assert losses("hidden", served % "hidden") == pytest.approx(exact, rel=5e-4)  # hidden states are stored in bf16
    of_likeliest = losses("top_k", served % "top_k")
    of_both = losses("both", served % "top_k, k_of_student: 20")
    assert all(0 < few < both < whole for few, both, whole in zip(of_likeliest, of_both, exact, strict=True))


@pytest.mark.parametrize("key", ["teacher_cache", "teacher_model"])
def test_a_cache_is_refused_since_it_has_no_answers_of_the_students(config, cli, tmp_path, key):
    config()
    cache = tmp_path / "cache"
    if key == "teacher_model":
        assert (
            cli("run", "teacher_cache", "--config", "config.yaml", "cache.kind=top_k", f"output_dir={cache}").returncode
            == 0
        )
        of_cache = f"teacher_model={{_component_: distill_tune.teachers.Cached, path: {cache}}}"
        done = cli("run", "kd_single_device", "--config", "config.yaml", of_cache)
    else:
        done = cli("run", "kd_single_device", "--config", "config.yaml", f"teacher_cache={cache}", "cache.kind=top_k")
    assert done.returncode == 2
    assert (
        "rollouts: teacher_model has records" if key == "teacher_model" else f"{key}={cache}: no cache"
    ) in done.stderr


def test_a_server_that_is_sent_the_students_adapters_answers_as_the_student_does(config, run, student_folder):
    """Of a stand-in for vLLM that runs the student's base with what it is sent."""
    base = teachers.build_teacher(OmegaConf.create({"_component_": FROM_HF, "path": str(student_folder)}))
    base.load(None, torch.device("cpu"))
    server = StandInVLLM(base, None)
    server.base = student_folder
    lora = {"_component_": "distill_tune.models.lora_from_hf", "path": str(student_folder), "lora_rank": 4}
    model = lora | {"lora_attn_modules": ["q_proj", "v_proj"], "lora_alpha": 64}
    likeliest = {"lmbda": 1.0, "sampling": {"max_new_tokens": 12, "temperature": 0}}
    quick = {"model": model, "max_steps_per_epoch": 3, "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.1}}
    config(likeliest, **quick)
    alone = run(output="alone")
    there = {"_component_": "distill_tune.generation.Server", "url": server.url}
    config(likeliest | {"server": there}, **quick)
    served = run(output="served")
    server.close()
    assert [line["loss"] for line in served] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
