"""CUDA's branches on a machine without CUDA: what only a GPU takes, taken on the CPU. docs/hardware.md has the list.

Where an operator has no kernel for the CPU it gets one, computed in float32; its dispatch, its checks and its formula
for the gradient stay PyTorch's. Where code asks for the device, it is told CUDA, and its tensors lie on the CPU.
"""

import atexit
import collections
import contextlib
import functools
import itertools
import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from distill_tune.models import packed_rows

try:
    from torch.nn.attention import varlen
except ImportError:  # PyTorch 2.9
    varlen = None  # type: ignore[assignment]


taken: collections.Counter[str] = collections.Counter()  # how often each stand-in computed something


def say_cuda(patch: pytest.MonkeyPatch) -> None:
    """Every tensor tells this package that it is on CUDA, and everyone else where it is."""
    asked = torch.Tensor.is_cuda

    def is_cuda(tensor: torch.Tensor) -> bool:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return asks.startswith("distill_tune.") or asked.__get__(tensor)

    patch.setattr(torch.Tensor, "is_cuda", property(is_cuda), raising=False)


class OnCPU(TorchFunctionMode):
    """What is made on CUDA, or moved to it, lies on the CPU; pinned memory is ordinary memory that is remembered.

    Attributes:
        pinned: addresses of the memory that was asked for pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            self.pinned.add(args[0].untyped_storage().data_ptr())
            return args[0]
        pin, of_cuda = kwargs.pop("pin_memory", False), _is_cuda(kwargs.get("device"))
        result = func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in kwargs.items()})
        if pin:
            self.pinned.add(result.untyped_storage().data_ptr())
        if of_cuda:
            self.made(result)
        return result

    def made(self, tensor: torch.Tensor) -> None:
        """Called with each tensor that was to be on CUDA."""


def _is_cuda(value: Any) -> bool:
    return value.type == "cuda" if isinstance(value, torch.device) else isinstance(value, str) and value[:4] == "cuda"


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if _is_cuda(value) else value


def one_gpu(patch: pytest.MonkeyPatch, name: str = "NVIDIA H100 80GB HBM3") -> list[str]:
    """PyTorch's questions about the device, answered as on a machine with one; the calls in their order."""
    calls: list[str] = []

    def answer(function: str, value: Any) -> None:
        def called(*arguments: Any, **named: Any) -> Any:
            calls.append(function)
            return value

        patch.setattr(torch.cuda, function, called)

    answer("is_available", True)
    answer("device_count", 1)
    answer("set_device", None)
    answer("is_bf16_supported", True)
    answer("get_device_name", name)
    answer("get_device_properties", types.SimpleNamespace(total_memory=80 * 2**30))
    answer("synchronize", None)
    answer("empty_cache", None)
    answer("reset_peak_memory_stats", None)
    answer("memory_allocated", 1_000)
    answer("max_memory_allocated", 5_000)
    answer("get_rng_state", torch.arange(16, dtype=torch.uint8))
    answer("set_rng_state", None)
    return calls


@functools.cache
def give_operators_cpu_kernels() -> None:
    """For the rest of the process: without this they would raise on a CPU."""
    _library.impl("mm.dtype", _mm_into, "CPU")
    if varlen is not None:
        varlen._varlen_attn.register_kernel("cpu")(_varlen_attention)
        varlen._varlen_attn_backward.register_kernel("cpu")(_varlen_attention_backward)


def packed_flash(q, k, v, mask, scale, window, softcap, dropout):
    """In place of ``packed_rows._row_by_row``, which ends a graph: one operator for all rows, as on CUDA."""
    assert packed_rows._has_varlen() and softcap is None
    return packed_rows._varlen(q, k, v, mask, scale, window)


_library = torch.library.Library("aten", "IMPL")


