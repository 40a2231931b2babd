"""What a run finds and tells of its tokenizer, before a model loads."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.alignment.report import report
from distill_tune.data.conversation import IGNORE_INDEX, tokenise
from distill_tune.data.ends import QUESTION, describe_ends
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.data.sources import RowError
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.data.tokenizer import HFTokenizer, hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.output_head import output_head
from distill_tune.models.tokenizer_files import open_tokenizer
from distill_tune.models.vocabulary import check_own_tokens

from torchtune.modules import TransformerDecoder

_REPORTED_ROWS = 1000  # of each dataset


def check_tokenizer(
    tokenizer: Any,
    student: TransformerDecoder,
    checkpoint: Checkpoint,
    teachers: Sequence[Path],
    used_tokens: numpy.ndarray,
) -> None:
    """Print a line for each of: tokens of the rows that are new to the student; ends of answers that are not the same
    everywhere; a tokenizer that writes another prompt than the chat template which is exported.

    Args:
        student: meta tensors serve.
        checkpoint: the student's.
        teachers: their folders.
        used_tokens: the ids that occur in the rows, sorted.

    Raises:
        UserError: the rows are written with another tokenizer than the student's altogether; a folder's configs cannot
            be read.
    """
    check_own_tokens(checkpoint.folder, tokenizer, used_tokens)
    vocab_size = output_head(student).vocab_size
    for line in (
        describe_ends(tokenizer, checkpoint.folder, teachers, used_tokens, vocab_size),
        describe_prompt(tokenizer, checkpoint.folder),
    ):
        if line:
            print(line)


def describe_others(
    tokenizer: Any, others: Sequence[OtherTokenizer], datasets: Sequence[TokenisedRows]
) -> Iterator[str]:
    """Lines on each tokenizer of a teacher that is not that of the rows: what both have in common, in how they write
    the first rows. How much of all answers is masked is told with the rows.

    Args:
        tokenizer: that writes the rows.
        datasets: with ``others`` of these tokenizers.
    """
    first = [rows.first(_REPORTED_ROWS) for rows in datasets]
    is_part = any(len(rows) > _REPORTED_ROWS for rows in datasets)
    for number, other in enumerate(others):
        if other.tokenizer is tokenizer:
            continue
        read = [rows.others[number] for rows in first]
        positions = numpy.concatenate([its.alignment.positions.numpy() for its in read if its.alignment is not None])
        mine, its_tokens = (numpy.concatenate([rows.learned for rows in of]) for of in (first, read))
        if is_part:
            yield f"of the first {_REPORTED_ROWS:,} rows{' of each dataset' * (len(datasets) > 1)}:"
        yield from report(tokenizer, other.tokenizer, positions, mine, its_tokens)


def describe_prompt(tokenizer: Any, folder: Path) -> str | None:
    """A line where the rows' prompt is another than the one that the exported folder writes of itself."""
    if isinstance(tokenizer, HFTokenizer):
        return _describe_arguments(tokenizer)
    if not getattr(open_tokenizer(folder), "chat_template", None):
        return None
    try:
        written, exported = tokenise(tokenizer, QUESTION), tokenise(hf_tokenizer(str(folder)), QUESTION)
    except (RowError, UserError, ValueError, TypeError, AttributeError):  # one that has no place for conversations
        return None
    prompt = exported.tokens[: (exported.labels != IGNORE_INDEX).argmax()]
    if numpy.array_equal(written.tokens[: len(prompt)], prompt):
        return None
    return (
        f"tokenizer: {type(tokenizer).__name__} writes other prompts than the chat template of {folder}, which model/ "
        f"carries: take distill_tune.data.hf_tokenizer with path={folder} to train on those that will be asked"
    )


def _describe_arguments(tokenizer: HFTokenizer) -> str | None:
    question = [QUESTION.turns[0]]
    try:
        written, plain = tokenizer.prompt(question), tokenizer.without_arguments().prompt(question)
    except (RowError, UserError):  # a template that needs them
        return None
    if written == plain:
        return None
    return (
        f"tokenizer.chat_template_kwargs: the rows' prompts end in {tokenizer.decode(written[-8:], False)!r}, those of "
        f"model/ without them in {tokenizer.decode(plain[-8:], False)!r}: give them whenever the student is asked"
    )
