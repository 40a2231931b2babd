"""The tokenizer of a model folder as transformers makes it of its files."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_tune.collector import without_collections
from distill_tune.errors import UserError, one_line

# Of what a tokenizer is made, by transformers or by those that read the same folders (vLLM, llama.cpp, mistral-common).
VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BESIDE = ("config.json", "*.jinja", "additional_chat_templates/*")


def open_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder; None where it has none, or one that cannot be read, which is told."""
    if not files_of(folder, VOCABULARIES):
        return None
    files = files_of(folder, (*VOCABULARIES, *SETTINGS, *_BESIDE))
    return _open(folder, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def read_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder, of its files alone, for whoever changes it.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with without_collections():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise UserError(f"cannot be read by transformers: {one_line(error)[:300]}") from error


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder whose names are like one of ``patterns``."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


@functools.lru_cache(maxsize=4)
def _open(folder: Path, state: tuple[tuple[str, int, int], ...]) -> Any:
    """
    Args:
        state: of its files, so that a folder that is written anew is read anew.
    """
    try:
        with _quiet():
            tokenizer = read_tokenizer(folder)
    except UserError as error:
        print(f"{folder}: its tokenizer {error}")
        return None
    if tokenizer.is_fast:  # so that two may be compared
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of what a folder leaves to it."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
