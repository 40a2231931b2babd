"""FSDP2 for student and teacher: each layer's weights spread over the ranks, gathered when the layer runs."""

import functools
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError

from torchtune.modules import TransformerDecoder


def shard_student(
    model: TransformerDecoder,
    mesh: DeviceMesh,
    *,
    dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
    custom_sharded_layers: Sequence[str] = (),
) -> None:
    """Shard a model that trains, in place, while it is still on the meta device.

    Gradients are summed over the ranks, not averaged: each loss is divided by the token count of all of them. They are
    summed in float32, over micro-batches as over ranks.

    Args:
        dtype: that the model computes in: parameters held in float32 are cast to it when they are gathered.
        reshard_after_forward: free a layer's gathered weights until backward needs them again; False is faster.
        cpu_offload: parameters, gradients and optimizer state lie on the CPU, and the optimizer runs there.
        custom_sharded_layers: ``tok_embeddings`` or ``output`` by themselves, not with what stays gathered for a step.

    Raises:
        UserError: a module that the model has not; copies of bf16 parameters, which chance would round apart.
    """
    if mesh.ndim > 1 and any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters()):
        raise UserError(
            "data_parallel_replicate_dim: copies of the model would not stay the same with "
            "optimizer.bf16_stochastic_round=True; leave one of them out"
        )
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    _shard(model, mesh, [reshard_after_forward] * len(model.layers), cpu_offload, custom_sharded_layers, policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def shard_teacher(
    model: TransformerDecoder, mesh: DeviceMesh, *, cpu_offload: bool = False, custom_sharded_layers: Sequence[str] = ()
) -> None:
    """Shard a model that only runs forward, in place, while it is still on the meta device.

    Each layer is freed after it ran, but for the last one: the next forward would only gather it again.
    """
    model.requires_grad_(False)
    reshard = [True] * (len(model.layers) - 1) + [False]
    _shard(model, mesh, reshard, cpu_offload, custom_sharded_layers, MixedPrecisionPolicy())


def _shard(
    model: TransformerDecoder,
    mesh: DeviceMesh,
    reshard_after_forward: Sequence[bool],
    cpu_offload: bool,
    custom_sharded_layers: Sequence[str],
    precision: MixedPrecisionPolicy,
) -> None:
    # On the CPU there is nowhere to offload to, and the policy would look for an accelerator.
    offload = CPUOffloadPolicy() if cpu_offload and mesh.device_type != "cpu" else OffloadPolicy()
    shard = functools.partial(fully_shard, mesh=mesh, offload_policy=offload, mp_policy=precision)
    for layer, reshard in zip(model.layers, reshard_after_forward, strict=True):
        shard(layer, reshard_after_forward=reshard)
    modules = {name: module for name, module in model.named_children() if name != "layers"}
    for name in custom_sharded_layers:
        if name in modules:
            shard(modules[name])
        elif not (name == "output" and _is_tied(model)):  # then it is tok_embeddings
            raise UserError(f"custom_sharded_layers: the model has no {name}; it has {', '.join(modules)}")
    # The loss reads the output layer after the model's forward, so the outermost group stays gathered.
    shard(model, reshard_after_forward=False)


def _is_tied(model: TransformerDecoder) -> bool:
    return not isinstance(model.output, nn.Module)
