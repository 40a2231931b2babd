"""Whether teacher, student and rows speak of the same tokens."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.models.gguf import gguf_tokens
from distill_tune.models.output_head import output_head
from distill_tune.models.tokenizer_files import open_tokenizer

from torchtune.modules import TransformerDecoder

_SHOWN = 3
_SENTENCE = "The weather was fine, so we went for a walk along the river and had lunch at home."
_TIKTOKEN = "original"  # where the folders of Llama keep Meta's own files
ANOTHER = 0.01  # of the ordinary tokens; a tokenizer that differs in more is another one


def common_vocabulary(student: TransformerDecoder, teacher_size: int) -> int:
    """How many tokens both models know, where their vocabularies differ by padding rows at the end.

    Says so in one line where they do. A tokenizer may have more tokens than a model has rows: what counts is which of
    them occur in the data, see :func:`~distill_tune.models.require_tokens`.

    Args:
        student: meta tensors serve.
        teacher_size: the teacher's vocabulary.
    """
    student_size = output_head(student).vocab_size
    common = min(student_size, teacher_size)
    if student_size != teacher_size:
        print(
            f"vocabularies differ by padding rows (student {student_size}, teacher {teacher_size}): "
            f"distributions are compared on the common {common} tokens, renormalised"
        )
    return common


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        tokens: the text of each id.
        added: the ids that were added to the ordinary vocabulary, as control tokens are.
    """

    tokens: Mapping[int, str]
    added: frozenset[int]

    @classmethod
    def of(cls, path: Path) -> "Vocabulary | None":
        """Of a model folder, or a GGUF file; None where it has none that can be read."""
        if path.suffix == ".gguf":
            tokens, added = gguf_tokens(path)
            return cls(tokens, added) if tokens else None
        return cls.of_transformers(open_tokenizer(path) or open_tokenizer(path / _TIKTOKEN))

    @classmethod
    @functools.lru_cache(maxsize=2)  # the student's and a teacher's are compared again and again
    def of_transformers(cls, tokenizer: Any) -> "Vocabulary | None":
        """
        Args:
            tokenizer: of transformers, or None.
        """
        if tokenizer is None:
            return None
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        return cls(tokens, frozenset(tokenizer.added_tokens_decoder))

    def differing(self, other: "Vocabulary") -> dict[int, str]:
        """The ids that are other tokens in ``other``, each with what it is there: ``'<a>' is '<b>'``.

        tiktoken's files have no control tokens: what one of the two has none of is not compared.
        """
        found: dict[int, str] = {}
        if self.tokens == other.tokens:
            return found
        for index in self.tokens.keys() | other.tokens.keys():
            mine, its = self.tokens.get(index), other.tokens.get(index)
            is_left_out = (mine is None and not self.added) or (its is None and not other.added)
            if mine != its and not is_left_out and _as_text(mine) != _as_text(its):
                found[index] = f"{_quoted(mine)} is {_quoted(its)}"
        return found

    def is_another(self, other: "Vocabulary") -> bool:
        """Whether ``other`` is another tokenizer altogether: more than a hundredth of the ordinary tokens differ."""
        return len(self._ordinary(other, self.differing(other))) > ANOTHER * len(self.tokens)

    def _ordinary(self, other: "Vocabulary", differing: Mapping[int, str]) -> list[int]:
        added = self.added | other.added
        return [index for index in differing if index in self.tokens and index not in added]

    def require_same_ordinary(self, other: "Vocabulary", told: str) -> dict[int, str]:
        """:meth:`differing`, where ``other`` is no other tokenizer altogether.

        Args:
            told: the start of the message.

        Raises:
            UserError: more than a hundredth of the ordinary tokens differ.
        """
        differing = self.differing(other)
        ordinary = self._ordinary(other, differing)
        if len(ordinary) > ANOTHER * len(self.tokens):
            shown = ", ".join(f"{index}: {differing[index]}" for index in sorted(ordinary)[:_SHOWN])
            raise UserError(f"{told}: {len(ordinary)} tokens have other ids or are missing ({shown})")
        return differing


