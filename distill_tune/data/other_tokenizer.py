"""A teacher's own tokenizer, where it is another than that of the rows."""

import dataclasses
import functools
import hashlib
from typing import Any

from omegaconf import DictConfig

from distill_tune.alignment.token_bytes import TokenBytes


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
