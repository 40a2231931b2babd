"""Models from components and checkpoints: built on the meta device, checked by headers, then filled."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from omegaconf import DictConfig
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.config.components import instantiate
from distill_tune.errors import UserError
from distill_tune.models.adapters import adapter_names, initial_values
from distill_tune.models.attention import Attention
from distill_tune.models.builders import from_hf
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import conversion_of
from distill_tune.models.parameters import named_parameters

from torchtune.modules import TransformerDecoder
from torchtune.training import set_default_dtype

_SHOWN_NAMES = 3


def build_on_meta(key: str, component: DictConfig, dtype: torch.dtype = torch.float32) -> TransformerDecoder:
    """The model without its weights: shapes for checks, nothing allocated.

    Args:
        key: ``model`` or ``teacher_model``, for messages.

    Raises:
        UserError: the component refuses its arguments.
    """
    try:
        with set_default_dtype(dtype), torch.device("meta"), _nf4_by_shape(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return instantiate(component)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{key}: {component['_component_']}: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _nf4_by_shape() -> Iterator[None]:
    """Weights without values become NF4 once a shape: on the meta device each takes 5 ms of Python."""
    quantise, known = NF4Tensor.from_tensor, dict[Any, NF4Tensor]()

    def once(weight: torch.Tensor, *block_sizes: int) -> NF4Tensor:
        if not weight.is_meta:
            return quantise(weight, *block_sizes)
        shape = (weight.shape, weight.dtype, weight.requires_grad, block_sizes)
        if shape not in known:
            known[shape] = quantise(weight, *block_sizes)
        return known[shape]

    with mock.patch.object(NF4Tensor, "from_tensor", once):
        yield


def check_fit(key: str, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Compare a model's parameters with a checkpoint's headers, before any weight is read.

    Raises:
        UserError: names or shapes differ.
    """
    conversion = conversion_of(model, checkpoint.model_type, checkpoint.config)
    try:
        found = conversion.to_torchtune(checkpoint.headers())
    except UserError as error:
        raise UserError(f"{_fits_not(key, checkpoint)}: {error}") from error
    adapters = adapter_names(model)
    wanted = {name: p.shape for name, p in model.named_parameters() if name not in adapters}
    problems = []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"the checkpoint lacks {some_names(missing)}")
    if extra := [name for name in found if name not in wanted]:
        problems.append(f"the model has no place for {some_names(extra)}")
    if extra == ["output.weight"]:
        problems.append(
            "the model ties its output layer to its embeddings, the checkpoint has another lm_head.weight: build it "
            "with distill_tune.models.from_hf from that folder, which keeps the two apart as transformers does"
        )
    differ = [name for name in wanted if name in found and found[name].shape != wanted[name]]
    if differ:
        shown = [f"{name} {list(found[name].shape)} (the model: {list(wanted[name])})" for name in differ]
        problems.append(f"shapes differ: {some_names(shown)}")
    if problems:
        raise UserError(f"{_fits_not(key, checkpoint)}: {'; '.join(problems)}")


def _fits_not(key: str, checkpoint: Checkpoint) -> str:
    its = "its weights" if checkpoint.key == key else checkpoint.key  # built from a folder that has them, too
    return f"{key} does not fit {its}: {checkpoint.folder}"


def checked_on_meta(
    key: str, component: DictConfig, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
) -> TransformerDecoder:
    """:func:`build_on_meta`, then :func:`check_fit`; of torchtune's builders also config.json, which is exported.

    Of a checkpoint without files there is nothing to compare with.
    """
    model = build_on_meta(key, component, dtype)
    if not checkpoint.files:
        return model
    check_fit(key, model, checkpoint)
    if not hasattr(model, "decoder_config"):
        _check_own_config(checkpoint)
    return model


def _check_own_config(checkpoint: Checkpoint) -> None:
    """
    Raises:
        UserError: the checkpoint's config.json is of other weights.
    """
    try:
        with torch.device("meta"):
            described = from_hf(str(checkpoint.folder))
    except UserError:  # an architecture that torchtune alone knows
        return
    check_fit(f"{checkpoint.folder / 'config.json'}, with which others open them,", described, checkpoint)


