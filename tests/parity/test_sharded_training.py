"""Two and four ranks take the same steps as one process, however the models are sharded."""

import json
import os
from pathlib import Path

import pytest
import sharded_training
import torch
from command_server import CommandServer
from safetensors.torch import load_file
from tiny import write_model

from distill_tune.data import StepPlan

OF_FOUR = ["plain", "packed", "lora", "replicated"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_model(folder / "student", tokenizer_file, seed=1)
    write_model(folder / "teacher", tokenizer_file, seed=2, width=64, layers=3)
    write_model(folder / "wide", tokenizer_file, seed=3, width=256)
    untied = write_model(folder / "untied", tokenizer_file, seed=1)
    config = json.loads((untied / "config.json").read_text()) | {"tie_word_embeddings": False}
    (untied / "config.json").write_text(json.dumps(config))
    weights = load_file(untied / "model.safetensors")
    from safetensors.torch import save_file

    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, untied / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, command_server: CommandServer, request: pytest.FixtureRequest):
    """Weights by scenario and number of ranks; each number of ranks is started once for all tests that are run."""
    asked = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    asked = {(params["name"], params.get("count", 2)) for params in asked} | {("plain", 2)}
    script = Path(sharded_training.__file__)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    environment |= {"TORCH_COMPILE_BACKEND": "aot_eager"}  # its graphs are every compiler's
    for count in sorted({count for _, count in asked}):
        scenarios = [name for name in sharded_training.SCENARIOS if (name, count) in asked]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        arguments = [*torchrun, str(script), str(folder), *scenarios]
        done = command_server.start(arguments, folder, environment, output=folder).completed(timeout=600)
        assert done.returncode == 0, done.stderr
    return lambda name, count: load_file(folder / f"{name}_{count}.safetensors")


IN_BF16 = [name for name in sharded_training.SCENARIOS if name.startswith("bf16")]
CASES = [(name, 2) for name in sharded_training.SCENARIOS if name not in ["replicated", *IN_BF16]]
CASES += [(name, 4) for name in OF_FOUR]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(name, count, id=f"{name}_{count}", marks=[pytest.mark.torchao] if name == "qlora" else [])
        for name, count in CASES
    ],
)
def test_weights_after_all_steps_are_those_of_one_process(folder, trained, name, count):
    alone = sharded_training.train(folder, name, compiled=False)
    together = trained(name, count)
    assert alone.keys() == together.keys()
    # In bf16 steps of 1e-3 leave the last bits of the adapters to chance.
    most = 4e-3 if name == "qlora" else 1e-5
    assert max(float((alone[key].float() - together[key].float()).abs().max()) for key in alone) < most
    frozen = [key for key in alone if "lora_" in "".join(alone) and "lora_" not in key]
    assert all(torch.equal(alone[key], together[key]) for key in frozen)


@pytest.mark.parametrize("name", IN_BF16)
def test_in_bf16_two_ranks_go_where_one_process_and_float32_go(folder, trained, name):
    start, alone = sharded_training.train(folder, name, steps=0), sharded_training.train(folder, name)
    exact, together = sharded_training.train(folder, name, dtype=torch.float32), trained(name, 2)
    moved = [key for key in exact if not torch.equal(alone[key], start[key])]
    assert {together[key].dtype for key in moved} == {alone[key].dtype for key in moved} == {torch.float32}

    def distance(left, right):
        return torch.stack([(left[key] - right[key]).norm() for key in moved]).norm()

    assert distance(together, alone) < 0.04 * distance(alone, start)
    assert distance(together, exact) < 0.15 * distance(exact, start)


def test_one_rank_indeed_has_no_supervised_token_in_some_steps():
    rows = [sharded_training.rows(False)]
    plans = [StepPlan(rows, batch_size=4, shuffle=False, rank=rank, num_ranks=2) for rank in range(2)]
    counts = [sum(len(batch.supervised_positions) for batch in plan.micro_batches(0, 1)) for plan in plans]
    assert 0 in counts
    assert sum(counts) == plans[0].num_supervised(0, 1) > 0


def test_one_rank_indeed_has_no_row_in_the_last_step():
    rows, last = [sharded_training.rows(False)], sharded_training.STEPS
    plans = [StepPlan(rows, batch_size=4, shuffle=False, rank=rank, num_ranks=2) for rank in range(2)]
    assert [[len(batch.places) for batch in plan.micro_batches(0, last)] for plan in plans] == [[1], [0]]


def test_training_moved_the_weights(folder, trained):
    before, after = load_file(folder / "student" / "model.safetensors"), trained("plain", 2)
    assert not torch.allclose(before["model.embed_tokens.weight"], after["tok_embeddings.weight"], atol=1e-3)
