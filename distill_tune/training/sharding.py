"""FSDP2 for student and teacher: each layer's weights spread over the ranks, gathered when the layer runs."""

from collections.abc import Sequence

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError

from torchtune.modules import TransformerDecoder


def shard_student(
    model: TransformerDecoder,
    mesh: DeviceMesh,
    *,
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
    custom_sharded_layers: Sequence[str] = (),
) -> None:
    """Shard a model that trains, in place, while it is still on the meta device.

    Gradients are summed over the ranks, not averaged: each loss is divided by the token count of all of them.

    Args:
        reshard_after_forward: free a layer's gathered weights until backward needs them again; False is faster.
        cpu_offload: parameters, gradients and optimizer state lie on the CPU, and the optimizer runs there.
        custom_sharded_layers: ``tok_embeddings`` or ``output`` by themselves, not with what stays gathered for a step.

    Raises:
        UserError: a module that the model has not.
    """
    _shard(model, mesh, [reshard_after_forward] * len(model.layers), cpu_offload, custom_sharded_layers)
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
    _shard(model, mesh, reshard, cpu_offload, custom_sharded_layers)


def _shard(
    model: TransformerDecoder,
    mesh: DeviceMesh,
    reshard_after_forward: Sequence[bool],
    cpu_offload: bool,
    custom_sharded_layers: Sequence[str],
) -> None:
    # On the CPU there is nowhere to offload to, and the policy would look for an accelerator.
    policy = CPUOffloadPolicy() if cpu_offload and mesh.device_type != "cpu" else OffloadPolicy()
    for layer, reshard in zip(model.layers, reshard_after_forward, strict=True):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, offload_policy=policy)
    modules = {name: module for name, module in model.named_children() if name != "layers"}
    for name in custom_sharded_layers:
        if name in modules:
            fully_shard(modules[name], mesh=mesh, offload_policy=policy)
        elif not (name == "output" and _is_tied(model)):  # then it is tok_embeddings
            raise UserError(f"custom_sharded_layers: the model has no {name}; it has {', '.join(modules)}")
    # The loss reads the output layer after the model's forward, so the outermost group stays gathered.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=policy)


def _is_tied(model: TransformerDecoder) -> bool:
    return not isinstance(model.output, nn.Module)
