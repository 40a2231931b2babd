"""Several gloo ranks that die, hang, are told to stop, or go on in another number, through the real CLI."""

import fcntl
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from command_server import Command
from safetensors.torch import load_file
from tiny import edit_recipe, metrics_of, put_before

STEPS = ["epochs=2", "max_steps_per_epoch=4", "batch_size=4"]


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def config(write_config, student_folder, teacher_folder):
    """config.yaml with all parameters trained, an average of the student as second teacher, and resume=auto."""
    return write_config(
        model={"_component_": "distill_tune.models.from_hf", "path": str(student_folder)},
        teacher_model=[
            {"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)},
            {"_component_": "distill_tune.teachers.EMA", "decay": 0.9},
        ],
        checkpointer=None,
        teacher_checkpointer=None,
        save_every_n_steps=1,
        resume="auto",
    )


@pytest.fixture
def started(start_cli):
    def start(count: int, *arguments: str, recipe: str = "kd_distributed", restarts: int = 0) -> Command:
        line = ["run", "--nproc_per_node", str(count), "--max_restarts", str(restarts), recipe]
        return start_cli(*line, "--config", "config.yaml", *STEPS, *arguments)

    return start


# Ranks hold a file until they end, also where they outlive what has started them.
HELD = "import fcntl; held = open('held', 'w'); fcntl.flock(held, fcntl.LOCK_SH)"


def wait_for_ranks(folder: Path) -> None:
    until = time.monotonic() + 200
    with open(folder / "held", "w") as held:
        while True:
            try:
                return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < until
                time.sleep(0.1)


def ended(process: Command, status: int = 0) -> tuple[str, str]:
    output, told = process.communicate(timeout=200)
    assert process.returncode == status, told
    return output, told


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    mine, theirs = weights_of(one), weights_of(other)
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def test_what_two_ranks_saved_four_and_one_go_on_with_and_two_to_the_bit(config, cli, started, tmp_path):
    ended(started(2, "output_dir=whole"))
    checkpoint = "resume=whole/checkpoints/step_3"
    files = {file.name for file in (tmp_path / "whole" / "checkpoints" / "step_3").iterdir()}
    assert {"rank_0.pt", "rank_1.pt"} <= files and len([name for name in files if name.startswith("shard-")]) == 2
    ended(started(2, checkpoint, "output_dir=by_two"))
    assert difference(tmp_path / "whole", tmp_path / "by_two") == 0
    ended(started(4, checkpoint, "output_dir=by_four", "batch_size=2"))
    assert difference(tmp_path / "whole", tmp_path / "by_four") < 1e-5
    done = cli(
        *("run", "kd_single_device", "--config", "config.yaml", *STEPS),
        *(checkpoint, "output_dir=by_one", "batch_size=8"),
    )
    assert done.returncode == 0, done.stderr
    assert difference(tmp_path / "whole", tmp_path / "by_one") < 1e-5
    first, by_one = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "by_one")
    assert [line["step"] for line in by_one] == list(range(1, 9))  # the history came along
    assert [line["loss"] for line in by_one] == pytest.approx([line["loss"] for line in first], rel=1e-4)


def test_a_rank_that_dies_ends_the_others_and_torchrun_starts_all_again_where_they_were(config, cli, started, tmp_path):
    ended(started(2, "output_dir=whole"))
    lines = (
        "if training.rank() == 1 and step == 5 and not os.path.exists('died'):\n"
        "    open('died', 'w').close(); os.kill(os.getpid(), 9)"
    )
    recipe = edit_recipe(cli, tmp_path, "kd_distributed", lines)
    output, _ = ended(started(2, restarts=1, recipe=recipe))
    assert (tmp_path / "died").exists()
    assert "resuming from" in output
    assert difference(tmp_path / "whole", tmp_path / "out") == 0
    assert [line["step"] for line in metrics_of(tmp_path / "out")] == list(range(1, 9))


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)])
def test_told_to_stop_all_ranks_end_after_the_same_step_with_a_checkpoint(
    config, cli, started, tmp_path, number, status
):
    """SIGKILL ends torchrun alone, and its end tells the ranks."""
    recipe = edit_recipe(cli, tmp_path, "kd_distributed", "time.sleep(0.3)")
    put_before(tmp_path / recipe, "import contextlib\n", HELD)
    process = started(2, recipe=recipe)
    metrics, until = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 100
    while time.monotonic() < until and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 2):
        time.sleep(0.1)
    process.send_signal(number)
    ended(process, status)
    wait_for_ranks(tmp_path)
    output, _ = process.told()
    taken = len(metrics.read_text().splitlines())
    assert 2 <= taken < 8
    told = "SIGHUP" if number == signal.SIGHUP else "SIGTERM"
    assert f"stopped after step {taken} by {told}" in output
    assert (tmp_path / "out" / "checkpoints" / f"step_{taken}" / "SHA256SUMS").is_file()
    assert f"step_{taken}" in ended(started(2))[0]


