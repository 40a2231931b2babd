"""Files of a cache beside its shards, the output layer and the vocabulary, with the SHA-256 that the manifest has."""

import hashlib
from pathlib import Path

from distill_tune.cache.manifest import MANIFEST, Manifest
from distill_tune.cache.shard import MADE_ANEW, MISSING
from distill_tune.errors import UserError

OUTPUT_LAYER = "output_layer.safetensors"
VOCABULARY = "vocabulary.json"


def digests_beside(folder: Path) -> dict[str, str]:
    """For the manifest: SHA-256 of each of these files that is there."""
    there = [name for name in (OUTPUT_LAYER, VOCABULARY) if (folder / name).exists()]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in there}


def content_beside(folder: Path, name: str) -> bytes:
    """
    Raises:
        OSError: it cannot be read.
        UserError: it is not as it was written.
    """
    content = (folder / name).read_bytes()
    known = Manifest.read(folder).beside.get(name) if (folder / MANIFEST).exists() else None
    if known not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"{folder / name}: is damaged: its checksum differs; {MADE_ANEW}")
    return content


def require_there(folder: Path, manifest: Manifest) -> None:
    """
    Raises:
        UserError: one of the files that the manifest lists is missing.
    """
    for name in manifest.beside:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: {MISSING}")


def damaged_beside(folder: Path, manifest: Manifest) -> dict[Path, str]:
    """Which of those that are there are not as they were written, and what to tell of each; they are read whole."""
    damaged = {}
    for path in (folder / name for name in manifest.beside):
        try:
            if path.exists():
                content_beside(folder, path.name)
        except (OSError, UserError) as error:
            damaged[path] = str(error)
    return damaged
