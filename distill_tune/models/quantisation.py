"""Folders whose weights are quantised: how config.json says so, and what that asks for."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill_tune.errors import UserError

# What transformers needs for the methods that it knows, as pip takes it.
_PACKAGES = {
    "aqlm": "aqlm accelerate",
    "auto-round": "auto-round",
    "awq": "gptqmodel accelerate",
    "bitnet": "accelerate",
    "bitsandbytes": "bitsandbytes accelerate",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels accelerate",
    "fbgemm_fp8": "fbgemm-gpu accelerate",
    "fp8": "kernels accelerate",
    "gptq": "gptqmodel optimum",
    "hqq": "hqq",
    "mxfp4": "kernels accelerate triton",
    "quanto": "optimum-quanto accelerate",
    "quark": "amd-quark",
    "torchao": "torchao",
    "vptq": "vptq accelerate",
}
_PARTS = re.compile(
    r"\.(?:qweight|qzeros|g_idx|scales|SCB|absmax|quant_map|quant_state\..+|weight_(?:scale|packed|shape|zero_point)"
    r"|weight_scale_inv|weight_format|codes|codebooks|input_scale)$|\.weight[.:]_?(?:absmax|quant|nested|qdata|scale)"
)


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """The method that quantised a folder's weights, as config.json calls it; None where they are plain."""
    text = config.get("text_config")
    found = config.get("quantization_config")
    if found is None and isinstance(text, Mapping):
        found = text.get("quantization_config")
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method is None and isinstance(found, Mapping) and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return "bitsandbytes"
    return str(method or "an unnamed method")


def packages_for(method: str) -> str | None:
    """What to install, as pip takes it; None for a method that is not known."""
    return _PACKAGES.get(method)


def is_part_of_quantised(name: str) -> bool:
    """Whether a tensor's name is one that only quantised weights have."""
    return _PARTS.search(name) is not None


def require_plain(key: str, folder: Path, config: Mapping[str, Any], headers: Mapping[str, torch.Tensor]) -> None:
    """
    Args:
        key: the config's key that names ``folder``, for messages.

    Raises:
        UserError: the weights are quantised: config.json says so, or their names or dtypes do.
    """
    named = next(filter(is_part_of_quantised, headers), None)
    whole = next((n for n, w in headers.items() if n.endswith(".weight") and not w.is_floating_point()), None)
    if method := quantisation_of(config):
        plain = named is None and whole is None and not any(weight.dtype.itemsize == 1 for weight in headers.values())
        hint = "; its weights look plain: if they are, delete quantization_config from config.json" if plain else ""
        packages = packages_for(method)
        other = f"; a teacher may be a distill_tune.teachers.HuggingFace, with {packages}" if packages else ""
        raise UserError(
            f"{key}={folder}: is quantised with {method} (quantization_config in config.json), which is not read here; "
            f"take the folder that it was made from{other}{hint}"
        )
    if named or whole:
        what = f"{named} is a part of quantised weights" if named else f"{whole} is {headers[str(whole)].dtype}"
        raise UserError(
            f"{key}={folder}: is quantised ({what}), and config.json has no quantization_config that says how; take "
            "the folder that it was made from"
        )
