"""Both recipes as a GPU runs them, on the CPU: attention, output layer and loss by CUDA's branches."""

import json
import socket
from pathlib import Path

import pytest
import torch
from stand_in_cuda import varlen
from tiny import metrics_of, put_before

pytest.importorskip("triton", reason="Triton has no build for this platform")
pytestmark = [
    pytest.mark.skipif(varlen is None, reason="this PyTorch has no attention of packed rows"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="beside CUDA itself Triton does not interpret"),
]

BF16 = ("dtype=bf16", "max_steps_per_epoch=2", "batch_size=2", "clip_grad_norm=1")


@pytest.fixture
def run(cli, tmp_path, write_config):
    """Runs a recipe, as it is or with the stand-in before it; gives what it printed last."""
    write_config()

    def start(recipe, *settings, stand_in=None, **environment):
        if stand_in is not None:
            assert cli("cp", recipe, "mine.py", "--force").returncode == 0
            tests = Path(__file__).parents[1]
            lines = f"import sys\nsys.path.append({str(tests)!r})\nimport stand_in_cuda\n"
            put_before(tmp_path / "mine.py", "import time\n", lines)
            put_before(
                tmp_path / "mine.py",
                "def main(cfg: DictConfig) -> None:\n",
                f"stand_in_cuda.for_this_process({stand_in})",
            )
            recipe = "mine.py"
        done = cli("run", recipe, "--config", "config.yaml", *BF16, *settings, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["taken"] if stand_in is not None else None

    return start


def assert_same_steps(folder, wanted):
    for mine, theirs in zip(metrics_of(folder), metrics_of(wanted), strict=True):
        for key in ("loss", "kd_loss", "ce_loss", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-2), key


def test_kd_single_device_on_cuda_takes_the_same_steps(run, tmp_path):
    run("kd_single_device", "output_dir=cpu")
    settings = ("device=cuda", "teacher_offload=True", "save_every_n_steps=1")
    taken = run("kd_single_device", *settings, "output_dir=cuda", stand_in=True)
    assert_same_steps(tmp_path / "cuda", tmp_path / "cpu")
    steps = 2
    assert taken["flash"] == (2 + 3) * steps and taken["flash backward"] == 2 * steps
    assert taken["kernel"] == steps and taken["mm into float32"] >= 2 * steps
    assert taken["copies"] == 3 + 2 and "unpinned" not in taken
    assert taken["get_rng_state"] == steps
    last = metrics_of(tmp_path / "cuda")[-1]
    assert last["peak_memory_bytes"] == 5_000
    assert last["model_flops_utilization"] > 0

    resume = "resume_from_checkpoint=cuda/checkpoints/step_1"
    taken = run("kd_single_device", *settings, resume, "output_dir=resumed", stand_in=True)
    assert taken["set_rng_state"] == 1
    assert metrics_of(tmp_path / "resumed")[-1]["loss"] == pytest.approx(last["loss"], rel=1e-5)


def test_kd_distributed_takes_the_same_steps(run, tmp_path):
    """With a streamed teacher, which runs in inference mode, as one sharded by FSDP does not."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    run("kd_single_device", "output_dir=cpu")
    taken = run("kd_distributed", "teacher_offload=True", "output_dir=cuda", stand_in=False, **alone)
    assert_same_steps(tmp_path / "cuda", tmp_path / "cpu")
    assert taken["flash"] == 10 and taken["flash backward"] == 4 and taken["kernel"] == 2
