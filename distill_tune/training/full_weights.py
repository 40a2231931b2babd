"""The whole weights of a model, sharded or not, on the CPU of the main process."""

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torchao.dtypes.nf4tensor import NF4Tensor

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.loading import own_part, sharded
from distill_tune.models.parameters import named_parameters, reshard
from distill_tune.training.distributed import is_main_process, whole


@torch.no_grad()
def full_weights(model: nn.Module, only: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each parameter, gathered one at a time; quantised ones in their original dtype.

    Every rank calls it and goes through to the end; only the main process gets anything.

    Args:
        only: the names that are wanted; None for all.
    """
    reshard(model)
    for name, parameter in named_parameters(model):
        if only is not None and name not in only:
            continue
        value = parameter.detach()
        if isinstance(own := own_part(value), NF4Tensor):
            # Before it is gathered: of a quantised tensor nobody waits for the parts that arrive.
            value = sharded(value, own.get_original_weight())
        value = whole(value)
        if is_main_process():
            yield name, value.cpu()
