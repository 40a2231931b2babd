"""The teacher of a server, from a path alone."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from distill_tune.config.files import is_model_folder
from distill_tune.errors import UserError
from distill_tune.models.adapter_folder import has_adapter, model_folder
from distill_tune.models.decoder_config import language_model_config, read_config_json
from distill_tune.models.quantisation import quantisation_of
from distill_tune.teachers.build import build_teacher
from distill_tune.teachers.hf import HuggingFace
from distill_tune.teachers.live import LiveTeacher

_KEY = "--teacher"


def open_teacher(
    path: Path, dtype: torch.dtype, quantizer: str | None, offload: bool, trust_remote_code: bool
) -> LiveTeacher | HuggingFace:
    """A teacher without weights: of a GGUF file or a model's folder, by transformers where only that knows how.

    Args:
        quantizer: a component's name; as ``teacher_quantizer``.
        offload: as ``teacher_offload``.

    Raises:
        UserError: there is none, or it cannot be one.
    """
    if path.suffix != ".gguf" and not is_model_folder(path):
        raise UserError(f"{_KEY} {path}: no such folder, or it has no config.json; name a model's folder or GGUF file")
    if path.suffix == ".gguf" and not path.is_file():
        raise UserError(f"{_KEY} {path}: no such file")
    settings: dict[str, object] = {"_component_": "distill_tune.models.from_hf", "path": str(path)}
    if _needs_transformers(path):
        if quantizer or offload:
            raise UserError(f"{_KEY} {path}: transformers runs it as it is; leave --quantizer and --offload out")
        settings |= {"_component_": "distill_tune.teachers.HuggingFace", "trust_remote_code": trust_remote_code}
    of_quantizer: DictConfig | None = OmegaConf.create({"_component_": quantizer}) if quantizer else None
    try:
        teacher = build_teacher(OmegaConf.create(settings), dtype=dtype, quantizer=of_quantizer, offload=offload)
    except UserError as error:
        raise UserError(f"{_KEY} {path}: {error}") from error
    assert isinstance(teacher, LiveTeacher | HuggingFace)
    return teacher


def _needs_transformers(path: Path) -> bool:
    if path.suffix == ".gguf":
        return False
    if has_adapter(path):
        path = model_folder(_KEY, path)
    try:
        config = read_config_json(path, _KEY)
        if quantisation_of(config):
            return True
        language_model_config(config)
    except UserError:  # an architecture that is not among ours; what else is wrong is told when it is built
        return True
    return False
