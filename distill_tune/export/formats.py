"""The table of formats: what each is, how it is written and opened, and how far it may be from its source."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.errors import UserError
from distill_tune.export import adapter, gguf_file, hf_folder, torchao_folder, torchtune_folder
from distill_tune.export.gguf import KINDS
from distill_tune.export.opened import Opened
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source

# Kinds that llama.cpp's quantiser alone makes: q4_k_m, iq4_xs, tq1_0.
_OF_LLAMA_CPP = re.compile(r"q\d_k(_(xs|s|m|l))?|iq\d_\w+|tq\d_0|mxfp4_moe")


@dataclasses.dataclass(frozen=True)
class Format:
    """
    Attributes:
        name: as ``--to`` has it, without what stands behind a colon.
        kinds: what may stand there; empty where nothing does.
        check: what is told of a source before anything is written; it raises :class:`UserError` for one that this
            format cannot hold.
        write: into a folder that is not there yet; returns what is to be told of it.
        open: by the tool that it is for.
        max_kl: the mean KL(source || exported), nats a token, beyond which it fails.
        dtype: of the weights where the user names none; None for the source's own.
        holds_factors: an adapter's factors as they are, and not the whole model.
    """

    name: str
    kinds: Sequence[str]
    check: Callable[[Source, Settings], list[str]]
    write: Callable[[Source, Path, Settings], list[str]]
    open: Callable[[Source, Path, Settings, torch.device], Opened]
    max_kl: Callable[[Source, Settings], float]
    dtype: torch.dtype | None = None
    holds_factors: bool = False

    def spelled(self) -> list[str]:
        return [f"{self.name}:{kind}" for kind in self.kinds] or [self.name]


FORMATS = (
    Format(
        name="hf",
        kinds=(),
        check=hf_folder.check,
        write=hf_folder.write,
        open=hf_folder.open_written,
        max_kl=hf_folder.max_kl,
    ),
    Format(
        name="adapter",
        kinds=(),
        check=adapter.check,
        write=adapter.write,
        open=adapter.open_written,
        max_kl=adapter.max_kl,
        holds_factors=True,
    ),
    Format(
        name="torchtune",
        kinds=(),
        check=torchtune_folder.check,
        write=torchtune_folder.write,
        open=torchtune_folder.open_written,
        max_kl=hf_folder.max_kl,
    ),
    Format(
        name="torchao",
        kinds=tuple(torchao_folder.KINDS),
        check=torchao_folder.check,
        write=torchao_folder.write,
        open=torchao_folder.open_written,
        max_kl=torchao_folder.max_kl,
        dtype=torch.bfloat16,
    ),
    Format(
        name="gguf",
        kinds=KINDS,
        check=gguf_file.check,
        write=gguf_file.write,
        open=gguf_file.open_written,
        max_kl=gguf_file.max_kl,
    ),
)


def find_format(named: str, any_gguf: bool = False) -> tuple[Format, str]:
    """The format that ``--to`` names, and its kind, ``""`` where it has none.

    Args:
        any_gguf: whether kinds of GGUF that are not among ours are taken as well: llama.cpp knows more.

    Raises:
        UserError: there is none; the near ones are listed.
    """
    name, colon, kind = named.partition(":")
    by_name = {one.name: one for one in FORMATS}
    if found := by_name.get(name):
        by_case = {one.lower(): one for one in found.kinds}
        if kind.lower() in by_case:
            return found, by_case[kind.lower()]
        if not found.kinds and not colon:
            return found, ""
        if name == "gguf" and kind and any_gguf:
            return found, kind.lower()
        if name == "gguf" and _OF_LLAMA_CPP.fullmatch(kind.lower()):
            raise UserError(
                f"--to {named}: is written by llama.cpp's own tools alone; add --llama-cpp DIR, its folder, or take "
                f"one of {', '.join(found.spelled())}"
            )
    spelled = [text for one in FORMATS for text in one.spelled()]
    raise UserError(f"--to {named}: no such format{did_you_mean(nearest(named, spelled))}; {', '.join(spelled)}")
