"""Every kind of checkpoint that two ranks write, and what goes on from it: the same bits."""

import json
import os
from pathlib import Path

import pytest
import resumed_ranks
import torch
from command_server import CommandServer
from safetensors.torch import load_file
from tiny import MEASURED, ROWS, metrics_of

FROM_HF = "distill_tune.models.from_hf"
ADAPTERS = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4, "lora_dropout": 0.1}
STEPS = ["epochs=2", "max_steps_per_epoch=2", "batch_size=2", "+run_val_every_n_steps=1", "+save_every_n_steps=1"]
# A step that validates and saves is the hard one: after validation what lies outside of the layers is gathered.
CASES: dict[str, dict] = {
    "live": {"custom_sharded_layers": ["tok_embeddings"]},
    "average": {
        "teacher_model": {"_component_": "distill_tune.teachers.EMA", "decay": 0.5},
        "hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss"},
        "dtype": "bf16",
    },
    "adapters": {"model": ADAPTERS, "teacher_model": {"_component_": "distill_tune.teachers.BaseModel"}},
    "8 bit": {"kd_ratio": 0, "optimizer": {"_component_": "torchao.optim.AdamW8bit", "lr": 1e-2, "block_size": 64}},
}
RESUMED = {"live": [1, 2, 3]}  # the others from the end of the first epoch
STOPPED = {"live": 3}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    student_folder: Path,
    teacher_folder: Path,
    command_server: CommandServer,
    request: pytest.FixtureRequest,
) -> Path:
    """A folder of the runs of each case that is tested."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "rows.json").write_text(json.dumps(ROWS[:20]))
    rows = {"_component_": "distill_tune.data.instruct", "source": str(folder / "rows.json")}
    line = []
    asked = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    for name, changes in CASES.items():
        if name not in asked:
            continue
        adapters = changes.get("model", {})
        builder = "lora_from_hf" if adapters else "from_hf"
        config = {
            "device": "cpu",
            "dtype": "fp32",
            "seed": 0,
            "kd_ratio": 0.5,
            "teacher_model": {"_component_": FROM_HF, "path": str(teacher_folder)},
            "tokenizer": {
                "_component_": "torchtune.models.llama2.llama2_tokenizer",
                "path": str(student_folder / "tokenizer.model"),
                "max_seq_len": 64,
            },
            "dataset": rows | {"split": "train[:14]"},
            "dataset_val": rows | {"split": "train[14:]"},
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-2},
            "keep_best": "val_loss",
            **changes,
            "model": {"_component_": f"distill_tune.models.{builder}", "path": str(student_folder), **adapters},
        }
        config_file = f"{folder / name}.yaml"
        Path(config_file).write_text(json.dumps(config))  # which is YAML
        line.append(
            [str(folder / name), str(folder / f"{name}.yaml"), STEPS, RESUMED.get(name, [2]), STOPPED.get(name)]
        )
    (folder / "cases.json").write_text(json.dumps(line))
    script = Path(resumed_ranks.__file__)
    path = os.pathsep.join(filter(None, [str(script.parent), os.environ.get("PYTHONPATH")]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    arguments = [*torchrun, str(script), str(folder / "cases.json")]
    done = command_server.start(arguments, folder, environment, output=folder).completed(timeout=600)
    assert done.returncode == 0, done.stderr
    assert "could not be written" not in done.stdout
    return folder


def learned(run: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What two runs must have in common."""
    weights = load_file(run / "model" / "model.safetensors")
    return [{key: line[key] for key in line.keys() - MEASURED} for line in metrics_of(run)], weights


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.torchao) if name == "8 bit" else name for name in CASES]
)
def test_two_ranks_go_on_from_every_kind_of_checkpoint_with_the_same_bits(folder, name):
    lines, weights = learned(folder / name / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all("val_loss" in line for line in lines)
    again = sorted((folder / name).glob("from_*"))
    assert len(again) == (4 if name == "live" else 1)
    for run in again:
        other_lines, other_weights = learned(run)
        assert other_lines == lines, run.name
        assert all(torch.equal(other_weights[key], weights[key]) for key in weights), run.name
