"""An exported folder as the tool that it is for has it."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from distill_tune.export.check import Check

Logits = Callable[[Sequence[int]], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Opened:
    """
    Attributes:
        tool: its name and version.
        logits: of a row of tokens ``[s, v]``, float32, on the CPU.
        tokenizer: transformers', as the tool makes it of the folder.
        stops: the tokens at which the tool ends an answer; None where the folder does not name them.
        room: how many of the ends the folder can name.
        longest: row that it can read, where that is less than the source can.
        texts: that are to be the same tokens there, beside chats; None for those of :mod:`~distill_tune.export.texts`.
        checks: what else was found of what the folder says.
    """

    tool: str
    logits: Logits
    tokenizer: Any
    stops: frozenset[int] | None = None
    room: int | None = None
    longest: int | None = None
    texts: Sequence[str] | None = None
    checks: Sequence[Check] = ()


def open_with_transformers(folder: Path, device: torch.device, **settings: Any) -> Opened:
    """
    Args:
        settings: of ``from_pretrained``; the model runs in float32 where they name no other dtype.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    of_tokenizer = {"gguf_file": settings["gguf_file"]} if "gguf_file" in settings else {}
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **of_tokenizer)
        settings = {"dtype": torch.float32} | settings
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings)
    return Opened(tool("transformers"), logits_of(model.to(device).eval(), device), tokenizer, stops_of_model(model))


def logits_of(model: Any, device: torch.device) -> Logits:
    """
    Args:
        model: gives logits ``[1, s, v]`` of tokens ``[1, s]``, or transformers' output with them.
    """

    @torch.no_grad()
    def logits(row: Sequence[int]) -> torch.Tensor:
        found = model(torch.tensor([row], device=device))
        return getattr(found, "logits", found)[0].float().cpu()

    return logits


def stops_of_model(model: Any) -> frozenset[int]:
    """Where ``generate`` of a model of transformers' stops."""
    stops = model.generation_config.eos_token_id
    return frozenset([] if stops is None else stops if isinstance(stops, list) else [stops])


def tool(*packages: str) -> str:
    """``peft 0.17, transformers 5.1``: packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its remarks, its warnings and progress bars."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Its GGUF reader has a bar that its setting does not know.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
