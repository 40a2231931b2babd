"""What is exported: the model of a run, of a Hugging Face folder, or of an adapter on its base."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models, qat
from distill_tune.config.files import OF_RUN, is_model_folder, model_at, nothing_at
from distill_tune.data.tokenizer import HFTokenizer, hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.export.opened import logits_of
from distill_tune.export.unfinished import checkpoint_at, write_student
from distill_tune.models.adapter_folder import has_adapter
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import Conversion, conversion_of
from distill_tune.models.decoder_config import DecoderConfig
from distill_tune.models.tokenizer_files import VOCABULARIES, files_of

_KEY = "SOURCE"
_MODEL, _ADAPTER = OF_RUN
_CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Source:
    """
    Attributes:
        name: what its exports are called.
        folder: the model's, or the adapter's.
        run: output_dir of the run that made it; None where it lies in none.
        checkpoint: its weights, an adapter's merged.
        tokenizer: the folder's own; of an adapter without one, its base's.
        decoder: the architecture; tied or not is as the weights have it.
    """

    name: str
    folder: Path
    run: Path | None
    checkpoint: Checkpoint
    tokenizer: HFTokenizer
    decoder: DecoderConfig

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """In which most of the weights are kept."""
        return self.checkpoint.dtype()

    @functools.cached_property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._on_meta.parameters())

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """By Hugging Face's names. Adapters are merged in fp32 whatever the dtype is."""
        conversion = self._conversion
        found = {name: value.to(dtype) for name, value in self.checkpoint.weights()}
        return conversion.to_hf(conversion.to_torchtune(found))

    def config(self) -> dict[str, Any]:
        """config.json of these weights, without the folder that transformers once read them from."""
        config = self._conversion.exported_config()
        return {key: value for key, value in config.items() if key != "_name_or_path"}

    def scheme_for(self, to: str) -> qat.Scheme | None:
        """The rounding that the weights were trained with, where it is that of a format; else None."""
        note = qat.trained_for(self.folder)
        if note is None or note["fits"] != to.lower():
            return None
        if note["fits"].startswith("gguf:"):
            return next(scheme for scheme in (qat.Q4_0(), qat.Q8_0()) if scheme.fits == note["fits"])
        kinds = (qat.Int8DynActInt4Weight, qat.Int4WeightOnly)
        return next(scheme for kind in kinds if (scheme := kind(note["groupsize"])).fits == note["fits"])

    @torch.no_grad()
    def logits(
        self, rows: Sequence[Sequence[int]], device: torch.device, scheme: qat.Scheme | None = None
    ) -> list[torch.Tensor]:
        """Of each row ``[s, v]``, float32, on the CPU, computed in float32 by the decoder that trains.

        Args:
            scheme: that it was trained with; its layers then compute with rounded values, as they did.
        """
        model = models.load_model(_component_of(self.folder), self.checkpoint, torch.float32, device).eval()
        if scheme is not None:
            qat.prepare(model, scheme)
        return list(map(logits_of(model, device), rows))

    @functools.cached_property
    def _conversion(self) -> Conversion:
        return conversion_of(self._on_meta, None, self.checkpoint.config)

    @functools.cached_property
    def _on_meta(self) -> nn.Module:
        return models.build_on_meta(_KEY, _component_of(self.folder))


def open_source(path: Path, as_adapter: bool = False, room: Path | None = None) -> Source:
    """
    Args:
        path: a run's output_dir, a Hugging Face folder, or an adapter's; with ``room`` also a checkpoint of a run, and
            a run that has left no model yet, of which the newest checkpoint is taken.
        as_adapter: of a run take adapter/ and not model/.
        room: where the student of a checkpoint is put, as a folder of its own.

    Raises:
        UserError: there is no such model, it cannot be read, or has no tokenizer.
    """
    folder = model_at(path, [_ADAPTER] if as_adapter else OF_RUN)
    run = _run_of(folder)
    if not is_model_folder(folder):
        if as_adapter and is_model_folder(path / _MODEL):
            raise UserError(
                f"export {path}: this run trained every parameter and left {path / _MODEL} alone: there is no adapter; "
                "take --to hf, or a run that trains with LoRA"
            )
        if room is None or (step := checkpoint_at(path)) is None:
            raise UserError(f"export {path}: {nothing_at(path)}")
        if run == path:
            print(f"{path}: has left no model yet; what is exported is the student of {step}")
        folder = write_student(step, room, as_adapter)
    checkpoint = Checkpoint.read(_KEY, _KEY, folder)
    model = models.checked_on_meta(_KEY, _component_of(folder), checkpoint)
    has_own = bool(files_of(folder, VOCABULARIES))
    tokenizer = hf_tokenizer(str(folder if has_own else checkpoint.folder))
    return Source(name_of(path), folder, run, checkpoint, tokenizer, model.decoder_config)


def name_of(path: Path) -> str:
    """What the exports of a path are called: as its run, with its step of a checkpoint; or as the model's folder."""
    folder = model_at(path)
    run = _run_of(folder)
    step = f"-{path.name}" if run and path.parent.name == _CHECKPOINTS else ""
    return f"{(run or folder).resolve().name}{step}"


def _run_of(folder: Path) -> Path | None:
    """The run that a model's folder or a checkpoint is of, or that it is itself."""
    if folder.name in OF_RUN:
        run = folder.parent
    elif folder.parent.name == _CHECKPOINTS:
        run = folder.parent.parent
    else:
        run = folder
    return run if (run / "config.yaml").is_file() and not is_model_folder(run) else None


def _component_of(folder: Path) -> DictConfig:
    return OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})


def has_factors(source: Source) -> bool:
    """Whether it is an adapter's folder, not a whole model's."""
    return has_adapter(source.folder)
