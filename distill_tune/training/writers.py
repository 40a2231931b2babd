"""The models that a config has answer."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import DictConfig, ListConfig

from distill_tune import generation, models, teachers
from distill_tune.config.components import build, find_component
from distill_tune.data.other_tokenizer import told_of_teacher
from distill_tune.disk import short_digest
from distill_tune.errors import UserError
from distill_tune.secrets import plain_config
from distill_tune.teachers.build import Entry, entries_of
from distill_tune.training.device import dtype_name, find_dtype
from distill_tune.training.distributed import from_main_process, is_main_process


@dataclasses.dataclass
class Writer:
    """A model that answers, without weights until :meth:`load`, or a server of one.

    Attributes:
        name: in rows.
        ends: tokens that end its answers, those of ``sampling.stop_token_ids`` included once they are known.
        identity: what decides on its answers besides prompt and sampling: content of its weights, dtype, ends.
        max_seq_len: tokens of a prompt and its answer; None where it does not say.
        vocab_size: None where it does not say.
        folder: of its tokenizer; None of a server.
        tokenizer: writes its prompts and reads its answers: that of the rows, or its own.
        has_own_tokenizer: whether it is its own.
    """

    name: str
    model: teachers.LiveTeacher | teachers.HuggingFace | generation.Server | None
    ends: frozenset[int]
    identity: Mapping[str, Any]
    max_seq_len: int | None
    vocab_size: int | None = None
    folder: Path | None = None
    tokenizer: Any = None
    has_own_tokenizer: bool = False

    def require_tokens(self, key: str, used: numpy.ndarray) -> None:
        """
        Args:
            used: the ids that occur in its prompts, sorted.

        Raises:
            UserError: they are not this model's.
        """
        if self.vocab_size is not None:
            models.require_tokens(key, self.vocab_size, int(used[-1]))
        if self.folder is not None:
            with told_of_teacher() if self.has_own_tokenizer else contextlib.nullcontext():
                models.check_own_tokens(self.folder, self.tokenizer, used, f"the {key.replace('_', ' ')}")

    def load(self, sampling: generation.Sampling, device: torch.device, cfg: DictConfig) -> generation.Generator:
        """
        Raises:
            UserError: the weights cannot be read.
        """
        model: Any = self.model
        if not isinstance(model, generation.Server):
            model.load(getattr(model, "model", None), device)
            model = model.model
        return generation.generator_of(
            model,
            self.ends,
            sampling,
            tokenizer=self.tokenizer,
            cache_bytes=cfg.get("cache_bytes"),
            max_slots=cfg.get("answers_at_once", 64),
        )

    def release(self) -> None:
        """Let the weights go."""
        self.model = None


def open_writers(cfg: DictConfig, key: str, device: torch.device, tokenizer: Any) -> list[Writer]:
    """
    Args:
        key: ``model`` or ``teacher_model``, which may be a list.
        tokenizer: that of the rows.

    Raises:
        UserError: one cannot be built, does not fit its checkpoint, or does not answer.
    """
    component, checkpointers = cfg.get("model"), cfg.get("checkpointer")
    of_teacher: dict[str, Any] = {}
    if key == "teacher_model":
        component, checkpointers = cfg.get("teacher_model"), cfg.get("teacher_checkpointer")
        of_teacher = {"quantizer": cfg.get("teacher_quantizer"), "offload": cfg.get("teacher_offload", False)}
    dtype = find_dtype((of_teacher and cfg.get("teacher_dtype")) or cfg.dtype, device)
    quantizer = plain_config(cfg).get("teacher_quantizer") if of_teacher else None
    entries = list(entries_of(component, checkpointers, key))
    each = [
        teachers.Teacher()  # nothing is known of a server's tokenizer
        if is_server(entry.component)
        else teachers.build_teacher(entry.component, checkpointer, dtype=dtype, key=entry_key, **of_teacher)
        for entry_key, entry, checkpointer in entries
    ]
    own: Sequence[Any] = [None] * len(each)
    if of_teacher:
        own = teachers.own_tokenizers(each, cfg.get("teacher_tokenizer"), tokenizer)
    found = list[Writer]()
    for (entry_key, entry, _), teacher, its in zip(entries, each, own, strict=True):
        if is_server(entry.component):
            writer = _of_server(entry_key, entry, its or tokenizer)
        else:
            settings = {"dtype": dtype_name(dtype), "quantizer": quantizer}
            writer = _of_model(entry_key, teacher, its or tokenizer, settings)
        writer.has_own_tokenizer = its is not None
        is_named = isinstance(component, ListConfig) and "name" in component[len(found)]
        found.append(dataclasses.replace(writer, name=entry.name) if is_named else writer)
    again = [name for name, count in Counter(writer.name for writer in found).items() if count > 1]
    if again:
        raise UserError(f"{key}: two models have the name {again[0]}; give each a name of its own: name: ...")
    for number, writer in enumerate(found):
        for other in found[:number]:
            if writer.identity == other.identity:
                raise UserError(
                    f"{key}: {other.name} and {writer.name} are the same model, whose answers would be the same; "
                    "name it once, and set samples_per_prompt for more of them"
                )
    return found


def is_server(component: DictConfig) -> bool:
    """Whether a component is a :class:`~distill_tune.generation.Server`, and no model."""
    return find_component(component["_component_"]) is generation.Server


def _of_model(key: str, teacher: teachers.Teacher, tokenizer: Any, settings: Mapping[str, Any]) -> Writer:
    if not isinstance(teacher, teachers.LiveTeacher | teachers.HuggingFace):
        raise UserError(f"{key}: a {type(teacher).__name__} writes no answers; name a model's folder or GGUF file")
    folder = teacher.folders[0]
    ends = generation.ends_of(tokenizer, folder, teacher.vocab_size)
    content = from_main_process(short_digest(teacher.files) if is_main_process() else "")
    identity = {"content": content, **settings, "ends": sorted(ends)}
    name = folder.resolve().parent.name if folder.name == "model" else folder.name
    return Writer(name, teacher, ends, identity, teacher.max_seq_len, teacher.vocab_size, folder, tokenizer)


def _of_server(key: str, entry: Entry, tokenizer: Any) -> Writer:
    server = build(key, entry.component)
    about = server.engines()[0].about
    ends = generation.ends_of(tokenizer, getattr(tokenizer, "folder", None) or Path(os.devnull))
    identity = {"content": about.content or f"{about.engine} {about.model}", "ends": sorted(ends)}
    return Writer(str(about.model), server, ends, identity, about.most_tokens, about.vocab_size, None, tokenizer)
