"""Files of a cache beside its shards, the output layer and the vocabulary, with the SHA-256 that the manifest has."""

from pathlib import Path

from distill_tune.cache.manifest import MANIFEST, Manifest
from distill_tune.cache.shard import MADE_ANEW, MISSING
from distill_tune.errors import UserError
from distill_tune.kept_digests import kept_digest

OUTPUT_LAYER = "output_layer.safetensors"
VOCABULARY = "vocabulary.json"


def digests_beside(folder: Path) -> dict[str, str]:
    """For the manifest: SHA-256 of each of these files that is there."""
    there = [name for name in (OUTPUT_LAYER, VOCABULARY) if (folder / name).exists()]
    return {name: kept_digest(folder / name) for name in there}


def content_beside(folder: Path, name: str) -> bytes:
    """
    Raises:
        OSError: it cannot be read.
        UserError: it is not as it was written.
    """
    if (folder / MANIFEST).exists():
        _require_as_written(folder / name, Manifest.read(folder))
    return (folder / name).read_bytes()


def _require_as_written(path: Path, manifest: Manifest) -> None:
    known = manifest.beside.get(path.name)
    if known is not None and known != kept_digest(path):
        raise UserError(f"{path}: is damaged: its checksum differs; {MADE_ANEW}")


def require_there(folder: Path, manifest: Manifest) -> None:
    """
    Raises:
        UserError: one of the files that the manifest lists is missing.
    """
    for name in manifest.beside:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: {MISSING}")


def damaged_beside(folder: Path, manifest: Manifest) -> dict[Path, str]:
    """Which of those that are there are not as they were written, and what to tell of each."""
    damaged = {}
    for path in (folder / name for name in manifest.beside):
        try:
            if path.exists():
                _require_as_written(path, manifest)
        except (OSError, UserError) as error:
            damaged[path] = str(error)
    return damaged
