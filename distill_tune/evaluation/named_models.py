"""The models that are measured, by their labels: each told apart, and what is wrong with one, before it loads."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import DictConfig, OmegaConf

from distill_tune import models, teachers
from distill_tune.config.files import OF_RUN, demo_names, local_path, model_at
from distill_tune.config.keys import OWN_MODELS
from distill_tune.data.shape import Shape
from distill_tune.errors import UserError
from distill_tune.models.adapter_folder import has_adapter, model_folder
from distill_tune.models.decoder_config import read_config_json
from distill_tune.models.quantisation import quantisation_of
from distill_tune.teachers.build import entries_of

TEACHER, BEFORE, AFTER = OWN_MODELS
_EXAMPLE = "{{path: {path}, tokenizer: FOLDER}}"


@dataclasses.dataclass
class NamedModel:
    """
    Attributes:
        label: in results.
        key: of the config, or the option, that names it, for messages.
        path: as it was given.
        kind: ``hugging face folder``, ``run``, ``adapter``, ``gguf``, ``demo``, how it is quantised (``torchao``), or
            of a config's own teacher what it is.
        model: without weights until it is loaded; None once they have been let go.
        tokenizer: its own, where that is not that of the others; else None.
        context: tokens that it reads at once; None where it does not say.
        parameters: their number.
        file_bytes: of its weights on the disk, with those of an adapter's base.
        shape: what tells models that take as long and as much memory as one another.
        reading: the number of the documents' reading by which it reads them.
    """

    label: str
    key: str
    path: str
    kind: str
    model: teachers.Teacher | None
    tokenizer: Any
    context: int | None
    parameters: int
    file_bytes: int
    shape: object
    reading: int = 0

    @property
    def folder(self) -> Path | None:
        """Where its config.json is, or its GGUF file; None where it has no single one."""
        return self.model.folders[0] if self.model is not None and len(self.model.folders) == 1 else None

    @property
    def vocab_size(self) -> int | None:
        return getattr(self.model, "vocab_size", None)

    def require_tokens(self, writer: Path | None, used: numpy.ndarray) -> None:
        """
        Args:
            writer: the folder whose tokenizer writes what it reads; None where it is its own.
            used: the ids that occur, sorted.

        Raises:
            UserError: one is none of its tokens, or another one.
        """
        assert self.model is not None
        if self.vocab_size is not None:
            models.require_tokens(self.key, self.vocab_size, int(used[-1]))
        for folder in self.model.folders:
            if writer is not None and folder.resolve() != writer.resolve():
                try:
                    models.require_one_tokenizer(writer, folder, used)
                except UserError as error:
                    raise UserError(f"{self.key}: {error}") from error

    def load(self, device: torch.device) -> teachers.Teacher:
        """
        Raises:
            UserError: its files cannot be read.
        """
        assert self.model is not None
        self.model.load(getattr(self.model, "model", None), device)
        return self.model

    def release(self) -> None:
        """Let the weights go."""
        self.model = None


def open_named(
    label: str, named: str | Mapping[str, Any], tokenizer: Any, dtype: torch.dtype, key: str = ""
) -> NamedModel:
    """A model's folder, an adapter's, a run's, one that is quantised, a GGUF file, or one that travels along.

    Args:
        named: its path, or ``path`` and ``tokenizer``, a folder whose tokenizer writes what it reads.
        tokenizer: that the others read.
        dtype: in which it runs.
        key: for messages; default ``models.LABEL``.

    Raises:
        UserError: it is none, or its weights are not those of its config.
    """
    key = key or f"models.{label}"
    if isinstance(named, Mapping):
        if not isinstance(named.get("path"), str) or set(named) - {"path", "tokenizer"}:
            raise UserError(f"{key}={dict(named)}: must be a path, or {{path: ..., tokenizer: FOLDER}}")
        given, own = str(named["path"]), named.get("tokenizer")
    else:
        given, own = str(named), None
    path = model_at(local_path(given))
    kind = "demo" if given in demo_names() else "run" if path != local_path(given) else ""
    model = teachers.open_model(key, path, dtype)
    component = None
    if own:
        if not local_path(str(own)).is_dir():
            raise UserError(f"{key}.tokenizer={own}: no such folder; name one with a tokenizer, as a model's")
        folder = str(local_path(str(own)))
        component = OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": folder})
    return _of_model(label, key, given, kind or _kind_of(key, path), model, component, tokenizer)


def require_model(key: str, given: str) -> None:
    """
    Raises:
        UserError: there is no model at a path.
    """
    teachers.require_model(key, model_at(local_path(given)))


def labels_of(paths: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Of each path its last name that tells: ``outputs/distilled/model`` is ``distilled``; where two have one, or it is
    taken, the whole path."""
    folders = [local_path(path) for path in paths]
    names = [folder.parent.name if folder.name in OF_RUN and folder.parent.name else folder.name for folder in folders]
    is_free = [names.count(name) == 1 and name not in ("", *taken) for name in names]
    return [name if free else path for name, path, free in zip(names, paths, is_free, strict=True)]


