"""What is asked of a GPU besides arithmetic: memory, random state, processes; the answers are put in its mouth."""

import datetime
import gc
import os
import socket
import types
import weakref

import pytest
import torch
import torch.distributed as dist
from interrupted_writes import Run
from omegaconf import OmegaConf
from stand_in_cuda import OnCPU, one_gpu
from stand_in_streams import Device
from tiny import model_arguments
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from distill_tune import data, training
from distill_tune.cli.run import _num_gpus, num_processes_asked, torchrun_options
from distill_tune.evaluation import memory
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.losses import LossSums
from distill_tune.training import checkpoint_contents, find_device, find_dtype, peak_memory_bytes, sharding
from distill_tune.training.flops import peak_flops

from torchtune.models.llama3_2 import llama3_2

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """The calls that a machine with one H100 was asked."""
    return one_gpu(monkeypatch)


def test_auto_is_cuda_then_mps_then_the_cpu(gpu, monkeypatch):
    assert find_device("auto") == torch.device("cuda", 0)
    assert gpu[-1] == "set_device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == CPU
    assert find_dtype("bf16", CUDA) == torch.bfloat16


def test_peak_memory_is_the_allocators_above_where_it_stood(gpu):
    assert peak_memory_bytes(CUDA) == 5_000
    with PeakMemory(CUDA) as peak:
        gpu.append("work")
    assert peak.bytes == 4_000
    order = ["reset_peak_memory_stats", "memory_allocated", "work", "max_memory_allocated"]
    assert [call for call in gpu if call in order][-4:] == order


