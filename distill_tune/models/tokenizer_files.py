"""The tokenizer of a model folder as transformers makes it of its files."""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from distill_tune.collector import without_collections
from distill_tune.errors import UserError, one_line
from distill_tune.kept_digests import kept_digest
from distill_tune.models.gguf_tokenizer import read_gguf_tokenizer

# Of what a tokenizer is made, by transformers or by those that read the same folders (vLLM, llama.cpp, mistral-common).
VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
GGUF = ".gguf"
_SETTINGS, _CONFIG = "tokenizer_config.json", "config.json"
_TEMPLATE, _OTHER_TEMPLATES = "chat_template", "additional_chat_templates/*.jinja"
_DTYPES = ("dtype", "torch_dtype")

_KEPT = 4
_opened: dict[frozenset[tuple[str, str]], Any] = {}  # the last few, by their files


def open_tokenizer(folder: Path) -> Any:
    """:func:`read_tokenizer`; None where a folder has none, or one that cannot be read, which is told."""
    if not has_tokenizer(folder):
        return None
    try:
        with _quiet():
            return read_tokenizer(folder)
    except UserError as error:
        _tell_once(f"{folder}: its tokenizer {error}")
        return None


def read_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder, of its files alone: the same object for every folder with the same files.

    Of a GGUF file it is the one that the file carries.

    Whoever changes it changes a copy. One that is fast neither pads nor cuts, and says of white space, too, where it
    stands.

    Raises:
        UserError: it cannot be read.
    """
    contents = frozenset({("", kept_digest(folder))}) if folder.suffix == GGUF else _contents_of(folder)
    if contents not in _opened:
        while len(_opened) >= _KEPT:
            del _opened[next(iter(_opened))]
        _opened[contents] = _read(folder)
    return _opened[contents]


def has_tokenizer(folder: Path) -> bool:
    """Whether there is what makes a tokenizer in a folder; of a GGUF file, whether it is there."""
    return folder.is_file() if folder.suffix == GGUF else bool(files_of(folder, VOCABULARIES))


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder whose names are like one of ``patterns``."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def contents_read(folder: Path) -> dict[str, str]:
    """What a tokenizer's class reads of a folder, but for the chat templates: by name, the digest of each file.

    From the same contents the same class makes the same tokenizer.
    """
    contents = {file.name: kept_digest(file) for file in files_of(folder, (*VOCABULARIES, *SETTINGS))}
    if (settings := _object_in(folder / _SETTINGS)) is not None:
        contents[_SETTINGS] = json.dumps({key: value for key, value in settings.items() if key != _TEMPLATE})
    return contents


def _contents_of(folder: Path) -> frozenset[tuple[str, str]]:
    """What a folder's tokenizer is made of: :func:`contents_read`, the templates, and of config.json the names alone.

    They say which class reads the others; sizes and dtypes are the model's.
    """
    contents = contents_read(folder)
    contents[_TEMPLATE] = json.dumps(_templates_of(folder), sort_keys=True)
    if (config := folder / _CONFIG).is_file():
        read = _object_in(config)
        names = {key: value for key, value in (read or {}).items() if isinstance(value, str) and key not in _DTYPES}
        contents[_CONFIG] = kept_digest(config) if read is None else json.dumps(names)
    return frozenset(contents.items())


def _templates_of(folder: Path) -> Any:
    """One, several by name, or None, as transformers takes them: files of their own come before the settings."""
    files = {file.stem: file for file in files_of(folder, (_OTHER_TEMPLATES,))}
    if (file := folder / f"{_TEMPLATE}.jinja").is_file():
        files["default"] = file
    texts = {name: file.read_text(encoding="utf-8", errors="replace") for name, file in files.items()}
    if texts:
        return texts["default"] if [*texts] == ["default"] else texts
    found = (_object_in(folder / _SETTINGS) or {}).get(_TEMPLATE)
    if isinstance(found, list) and all(isinstance(one, dict) and "name" in one for one in found):
        return {one["name"]: one.get("template") for one in found}
    return found


def _object_in(file: Path) -> dict[str, Any] | None:
    """None where it is no JSON object, or not there."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _read(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if folder.suffix == GGUF:
        return read_gguf_tokenizer(folder)
    try:
        with without_collections():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise UserError(f"cannot be read by transformers: {one_line(error)[:300]}") from error
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        _keep_offsets_whole(tokenizer.backend_tokenizer)
    return tokenizer


def _keep_offsets_whole(tokenizer: Any) -> None:
    """Have it say of white space, too, where it stands: a post-processor that trims offsets would leave it out.

    The ids are the same.
    """
    settings = "" if tokenizer.post_processor is None else tokenizer.post_processor.__getstate__().decode()
    if '"trim_offsets":true' in settings:
        other = json.loads(Tokenizer(BPE()).to_str())
        other["post_processor"] = json.loads(settings.replace('"trim_offsets":true', '"trim_offsets":false'))
        tokenizer.post_processor = Tokenizer.from_str(json.dumps(other)).post_processor


@functools.cache
def _tell_once(line: str) -> None:
    print(line)


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
