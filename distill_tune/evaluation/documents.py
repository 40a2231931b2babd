"""The documents that models are measured on: whole, once for each tokenizer, each with its own chat template."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.alignment.token_bytes import TokenBytes, token_bytes
from distill_tune.counts import counted
from distill_tune.data.asked import asked_tokens
from distill_tune.data.conversation import IGNORE_INDEX, without_bounds
from distill_tune.data.datasets import read_behind
from distill_tune.data.prepare import build_dataset, over_the_same_rows, require_turns, row_errors, source_of
from distill_tune.data.prompts import Prompt
from distill_tune.data.sources import Row, RowError, origin_of, require_unchanged, use_in_torchtune
from distill_tune.errors import UserError
from distill_tune.generation.texts import text_of
from distill_tune.secrets import hide_secrets

_NOT_OF_A_DATASET = ("weight", "packed")  # of training
_SHOWN_FAULTS = 5
_DIGITS = 16  # of a digest


@dataclasses.dataclass(frozen=True)
class Document:
    """
    Attributes:
        number: among the documents, from 0.
        origin: where its row stands, for messages.
        identity: a digest of the row.
        category: of its row; None where it has none.
        prompt, reference: the texts of what is asked, and of the last answer; of plain text nothing, and all of it.
    """

    number: int
    origin: str
    identity: str
    category: str | None
    prompt: str
    reference: str


@dataclasses.dataclass(frozen=True)
class Written:
    """A document in the tokens of one tokenizer.

    Attributes:
        tokens: ``[s]``, int64.
        supervised: which of them are learned from such a row, ``[s]``, bool.
        is_text: which write the document's own text, and are no control tokens and nothing that a template puts around
            it, ``[s]``, bool.
        num_bytes, supervised_bytes: of that text, in UTF-8, as far as its tokens are predicted: without a token that
            begins every text the first one is not.
        prompt: the tokens behind which an answer begins; None where nothing is asked.
    """

    tokens: numpy.ndarray
    supervised: numpy.ndarray
    is_text: numpy.ndarray
    num_bytes: int
    supervised_bytes: int
    prompt: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Documents:
    """
    Attributes:
        name: of their dataset.
        documents: in the order of their rows.
        written: the same, in each reading.
        faults: of rows that were left out: where, and why.
        scored: which of their tokens are, in a sentence.
    """

    name: str
    documents: Sequence[Document]
    written: Sequence[Sequence[Written]]
    faults: Sequence[str]
    scored: str

    def __len__(self) -> int:
        return len(self.documents)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all rows."""
        return _digest("".join(document.identity for document in self.documents))

    def told(self) -> str:
        """How many there are, and what was left out."""
        tokens = dict.fromkeys(sum(len(written.tokens) for written in of) for of in self.written)
        lines = [f"{self.name}: {counted(len(self), 'document')}, {' or '.join(f'{n:,}' for n in tokens)} tokens"]
        if self.faults:
            lines[0] += f"; {counted(len(self.faults), 'row')} left out"
            lines += [f"  {fault}" for fault in self.faults[:_SHOWN_FAULTS]]
        return "\n".join(lines)


class Reading(NamedTuple):
    """How documents become tokens.

    Attributes:
        tokenizer: :func:`~distill_tune.data.tokenizer.hf_tokenizer`'s, or one of torchtune's.
        template: written around each user turn.
    """

    tokenizer: Any
    template: Prompt = Prompt()


def read_documents(
    component: DictConfig | ListConfig,
    readings: Sequence[Reading],
    *,
    key: str = "dataset_test",
    category_column: str | None = None,
    most: int | None = None,
) -> Documents:
    """Read a dataset's rows, or those of several, and write each in each reading.

    A row that one of them cannot write is left out for all: all models are measured on the same text.

    Args:
        component: as a config has it; nothing is cut or packed.
        key: that names the dataset, for messages.
        category_column: of rows that have it.
        most: so many documents, the first ones.

    Raises:
        UserError: a dataset that cannot be read, or has no row that can be scored.
    """
    use_in_torchtune()
    documents, written, faults = list[Document](), [list[Written]() for _ in readings], list[str]()
    entries = list(component) if isinstance(component, ListConfig) else [component]
    for entry in entries:
        arguments = OmegaConf.create({name: value for name, value in entry.items() if name not in _NOT_OF_A_DATASET})
        datasets = [build_dataset(entry, arguments, reading.tokenizer) for reading in readings]
        require_turns(entry, datasets[0], [reading.template for reading in readings])
        same = [over_the_same_rows(datasets[0], dataset) for dataset in datasets]
        writers = [_Writer(reading, dataset) for reading, dataset in zip(readings, same, strict=True)]
        with without_bounds([reading.tokenizer for reading in readings]):
            for index in range(len(writers[0].dataset)):
                if most is not None and len(documents) == most:
                    break
                origin = "{}, row {}".format(*origin_of(writers[0].dataset, index))
                try:
                    of_each = [writer.written(index) for writer in writers]
                    _require_same_answer(readings, of_each)
                except RowError as error:
                    faults.append(f"{origin}: {error}")
                    continue
                documents.append(writers[0].document(len(documents), origin, index, category_column))
                for of_one, one in zip(written, of_each, strict=True):
                    of_one.append(one)
        require_unchanged(writers[0].dataset)
    name = hide_secrets(", ".join(map(source_of, entries)))
    if not documents:
        told = "".join(f"\n  {fault}" for fault in faults[:_SHOWN_FAULTS])
        raise UserError(f"{key} {name}: has no row that can be scored{told}")
    return Documents(name, documents, written, faults, _scored(written))


