"""Prompts that are changed a little each time a row is seen; answers never are.

Each change is a function of (seed, epoch, row): a resumed run sees the same. Only the turns' own text changes: special
tokens, what a template writes around the turns, and the row's first token stay; so does what a teacher with prompts of
its own reads.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy
import torch

from distill_tune.data.batch import Row
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError


class Augmentation(Protocol):
    """Changes the prompt of one row."""

    def __call__(
        self, tokens: numpy.ndarray, is_prompt: numpy.ndarray, ordinary: numpy.ndarray, random: numpy.random.Generator
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """
        Args:
            tokens: ``[s]``; must not be overwritten.
            is_prompt: which of them may be changed, ``[s]``, bool.
            ordinary: all token ids that are not special.

        Returns:
            The tokens, ``[s]``, and which of them are kept, ``[s]``, bool.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DropTokens:
    """Leaves out each of the prompt's tokens with probability ``rate``."""

    rate: float = 0.1

    def __post_init__(self) -> None:
        _require_rate(self.rate)

    def __call__(
        self, tokens: numpy.ndarray, is_prompt: numpy.ndarray, ordinary: numpy.ndarray, random: numpy.random.Generator
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        return tokens, ~(is_prompt & (random.random(len(tokens)) < self.rate))


@dataclasses.dataclass(frozen=True)
class ReplaceTokens:
    """Puts any other token in place of each of the prompt's with probability ``rate``."""

    rate: float = 0.1

    def __post_init__(self) -> None:
        _require_rate(self.rate)

    def __call__(
        self, tokens: numpy.ndarray, is_prompt: numpy.ndarray, ordinary: numpy.ndarray, random: numpy.random.Generator
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        replaced = is_prompt & (random.random(len(tokens)) < self.rate)
        drawn = ordinary[random.integers(len(ordinary), size=len(tokens))]
        return numpy.where(replaced, drawn, tokens), numpy.ones(len(tokens), bool)


@dataclasses.dataclass(frozen=True)
class TruncatePrompt:
    """With probability ``rate``, leaves out the first tokens of the prompt, as many as a draw below ``most`` says.

    Attributes:
        most: the largest share of the prompt's tokens to leave out.
    """

    rate: float = 0.5
    most: float = 0.5

    def __post_init__(self) -> None:
        _require_rate(self.rate)
        _require_rate(self.most, "most")

    def __call__(
        self, tokens: numpy.ndarray, is_prompt: numpy.ndarray, ordinary: numpy.ndarray, random: numpy.random.Generator
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        kept = numpy.ones(len(tokens), bool)
        if random.random() < self.rate:
            prompt = is_prompt.nonzero()[0]
            kept[prompt[: int(random.random() * self.most * len(prompt))]] = False
        return tokens, kept


class Augmentations:
    """Some augmentations one after another; without any, rows stay as they are.

    Args:
        augmentations: in their order.
        tokenizer: tells which tokens are special.
        seed: of all draws.
        model_size: the vocabulary that the models have; a tokenizer may have more tokens.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation] = (),
        tokenizer: Any = None,
        seed: int = 0,
        model_size: int | None = None,
    ) -> None:
        self._augmentations, self._seed = list(augmentations), seed
        if augmentations:
            size = tokenizer.vocab_size
            special = numpy.array([token for token in special_tokens(tokenizer) if token < size], dtype=int)
            self._is_special = numpy.zeros(size, bool)
            self._is_special[special] = True
            self._ordinary = (~self._is_special[:model_size]).nonzero()[0].astype(numpy.int32)

    @property
    def identity(self) -> list[str] | None:
        """What decides on the changes, besides the seed."""
        return [repr(augmentation) for augmentation in self._augmentations] or None

    def __bool__(self) -> bool:
        return bool(self._augmentations)

    def require_text(self, rows: TokenisedRows) -> None:
        """
        Raises:
            UserError: rows have prompts, and it is not known which of their tokens are the turns' own text.
        """
        if self and rows.is_text is None and bool((rows.labels == IGNORE_INDEX).any()):
            raise UserError(
                "augmentations: this dataset does not tell a turn's text from what is written around it, which must "
                "stay; take distill_tune.data.instruct or distill_tune.data.chat"
            )

    def __call__(self, row: Row, place: Sequence[int]) -> Row:
        """
        Args:
            place: numbers that tell this time of this row from all others.
        """
        random = numpy.random.Generator(numpy.random.PCG64([self._seed, *place]))
        if row.is_text is None:  # nothing but what is learned
            return row
        tokens, labels, is_text = row.tokens.numpy(), row.labels.numpy(), row.is_text.numpy()
        for augmentation in self._augmentations:
            is_prompt = is_text & (labels == IGNORE_INDEX) & ~self._is_special[tokens]
            is_prompt[0] = False
            tokens, kept = augmentation(tokens, is_prompt, self._ordinary, random)
            tokens, labels, is_text = tokens[kept], labels[kept], is_text[kept]
        return row._replace(
            tokens=torch.from_numpy(tokens), labels=torch.from_numpy(labels), is_text=torch.from_numpy(is_text)
        )


def special_tokens(tokenizer: Any) -> set[int]:
    """The ids that are no ordinary text, as far as a tokenizer of torchtune's or ours tells."""
    named = [getattr(tokenizer, name, None) for name in dir(tokenizer) if name.endswith("_id")]
    listed = getattr(tokenizer, "special_tokens", None) or {}
    added = getattr(tokenizer, "added_tokens", ())
    return {token for token in (*named, *dict(listed).values(), *added) if isinstance(token, int) and token >= 0}


def _require_rate(rate: float, name: str = "rate") -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"{name}={rate}: must be from 0 to 1")
