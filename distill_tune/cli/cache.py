"""`distill-tune cache`: what a stored teacher holds, and whether it is what the teacher says."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_tune.config.files import local_path
from distill_tune.counts import counted
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
_USAGE = "distill-tune cache {ls,verify} PATH [--config CONFIG] [--rows N] [key=value ...]"
_ROWS = 20


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cache",
        help="show or verify a stored teacher",
        description=_DESCRIPTION,
        usage=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_cache)


def _cache(options: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser(
        prog="distill-tune cache",
        usage=_USAGE,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["ls", "verify"], help="show it, or read all of it")
    parser.add_argument("path", metavar="PATH", help="the folder that teacher_cache has written")
    parser.add_argument("--config", help="of the teacher that is to be asked again")
    parser.add_argument(
        "--rows", type=int, default=_ROWS, help="about so many of the rows, from all over them; default: %(default)s"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    if not options.arguments:
        parser.error(f"say what to do, and with which cache\n\n{_DESCRIPTION}")
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
    from distill_tune.cache import MANIFEST, Manifest, shard_files
    from distill_tune.cache.shard import Shard

    manifest = Manifest.read(folder)
    print(f"{folder}: {_kind(manifest)}")
    if manifest.finished:
        each = manifest.num_bytes / max(1, manifest.num_positions)
        print(f"  {manifest.num_rows:,} rows, {manifest.num_positions:,} supervised tokens, {each:.1f} bytes each")
    else:
        rows = sum(len(Shard.open(path)) for path in shard_files(folder))
        print(f"  not finished, {rows:,} rows so far: the same command goes on, or a run with teacher_cache={folder}")
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != MANIFEST]
    print(f"  {binary(sum(sizes))} in {len(sizes)} files")
    teacher = manifest.teacher
    quantizer = f", {teacher['quantizer']}" if teacher.get("quantizer") else ""
    content = f", content {teacher['content']}" if teacher.get("content") else ""
    print(f"  of {_model(teacher.get('model'))}{content}, {teacher.get('dtype')}{quantizer}")
    read = [("tokenizer", manifest.tokenizer), ("chat template", manifest.template), ("date", manifest.date)]
    print(f"  {', '.join(f'{name} {value}' if value else f'no {name}' for name, value in read)}")
    print(f"  made with distill-tune {manifest.package}, seed {manifest.seed}")


def _model(of: Any) -> str:
    """One or several, without where their weights lay, which may be elsewhere by now."""
    if isinstance(of, list):
        return "; ".join(map(_model, of))
    if not isinstance(of, dict):
        return str(of)
    arguments = ", ".join(f"{name}={value}" for name, value in of.items() if name != "_component_")
    return f"{of.get('_component_')}{arguments and f' ({arguments})'}"


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
    shards = counted(len(manifest.files), "shard")
    print(f"{folder}: read whole, {shards} and what is beside: as they were written")
