"""Tokenised rows on the disk, by what they were made from; a copy that is damaged is made anew, an old one deleted."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from distill_tune.cache_folder import KEPT_UNUSED, cache_folder
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.data.prompts import Reading
from distill_tune.data.row_identity import identity_of
from distill_tune.data.sources import fingerprint_of
from distill_tune.data.tokenised_rows import AlignedRows, TokenisedRows
from distill_tune.disk import damage, digest, put_in_place, write_checksums
from distill_tune.kept_digests import delete_old_digests

_FILE = "rows.safetensors"
_DAY = 86_400  # seconds
_IN_USE = 7 * _DAY  # a run on another machine may still have it mapped
_MOST_BYTES = 50 * 10**9
_TENSORS = ("tokens", "labels", "offsets")
_OPTIONAL_TENSORS = ("teacher_ids", "origins", "is_text")
_FORM_OF_ALIGNMENT = 2  # grows when tokens are aligned otherwise
_OF_ALIGNMENT, _COUNTS_OF_ALIGNMENT = ("positions", "offsets"), ("num_bytes", "num_masked_bytes")
_SETTINGS = (
    "packed",
    "max_seq_len",
    "num_bad",
    "num_cut",
    "num_shortened",
    "num_without_end",
    "num_tokens_cut",
    "num_empty",
    "num_unfinished",
    "dropped",
    "unread",
    "faults",
    "files",
    "fingerprint",
)


def folder_of(
    dataset: Any,
    arguments: DictConfig,
    tokenizer_config: DictConfig,
    max_seq_len: int | None,
    reading: Reading,
    others: Sequence[OtherTokenizer] = (),
) -> Path | None:
    """Where the tokens of exactly these rows under these settings are kept; None where nothing identifies them, see
    :func:`~distill_tune.data.row_identity.identity_of`, or there is no place to keep them."""
    fingerprint, root = fingerprint_of(dataset), cache_folder()
    if root is None:
        print("no home folder, so tokenised rows are not kept; set DISTILL_TUNE_CACHE to a folder", file=sys.stderr)
    if fingerprint is None or root is None:
        return None
    if (identity := identity_of(arguments, tokenizer_config)) is None:
        return None
    identity |= {
        "rows": fingerprint,
        "max_seq_len": max_seq_len,
        "reading": dataclasses.asdict(reading),
    }
    of_others = [identity_of(arguments, other.config) for other in others]
    if None in of_others:
        return None
    identity |= {"others": of_others, "alignment": _FORM_OF_ALIGNMENT} if others else {}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return root / "rows" / name


def read_rows(folder: Path, check: bool = True) -> TokenisedRows | None:
    """Rows whose tokens are mapped; None where there are none, or not as they were written.

    Args:
        check: read the whole file once, to compare it with its checksum.
    """
    if not os.path.isdir(folder):
        return None
    try:
        if damaged := damage(folder) if check else None:
            print(f"tokenised rows {folder}: {damaged}; made anew", file=sys.stderr)
            return None
        with safe_open(folder / _FILE, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = json.loads(file.metadata()["settings"])
        plain = {"packed": False, "max_seq_len": settings["max_seq_len"]}

        def taken(of: str, names: Sequence[str] = _TENSORS) -> dict[str, Any]:
            return {name: tensors.pop(f"{of}.{name}") for name in names if f"{of}.{name}" in tensors}

        teacher = TokenisedRows(**its, **plain) if (its := taken("teacher")) else None
        others = tuple(
            TokenisedRows(
                **taken(f"others.{number}"),
                **plain,
                alignment=AlignedRows(**taken(f"others.{number}.alignment", _OF_ALIGNMENT), **counts),
            )
            for number, counts in enumerate(settings.pop("alignments"))
        )
        fingerprint = settings.pop("fingerprint")
        rows = TokenisedRows(**tensors, **settings, teacher=teacher, others=others).with_fingerprint(fingerprint)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        return None  # a disk that fails, or another version's
    with contextlib.suppress(OSError):  # another's, or on a disk that cannot be written
        os.utime(folder)  # when it was used last
    return rows


def write_rows(folder: Path, rows: TokenisedRows) -> None:
    """A disk that is full or broken is told, and keeps nothing."""
    settings = {name: getattr(rows, name) for name in _SETTINGS}
    tensors = {name: getattr(rows, name) for name in _TENSORS}
    if rows.teacher is not None:
        tensors |= {f"teacher.{name}": getattr(rows.teacher, name) for name in _TENSORS}
    settings["alignments"] = []
    for number, other in enumerate(rows.others):
        assert other.alignment is not None
        tensors |= {f"others.{number}.{name}": getattr(other, name) for name in _TENSORS}
        tensors |= {f"others.{number}.alignment.{name}": getattr(other.alignment, name) for name in _OF_ALIGNMENT}
        settings["alignments"].append({name: getattr(other.alignment, name) for name in _COUNTS_OF_ALIGNMENT})
    tensors |= {name: getattr(rows, name) for name in _OPTIONAL_TENSORS if getattr(rows, name) is not None}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            partial = Path(beside) / folder.name
            partial.mkdir()
            save_file(tensors, partial / _FILE, metadata={"settings": json.dumps(settings)})
            write_checksums(partial, [(_FILE, digest(partial / _FILE))])
            put_in_place(partial, folder)
    except (OSError, SafetensorError) as error:
        print(f"the tokenised rows could not be kept in {folder.parent}: {error}", file=sys.stderr)
    with contextlib.suppress(OSError):  # what another run deletes at the same time
        _delete_old(folder.parent)
    delete_old_digests()


def _delete_old(kept: Path) -> None:
    """Delete what has not been used for 30 days, and of the rest, the oldest first, what is more than 50 GB.

    What was used within a week stays in any case.
    """
    now = time.time()
    used = sorted(((path.stat().st_mtime, path) for path in kept.iterdir()), reverse=True)
    total = 0
    for when, path in used:
        total += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if now - when > (_IN_USE if total > _MOST_BYTES else KEPT_UNUSED):
            shutil.rmtree(path, ignore_errors=True)
