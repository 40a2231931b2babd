"""Texts as words, to be compared."""

import hashlib
import re
from collections.abc import Iterator, Sequence

# A character of Chinese, Japanese or Korean is a word; elsewhere one is what letters and digits make.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """In lower case, without what stands between them."""
    return _WORD.findall(text.lower())


def grams(of: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of ``n`` words."""
    return (tuple(of[start : start + n]) for start in range(len(of) - n + 1))


def hashed(gram: Sequence[str]) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(" ".join(gram).encode(), digest_size=8).digest(), "little")
