"""`distill-tune cp`: a copy of a recipe or config, to edit."""

import argparse
import shutil

from distill_tune.config.files import find_config, local_path
from distill_tune.errors import UserError

_DESCRIPTION = """Copy a recipe or config to edit it.

  distill-tune cp kd_single_device mine.py
  distill-tune cp tiny mine.yaml
  distill-tune run mine.py --config mine.yaml
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cp",
        help="copy a recipe or config to edit",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="as in `distill-tune ls`")
    parser.add_argument("destination", type=local_path, help="a file or a folder")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    parser.set_defaults(function=_cp)


def _cp(options: argparse.Namespace) -> None:
    source = find_config(options.name, or_recipe=True)
    destination = options.destination / source.name if options.destination.is_dir() else options.destination
    if not destination.suffix:
        destination = destination.with_suffix(source.suffix)
    if destination.suffix != source.suffix:
        raise UserError(f"{destination}: {options.name} is a {source.suffix} file; name the copy so")
    if destination.exists() and not options.force:
        raise UserError(f"{destination}: is there already; overwrite it with --force, or name another file")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
    except OSError as error:
        raise UserError(f"{destination}: cannot be written: {error.strerror}") from error
    print(destination)
