"""By what a row is known wherever it stands: what it contains."""

import hashlib
from collections.abc import Iterable

import numpy

DIGEST_BYTES = 16


def row_digest(tokens: numpy.ndarray, learned: numpy.ndarray) -> bytes:
    """BLAKE2b, 16 bytes, of a row's tokens and of which of them are learned.

    Args:
        tokens: ``[s]``, int32.
        learned: whether each token is one to predict, ``[s]``, bool; the first never is.
    """
    digest = hashlib.blake2b(len(tokens).to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    digest.update(numpy.ascontiguousarray(tokens, "<i4").data)
    digest.update(numpy.packbits(learned[1:]).data)
    return digest.digest()


def record_keys(digests: Iterable[bytes], teacher_ids: Iterable[int]) -> tuple[bytes, ...]:
    """By what the record of each row is found where rows follow a teacher each: the same row may follow another one.

    Args:
        teacher_ids: of each row, the number of its teacher; 0 where all follow one, whose rows go by their digests.
    """
    return tuple(
        hashlib.blake2b(digest + number.to_bytes(4, "little"), digest_size=DIGEST_BYTES).digest() if number else digest
        for digest, number in zip(digests, teacher_ids, strict=True)
    )
