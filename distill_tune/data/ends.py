"""The tokens that end an answer: of the chat template, the tokenizer, the student's folder, the teachers'."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from distill_tune.data.augmentation import special_tokens
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, tokenise
from distill_tune.data.sources import RowError
from distill_tune.data.tokenizer import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.models.gguf import gguf_ends
from distill_tune.models.published import as_named
from distill_tune.models.vocabulary import Vocabulary, written_by

_GENERATION, _CONFIG = "generation_config.json", "config.json"
QUESTION = Conversation(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), (False, True))


def answer_end(tokenizer: Any) -> int | None:
    """The control token that conversations end an answer with; None where it is none."""
    end = getattr(tokenizer, "template_end", None)
    if end is not None:
        return end
    try:
        labels = tokenise(tokenizer, QUESTION).labels
    except (RowError, ValueError, TypeError, AttributeError, LookupError):  # a tokenizer without conversations
        return None
    special = special_tokens(tokenizer)
    for token in reversed(labels[labels != IGNORE_INDEX].tolist()):
        if token in special:
            return token
        if tokenizer.decode([token]).strip():
            return None
    return None


def stops_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Where a model of this folder stops, by the file that says so.

    transformers takes those of generation_config.json, and of config.json where that file names none.

    Raises:
        UserError: a file cannot be read, or names what is no token.
    """
    if folder.suffix == ".gguf":
        return {folder.name: tuple(ends)} if (ends := gguf_ends(folder)) else {}
    found = {}
    for name in (_GENERATION, _CONFIG):
        content = _read(folder / name)
        text = content.get("text_config")
        stops = content.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        if not all(isinstance(stop, int) and not isinstance(stop, bool) for stop in stops):
            raise UserError(f"{folder / name}: eos_token_id={stops}: must be a token's number, or a list of such")
        if stops := [stop for stop in stops if stop >= 0]:
            found[name] = tuple(stops)
    return found


def exported_stops(tokenizer: Any, base: Path, vocab_size: int) -> list[int]:
    """Where the exported student is to stop: at what ends an answer in the rows, then at what its folders stop at.

    Args:
        tokenizer: that the rows were written with; None for the base's own.
        base: the folder that the student started from. Ids that are other tokens in ``tokenizer`` do not count.
        vocab_size: the student's.
    """
    ends = [] if tokenizer is None else [answer_end(tokenizer), getattr(tokenizer, "eos_id", None)]
    ends += getattr(tokenizer, "stop_tokens", ())  # of torchtune's
    stops = [token for found in stops_of(base).values() for token in found]
    if (folder := getattr(tokenizer, "folder", None)) and folder.resolve() != base.resolve():
        written, own = written_by(tokenizer), Vocabulary.of(base)
        differing = written.differing(own) if written and own else {}
        stops = [token for token in stops if token not in differing]
        stops += [token for found in stops_of(folder).values() for token in found]
    return [token for token in dict.fromkeys([*ends, *stops]) if token is not None and 0 <= token < vocab_size]


def describe_ends(
    tokenizer: Any, student: Path, teachers: Sequence[Path], used: numpy.ndarray, vocab_size: int
) -> str | None:
    """A line where tokenizer, student or teachers end an answer otherwise than the rows do; None where all agree.

    Args:
        student, teachers: their folders.
        used: the ids that occur in the rows.
        vocab_size: the student's.

    Raises:
        UserError: a folder's generation_config.json or config.json cannot be read.
    """
    exported = exported_stops(tokenizer, student, vocab_size)  # whose faults are found before anything loads
    end = answer_end(tokenizer)
    if end is None and (spelled := getattr(tokenizer, "spelled_end", None)):
        pieces = tokenizer.transformers_tokenizer.encode(spelled, add_special_tokens=False)
        if numpy.isin(pieces, used).all():  # else the rows are plain text
            why = f"which is no token of this tokenizer but {len(pieces)}: name the template that it was made with"
            if len(pieces) == 1:
                why = "which its {% generation %} marks leave out: move {% endgeneration %} behind it"
            return (
                f"tokenizer.path={tokenizer.folder}: the student will not learn where to stop, for the chat template "
                f"ends answers in {spelled}, {why}"
            )
    found = {where: stops for where, stops in _elsewhere(tokenizer, student, teachers) if end not in stops}
    if end is None or end not in used or not found:  # plain text ends with eos
        return None
    names = written_by(tokenizer) or Vocabulary.of(student)
    writer = f"tokenizer.path={folder}" if (folder := getattr(tokenizer, "folder", None)) else "tokenizer"
    told = [f"{writer}: answers end in {named([end], names)}"]
    told += [f"{where} is {named(stops, names)}" for where, stops in found.items()]
    for teacher in teachers:
        if end not in _stops(teacher) and (its := _template_end(teacher)) not in (None, end):
            told.append(f"the chat template of the teacher ends them in {named([its], Vocabulary.of(teacher))}, ")
            told[-1] += f"as rows would with tokenizer.path={teacher}"
    return "; ".join([*told, f"model/ will stop at {named(exported, names)}"])


def _elsewhere(tokenizer: Any, student: Path, teachers: Sequence[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Where else an end is named, and which."""
    if (eos := getattr(tokenizer, "eos_id", None)) is not None:
        yield "the tokenizer's eos", (eos,)
    for folder in (student, *teachers):
        if stops := stops_of(folder):
            file, tokens = next(iter(stops.items()))
            named = as_named(folder)
            yield f"eos_token_id of {named if folder.name == file else named / file}", tokens


def _template_end(folder: Path) -> int | None:
    try:
        return answer_end(hf_tokenizer(str(folder)))
    except UserError:  # no tokenizer of transformers', or a template that cannot be told
        return None


def _stops(folder: Path) -> tuple[int, ...]:
    """Those that transformers takes."""
    return next(iter(stops_of(folder).values()), ())


def named(tokens: Collection[int], vocabulary: Vocabulary | None) -> str:
    """``<|im_end|> (1) and 7``: tokens by their texts, as far as they have such."""
    texts: Mapping[int, str] = vocabulary.tokens if vocabulary else {}
    return " and ".join(f"{texts[token]} ({token})" if token in texts else str(token) for token in tokens)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {error}; is the download complete?") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must be an object, found {type(content).__name__}")
    return content