def require_rows(key: str, model: TransformerDecoder, longest: int, largest_token: int) -> None:
    """
    Raises:
        UserError: the data has a row that is longer than the model can read, or a token that it does not have.
    """
    require_tokens(key, model.tok_embeddings.weight.shape[0], largest_token)
    if longest > model.max_seq_len:
        raise UserError(
            f"dataset: its longest sequence has {longest} tokens, {key} reads {model.max_seq_len} at most; "
            f"cut rows there with tokenizer.max_seq_len={model.max_seq_len}, or raise {key}.max_seq_len"
        )


def require_tokens(key: str, vocab_size: int, largest_token: int) -> None:
    """
    Raises:
        UserError: the data has a token that the model does not have.
    """
    if largest_token >= vocab_size:
        raise UserError(
            f"dataset: its rows have the token {largest_token}, {key} knows {vocab_size}, numbered from 0; "
            "take the model's own tokenizer"
        )


@torch.no_grad()
def load_weights(model: TransformerDecoder, checkpoint: Checkpoint, device: torch.device) -> None:
    """Fill a model that is on the meta device; adapters get their initial values.

    One tensor after another is read, cast to the dtype in which the model was built, and put where it belongs. Of a
    sharded model each rank reads its own rows.

    Args:
        device: of the parameters.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    conversion = conversion_of(model, checkpoint.model_type, checkpoint.config)
    parameters = dict(named_parameters(model))
    placed = {name: _placed(weight, parameters[name], device) for name, weight in initial_values(model, parameters)}
    for hf_name, tensor in checkpoint.weights():
        for name, weight in conversion.to_torchtune({hf_name: tensor}).items():
            placed[name] = _placed(weight, parameters[name], device)
    model.load_state_dict(placed, strict=True, assign=True)
    fill_rotary_tables(model, device)
    for module in model.modules():
        if hasattr(module, "initialize_dora_magnitude"):
            module.initialize_dora_magnitude()


def fill_rotary_tables(model: nn.Module, device: torch.device) -> None:
    """Make what no checkpoint has: torchtune's rotary tables, which are buffers, and ours."""
    for rope in {module.rope for module in model.modules() if isinstance(module, Attention)}:
        rope.fill(device)
    for module in model.modules():
        fill = getattr(module, "rope_init", None)
        if fill is not None:
            module.to_empty(device=device, recurse=False)
            with torch.device(device):
                fill()


def load_model(
    component: DictConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> TransformerDecoder:
    """:func:`checked_on_meta`, then :func:`load_weights`."""
    model = checked_on_meta("model", component, checkpoint, dtype)
    load_weights(model, checkpoint, device)
    return model


def own_part(parameter: torch.Tensor, value: torch.Tensor | None = None) -> torch.Tensor:
    """What this rank holds of a sharded parameter, or of a whole ``value`` of its shape; of others, all."""
    if not isinstance(parameter, DTensor):
        return parameter if value is None else value
    if value is None:
        return parameter.to_local()
    for mesh_dim, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            chunks = value.chunk(parameter.device_mesh.size(mesh_dim), placement.dim)
            at = parameter.device_mesh.get_local_rank(mesh_dim)
            value = chunks[at] if at < len(chunks) else value.narrow(placement.dim, 0, 0)
    return value


def sharded(parameter: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """The tensor of which this rank has ``part``, sharded as ``parameter`` is; where that is whole, so is the part."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _placed(weight: torch.Tensor, parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``weight`` as ``parameter`` will hold it: its dtype, quantised where it is, of a sharded one this rank's rows."""
    local = own_part(parameter)
    if isinstance(local, NF4Tensor):
        placed = own_part(parameter, to_nf4(weight.to(device, parameter.dtype)))
    else:
        placed = own_part(parameter, weight).to(device, parameter.dtype, copy=True).contiguous()
    return sharded(parameter, placed)


def some_names(names: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
