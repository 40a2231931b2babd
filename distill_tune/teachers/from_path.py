"""A model from its path alone: a Hugging Face folder, quantised or not, an adapter's, or a GGUF file."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from distill_tune.config.files import is_model_folder, no_model_at
from distill_tune.errors import UserError
from distill_tune.models.adapter_folder import has_adapter, model_folder
from distill_tune.models.decoder_config import language_model_config, read_config_json
from distill_tune.models.quantisation import quantisation_of
from distill_tune.teachers.build import build_teacher
from distill_tune.teachers.hf import HuggingFace
from distill_tune.teachers.live import LiveTeacher


def open_model(
    key: str,
    path: Path,
    dtype: torch.dtype,
    quantizer: str | None = None,
    offload: bool = False,
    trust_remote_code: bool = False,
) -> LiveTeacher | HuggingFace:
    """Without weights: of torchtune's modules, or by transformers where only that knows how.

    Args:
        key: that names the path, for messages.
        quantizer: a component's name; as ``teacher_quantizer``.
        offload: as ``teacher_offload``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    require_model(key, path)
    settings: dict[str, object] = {"_component_": "distill_tune.models.from_hf", "path": str(path)}
    if needs_transformers(key, path):
        if quantizer or offload:
            raise UserError(f"{key} {path}: transformers runs it as it is; leave --quantizer and --offload out")
        settings |= {"_component_": "distill_tune.teachers.HuggingFace", "trust_remote_code": trust_remote_code}
    of_quantizer: DictConfig | None = OmegaConf.create({"_component_": quantizer}) if quantizer else None
    try:
        teacher = build_teacher(OmegaConf.create(settings), dtype=dtype, quantizer=of_quantizer, offload=offload)
    except UserError as error:
        raise UserError(f"{key} {path}: {error}") from error
    assert isinstance(teacher, LiveTeacher | HuggingFace)
    return teacher


def require_model(key: str, path: Path) -> None:
    """
    Raises:
        UserError: it is no model's folder, nor a file.
    """
    if path.suffix != ".gguf" and not is_model_folder(path):
        raise UserError(f"{key} {path}: {no_model_at(path)}")
    if path.suffix == ".gguf" and not path.is_file():
        raise UserError(f"{key} {path}: no such file")


def needs_transformers(key: str, path: Path) -> bool:
    """Whether a model is of an architecture that is not among ours, or quantised."""
    if path.suffix == ".gguf":
        return False
    if has_adapter(path):
        path = model_folder(key, path)
    try:
        config = read_config_json(path, key)
        if quantisation_of(config):
            return True
        language_model_config(config)
    except UserError:  # what else is wrong is told when it is built
        return True
    return False
