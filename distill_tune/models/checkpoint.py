"""A model's checkpoint on disk: which files, their headers, their weights one tensor at a time."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open

from distill_tune.errors import UserError
from distill_tune.models.decoder_config import read_config_json
from distill_tune.models.hf_names import Weights

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder.

    Attributes:
        key: the config's key, for messages: ``checkpointer``, ``teacher_checkpointer``, ``model`` or ``teacher_model``.
        folder: with config.json, tokenizer files and weights.
        files: the weights, safetensors or .bin.
        model_type: torchtune's name of the family, which its builders need.
        config: config.json.
    """

    key: str
    folder: Path
    files: tuple[Path, ...]
    model_type: str | None
    config: dict[str, Any]

    @classmethod
    def of(cls, model_key: str, model: DictConfig, checkpointer: DictConfig | None) -> "Checkpoint":
        """The checkpoint of ``model``: what the checkpointer names, or the folder that the model is built from.

        Raises:
            UserError: no checkpointer where one is needed, another kind of it, no config.json, or a broken one; files
                that are not there.
        """
        prefix = model_key.removesuffix("model")
        if checkpointer is None:
            if "path" not in model:
                raise UserError(f"{prefix}checkpointer: missing; {model['_component_']} does not know its folder")
            path = Path(os.path.expanduser(model["path"]))
            if path.suffix == ".gguf":
                from distill_tune.models.gguf import GGUFCheckpoint

                return GGUFCheckpoint.open(model_key, path)
            return cls.read(model_key, f"{model_key}.path", path)
        key = f"{prefix}checkpointer"
        component = checkpointer.get("_component_", "FullModelHFCheckpointer")
        if component.rpartition(".")[2] != "FullModelHFCheckpointer":
            raise UserError(
                f"{key}._component_={component}: only Hugging Face folders are read; "
                "take torchtune.training.FullModelHFCheckpointer"
            )
        return cls.read(
            key,
            f"{key}.checkpoint_dir",
            Path(checkpointer["checkpoint_dir"]),
            checkpointer.get("checkpoint_files"),
            checkpointer.get("model_type"),
        )

    @classmethod
    def read(
        cls, key: str, folder_key: str, folder: Path, names: Any = None, model_type: str | None = None
    ) -> "Checkpoint":
        """
        Args:
            folder_key: the key that names ``folder``, for messages.
            names: a list, or torchtune's ``{filename_format: model-{}-of-{}.safetensors, max_filename: "00004"}``;
                None for the folder's index, or its safetensors, or its .bin files.
        """
        folder = Path(os.path.expanduser(folder))
        config = read_config_json(folder, folder_key)
        if names is None:
            files = _found_files(folder_key, folder)
        elif isinstance(names, dict | DictConfig):
            last = str(names["max_filename"])
            numbers = (str(number).zfill(len(last)) for number in range(1, int(last) + 1))
            files = [folder / names["filename_format"].format(number, last) for number in numbers]
        else:
            files = [folder / str(name) for name in names]
        if outside := [file for file in files if file.parent != folder]:
            raise UserError(f"{key}.checkpoint_files: {outside[0]}: lies outside of {folder}")
        missing = [str(file) for file in files if not os.path.isfile(file)]
        if missing:
            raise UserError(f"{key}.checkpoint_files: no such file: {', '.join(missing)}; is the download complete?")
        return cls(key, folder, tuple(files), model_type, config)

    def headers(self) -> Weights:
        """All weights as meta tensors, by their names in the files."""
        weights: Weights = {}
        for path in self.files:
            with self._readable(path):
                if path.suffix == ".safetensors":
                    with safe_open(path, framework="pt") as file:
                        for name in file.keys():  # noqa: SIM118
                            header = file.get_slice(name)
                            dtype = _DTYPES.get(header.get_dtype(), torch.float32)
                            weights[name] = torch.empty(header.get_shape(), dtype=dtype, device="meta")
                else:
                    weights |= torch.load(path, map_location="meta", weights_only=True)
        return weights

    def dtype(self) -> torch.dtype:
        """In which most of the weights are kept."""
        kinds = [weight.dtype for weight in self.headers().values()]
        return max(set(kinds), key=kinds.count)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and weight, one after another, in the dtype of the files.

        The tensors are views of the mapped file: what a caller does not read is not loaded, and processes on one
        machine share what they read.
        """
        for path in self.files:
            with self._readable(path):
                if path.suffix == ".safetensors":
                    with safe_open(path, framework="pt") as file:
                        for name in file.keys():  # noqa: SIM118
                            yield name, file.get_tensor(name)
                else:
                    yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()

    def _readable(self, path: Path) -> "_Readable":
        return _Readable(f"{self.key}: {path}: cannot be read")


@dataclasses.dataclass(frozen=True)
class _Readable:
    message: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, SafetensorError | OSError | RuntimeError | ValueError | EOFError) or (
            kind is not None and kind.__name__ == "UnpicklingError"
        ):
            raise UserError(f"{self.message}: {str(error).splitlines()[0]}; is the download complete?") from error


def _found_files(key: str, folder: Path) -> list[Path]:
    """The weights of a folder: those of its index, else all that are named like weights."""
    for index in _INDICES:
        if not (folder / index).is_file():
            continue
        try:
            weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(map(Path, weight_map.values())))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise UserError(f"{key}={folder}: {index} is broken: {type(error).__name__} {error}") from error
        outside = [name for name in names if name.name != str(name)]
        if outside:
            raise UserError(f"{key}={folder}: {index} names {outside[0]}, which is no file of this folder")
        return [folder / name for name in names]
    for pattern in _PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise UserError(f"{key}={folder}: has no weights (model*.safetensors or pytorch_model*.bin)")
