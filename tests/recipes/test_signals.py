"""Every signal a teacher can give, through the real command and both recipes, on tiny models.

The command runs in this process: dozens of runs would else spend their time on imports.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import ROWS, metrics_of

from distill_tune.cli.main import main
from distill_tune.config.files import recipes_folder

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4}


def losses(name, **arguments):
    return {"kd_loss": {"_component_": f"distill_tune.losses.{name}", **arguments}}


def schedule(name, **arguments):
    return {"_component_": f"distill_tune.training.{name}", **arguments}


DIVERGENCES = {
    "reverse KL": losses("ReverseKL"),
    "symmetric KL": losses("SymmetricKL", sym_kd_ratio=0.3),
    "jensen-shannon": losses("JensenShannon", beta=0.1),
    "skewed forward KL": losses("SkewedForwardKL", alpha=0.1),
    "skewed reverse KL": losses("SkewedReverseKL", alpha=0.1),
    "total variation": losses("TotalVariation"),
    "adaptive KL": losses("AdaptiveKL"),
    "logit mse": losses("LogitMSE"),
    "top k": losses("TopK", k=8),
    "top k of another": losses("TopK", k=8, divergence={"_component_": "distill_tune.losses.ReverseKL"}),
    "without T^2": {"temperature": 2.0, "temperature_squared": False},
    "certain tokens": {"kd_token_weight": {"_component_": "distill_tune.losses.TeacherCertainty"}, "temperature": 2.0},
    "right tokens": {"kd_token_weight": {"_component_": "distill_tune.losses.TargetProbability"}},
    "schedules": {
        "kd_ratio": schedule("Linear", start=0.0, end=1.0),
        "temperature": schedule("Linear", start=3.0, change=-0.5, by="epoch", floor=1.0),
    },
}
HIDDEN = {
    "uniform layers": {"hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss"}},
    "the last layer's direction": {
        "hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss", "layers": "last", "measure": "cosine"}
    },
    "pairs at all positions": {
        "hidden_loss": {
            "_component_": "distill_tune.losses.HiddenLoss",
            "layers": [[0, 0], [1, 2]],
            "positions": "all",
            "weight": schedule("Cosine", start=1.0, end=0.1),
        },
        "enable_activation_checkpointing": True,
    },
    "hidden states alone": {"hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss"}, "kd_ratio": 0.0},
}
OWN = {
    "average": {"teacher_model": {"_component_": "distill_tune.teachers.EMA", "decay": 0.5}},
    "base model": {"teacher_model": {"_component_": "distill_tune.teachers.BaseModel"}, "model": LORA},
    "base model's layers": {
        "teacher_model": {"_component_": "distill_tune.teachers.BaseModel"},
        "model": LORA,
        "hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss"},
    },
    "average of adapters": {"teacher_model": {"_component_": "distill_tune.teachers.EMA"}, "model": LORA},
}
QAT = {
    "quantised": {"quantizer": {"_component_": "distill_tune.qat.Q4_0"}},
    "quantised from the second step on, beside its base model": {
        "quantizer": {"_component_": "distill_tune.qat.Int8DynActInt4Weight", "groupsize": 16},
        "fake_quant_after_n_steps": 1,
        "teacher_model": {"_component_": "distill_tune.teachers.BaseModel"},
        "model": LORA,
        "enable_activation_checkpointing": True,
    },
}
DATA = {
    "augmentations": {
        "augmentations": [
            {"_component_": "distill_tune.data.DropTokens", "rate": 0.2},
            {"_component_": "distill_tune.data.ReplaceTokens", "rate": 0.2},
            {"_component_": "distill_tune.data.TruncatePrompt", "rate": 1.0, "most": 0.5},
        ]
    },
    "prompts": {
        "teacher_prompt_template": "Think first. {input} It is {a}.",
        "student_prompt_template": "{input}!",
        "teacher_system_prompt": "You know how to add.",
        "teacher_max_seq_len": 120,
    },
}


@pytest.fixture
def run(request, tmp_path, write_config, student_folder, teacher_folder, monkeypatch):
    """Run one of the recipes with changes to a config of models from their folders; returns its metrics."""
    monkeypatch.chdir(tmp_path)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    if request.param == "kd_distributed":
        for name, value in alone.items():
            monkeypatch.setenv(name, value)

    def go(changes=(), *overrides):
        changes = dict(changes)
        adapters = changes.pop("model", {})
        builder = "lora_from_hf" if adapters else "from_hf"
        settings = {
            "model": {"_component_": f"distill_tune.models.{builder}", "path": str(student_folder), **adapters},
            "teacher_model": {"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)},
            "checkpointer": None,
            "teacher_checkpointer": None,
            "epochs": 2,
            "max_steps_per_epoch": 2,
            "save_every_n_steps": 1,
        }
        write_config(**settings | changes)
        folder = next((o.partition("=")[2] for o in overrides if o.startswith("output_dir=")), "out")
        monkeypatch.setattr(sys, "argv", ["distill-tune"])
        monkeypatch.setattr(sys, "path", list(sys.path))
        if request.param == "kd_distributed":
            # What torchrun would start.
            import runpy

            recipe = recipes_folder() / "kd_distributed.py"
            sys.argv = [str(recipe), "--config", "config.yaml", *overrides]
            try:
                runpy.run_path(str(recipe), run_name="__main__")
            finally:
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
        else:
            main(["run", "kd_single_device", "--config", "config.yaml", *overrides])
        return metrics_of(tmp_path / folder)

    return go


SINGLE = [*DIVERGENCES, *HIDDEN, *OWN, *QAT, *DATA]
# A divergence knows nothing of processes: some of them are enough.
DISTRIBUTED = ["jensen-shannon", "certain tokens", "schedules", *HIDDEN, *OWN, *QAT, *DATA]


@pytest.mark.parametrize(
    ("run", "name"),
    [*(("kd_single_device", name) for name in SINGLE), *(("kd_distributed", name) for name in DISTRIBUTED)],
    indirect=["run"],
)
def test_it_trains_and_goes_on_from_a_checkpoint_as_if_never_stopped(run, name, tmp_path, rows_file):
    changes = (DIVERGENCES | HIDDEN | OWN | QAT | DATA)[name]
    if name == "prompts":
        rows = [row | {"a": number} for number, row in enumerate(ROWS)]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        changes = changes | {"dataset": {"_component_": "distill_tune.data.instruct", "source": "rows.json"}}
    whole = run(changes, "optimizer.lr=1e-2")
    assert len(whole) == 4
    assert all(0 < line["grad_norm"] < 1e6 for line in whole)
    if name in ("uniform layers", "hidden states alone"):
        assert whole[-1]["hidden_loss"] < whole[0]["hidden_loss"]
    shutil.copytree(tmp_path / "out", tmp_path / "resumed")
    resumed = run(
        changes, "optimizer.lr=1e-2", "output_dir=resumed", "resume_from_checkpoint=resumed/checkpoints/step_2"
    )
    kept = [key for key in whole[0] if "second" not in key and "memory" not in key]
    assert [[line[key] for key in kept] for line in resumed] == [[line[key] for key in kept] for line in whole]
    weights = [load_file(tmp_path / folder / "model" / "model.safetensors") for folder in ("out", "resumed")]
    assert weights[0].keys() == weights[1].keys() == load_file_names(tmp_path)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def load_file_names(tmp_path):
    """What a plain student has, and no more: projectors are not exported."""
    import yaml

    folder = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["path"]
    return load_file(Path(folder) / "model.safetensors").keys()
