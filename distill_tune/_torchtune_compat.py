"""Lets torchtune 0.6.1, its last release, live with a current torchao and with tiktoken. Import it before torchtune.

torchtune looks for names that torchao moved or removed in 0.16; current peft and transformers refuse any torchao older
than that. Each name below says what became of it.
"""

import importlib
import logging
import sys
import warnings
from importlib.metadata import version
from types import ModuleType
from typing import Any

from distill_tune.errors import UserError

# Speaks at import time of compiled extras that are optional, on a machine that may not even have a GPU.
_TALKATIVE_AT_IMPORT = "torchao"


def _removed(name: str) -> type:
    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"torchao {name} was removed in torchao 0.16, and torchtune's quantizers with it")

    return type(name, (), {"__init__": refuse})


def _import_quietly(name: str) -> ModuleType:
    logger = logging.getLogger(_TALKATIVE_AT_IMPORT)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(name)
    finally:
        logger.setLevel(level)


def _read_local_tokenizers_as_they_are() -> None:
    """tiktoken keeps a copy of each file by its path, a local one too, and reads that when the file is another by now.

    torchtune and transformers read Llama 3's tokenizer.model and the like by it.
    """
    load: Any = importlib.import_module("tiktoken.load")
    read_cached = load.read_file_cached

    def read(blobpath: str, expected_hash: str | None = None) -> bytes:
        if "://" in blobpath or expected_hash is not None:
            return read_cached(blobpath, expected_hash)
        return load.read_file(blobpath)

    load.read_file_cached = read


def apply() -> None:
    """Give torchtune the names that it imports; nothing is touched where torchao still has them."""
    # Whenever torchao's enums are imported, by transformers too, PyTorch says that they need not be registered.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    # torchtune's RMSNorm multiplies float32 by a bf16 scale; newer PyTorch says each time that this is not its fastest.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    try:
        _import_quietly("torchao")
        dtypes = _import_quietly("torchao.dtypes")
        quantization = _import_quietly("torchao.quantization")
    except ImportError as error:
        raise UserError(
            f"torchao {version('torchao')} does not work with torch {version('torch')} ({error}); "
            "install another, torchao==0.17.0 for torch 2.9"
        ) from error
    # Moved: the NF4 tensor that QLoRA is made of. Everything in torchtune imports this module.
    try:
        importlib.import_module("torchao.dtypes.nf4tensor")
    except ModuleNotFoundError:
        nf4 = importlib.import_module("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
        sys.modules["torchao.dtypes.nf4tensor"] = nf4
    # Removed: used by torchtune's post-training quantizers alone, which importing torchtune.training needs by name.
    for module, name in (
        (dtypes, "TensorCoreTiledLayout"),
        (quantization, "int4_weight_only"),
        (quantization, "int8_dynamic_activation_int4_weight"),
    ):
        if not hasattr(module, name):
            setattr(module, name, _removed(name))
    _read_local_tokenizers_as_they_are()


apply()
