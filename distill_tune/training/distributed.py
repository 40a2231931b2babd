"""Several processes: who is who, who speaks, what is summed and what must be the same on all.

Every function does the plain thing where there is only one process, so both recipes may call it.
"""

import contextlib
import itertools
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from distill_tune.counts import counted
from distill_tune.errors import UserError
from distill_tune.launch import process_environment
from distill_tune.to_device import to_device
from distill_tune.training.device import find_device
from distill_tune.waiting import tell_when_a_step_lasts

Value = TypeVar("Value")

_SECONDS_BETWEEN_LOOKS = 0.2
_numbers = itertools.count()  # of what ranks do together, so the same on all

# NCCL's watchdog ends a process whose collective hangs, and first writes what was under way on each rank.
_WATCHDOG = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


def init_distributed(device_name: str, timeout_seconds: float = 600) -> torch.device:
    """Join the other processes (NCCL on GPUs, gloo on CPUs) and return this one's device.

    Started by torchrun, by Slurm's srun, or alone. All ranks but the first fall silent on stdout.

    Args:
        device_name: ``cuda``, ``cpu`` or ``auto``, which is CUDA where it is.
        timeout_seconds: after which a collective that does not end is an error: on CPUs where it waits, on GPUs by
            PyTorch's watchdog, which ends the process and writes which collectives were under way.

    Raises:
        UserError: a numbered device; more processes on a machine than it has GPUs; a port that is taken.
    """
    os.environ.update(process_environment(os.environ))
    if ":" in device_name or device_name == "mps":
        raise UserError(f"device={device_name}: each process takes the GPU of its local rank; set cuda, cpu or auto")
    local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device_name == "auto":
        device_name = "cuda" if count else "cpu"
    if device_name == "cuda" and local_rank >= count > 0:
        raise UserError(
            f"device=cuda: {socket.gethostname()} has {counted(count, 'GPU')}, and more processes were started there; "
            f"set --nproc_per_node {count}"
        )
    device = find_device(f"cuda:{local_rank}" if device_name == "cuda" else device_name)
    timeout = timedelta(seconds=timeout_seconds)
    for name, value in _WATCHDOG.items():
        os.environ.setdefault(name, value)
    try:
        store, own_rank, count = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        # torchrun keeps one store through its restarts: what an earlier start has left there must not be met.
        store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        group = {"store": store, "rank": own_rank, "world_size": count, "timeout": timeout}
        if device.type == "cuda":  # gloo for what is offloaded to the CPU
            dist.init_process_group("cuda:nccl,cpu:gloo", device_id=device, **group)
        else:
            dist.init_process_group("gloo", **group)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        endpoint = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UserError(f"MASTER_PORT: {endpoint} is taken by another program; set another port") from error
        raise UserError(f"MASTER_ADDR: no connection through {endpoint}: {str(error).splitlines()[0]}") from error
    if count > 1:
        tell_when_a_step_lasts(own_rank, timeout_seconds)
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)
        warnings.simplefilter("ignore")  # rank 0 shows the same
    return device


def device_mesh(device: torch.device, replicate: int = 1) -> DeviceMesh:
    """The ranks as ``[replicate, shard]``: weights are sharded within a row and copied between rows (HSDP).

    Args:
        replicate: how many copies; 1 shards over all ranks. With one copy a node, weights are gathered within nodes.

    Raises:
        UserError: ``replicate`` does not divide the number of ranks.
    """
    if num_ranks() % replicate:
        raise UserError(f"data_parallel_replicate_dim={replicate}: does not divide the {num_ranks()} processes evenly")
    if replicate == 1:
        return init_device_mesh(device.type, (num_ranks(),), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (replicate, num_ranks() // replicate), mesh_dim_names=("replicate", "shard"))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is rank 0, which writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def first_of_each_machine_first() -> Iterator[bool]:
    """A block that one process of each machine, which is told True, goes through before the others, which then find
    its cache.

    All go on together, however long the slowest machine takes: a collective would time out.
    """
    if not dist.is_initialized():
        yield True
        return
    store, first_is_done = _get_default_store(), f"distill_tune/first/{next(_numbers)}/{socket.gethostname()}"
    is_first = os.environ["LOCAL_RANK"] == "0"
    while not is_first and not store.check([first_is_done]):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    yield is_first
    if is_first:
        store.set(first_is_done, "1")
    wait_for_all()


class SharedCounts:
    """Numbers that ranks add to, each whenever it has something to add: nobody waits. All ranks make it."""

    def __init__(self) -> None:
        self._key = f"distill_tune/counts/{next(_numbers)}"
        self._alone: dict[int, int] = {}

    def add(self, *numbers: int) -> list[int]:
        """What each number has come to on all ranks, with what this one adds now."""
        if not dist.is_initialized():
            self._alone = {place: self._alone.get(place, 0) + number for place, number in enumerate(numbers)}
            return list(self._alone.values())
        store = _get_default_store()
        return [store.add(f"{self._key}/{place}", number) for place, number in enumerate(numbers)]


def wait_for_all() -> None:
    """Until every rank has come here, however long it takes: a collective would time out."""
    if not dist.is_initialized():
        return
    store, key = _get_default_store(), f"distill_tune/here/{next(_numbers)}"
    store.add(key, 1)
    while store.add(key, 0) < num_ranks():
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def from_main_process(value: Value) -> Value:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_all_ranks(value: Value) -> list[Value]:
    """Every rank's value, in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def require_same_on_all_ranks(key: str, found: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: this rank found something else than rank 0 did, as where machines have different copies of a file.
    """
    wanted = from_main_process(found)
    if differ := [f"{name} {found[name]} (rank 0: {wanted[name]})" for name in found if found[name] != wanted[name]]:
        raise UserError(f"{key}: {socket.gethostname()} has other data than rank 0: {', '.join(differ)}")


def reduced_over_ranks(
    sums: Sequence[torch.Tensor | float], most: Sequence[torch.Tensor | float] = ()
) -> tuple[list[float], list[float]]:
    """Of each scalar its sum over all ranks, or of each of ``most`` the largest of any rank, in one exchange."""
    values = [*sums, *most]
    device = next((value.device for value in values if isinstance(value, torch.Tensor)), torch.device("cpu"))
    # float64 holds a number of bytes, or of tokens, as it is.
    scalars = [torch.as_tensor(value).detach().to(torch.float64) for value in values]
    stacked = torch.stack([to_device(scalar, device) for scalar in scalars])
    of_ranks = [stacked]
    if dist.is_initialized():
        of_ranks = [torch.empty_like(stacked) for _ in range(num_ranks())]
        dist.all_gather(of_ranks, stacked)
    columns = list(zip(*torch.stack(of_ranks).tolist(), strict=True))
    return [sum(column) for column in columns[: len(sums)]], [_largest(column) for column in columns[len(sums) :]]


def sum_over_ranks(*values: object) -> NoReturn:
    """What recipes copied before call."""
    raise AttributeError("training.sum_over_ranks is gone; write sums, _ = training.reduced_over_ranks([...])")


def most_of_ranks(*values: object) -> NoReturn:
    """What recipes copied before call."""
    raise AttributeError("training.most_of_ranks is gone; write _, most = training.reduced_over_ranks([], most=[...])")


def _largest(values: Sequence[float]) -> float:
    """Where one is no number, that."""
    return next((value for value in values if math.isnan(value)), max(values))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered; any other as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    # Of shards of different sizes it is a view into padded ones, which files of safetensors cannot have.
    return gathered.clone() if gathered.untyped_storage().nbytes() > gathered.nbytes else gathered


def leave() -> None:
    """Wait for the others and end the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
