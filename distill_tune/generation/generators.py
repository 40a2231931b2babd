"""What answers with the weights of a model that a config or a command names."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from distill_tune.errors import UserError
from distill_tune.generation.decoder import Decoder
from distill_tune.generation.sampling import Sampling
from distill_tune.teachers.hf import HuggingFace
from distill_tune.teachers.live import LiveTeacher

if TYPE_CHECKING:
    from distill_tune.generation.hf import HuggingFaceDecoder

    AnyDecoder = Decoder | HuggingFaceDecoder


def one_that_answers(key: str, teacher: Any) -> LiveTeacher | HuggingFace:
    """The teacher itself.

    Raises:
        UserError: it is no model of its own.
    """
    if not isinstance(teacher, LiveTeacher | HuggingFace):
        raise UserError(f"{key}: a {type(teacher).__name__} writes no answers; name a model's folder or GGUF file")
    return teacher


def load_generator(
    teacher: LiveTeacher | HuggingFace,
    ends: Collection[int],
    sampling: Sampling,
    device: torch.device,
    *,
    tokenizer: Any = None,
    cache_bytes: int | None = None,
    max_slots: int = 64,
) -> "AnyDecoder":
    """
    Args:
        teacher: without weights, which are read now.

    Raises:
        UserError: they cannot be read.
    """
    if isinstance(teacher, HuggingFace):
        from distill_tune.generation.hf import HuggingFaceDecoder

        model = teacher.load_model(device)
        return HuggingFaceDecoder(model, ends, sampling, tokenizer=tokenizer, max_slots=max_slots)
    teacher.load(teacher.model, device)
    return Decoder(teacher.model, ends, sampling, tokenizer=tokenizer, cache_bytes=cache_bytes, max_slots=max_slots)
