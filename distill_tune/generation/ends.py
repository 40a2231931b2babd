"""The tokens that end a model's answers, and whether student and teacher agree on them."""

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_tune.data.ends import answer_end, exported_stops, named, stops_of
from distill_tune.data.tokenizer import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.models.vocabulary import Vocabulary, written_by


def ends_of(tokenizer: Any, folder: Path, vocab_size: int = sys.maxsize) -> frozenset[int]:
    """The tokens that end an answer: those at which the exported model will stop, too.

    Of the chat template, the tokenizer, generation_config.json and config.json.

    Args:
        tokenizer: that the prompts are written with; None for the folder's own files alone.
        folder: the model's, or a GGUF file.
        vocab_size: the model's; an id that is none of its tokens ends nothing.

    Raises:
        UserError: a file cannot be read, or names what is no token.
    """
    return frozenset(exported_stops(tokenizer, folder, vocab_size))


def require_same_ends(
    tokenizer: Any,
    student: Path,
    teachers: Sequence[Path],
    vocab_size: int = sys.maxsize,
    more: Collection[int] = (),
) -> None:
    """That what teachers end their answers with ends the student's, too; a line where a teacher knows others beside it.

    A student that is taught on its own answers learns its teacher's end. Where that does not end its answers, they grow
    until they are cut.

    Args:
        tokenizer, student, vocab_size: as of :func:`ends_of`.
        teachers: their folders, or GGUF files.
        more: that end the student's answers besides, of ``sampling.stop_token_ids``.

    Raises:
        UserError: the end of a teacher's chat template is none of the student's, or none of its ends is.
    """
    own = ends_of(tokenizer, student, vocab_size) | frozenset(more)
    names = written_by(tokenizer) or Vocabulary.of(student)
    for teacher in teachers:
        its_tokenizer = _tokenizer_of(teacher)
        end = its_tokenizer and answer_end(its_tokenizer)
        its = ends_of(its_tokenizer, teacher)
        missing = sorted(its - own)
        if not missing:
            continue
        theirs = written_by(its_tokenizer) or Vocabulary.of(teacher)
        told = f"teacher_model ends answers with {named(sorted(its), theirs)} ({_where(its_tokenizer, teacher, its)})"
        told += f", the student with {named(sorted(own), names) or 'none'} ({_where(tokenizer, student, own)})"
        add = f"add {named(missing, theirs)} to eos_token_id in {_file_to_change(student)}"
        if own & its and (end is None or end in own):
            print(f"{told}: should answers grow long, {add}")
            continue
        written = f"set tokenizer.path={teacher} with its chat template, or " if its_tokenizer else ""
        raise UserError(
            f"{told}: the student would learn an end that does not end its answers, which would all be cut by "
            f"max_new_tokens; {written}{add}"
        )


def _tokenizer_of(folder: Path) -> Any:
    try:
        return hf_tokenizer(str(folder))
    except UserError:  # none of transformers', or in a GGUF file
        return None


def _where(tokenizer: Any, folder: Path, ends: frozenset[int]) -> str:
    """In which files the ends are named."""
    return "; ".join(
        f"{where}: {', '.join(map(str, known))}"
        for where, tokens in _sources(tokenizer, folder)
        if (known := [token for token in tokens if token in ends])
    )


def _sources(tokenizer: Any, folder: Path) -> Iterator[tuple[str, Sequence[int | None]]]:
    folders = [folder]
    if tokenizer is not None:
        of_tokenizer = getattr(tokenizer, "folder", None)
        name = of_tokenizer or type(tokenizer).__name__
        yield f"answers written with {name}", (answer_end(tokenizer),)
        eos = (getattr(tokenizer, "eos_id", None), *getattr(tokenizer, "stop_tokens", ()))
        yield f"eos of {name}", tuple(dict.fromkeys(eos))
        if of_tokenizer and of_tokenizer.resolve() != folder.resolve():
            folders.append(of_tokenizer)
    for one in folders:
        for file, tokens in stops_of(one).items():
            yield str(one if one.name == file else one / file), tokens


def _file_to_change(student: Path) -> Path:
    """That which transformers takes ends of first."""
    found = next(iter(stops_of(student)), "generation_config.json")
    return student if student.name == found else student / found