def _mm_into(left: torch.Tensor, right: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """Products of halves are exact in float32; the tensor cores too add them up in it."""
    taken["mm into float32"] += 1
    assert left.dtype == right.dtype and out_dtype in (left.dtype, torch.float32)
    return (left.float() @ right.float()).to(out_dtype)


def _varlen_attention(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    is_causal=False,
    scale=None,
    window_size=None,
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """``[s, heads, head_dim]``, and the logarithm of each row's sum of exponentials, ``[heads, s]``."""
    taken["flash"] += 1
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.dtype == key.dtype == value.dtype and query.stride(-1) == 1
    assert query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    assert max_q == max(cu_seq_q.diff()) and max_k == max(cu_seq_k.diff()) and cu_seq_q[-1] == len(query)
    assert (seqused_k, block_table, num_splits) == (None, None, None)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for part in _parts(cu_seq_q):
        scores, (_, _, v) = _scores(query[part], key[part], value[part], scale, window_size, is_causal)
        lse[:, part] = scores.logsumexp(-1)
        out[part] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def _varlen_attention_backward(
    grad_out,
    query,
    key,
    value,
    out,
    lse,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    is_causal,
    rng_state,
    scale=None,
    window_size=None,
):
    taken["flash backward"] += 1
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grads = [torch.empty_like(x) for x in (query, key, value)]
    for part in _parts(cu_seq_q):
        scores, (q, k, v) = _scores(query[part], key[part], value[part], scale, window_size, is_causal)
        g, o = (x[part].transpose(0, 1).float() for x in (grad_out, out))
        weights = (scores - lse[:, part, None]).exp()
        inner = weights * (g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True))
        found = inner @ k * scale, inner.transpose(1, 2) @ q * scale, weights.transpose(1, 2) @ g
        for grad, of_part in zip(grads, found, strict=True):
            of_heads = of_part.unflatten(0, (grad.shape[1], -1)).sum(1)  # of all queries that share a key
            grad[part] = of_heads.transpose(0, 1).to(grad.dtype)
    return tuple(grads)


def _parts(bounds: torch.Tensor) -> Iterator[slice]:
    return itertools.starmap(slice, itertools.pairwise(bounds.tolist()))


def _scores(q, k, v, scale, window_size, is_causal):
    """Of one row ``[heads, s, s]``, -inf for what is not seen, and q, k and v ``[heads, s, head_dim]``; float32."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    groups = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1).float() for x in (q, k, v))
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    back = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
    left, right = window_size or (-1, -1)
    unseen = ((back > left) & torch.tensor(left >= 0)) | ((back < -right) & torch.tensor(right >= 0))
    unseen |= (back < 0) & torch.tensor(is_causal)
    return (q @ k.transpose(1, 2) * scale).masked_fill(unseen, float("-inf")), (q, k, v)


@contextlib.contextmanager
def cuda_branches() -> Iterator[None]:
    """Attention, output layer and loss as on CUDA, on the CPU."""
    give_operators_cpu_kernels()
    with pytest.MonkeyPatch.context() as patch:
        say_cuda(patch)
        yield


_open = contextlib.ExitStack()


def for_this_process(has_device: bool) -> None:
    """What a recipe that is edited begins with: all of it until the process ends, which says what was taken.

    Args:
        has_device: ``device=cuda`` is there too, with its streams.
    """
    from stand_in_streams import Device

    from distill_tune.losses import triton_rows

    patch = pytest.MonkeyPatch()
    give_operators_cpu_kernels()
    say_cuda(patch)
    launch = triton_rows.losses_and_gradient

    def counted(*arguments: Any, **named: Any) -> Any:
        taken["kernel"] += 1
        return launch(*arguments, **named)

    patch.setattr(triton_rows, "losses_and_gradient", counted)
    calls: list[str] = []
    device = Device()
    if has_device:
        calls = one_gpu(patch)
        _open.enter_context(device.running(patch))

    def tell() -> None:
        counts = taken + collections.Counter({"copies": device.copied, "unpinned": device.unpinned})
        print(json.dumps({"taken": counts + collections.Counter(calls)}))

    atexit.register(tell)
