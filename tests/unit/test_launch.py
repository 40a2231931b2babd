"""Who started a process, and how many with it."""

import pytest

from distill_tune.cli.run import torchrun_options
from distill_tune.errors import UserError
from distill_tune.launch import is_launched, num_processes, process_environment

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}


def test_torchruns_word_is_taken():
    assert process_environment(TORCHRUN) == TORCHRUN
    assert process_environment(TORCHRUN | SRUN) == TORCHRUN


def test_srun_gives_rank_and_size_and_the_first_host():
    found = process_environment(SRUN)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["MASTER_ADDR"]) == ("3", "16", "3", "gpu03")
    assert 20_000 <= int(found["MASTER_PORT"]) < 40_000
    assert process_environment(SRUN | {"MASTER_ADDR": "x", "MASTER_PORT": "5"})["MASTER_ADDR"] == "x"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu03", "gpu03"), ("gpu[03,07]", "gpu03"), ("gpu3,gpu4", "gpu3"), ("a[1-2]-ib,b", "a1-ib"), ("n[8]", "n8")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert process_environment(SRUN | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_a_batch_script_and_a_plain_shell_are_one_process():
    for environment in ({}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}):
        assert num_processes(environment) == 1
        assert not is_launched(environment)
    assert is_launched(TORCHRUN)
    assert is_launched(SRUN)


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_process_is_none_to_start(number):
    with pytest.raises(UserError, match=f"--nproc_per_node {number}: must be at least 1"):
        torchrun_options(["--nproc_per_node", number, "kd_distributed", "--config", "tiny"])