def test_peak_memory_of_mps_is_its_drivers(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7_000)
    assert peak_memory_bytes(torch.device("mps")) == 7_000


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_without_a_file_that_says_it_peak_memory_is_the_systems_in_its_unit(monkeypatch, tmp_path, system, unit):
    import resource

    monkeypatch.setattr(memory, "_STATUS", tmp_path / "not there")
    monkeypatch.setattr("sys.platform", system)
    usages = iter([1_000, 1_300])
    monkeypatch.setattr(resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": next(usages)}))
    with PeakMemory(CPU) as peak:
        pass
    assert peak.bytes == 300 * unit


def test_a_checkpoint_has_the_gpus_random_state_and_gives_it_back(gpu, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    run = Run(tmp_path)
    run.checkpoints = training.Checkpoints(run.run)
    run.step(1)
    with Device().running(monkeypatch):  # PyTorch's writer waits for the current stream
        run.save(1)
    assert run.load() == 1
    assert torch.equal(given[0], torch.arange(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.load() == 1  # on a machine without one
    assert len(given) == 1
    assert set(checkpoint_contents._random_state()) == {"cpu"}


def plan_of(lengths):
    tokens, ends = torch.ones(sum(lengths), dtype=torch.int32), torch.tensor([0, *lengths]).cumsum(0)
    rows = data.TokenisedRows(tokens, tokens, ends, packed=False, max_seq_len=None)
    return data.StepPlan([rows], batch_size=len(lengths), shuffle=False)


def test_before_halves_are_tried_what_failed_is_given_back_to_the_device(gpu, monkeypatch):
    """The allocator can give back only what no traceback and no gradient holds any more. Later steps are cut alike."""
    plan = plan_of((5, 6, 7, 8))
    batches = plan.micro_batches(0, 0)
    weight = nn.Parameter(torch.ones(3))
    held: list[weakref.ref] = []
    alive: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(sum(ref() is not None for ref in held)))

    def accumulate(batches):
        activations = torch.ones(100)
        held.append(weakref.ref(activations))
        weight.grad = torch.ones(3)
        held.append(weakref.ref(weight.grad))
        if len(batches[0].lengths) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [LossSums.zero(CPU) for _ in batches]

    gc.disable()
    try:
        halves, sums = training.halved_if_too_large(
            accumulate, batches, plan=plan, optimizer=torch.optim.SGD([weight], 0.1), say=lambda line: None
        )
    finally:
        gc.enable()
    assert alive == [0]
    assert [half.lengths for half in halves] == [(5, 6), (7, 8)] and len(sums) == 2
    assert [sum(batch.lengths) for batch in plan.micro_batches(1, 0)] == [13, 13]


@pytest.fixture
def alone(monkeypatch):
    """The environment of the only process of a group."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in group.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "gpus", "device", "backend"),
    [
        ("cuda", 1, "cuda:0", "cuda:nccl,cpu:gloo"),
        ("auto", 1, "cuda:0", "cuda:nccl,cpu:gloo"),
        ("auto", 0, "cpu", "gloo"),
        ("cpu", 1, "cpu", "gloo"),
    ],
)
def test_gpus_talk_by_nccl_with_its_watchdog_and_cpus_by_gloo(gpu, alone, monkeypatch, name, gpus, device, backend):
    groups = []
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **named: groups.append((given, named)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert training.init_distributed(name, 30) == torch.device(device)
    (given, named), *_ = groups
    assert given == (backend,)
    assert named.get("device_id") == (torch.device(device) if gpus and name != "cpu" else None)
    assert named["timeout"] == datetime.timedelta(seconds=30)
    assert {os.environ[name] for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_DUMP_ON_TIMEOUT")} == {"1"}


def test_what_the_environment_says_of_the_watchdog_holds(gpu, alone, monkeypatch):
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **named: None)
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")
    training.init_distributed("cuda")
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3"


@pytest.mark.parametrize(("kind", "policy"), [("cuda", CPUOffloadPolicy), ("cpu", OffloadPolicy)])
def test_fsdp_is_asked_to_offload_on_gpus_alone(monkeypatch, kind, policy):
    asked = []
    monkeypatch.setattr(sharding, "fully_shard", lambda module, **named: asked.append(named["offload_policy"]))
    mesh = types.SimpleNamespace(device_type=kind, ndim=1)
    training.shard_student(llama3_2(**model_arguments()), mesh, cpu_offload=True)
    assert {type(found) for found in asked} == {policy}
    training.shard_student(llama3_2(**model_arguments()), mesh)
    assert type(asked[-1]) is OffloadPolicy


@pytest.mark.parametrize(("gpus", "asked"), [(0, 2), (4, 8)])
def test_as_many_processes_as_gpus_are_started_on_each_machine(monkeypatch, gpus, asked):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _num_gpus() == gpus
    assert num_processes_asked(torchrun_options(["--nnodes", "2", "--nproc_per_node", "gpu", "recipe.py"])) == asked


@pytest.mark.parametrize(
    ("name", "dtype", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 80GB HBM3", torch.float32, None),
        ("Tesla T4", torch.bfloat16, None),
    ],
)
def test_utilisation_is_told_of_a_gpu_that_is_known_and_in_bf16(monkeypatch, name, dtype, flops):
    one_gpu(monkeypatch, name)
    assert peak_flops(CUDA, dtype) == flops
    assert peak_flops(CPU, dtype) is None


@pytest.mark.parametrize(
    ("name", "settings", "fused"),
    [
        ("torch.optim.AdamW", {}, True),
        ("torch.optim.AdamW", {"foreach": True}, None),
        ("torch.optim.AdamW", {"fused": False}, False),
        ("torch.optim.RMSprop", {}, None),  # has no fused kernel
        pytest.param("torchao.optim.AdamW8bit", {}, None, marks=pytest.mark.torchao),
    ],
)
def test_an_optimizer_of_pytorch_that_can_runs_fused_where_the_config_does_not_say(name, settings, fused):
    component = OmegaConf.create({"_component_": name, "lr": 0.1, **settings})
    optimizer = training.build_optimizer(component, [nn.Parameter(torch.ones(3))])
    assert optimizer.defaults.get("fused") is fused


def test_a_device_that_has_no_fused_kernels_takes_the_plain_optimizer():
    component = OmegaConf.create({"_component_": "torch.optim.AdamW", "lr": 0.1})
    optimizer = training.build_optimizer(component, [nn.Parameter(torch.ones(3, device="meta"))])
    assert not optimizer.defaults["fused"]


def test_what_is_made_on_cuda_lies_on_the_cpu_of_the_stand_in():
    """The stand-in itself: devices in any place, and pinned memory."""
    device = OnCPU()
    with device:
        made = [torch.ones(2, device="cuda:0"), torch.ones(2).to(CUDA), torch.ones(2).to(device=CUDA)]
        pinned = torch.empty(2, pin_memory=True)
        assert torch.device("cuda").type == "cuda"
    assert {tensor.device for tensor in [*made, pinned]} == {CPU}
    assert device.pinned == {pinned.untyped_storage().data_ptr()}