def _require_same_answer(readings: Sequence[Reading], written: Sequence[Written]) -> None:
    """
    Raises:
        RowError: a tokenizer writes other tokens for the answer behind another template.
    """
    learned = [of.tokens[1:][of.supervised[1:]] for of in written]
    for number, reading in enumerate(readings):
        first = next(place for place, other in enumerate(readings) if other.tokenizer is reading.tokenizer)
        if not numpy.array_equal(learned[number], learned[first]):
            raise RowError("the answer has other tokens behind the teacher's prompt; both must read the same answer")


class _Writer:
    """A dataset's rows in one reading."""

    def __init__(self, reading: Reading, dataset: Any) -> None:
        self._tokenizer, self._template = reading
        self.dataset = dataset

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        return token_bytes(self._tokenizer)

    def written(self, index: int) -> Written:
        """
        Raises:
            RowError: it cannot be written, or has nothing to learn.
        """
        with row_errors():
            row = read_behind(self._template, self.dataset, self._tokenizer, index)
            tokens, labels = (numpy.asarray(row[name], numpy.int64) for name in ("tokens", "labels"))
        supervised = labels != IGNORE_INDEX
        if not supervised[1:].any():
            raise RowError("has no token that is learned")
        is_text = row.get("is_text")
        if is_text is None:
            is_text = ~numpy.isin(tokens, list(self._bytes.control_texts))
        texts = None if row.get("dropped") else self._texts(index)
        if texts is None:  # what is read is not all of it, or cannot be told but of its tokens
            texts = [self._decoded(tokens[is_text]), self._decoded(tokens[is_text & supervised])]
        sizes = [len(text.encode()) for text in texts]
        begins = (self._bytes.of[tokens[0]] or b"") if is_text[0] else b""
        is_added = begins.startswith(b" ") and not texts[0].startswith(" ")  # as SentencePiece begins every text
        first = len(begins) - is_added
        return Written(
            tokens,
            supervised,
            numpy.asarray(is_text, bool),
            sizes[0] - first,
            sizes[1] - first * bool(supervised[0]),
            self._prompt(index, tokens, supervised),
        )

    def document(self, number: int, origin: str, index: int, category_column: str | None) -> Document:
        row = self._row(index)
        category = row.get(category_column) if category_column else None
        prompt, reference = self._prompt_and_reference(index)
        content = json.dumps([row, prompt, reference], sort_keys=True, default=str)
        return Document(
            number, origin, _digest(content), None if category is None else str(category), prompt, reference
        )

    def _row(self, index: int) -> Row:
        rows = getattr(self.dataset, "_data", self.dataset)
        return dict(rows[index]) if isinstance(rows[index], Mapping) else {}

    def _texts(self, index: int) -> list[str] | None:
        """All of a row's own text, and of that what is learned; None where its dataset does not tell."""
        if self._is_plain_text:
            return [self._plain_text(index)] * 2
        if getattr(self.dataset, "conversation", None) is None:
            return None
        row = self.dataset.rows[index]
        conversation = self._template.applied(self.dataset.conversation(row), row)
        if any(turn.get("tool_calls") for turn in conversation.turns):  # which each template writes in its own way
            return None
        texts = [f"{turn.get('reasoning_content') or ''}{turn.get('content') or ''}" for turn in conversation.turns]
        return ["".join(texts), "".join(itertools.compress(texts, conversation.learned))]

    def _prompt(self, index: int, tokens: numpy.ndarray, supervised: numpy.ndarray) -> tuple[int, ...] | None:
        if self._is_plain_text:
            return None
        asked = getattr(self.dataset, "asked", None)
        if asked is None:
            return tuple(tokens[: int(supervised.argmax())].tolist()) or None
        row = self.dataset.rows[index]
        return tuple(asked_tokens(self._tokenizer, asked(row), self._template, row))

    def _prompt_and_reference(self, index: int) -> tuple[str, str]:
        if self._is_plain_text:
            return "", self._plain_text(index)
        if getattr(self.dataset, "conversation", None) is not None:
            turns = self.dataset.conversation(self.dataset.rows[index]).turns
            return "\n\n".join(turn["content"] for turn in turns[:-1]), turns[-1]["content"]
        written = self.dataset[index]
        tokens, labels = (numpy.asarray(written[name]) for name in ("tokens", "labels"))
        learned = labels != IGNORE_INDEX
        return self._decoded(tokens[: int(learned.argmax())]), self._decoded(tokens[learned])

    @property
    def _is_plain_text(self) -> bool:
        """Whether it is rows of :func:`distill_tune.data.text`, that nothing asks."""
        has_conversation = getattr(self.dataset, "conversation", None) is not None
        return not has_conversation and getattr(self.dataset, "asked", None) is not None

    def _plain_text(self, index: int) -> str:
        return self.dataset.asked(self.dataset.rows[index]).turns[-1]["content"]

    def _decoded(self, tokens: numpy.ndarray) -> str:
        controls = self._bytes.control_texts
        return text_of(self._tokenizer, [token for token in tokens.tolist() if token not in controls])


def _scored(written: Sequence[Sequence[Written]]) -> str:
    """How a document's first token is treated, and what counts to which figure."""
    begins_with_text = [any(bool(one.is_text[0]) for one in of) for of in written]
    first = "each document begins with a control token, which is read and not scored"
    if all(begins_with_text):
        first = "a document's first token has nothing before it: it is read and not scored, its bytes are not counted"
    elif any(begins_with_text):
        first = (
            "a document's first token is read and not scored: of some models a control token, of the others the "
            "text's own, whose bytes are not counted"
        )
    return (
        f"Supervised tokens are those that are learned from such rows, ends of answers among them; {first}. Bits per "
        "byte are of the tokens that write the documents' own text, over its UTF-8 bytes; control tokens, and what "
        "templates write around turns, count to perplexity alone."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
