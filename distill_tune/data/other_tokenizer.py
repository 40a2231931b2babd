"""A teacher's own tokenizer, where it is another than that of the rows."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.errors import UserError


@contextlib.contextmanager
def told_of_teacher() -> Iterator[None]:
    """Have what is wrong with a tokenizer, which a config calls ``tokenizer``, name the key of the teacher's."""
    try:
        yield
    except UserError as error:
        told = str(error).replace("tokenizer.", "teacher_tokenizer.")
        raise UserError(told.replace("teacher_teacher_", "teacher_")) from error


@dataclasses.dataclass(frozen=True)
class OtherTokenizer:
    """
    Attributes:
        tokenizer: :func:`~distill_tune.data.tokenizer.hf_tokenizer`'s, or one of torchtune's.
        config: what it was made from, part of the key of tokenised rows.
        its_bytes: of its tokens.
        rows_bytes: of the tokens of the tokenizer that writes the rows.
    """

    tokenizer: Any
    config: DictConfig
    its_bytes: TokenBytes
    rows_bytes: TokenBytes

    @functools.cached_property
    def content(self) -> str:
        """Tells apart what its tokens are, beside those of the rows."""
        tokens = [(found.of, sorted(found.controls.items())) for found in (self.its_bytes, self.rows_bytes)]
        return hashlib.sha256(repr(tokens).encode()).hexdigest()
