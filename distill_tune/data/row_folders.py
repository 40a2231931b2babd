"""A folder of rows: which of its files belong to which split, as `datasets.load_dataset` tells them by their names."""

import dataclasses
import fnmatch
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_tune.data.row_files import FORMATS, LINES, format_of, is_saved_dataset
from distill_tune.errors import UserError

# What stands in such folders and is nobody's rows.
_SAVED_SPLITS = "dataset_dict.json"
_ABOUT = ("*.md", "LICENSE*", "config.json", "dataset_info.json", "dataset_infos.json", _SAVED_SPLITS, "state.json")
_README = "README.md"
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Folder:
    """
    Attributes:
        splits: the files of each; one that :func:`is_saved_dataset` counts as a file.
        left_out: what is in none, as paths below the folder.
    """

    splits: Mapping[str, Sequence[Path]]
    left_out: Sequence[str] = ()

    @property
    def _not_taken(self) -> str | None:
        more = f" and {len(self.left_out) - _SHOWN} more" if len(self.left_out) > _SHOWN else ""
        return f"left out: {', '.join(self.left_out[:_SHOWN])}{more}" if self.left_out else None

    def require(self, split: str, names: Sequence[str]) -> None:
        """
        Args:
            names: of the splits that ``split`` asks for.

        Raises:
            UserError: there is no such split.
        """
        if not set(names) <= set(self.splits):
            hint = "a part of a split is written train[:90%]"
            there = [f"there is {' and '.join(self.splits)}", self._not_taken, hint]
            raise UserError(f"dataset split={split}: {'; '.join(filter(None, there))}")

    def told(self, taken: Sequence[str]) -> str | None:
        """What of it is not read, in a line; None where all is."""
        others = [split for split in self.splits if split not in taken]
        splits = f"split {' and '.join(taken)} alone is read; there is {' and '.join(others)}, too" if others else None
        return "; ".join(filter(None, [splits, self._not_taken])) or None


def read_folder(folder: Path, name: str | None = None, data_files: Any = None) -> Folder:
    """
    Args:
        name: of one of the configurations that the folder's README.md lists, as those of the hub do.
        data_files: patterns below the folder, as :func:`datasets.load_dataset` takes them.

    Raises:
        UserError: no file that can be read, or one configuration of several is to be chosen.
    """
    found, others = _walk(folder)
    if not found:
        there = f"; it has {', '.join(others[:_SHOWN])}" if others else ""
        raise UserError(f"dataset {folder}: the folder has no {', '.join(FORMATS)} file{there}")
    if (folder / _SAVED_SPLITS).is_file() and not data_files:
        return Folder({split: [folder / split] for split in _saved_splits(folder)})
    patterns, resolve = _patterns(folder, list(found), name, data_files)
    splits = dict[str, list[str]]()
    for split, wanted in patterns.items():
        splits[str(split)] = sorted({path for pattern in wanted for path in resolve(pattern)})
        if not splits[str(split)]:
            raise UserError(f"dataset {folder}: split {split}: there is no {', '.join(map(str, wanted))} to read")
    taken = {path for paths in splits.values() for path in paths}
    left_out = [*others, *(path.removesuffix("/*") for path in found if path not in taken)]
    return Folder({split: [found[path] for path in paths] for split, paths in splits.items()}, sorted(left_out))


def _walk(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """What can be read below a folder, by its path there (with /* where it is a saved dataset), and what cannot."""
    found, others = dict[str, Path](), list[str]()
    for where, folders, files in os.walk(folder):
        at, below = Path(where), Path(where).relative_to(folder)
        if is_saved_dataset(at):
            found[str(below / "*")] = at
            folders.clear()
            continue
        others += [f"{below / name}/ (a link)" for name in folders if (at / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            if name.startswith(".") or any(fnmatch.fnmatch(name, pattern) for pattern in _ABOUT):
                continue
            if format_of(at / name) in (None, LINES):
                others.append(str(below / name))
            else:
                found[str(below / name)] = at / name
    return found, others


def _patterns(
    folder: Path, paths: Sequence[str], name: str | None, data_files: Any
) -> tuple[Mapping[str, Sequence[str]], Callable[[str], list[str]]]:
    """The patterns of each split, and which of the paths one of them means."""
    from datasets.data_files import _get_data_files_patterns, sanitize_patterns
    from fsspec.utils import glob_translate

    config = {} if data_files else _configuration(folder, name)
    below = str(config.get("data_dir") or "").strip("/")
    named = data_files or config.get("data_files")

    def resolve(pattern: str) -> list[str]:
        is_meant = re.compile(glob_translate("/" + f"{below}/{pattern.removeprefix('./')}".lstrip("/"))).match
        # Train.jsonl and Test.jsonl are splits, too.
        return [path for path in paths if is_meant("/" + (path if named else path.lower()))]

    if named:
        return sanitize_patterns(named), resolve
    try:
        return _get_data_files_patterns(resolve), resolve
    except (FileNotFoundError, ValueError):  # shards of something that is no name of a split
        return {"train": ["**"]}, resolve


def _saved_splits(folder: Path) -> list[str]:
    """What `datasets.DatasetDict.save_to_disk` has written there."""
    try:
        splits = json.loads((folder / _SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
        return [split for split in splits if is_saved_dataset(folder / split)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"dataset {folder / _SAVED_SPLITS}: not as save_to_disk writes it") from error


def _configuration(folder: Path, name: str | None) -> Mapping[str, Any]:
    """The one of README.md's configurations that is meant; none where it lists none."""
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    readme = folder / _README
    try:
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        has_header = text.startswith("---")
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard(text).data) if has_header else MetadataConfigs()
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"dataset {readme}: its header cannot be read: {' '.join(str(error).split())}") from error
    if name is None and len(configs) > 1:
        name = configs.get_default_config_name()
        if name is None:
            raise UserError(f"dataset {folder}: has {', '.join(configs)}; choose one with dataset.name")
    if name is None or not configs:
        return next(iter(configs.values()), {})
    if name not in configs:
        raise UserError(f"dataset.name={name}: {folder} has {', '.join(configs)}")
    return configs[name]
