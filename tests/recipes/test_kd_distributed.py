"""Whole runs of the distributed recipe through the real CLI: two processes of gloo on the CPU."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from command_server import Command
from safetensors.torch import load_file
from tiny import VOCAB_SIZE, metrics_of, put_before

TWO = ("run", "--nproc_per_node", "2", "kd_distributed", "--config", "config.yaml")


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def folders(student_folder: Path, teacher_folder: Path, write_config):
    """config.yaml with models from their folders, LoRA on the student, validation and resume."""

    def write(**changes: object) -> Path:
        lora = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4, "lora_dropout": 0.1}
        settings = {
            "model": {"_component_": "distill_tune.models.lora_from_hf", "path": str(student_folder), **lora},
            "teacher_model": {"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)},
            "checkpointer": None,
            "teacher_checkpointer": None,
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3, "fused": True},
        }
        return write_config(**settings | changes)

    return write


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def edited(cli, tmp_path: Path, first_of_each_step: str) -> None:
    """mine.py: the recipe with a line more."""
    ok(cli("cp", "kd_distributed", "mine.py"))
    put_before(tmp_path / "mine.py", "            started = time.perf_counter()\n", first_of_each_step)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_shards_of_different_sizes_are_exported_whole(folders, cli, tmp_path):
    """Three processes share 320 tokens, and LoRA factors of rank 4."""
    folders()
    line = ["kd_distributed", "--config", "config.yaml", "max_steps_per_epoch=1", "output_dir=three"]
    ok(cli("run", "--nproc_per_node", "3", *line))
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        three = load_file(tmp_path / "three" / name)
        assert all(torch.isfinite(value).all() for value in three.values())
    model = load_file(tmp_path / "three" / "model" / "model.safetensors")
    assert model["model.embed_tokens.weight"].shape[0] == VOCAB_SIZE


def test_two_processes_train_as_one_and_one_goes_on_where_two_stopped(folders, cli, tmp_path, rows_file):
    rows = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:9]"}
    folders(dataset_val=rows, dataset={**rows, "split": "train[:25]"})  # in the last step the second has no row either
    settings = ["model.lora_dropout=0", "save_every_n_steps=2"]  # dropout differs between numbers of processes
    ok(cli("run", "kd_single_device", "--config", "config.yaml", *settings, "batch_size=8", "output_dir=one"))
    done = ok(cli(*TWO, *settings, "output_dir=two", "enable_activation_checkpointing=True"))
    assert done.stdout.count("step 4/4") == 1
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for key in ("loss", "kd_loss", "grad_norm", "tokens", "supervised_tokens"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-4)
    for key in ("val_loss", "val_kd_loss"):  # nine rows: the last batch of the second process is empty
        assert two[-1][key] == pytest.approx(one[-1][key], rel=1e-4)

    of_one, of_two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    same = ("student_parameters", "trained_parameters", "teacher_parameters", "total_steps", "data", "data_val")
    assert [of_two[name] for name in same] == [of_one[name] for name in same]
    assert (of_one["processes"], of_two["processes"]) == (1, 2)

    resume = ["resume_from_checkpoint=two/checkpoints/step_2", "batch_size=8", "output_dir=resumed"]
    ok(cli("run", "kd_single_device", "--config", "config.yaml", *settings, *resume))
    assert json.loads((tmp_path / "resumed" / "run.json").read_text())["resumed_from"] == 2
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        wanted = load_file(tmp_path / "one" / name)
        for other in ("two", "resumed"):
            found = load_file(tmp_path / other / name)
            assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5


def test_resumed_with_as_many_processes_gives_the_same_bits(folders, cli, tmp_path):
    folders()
    ok(cli(*TWO, "save_every_n_steps=2", "output_dir=whole"))
    ok(cli(*TWO, "resume_from_checkpoint=whole/checkpoints/step_2", "output_dir=resumed"))
    wanted = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    found = load_file(tmp_path / "resumed" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_without_options_it_starts_one_process_for_each_gpu_and_says_so(folders, cli, tmp_path):
    folders(max_steps_per_epoch=1)
    done = ok(cli("run", "kd_distributed", "--config", "config.yaml", CUDA_VISIBLE_DEVICES=""))
    assert done.stdout.startswith("kd_distributed: no GPU here, so one process")
    assert (tmp_path / "out" / "model").is_dir()
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["seed"] == 0
    assert done.stderr == ""


def test_two_machines_as_two_agents_meet(folders, start_cli, tmp_path):
    folders(max_steps_per_epoch=2)
    endpoint = f"localhost:{free_port()}"
    line = ["run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_endpoint", endpoint]
    line += ["kd_distributed", "--config", "config.yaml"]
    agents = [start_cli(*line) for _ in range(2)]
    told = [agent.communicate() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert sum("step 2/2" in output for output, _ in told) == 1
    assert len(metrics_of(tmp_path / "out")) == 2


def test_rows_and_export_may_take_longer_than_a_collective(folders, cli, tmp_path):
    folders(max_steps_per_epoch=1)
    ok(cli("cp", "kd_distributed", "mine.py"))
    slow_rows = "time.sleep(8 * (training.rank() == 0))"
    put_before(tmp_path / "mine.py", "    steps = training.plan_steps(cfg, built, seed)\n", slow_rows)
    slow_export = (
        "import distill_tune.training.export as export\n"
        "export.put_in_place = lambda *of, put=export.put_in_place: (time.sleep(8), put(*of))"
    )
    put_before(tmp_path / "mine.py", "    # ---- What the run leaves\n", slow_export)
    line = ("run", "--nproc_per_node", "2", "mine.py", "--config", "config.yaml", "collective_timeout_seconds=6")
    assert "step 1/1" in ok(cli(*line)).stdout


def test_a_rank_that_is_done_ends_before_a_library_can_abort_it(folders, cli, tmp_path):
    folders(max_steps_per_epoch=1)
    ok(cli("cp", "kd_distributed", "mine.py"))
    aborts = (
        "import atexit, builtins\n"
        "atexit.register(print, 'its handlers have run')\n"
        "builtins.kept = type('Aborts', (), {'__del__': lambda self, abort=os.abort: abort()})()"
    )
    put_before(tmp_path / "mine.py", "    # ---- What the run leaves\n", f"import os\n{aborts}")
    line = ("run", "--nproc_per_node", "2", "mine.py", "--config", "config.yaml")
    done = ok(cli(*line, TAKE_MODULES_APART="1"))
    assert "its handlers have run" in done.stdout


def test_an_output_dir_that_the_machines_do_not_share_is_told(folders, start_cli, tmp_path):
    folders()
    endpoint = f"localhost:{free_port()}"
    line = ["run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_endpoint", endpoint]
    line += ["kd_distributed", "--config", str(tmp_path / "config.yaml"), "output_dir=out"]
    machines = [tmp_path / "one", tmp_path / "other"]
    for machine in machines:
        machine.mkdir()
    agents = [start_cli(*line, folder=machine) for machine in machines]
    told = "".join(agent.communicate()[1] for agent in agents)
    assert all(agent.returncode for agent in agents)
    assert "output_dir=out: " in told and "name a folder that all machines share" in told
    assert "Traceback" not in told


@pytest.fixture
def srun(start_cli):
    """Two tasks as Slurm would start them."""

    def start(recipe: str) -> list[Command]:
        slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
        tasks = [slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
        return [start_cli("run", recipe, "--config", "config.yaml", **task) for task in tasks]

    return start


def test_srun_starts_it_without_torchrun(folders, srun):
    folders(max_steps_per_epoch=2)
    tasks = srun("kd_distributed")
    told = [task.communicate() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    assert sum("step 2/2" in output for output, _ in told) == 1


def test_a_rank_that_ends_under_srun_ends_the_other_which_says_where_it_was(folders, cli, srun, tmp_path):
    folders(max_steps_per_epoch=2)
    edited(cli, tmp_path, "training.rank() == 1 and step == 1 and __import__('os').kill(__import__('os').getpid(), 9)")
    first, second = srun("mine.py")
    _, told = first.communicate()
    assert (first.returncode, second.wait()) == (1, -9)
    assert re.match(r"distill-tune: rank 0: step 2, .*mine\.py line \d+: the connection to another rank is lost", told)
    assert "Traceback" not in told


def test_a_fault_of_any_rank_is_told_once_with_its_rank(folders, cli, tmp_path):
    folders()
    done = cli(*TWO, "batch_size=null", "max_tokens_per_batch=5")
    assert done.returncode == 2
    assert done.stderr.count("max_tokens_per_batch=5: the longest row has") == 1
    assert done.stderr.startswith("distill-tune: rank ")
    assert "Traceback" not in done.stderr

    edited(cli, tmp_path, "assert training.rank() == 0, 'mine'")
    done = cli("run", "--nproc_per_node", "2", "mine.py", "--config", "config.yaml", "output_dir=mine")
    assert done.returncode == 1
    assert "distill-tune: rank 1: failed:" in done.stderr
    assert done.stderr.count("AssertionError: mine") == 1


def test_a_rank_that_is_killed_is_named(folders, cli, tmp_path):
    folders()
    edited(cli, tmp_path, "training.rank() == 1 and __import__('os').kill(__import__('os').getpid(), 9)")
    done = cli("run", "--nproc_per_node", "2", "mine.py", "--config", "config.yaml")
    assert done.returncode == 1
    assert "distill-tune: rank 1 was ended by SIGKILL; the others were stopped" in done.stderr


def test_what_cannot_be_shared_is_told(folders, cli):
    folders()
    for arguments, message in [
        (["data_parallel_replicate_dim=3"], "data_parallel_replicate_dim=3: does not divide the 2 processes evenly"),
        (["device=cuda:1"], "device=cuda:1: each process takes the GPU of its local rank"),
        (["custom_sharded_layers=[head]"], "must be a list of tok_embeddings, output"),
    ]:
        done = cli(*TWO, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
    done = cli("run", "--nproc_per_node", "2", "kd_single_device", "--config", "config.yaml")
    assert done.returncode == 2
    assert "kd_single_device runs on one device; take kd_distributed" in done.stderr
    done = cli("run", "--nproc_per_nod", "2", "kd_distributed", "--config", "config.yaml")
    assert done.returncode == 2
    assert "--nproc_per_nod" in done.stderr


def test_metrics_are_json_of_one_writer(folders, cli, tmp_path):
    folders()
    ok(
        cli(
            *TWO,
            "metric_logger._component_=torchtune.training.metric_logging.DiskLogger",
            "+metric_logger.log_dir=logs",
        )
    )
    text = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2, 3, 4]
    (log,) = (tmp_path / "logs").glob("log_*.txt")
    assert log.read_text().count("Step 4") == 1