def test_a_rank_that_is_told_to_stop_after_the_others_writes_its_part(config, cli, started, tmp_path):
    recipe = edit_recipe(
        cli,
        tmp_path,
        "kd_distributed",
        "if training.rank() == 1 and step == 2: os.kill(os.getpid(), 15)",
    )
    late = "if training.rank() == 0: os.kill(os.getpid(), 15)"
    put_before(tmp_path / "mine.py", "        checkpoints.close()\n", late)
    output, _ = ended(started(2, recipe=recipe), 128 + signal.SIGTERM)
    assert "stopped after step 3 by SIGTERM" in output
    assert (tmp_path / "out" / "checkpoints" / "step_3" / "SHA256SUMS").is_file()


def test_ranks_that_wait_in_vain_name_the_one_that_hangs_the_step_and_the_line(config, cli, started, tmp_path):
    hang = "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(1000)"  # ended by torchrun at once
    recipe = edit_recipe(cli, tmp_path, "kd_distributed", f"if training.rank() == 1 and step == 2: {hang}")
    _, told = ended(started(3, "collective_timeout_seconds=8", recipe=recipe), 1)
    assert re.search("distill-tune: rank [02]: step 3, ", told)
    line_of_rank_1 = re.search(r"rank 1: step 3, .*mine.py line (\d+): no step has ended for \d+ seconds", told)
    assert "time.sleep(1000)" in Path(tmp_path / "mine.py").read_text().splitlines()[int(line_of_rank_1[1]) - 1]
    assert "a collective did not end in time; rank 1 did not come" in told
    assert "Traceback" not in told


def test_a_port_that_another_program_has_is_told(config, cli):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option in (["--master_port", port], ["--rdzv_endpoint", f"localhost:{port}"]):
            done = cli("run", "--nproc_per_node", "2", *option, "kd_distributed", "--config", "config.yaml")
            assert done.returncode == 2
            assert f"port {port}: Address already in use; another program has it; name another, or none" in done.stderr
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        done = cli("run", "kd_distributed", "--config", "config.yaml", **alone)
        assert done.returncode == 2
        assert f"MASTER_PORT: localhost:{port} is taken by another program; set another port" in done.stderr


def test_a_step_that_is_not_finite_on_one_rank_is_applied_on_none(config, cli, started, tmp_path):
    lines = "if (0, 7) in batch.places:\n    for p in student.parameters(): p.grad = torch.full_like(p, math.nan)"
    recipe = edit_recipe(cli, tmp_path, "kd_distributed", lines)
    output, _ = ended(started(2, "epochs=1", "max_steps_per_epoch=8", recipe=recipe))
    lines_of_metrics = metrics_of(tmp_path / "out")
    (bad,) = [line["step"] for line in lines_of_metrics if not line["applied"]]
    assert f"step {bad}: gradient norm nan: not applied" in output
    assert "rows.json, row 8" in output
    assert all(line["loss"] is not None for line in lines_of_metrics)


def test_ctrl_c_while_ranks_import_ends_them_with_a_line(config, cli, started, tmp_path):
    recipe = edit_recipe(cli, tmp_path, "kd_distributed", "pass")
    # As long as PyTorch's own import may take on a cold disk.
    put_before(
        tmp_path / recipe,
        "import contextlib\n",
        "import os, time; open('rank_' + os.environ['RANK'], 'w'); time.sleep(100)",
    )
    process, until = started(2, recipe=recipe), time.monotonic() + 100
    while time.monotonic() < until and not all((tmp_path / f"rank_{rank}").exists() for rank in (0, 1)):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, told = ended(process, 130)
    assert (output, told) == ("", "distill-tune: interrupted\n")
