"""Texts as words, to be compared."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

# Where no spaces stand between words, a character with its marks is a word: Thai, Lao, Tibetan, Burmese, Khmer;
# Chinese, Japanese and Korean.
_ALONE = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_END_OF_MARKS = 0x20000  # but for those that choose a form of a character
_JOINERS = "\u200c\u200d"  # which stand within words of Persian and of Indian scripts


def words(text: str) -> list[str]:
    """In lower case, without what stands between them; elsewhere what letters, their marks and digits make."""
    return _word().findall(unicodedata.normalize("NFC", text.lower()))


@functools.cache
def _word() -> re.Pattern[str]:
    of = {mark for mark in range(_END_OF_MARKS) if unicodedata.category(chr(mark)).startswith("M")}
    begin = sorted(mark for mark in of if mark - 1 not in of)
    end = sorted(mark for mark in of if mark + 1 not in of)
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(begin, end, strict=True)) + _JOINERS
    return re.compile(rf"(?=[^\W_])[{_ALONE}][{marks}]*|(?:[^\W_{_ALONE}][{marks}]*)+")


def grams(of: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of ``n`` words."""
    return (tuple(of[start : start + n]) for start in range(len(of) - n + 1))


def hashed(gram: Sequence[str]) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(" ".join(gram).encode(), digest_size=8).digest(), "little")
