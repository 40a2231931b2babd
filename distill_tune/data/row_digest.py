"""By what a row is known wherever it stands: what it contains."""

import hashlib

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