def check_tokenizers(student: Path, teacher: Path, tokenizer: Any = None) -> dict[int, str]:
    """Compare all tokens of the rows, the added ones too, with a teacher's.

    Args:
        student: its folder, whose tokenizer writes the rows if ``tokenizer`` is not transformers'.
        teacher: its folder, or a GGUF file.
        tokenizer: that writes the rows.

    Returns:
        The ids that are other tokens to the teacher, for :func:`require_same_tokens`; none where one of the two has no
        tokenizer to compare.

    Raises:
        UserError: the teacher's tokenizer is another one altogether.
    """
    rows, its = written_by(tokenizer) or Vocabulary.of(student), Vocabulary.of(teacher)
    if rows is None or its is None:
        return {}
    writer = getattr(tokenizer, "folder", student)
    told = f"teacher_model: the tokenizer of {teacher} is not that of {writer}; name its own as teacher_tokenizer"
    return rows.require_same_ordinary(its, told)


def require_same_tokens(differing: Mapping[int, str], used: numpy.ndarray, teacher: Path | str) -> None:
    """
    Args:
        differing: of :func:`check_tokenizers`.
        used: the ids that occur in the rows, sorted.
        teacher: its folder, or where it is served, for the message.

    Raises:
        UserError: a token of the rows is another one to the teacher.
    """
    if found := _used(differing, used):
        raise UserError(
            f"teacher_model: rows have tokens that are others in the tokenizer of {teacher}: {found}; let the rows be "
            f"written as the teacher reads them, tokenizer.path={teacher}, or take a teacher of the same template"
        )


def require_one_tokenizer(writer: Path, reader: Path, used: numpy.ndarray) -> None:
    """
    Args:
        writer: the folder whose tokenizer writes the rows.
        reader: the folder of a model that reads them.
        used: the ids that occur in the rows, sorted.

    Raises:
        UserError: the reader's tokenizer is another one altogether, or a token of the rows is another one in it.
    """
    rows, its = Vocabulary.of(writer), Vocabulary.of(reader)
    if rows is None or its is None:
        return
    told = f"{reader}: its tokenizer is not that of {writer}, which the rows are written with"
    if found := _used(rows.require_same_ordinary(its, told), used):
        raise UserError(f"{told}: rows have tokens that are others in it: {found}")


def check_own_tokens(student: Path, tokenizer: Any, used: numpy.ndarray, whose: str = "the student") -> None:
    """Compare the tokens of the rows with those that the student was made with.

    Added tokens that are new to it are learned, which is told in a line.

    Args:
        whose: what the folder is, for messages.

    Raises:
        UserError: the rows are written with another tokenizer than the student's altogether.
    """
    rows = written_by(tokenizer)
    if rows is None:
        _check_words(student, tokenizer, whose)
        return
    if tokenizer.folder.resolve() == student.resolve() or (its := Vocabulary.of(student)) is None:
        return
    told = f"tokenizer.path={tokenizer.folder}: is not the tokenizer of {whose} {student}"
    if found := _used(rows.require_same_ordinary(its, told), used):
        print(f"tokens of the rows that {whose} {student} knows otherwise, and learns anew: {found}")


def _check_words(student: Path, tokenizer: Any, whose: str) -> None:
    """Of a tokenizer that is not transformers': whether it writes a sentence as the student's own does.

    Raises:
        UserError: it does not.
    """
    if (own := open_tokenizer(student)) is None or not hasattr(tokenizer, "encode"):
        return
    wanted = own.encode(_SENTENCE, add_special_tokens=False)
    try:
        found = tokenizer.encode(_SENTENCE, add_bos=False, add_eos=False)
    except TypeError:  # a tokenizer of the user's own with another signature
        return
    same = sum(mine == its for mine, its in zip(reversed(found), reversed(wanted), strict=False))
    if 2 * same < len(wanted):  # some differ in how a text begins
        raise UserError(
            f"tokenizer: {type(tokenizer).__name__} writes a sentence in other tokens than the tokenizer of "
            f"{whose} {student}; take its own: tokenizer=distill_tune.data.hf_tokenizer tokenizer.path={student}"
        )


def written_by(tokenizer: Any) -> Vocabulary | None:
    """Of the tokenizer that writes the rows, where it is transformers'."""
    return Vocabulary.of_transformers(getattr(tokenizer, "transformers_tokenizer", None))


def _used(differing: Mapping[int, str], used: numpy.ndarray) -> str:
    """Those of the differing ids that occur, for a message."""
    found = numpy.intersect1d(numpy.array(list(differing), int), used).tolist()
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(f"{index} ({differing[index]})" for index in found[:_SHOWN]) + more


def _as_text(token: str | None) -> str | None:
    """llama.cpp writes the spaces of added tokens as spaces, SentencePiece as another character."""
    return None if token is None else token.replace("\u2581", " ")


def _quoted(token: str | None) -> str:
    return "no token" if token is None else repr(token)
