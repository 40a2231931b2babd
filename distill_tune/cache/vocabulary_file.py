"""The teacher's tokens beside its word, so that they can be compared with a student's without its folder."""

import hashlib
import json
from pathlib import Path

from distill_tune.cache.beside import VOCABULARY, content_beside
from distill_tune.cache.manifest import write_or_tell
from distill_tune.models.vocabulary import Vocabulary


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """
    Raises:
        UserError: the disk is full, or fails.
    """
    write_or_tell(folder / VOCABULARY, _text_of(vocabulary).encode())


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """None where there is none that can be read.

    Raises:
        UserError: it is not as it was written.
    """
    try:
        found = json.loads(content_beside(folder, VOCABULARY))
        return Vocabulary({int(index): token for index, token in found["tokens"].items()}, frozenset(found["added"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprint_of(of: Vocabulary | str) -> str:
    text = of if isinstance(of, str) else _text_of(of)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _text_of(vocabulary: Vocabulary) -> str:
    tokens = {str(index): vocabulary.tokens[index] for index in sorted(vocabulary.tokens)}
    return json.dumps({"tokens": tokens, "added": sorted(vocabulary.added)})
