"""Signals on two processes: the loss of one process with twice the batch, and states that any number can go on from."""

import json
import shutil
import sys

import pytest
from tiny import ROWS, metrics_of, write_model

from distill_tune.cli.main import main

FROM_HF = "distill_tune.models.from_hf"
CASES = ["projectors", "several", "each row its own", "base model"]


@pytest.fixture
def run(tmp_path, cli, write_config, student_folder, teacher_folder, tokenizer_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = write_model(tmp_path / "other", tokenizer_file, seed=3, width=48)
    teachers = [
        {"_component_": FROM_HF, "path": str(teacher_folder), "name": "maths"},
        {"_component_": FROM_HF, "path": str(other), "name": "code"},
    ]
    rows = [row | {"teacher_id": ("maths", "code")[number % 3 == 0]} for number, row in enumerate(ROWS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    of_case = {
        "projectors": {"hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss"}},
        "several": {"teacher_model": [*teachers, {"_component_": "distill_tune.teachers.EMA", "decay": 0.5}]},
        "each row its own": {
            "teacher_model": teachers,
            "teacher_combination": "by_row",
            "teacher_system_prompt": "You add.",
            "augmentations": [{"_component_": "distill_tune.data.DropTokens", "rate": 0.2}],
        },
        "base model": {
            "teacher_model": {"_component_": "distill_tune.teachers.BaseModel"},
            "model": {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4},
        },
    }

    def go(case, count, output, *overrides):
        changes = dict(of_case[case])
        adapters = changes.pop("model", {})
        builder = "lora_from_hf" if adapters else "from_hf"
        settings = {
            "model": {"_component_": f"distill_tune.models.{builder}", "path": str(student_folder), **adapters},
            "teacher_model": teachers[0] | {},
            "checkpointer": None,
            "teacher_checkpointer": None,
            # 25 rows: the last step has one, and the second process none.
            "dataset": {"_component_": "distill_tune.data.instruct", "source": "rows.json", "split": "train[:25]"},
            "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1},
            "save_every_n_steps": 2,
            "batch_size": 8 // count,
        }
        write_config(**settings | changes)
        if count == 1:
            monkeypatch.setattr(sys, "argv", ["distill-tune"])
            monkeypatch.setattr(sys, "path", list(sys.path))
            main(["run", "kd_single_device", "--config", "config.yaml", f"output_dir={output}", *overrides])
        else:
            command = ["run", "--nproc_per_node", str(count), "kd_distributed", "--config", "config.yaml"]
            done = cli(*command, f"output_dir={output}", *overrides, OMP_NUM_THREADS="1")
            assert done.returncode == 0, done.stderr
        return metrics_of(tmp_path / output)

    return go


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_and_one_goes_on_where_two_stopped(run, case, tmp_path):
    one, two = run(case, 1, "one"), run(case, 2, "two")
    assert len(one) == 4
    for key in ("loss", "ce_loss", "kd_loss", "grad_norm", "tokens", "supervised_tokens"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-4, abs=1e-7)
    shutil.copytree(tmp_path / "two", tmp_path / "further")
    on = run(case, 1, "further", "resume_from_checkpoint=further/checkpoints/step_2")
    assert [line["loss"] for line in on] == pytest.approx([line["loss"] for line in one], rel=1e-4)
