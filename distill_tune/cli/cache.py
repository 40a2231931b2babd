"""`distill-tune cache`: what a stored teacher holds, and whether it is what the teacher says."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distill_tune.config.files import local_path
from distill_tune.errors import UserError
from distill_tune.sizes import binary

if TYPE_CHECKING:
    from distill_tune.cache import Manifest

_DESCRIPTION = """What the recipe teacher_cache has stored.

  distill-tune cache ls PATH                          kind, settings, teacher, rows and size
  distill-tune cache verify PATH                      read all of it, and compare it with its checksums
  distill-tune cache verify PATH --config CONFIG      and ask the config's teacher again about some rows
  distill-tune cache verify PATH --config CONFIG --rows 100 [key=value ...]
"""
_ROWS = 20


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cache",
        help="show or verify a stored teacher",
        description=_DESCRIPTION,
        usage="distill-tune cache {ls,verify} PATH [--config CONFIG] [--rows N] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_cache)


def _cache(options: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser(prog="distill-tune cache")
    parser.add_argument("what", choices=["ls", "verify"])
    parser.add_argument("path")
    parser.add_argument("--config")
    parser.add_argument("--rows", type=int, default=_ROWS)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args(options.arguments)
    if asked.rows < 1:
        raise UserError(f"--rows {asked.rows}: must be a whole number of at least 1")
    if asked.what == "ls":
        _ls(local_path(asked.path))
        return
    _verify_files(local_path(asked.path))
    if asked.config is not None:
        from distill_tune.cli.verified_cache import verify

        verify(local_path(asked.path), asked.config, asked.overrides, asked.rows)


def _ls(folder: Path) -> None:

    from distill_tune.cache import MANIFEST, Manifest

    manifest = Manifest.read(folder)
    print(f"{folder}: {_kind(manifest)}")
    if manifest.finished:
        each = manifest.num_bytes / max(1, manifest.num_positions)
        print(f"  {manifest.num_rows:,} rows, {manifest.num_positions:,} supervised tokens, {each:.1f} bytes each")
    else:
        print("  not finished: the command that began it goes on")
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != MANIFEST]
    print(f"  {binary(sum(sizes))} in {len(sizes)} files")
    teacher = manifest.teacher
    quantizer = f", {teacher['quantizer']}" if teacher.get("quantizer") else ""
    print(f"  of {teacher.get('model')}, content {teacher.get('content')}, {teacher.get('dtype')}{quantizer}")
    print(f"  tokenizer {manifest.tokenizer}, template {manifest.template}, date {manifest.date}")
    print(f"  made with distill-tune {manifest.package}, seed {manifest.seed}")


def _kind(manifest: "Manifest") -> str:
    settings = [f"{name} {value}" for name, value in manifest.settings.items() if value is not None]
    return f"{manifest.kind}, {', '.join(settings)}"


def _verify_files(folder: Path) -> None:
    """
    Raises:
        UserError: it is no whole cache, or a file's content is not as it was written.
    """
    from distill_tune.cache import CacheReader, damage_of, damaged_beside, shard_files

    manifest = CacheReader(folder).manifest
    found = [told for path in shard_files(folder) if (told := damage_of(path))]
    found += damaged_beside(folder, manifest).values()
    if found:
        raise UserError("\n  ".join(found))
    print(f"{folder}: all {len(manifest.files)} shards are as they were written")
