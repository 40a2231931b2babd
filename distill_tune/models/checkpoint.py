"""A model's checkpoint on disk: read headers first, weights later."""

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.config.components import instantiate
from distill_tune.errors import UserError
from distill_tune.models.adapters import adapter_names
from distill_tune.models.conversion import Weights, hf_to_torchtune

from torchtune.modules import TransformerDecoder
from torchtune.training import set_default_dtype

_SHOWN_NAMES = 3


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint, as ``torchtune.training.FullModelHFCheckpointer`` is configured for it.

    Attributes:
        key: the config's key, for messages: ``checkpointer`` or ``teacher_checkpointer``.
        folder: with config.json, tokenizer files and weights.
        files: the weights, safetensors or .bin.
        model_type: torchtune's name of the family.
        config: config.json.
    """

    key: str
    folder: Path
    files: tuple[Path, ...]
    model_type: str
    config: dict[str, Any]

    @classmethod
    def from_config(cls, key: str, component: DictConfig) -> "Checkpoint":
        """
        Raises:
            UserError: another checkpointer, no config.json, or one that is broken.
        """
        if component["_component_"].rpartition(".")[2] != "FullModelHFCheckpointer":
            raise UserError(
                f"{key}._component_={component['_component_']}: only Hugging Face folders are read; "
                "take torchtune.training.FullModelHFCheckpointer"
            )
        folder = Path(component["checkpoint_dir"]).expanduser()
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{key}.checkpoint_dir={folder}: has no config.json") from error
        except ValueError as error:
            raise UserError(f"{key}.checkpoint_dir={folder}: config.json is broken: {error}") from error
        files = component["checkpoint_files"]
        if isinstance(files, DictConfig):  # {filename_format: model-{}-of-{}.safetensors, max_filename: "00004"}
            last = files["max_filename"]
            numbers = (str(number).zfill(len(last)) for number in range(1, int(last) + 1))
            files = [files["filename_format"].format(number, last) for number in numbers]
        missing = [str(folder / file) for file in files if not (folder / file).is_file()]
        if missing:
            raise UserError(f"{key}.checkpoint_files: no such file: {', '.join(missing)}")
        return cls(key, folder, tuple(folder / file for file in files), component["model_type"], config)

    def shapes(self) -> Weights:
        """All weights as meta tensors under torchtune's names; reads the files' headers alone."""
        weights: Weights = {}
        for path in self.files:
            weights |= dict(self._headers(path))
        return hf_to_torchtune(weights, self.model_type, self.config)

    def load(self) -> Weights:
        """All weights under torchtune's names, on the CPU, in the dtype of the files."""
        weights: Weights = {}
        for path in self.files:
            with self._readable(path):
                if path.suffix == ".safetensors":
                    with safe_open(path, framework="pt") as file:
                        weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                else:
                    weights |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return hf_to_torchtune(weights, self.model_type, self.config)

    def _headers(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        with self._readable(path):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        yield name, torch.empty(file.get_slice(name).get_shape(), device="meta")
            else:
                yield from torch.load(path, map_location="meta", weights_only=True).items()

    def _readable(self, path: Path) -> "_Readable":
        return _Readable(f"{self.key}.checkpoint_files: {path}: cannot be read")


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


def build_on_meta(component: DictConfig) -> TransformerDecoder:
    """The model without its weights: shapes for checks, nothing allocated.

    Raises:
        UserError: the component refuses its arguments.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return instantiate(component)
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{component['_component_']}: {' '.join(str(error).split())}") from error


def check_fit(key: str, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Compare a model's parameters with a checkpoint's headers, before any weight is read.

    Raises:
        UserError: names or shapes differ.
    """
    found = checkpoint.shapes()
    adapters = adapter_names(model)
    wanted = {name: p.shape for name, p in model.named_parameters() if name not in adapters}
    problems = []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"the checkpoint lacks {_some(missing)}")
    if extra := [name for name in found if name not in wanted]:
        problems.append(f"the model has no place for {_some(extra)}")
    differ = [name for name in wanted if name in found and found[name].shape != wanted[name]]
    if differ:
        shown = [f"{name} {list(found[name].shape)} (the model: {list(wanted[name])})" for name in differ]
        problems.append(f"shapes differ: {_some(shown)}")
    if problems:
        raise UserError(
            f"{key} does not fit {checkpoint.key}.checkpoint_dir={checkpoint.folder}: {'; '.join(problems)}"
        )


def checked_on_meta(key: str, component: DictConfig, checkpoint: Checkpoint) -> TransformerDecoder:
    """:func:`build_on_meta`, then :func:`check_fit`."""
    model = build_on_meta(component)
    check_fit(key, model, checkpoint)
    return model


def require_length(key: str, model: TransformerDecoder, longest: int) -> None:
    """
    Raises:
        UserError: the data has a row that is longer than the model can read.
    """
    if longest > model.max_seq_len:
        raise UserError(
            f"dataset: its longest sequence has {longest} tokens, {key} reads {model.max_seq_len} at most; "
            f"set tokenizer.max_seq_len={model.max_seq_len}"
        )


def load_model(
    component: DictConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> TransformerDecoder:
    """Build a model and fill it; adapters keep their initial values.

    Weights come in the files' dtype and are held in ``dtype``.
    """
    with set_default_dtype(dtype), device:
        model = instantiate(component)
    missing, unexpected = model.load_state_dict(checkpoint.load(), strict=False)
    adapters = adapter_names(model)
    if unexpected or any(name not in adapters for name in missing):
        raise UserError(f"{checkpoint.key}: unexpected {_some(unexpected)}, missing {_some(missing)}")
    for module in model.modules():
        if hasattr(module, "initialize_dora_magnitude"):
            module.initialize_dora_magnitude()
    return model


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
