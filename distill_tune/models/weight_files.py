"""The files of a model folder that hold its weights: which they are, their headers, their tensors one at a time."""

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distill_tune.errors import UserError

# The order in which transformers looks for them; an index names the files of a model in parts.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What lies in a folder without any of these, and what it is.
_OTHERS = (
    ("shard-*-model-*-of-*.safetensors", "the shards of a distributed checkpoint; save it whole with save_pretrained"),
    ("*.distcp", "a checkpoint of torch.distributed; save it whole with save_pretrained"),
    ("model-*-of-*.safetensors", "parts without their model.safetensors.index.json; is the download complete?"),
    ("pytorch_model-*-of-*.bin", "parts without their pytorch_model.bin.index.json; is the download complete?"),
    ("model.*.safetensors", "a variant; rename it to model.safetensors"),
    ("pytorch_model.*.bin", "a variant; rename it to pytorch_model.bin"),
    ("consolidated*.safetensors", "Mistral's own layout; take the folder in transformers' layout"),
    ("consolidated*.pth", "Meta's own layout; take the folder in transformers' layout"),
    ("original/consolidated*.pth", "Meta's own layout; take the folder in transformers' layout"),
    ("*.gguf", "llama.cpp's; a teacher of from_hf reads such a file: name the file itself as path"),
    ("tf_model.h5", "TensorFlow's; save it with save_pretrained of transformers"),
    ("flax_model*.msgpack", "Flax's; save it with save_pretrained of transformers"),
    ("*.safetensors", "which transformers does not take for the model's; rename it to model.safetensors if it is"),
    ("*.bin", "which transformers does not take for the model's; rename it to pytorch_model.bin if it is"),
    ("*.pt*", "PyTorch's; save the model with save_pretrained of transformers"),
)
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def weight_files(key: str, folder: Path) -> list[Path]:
    """The files that transformers takes: the whole safetensors file, its index, the whole .bin file, its index.

    Args:
        key: the config's key that names ``folder``, for messages.

    Raises:
        UserError: there is none, or an index is broken or names files outside of the folder; what is there instead.
    """
    name = next((name for name in _NAMES if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{key}={folder}: has no weights (model.safetensors or pytorch_model.bin){_found(folder)}")
    if not name.endswith(".index.json"):
        return [folder / name]
    try:
        weight_map = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(map(Path, weight_map.values())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{key}={folder}: {name} is broken: {type(error).__name__} {error}") from error
    outside = [part for part in names if part.name != str(part)]
    if outside:
        raise UserError(f"{key}={folder}: {name} names {outside[0]}, which is no file of this folder")
    if missing := [str(part) for part in names if not (folder / part).is_file()]:
        raise UserError(
            f"{key}={folder}: no such file: {', '.join(missing)}, which {name} names; is the download complete?"
        )
    if not names:
        raise UserError(f"{key}={folder}: {name} is broken: it names no file")
    return [folder / part for part in names]


def _found(folder: Path) -> str:
    for pattern, meaning in _OTHERS:
        if file := next(iter(sorted(folder.glob(pattern))), None):
            return f"; it has {file.relative_to(folder)}: {meaning}"
    return ""


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """Safetensors or .bin files, read together.

    Attributes:
        key: the config's key, for messages.
    """

    key: str
    files: Sequence[Path]

    def headers(self) -> dict[str, torch.Tensor]:
        """All weights as meta tensors, by their names in the files.

        Raises:
            UserError: a file cannot be read, or holds something else.
        """
        weights: dict[str, torch.Tensor] = {}
        for path in self.files:
            with _Readable(self.key, path):
                if path.suffix != ".safetensors":
                    weights |= _loaded(self.key, path, "meta")
                    continue
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        header = file.get_slice(name)
                        if (kind := header.get_dtype()) not in _DTYPES:
                            raise UserError(f"{self.key}: {path}: {name} has the dtype {kind}, which is not read")
                        weights[name] = torch.empty(header.get_shape(), dtype=_DTYPES[kind], device="meta")
        return weights

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and weight, one after another, in the dtype of the files.

        The tensors are views of the mapped file: what a caller does not read is not loaded, and processes on one
        machine share what they read.
        """
        for path in self.files:
            with _Readable(self.key, path):
                if path.suffix != ".safetensors":
                    yield from _loaded(self.key, path, "cpu").items()
                    continue
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        yield name, file.get_tensor(name)

    def some(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Those weights alone; a file that has none of them is not opened twice."""
        found: dict[str, torch.Tensor] = {}
        for path in self.files:
            with _Readable(self.key, path):
                if path.suffix != ".safetensors":
                    loaded = _loaded(self.key, path, "cpu")
                    found |= {name: loaded[name] for name in names if name in loaded}
                    continue
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
        return found


def _loaded(key: str, path: Path, device: str) -> dict[str, torch.Tensor]:
    """A pickled file; nothing in it is executed."""
    mapped = device != "meta" and zipfile.is_zipfile(path)  # older files cannot be mapped
    loaded: Any = torch.load(path, map_location=device, mmap=mapped, weights_only=True)
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        kind = f"a mapping with {next(iter(loaded), 'nothing')}" if isinstance(loaded, dict) else type(loaded).__name__
        raise UserError(f"{key}: {path}: holds no mapping of names to weights, but {kind}; save the weights alone")
    return loaded


@dataclasses.dataclass(frozen=True)
class _Readable:
    key: str
    path: Path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, SafetensorError | OSError | RuntimeError | ValueError | EOFError) or (
            kind is not None and kind.__name__ == "UnpicklingError"
        ):
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{self.key}: {self.path}: cannot be read: {reason}; is the download complete?") from error
