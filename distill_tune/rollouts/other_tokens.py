"""Answers that the student writes, in the tokens of teachers that have tokenizers of their own."""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from distill_tune.alignment.columns import LAST
from distill_tune.alignment.rows import align
from distill_tune.alignment.token_bytes import TokenBytes, token_bytes
from distill_tune.data.batch import Row
from distill_tune.data.conversation import IGNORE_INDEX, OTHER_TEXT, Conversation, Tokens, tokenise
from distill_tune.data.ends import answer_end
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.data.sources import RowError
from distill_tune.generation.thinking import BEGIN
from distill_tune.rollouts.prompts import behind, prompt_of

_UNKNOWN = (-1, 0, -1, 0, -1, -1)


class OtherTokens:
    """Writes the text of an answer behind each teacher's own prompt, by its tokenizer, and aligns the two.

    Args:
        tokenizer: that decodes what the student writes.
        ends: the student's tokens that end an answer.
        others: the tokenizers of the rows' ``others``.
        most: tokens of a row that a teacher reads; what is beyond has no divergence. None where nothing says.
    """

    def __init__(
        self, tokenizer: Any, ends: Collection[int], others: Sequence[OtherTokenizer], most: int | None
    ) -> None:
        self._tokenizer, self._ends, self._others, self._most = tokenizer, ends, others, most
        self._its_ends = [_end_of(other.tokenizer) for other in others]
        self._before = written_before(tokenizer, token_bytes(tokenizer)) if others else ""
        self._its_before = [written_before(other.tokenizer, other.its_bytes) for other in others]

    def __call__(self, row: Row, answer: Sequence[int]) -> Row:
        """
        Args:
            row: with the answer in the student's tokens, and the teachers' prompts in ``others``.
        """
        is_ended = len(answer) > 0 and answer[-1] in self._ends
        text = self._tokenizer.decode(list(answer[:-1] if is_ended else answer)) if len(answer) else ""
        text = text.removeprefix(self._before)
        student, others = Tokens(row.tokens.numpy(), row.labels.numpy()), []
        for its, other, end, before in zip(row.others, self._others, self._its_ends, self._its_before, strict=True):
            prompt = prompt_of(its.tokens, its.labels)
            whole = text if BEGIN in text or not text else before + text  # an answer with a thought needs no empty one
            written = written_behind(prompt.tolist(), whole, other) + ([end] if is_ended and end is not None else [])
            tokens, labels = behind(prompt, written)
            found = align(student, Tokens(tokens.numpy(), labels.numpy()), other.rows_bytes, other.its_bytes)
            alignment, tokens, labels = torch.from_numpy(found.positions), tokens[: self._most], labels[: self._most]
            alignment[alignment[:, LAST] >= (labels != IGNORE_INDEX).sum()] = torch.tensor(_UNKNOWN).int()
            others.append(Row(tokens, labels, alignment=alignment))
        return row._replace(others=tuple(others))

    def as_long_as_may_be(self, row: Row, num_tokens: int) -> Row:
        """A row with an answer of so many tokens to each teacher, of which nothing is aligned."""
        others = []
        for its in row.others:
            tokens, labels = (of[: self._most] for of in behind(prompt_of(its.tokens, its.labels), [0] * num_tokens))
            alignment = torch.tensor([_UNKNOWN] * num_tokens, dtype=torch.int32).view(-1, len(_UNKNOWN))
            others.append(Row(tokens, labels, alignment=alignment))
        return row._replace(others=tuple(others))


def written_before(tokenizer: Any, its_bytes: TokenBytes) -> str:
    """What a chat template writes of itself before an answer, to be learned with it, as Qwen3's empty thought; without
    what is white space alone."""
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": OTHER_TEXT})
    try:
        labels = tokenise(tokenizer, Conversation(turns, (False, True))).labels
    except (RowError, ValueError, TypeError, AttributeError, LookupError):  # a tokenizer without conversations
        return ""
    learned = b"".join(its_bytes.of[token] or b"" for token in labels[labels != IGNORE_INDEX].tolist())
    before = learned.partition(OTHER_TEXT.encode())[0].decode(errors="ignore")
    return before if before.strip() else ""


def written_behind(prompt: Sequence[int], text: str, other: OtherTokenizer) -> list[int]:
    """The tokens of a text as they are behind a prompt's last one, where a tokenizer writes the first word otherwise at
    the beginning of a text."""
    encode = other.tokenizer.encode
    last = prompt[-1] if len(prompt) else None
    before = None if last is None else other.its_bytes.control_texts.get(last)
    if before is None and last is not None:
        before = (other.its_bytes.of[last] or b"").decode(errors="ignore")
    if before:
        found = encode(before + text, add_bos=False, add_eos=False)
        if last in found[:2]:  # a mark of the beginning may come first
            return found[found.index(last) + 1 :]
    return encode(text, add_bos=False, add_eos=False)


def _end_of(tokenizer: Any) -> int | None:
    end = answer_end(tokenizer)
    return getattr(tokenizer, "eos_id", None) if end is None else end