def _kind_of(key: str, path: Path) -> str:
    if path.suffix == ".gguf":
        return "gguf"
    if method := quantisation_of(read_config_json(model_folder(key, path), key)):
        return method
    return "adapter" if has_adapter(path) else "hugging face folder"


def open_teacher(
    cfg: DictConfig, tokenizer: Any, dtype: torch.dtype, student: tuple[Any, models.Checkpoint] | None = None
) -> NamedModel:
    """A config's own, one or several, as it teaches.

    Args:
        student: the config's, without weights, and its checkpoint; None where it has none.

    Raises:
        UserError: it cannot be built; it follows the student, knows only some rows, or gives no whole distributions.
    """
    key = "teacher_model"
    model = teachers.build_teacher(
        cfg.teacher_model,
        cfg.get("teacher_checkpointer"),
        dtype=dtype,
        combination=cfg.get("teacher_combination", "mixture"),
        quantizer=cfg.get("teacher_quantizer"),
        offload=cfg.get("teacher_offload", False),
    )
    if isinstance(model, teachers.SeveralTeachers) and model.combination == "by_row":
        raise UserError(
            "teacher_combination=by_row: each row has a teacher of its own, so nothing is held against one of them; "
            "name one as teacher_model, or each in models"
        )
    for one, _ in model.each(Shape((), ())):
        kind = type(one).__name__
        if isinstance(one, teachers.EMA | teachers.BaseModel | teachers.EarlierCheckpoint):
            raise UserError(f"{key}: {kind} follows the student, so nothing is held against it; leave it out")
        if isinstance(one, teachers.Cached):
            raise UserError(f"{key}: Cached knows no rows but its own; name the teacher itself to measure against it")
        if isinstance(one, teachers.Served) and one.kind != "hidden":
            raise UserError(f"{key}.kind={one.kind}: whole distributions are needed; take kind=hidden")
    if student is None and not isinstance(model, teachers.LiveTeacher | teachers.HuggingFace):
        raise UserError(f"model: missing; a {type(model).__name__} is checked against the student")
    kind = _kind_of_teacher(key, model)
    return _of_model(TEACHER, key, _path_of(cfg), kind, model, cfg.get("teacher_tokenizer"), tokenizer, student)


def _path_of(cfg: DictConfig) -> str:
    entries = entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer"))
    found = (
        entry.component.get("path") or (checkpointer and checkpointer.get("checkpoint_dir"))
        for _, entry, checkpointer in entries
    )
    return " + ".join(str(path) for path in found if path) or str(cfg.teacher_model["_component_"])


def _kind_of_teacher(key: str, model: teachers.Teacher) -> str:
    if isinstance(model, teachers.LiveTeacher | teachers.HuggingFace):
        return _kind_of(key, model.folders[0])
    return type(model).__name__


def _of_model(
    label: str,
    key: str,
    path: str,
    kind: str,
    model: teachers.Teacher,
    component: DictConfig | None,
    tokenizer: Any,
    student: tuple[Any, models.Checkpoint] | None = None,
) -> NamedModel:
    of_tokenizer = "teacher_tokenizer" if key == "teacher_model" else f"{key}.tokenizer"
    keys = teachers.KeysOfModel(key, of_tokenizer)
    if key != "teacher_model":
        keys = keys._replace(example=f"{key}={_EXAMPLE.format(path=path)}")
    each = model.teachers if isinstance(model, teachers.SeveralTeachers) else [model]
    own = teachers.own_tokenizers(each, component, tokenizer, keys, "it reads the documents in its own tokens")
    if len(each) > 1 and any(own):
        raise UserError(
            "teacher_model: several are measured as one distribution, and these have several tokenizers; name one"
        )
    if student is not None and own[0] is None:
        model.check(*student, tokenizer)
    parameters = sum(one.num_parameters for one, _ in model.each(Shape((), ())))
    size = sum(file.stat().st_size for file in dict.fromkeys(model.files))
    context = getattr(model, "max_seq_len", None)
    if len(each) > 1:
        known = [limit for one in each if (limit := getattr(one, "max_seq_len", None)) is not None]
        context = min(known, default=None)
    return NamedModel(label, key, path, kind, model, own[0], context, parameters, size, _shape_of(path, model))


def _shape_of(path: str, model: teachers.Teacher) -> object:
    """Of models of torchtune's modules, with plain weights, those of their parameters; of others the path."""
    if isinstance(model, teachers.LiveTeacher) and model.is_plain:
        return tuple(tuple(p.shape) for p in model.model.parameters())
    return path
