"""Where a model comes from, as its folders and its run say: names, licences, data. Nothing of it names a path."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.files import local_path
from distill_tune.counts import counted
from distill_tune.models.tokenizer_files import files_of
from distill_tune.training.export import TERMS

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_IN_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)")
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LICENCE_KEYS = ("license", "license_name", "license_link")
# Whole paths in a text, of which the last name may stay; not what is in a URL. Folders' names may have spaces.
_NAME = r"[\w.,@+=&%#!'()\[\]-]+"
_FOLDER = rf"{_NAME}(?: +{_NAME})*"
_PATH = re.compile(
    rf"(?<![\w:/.~-])(?:file://)?"
    rf"(?:(?:~|\.\.|[A-Za-z]:)?(?:/{_FOLDER})+/({_NAME})/?|[A-Za-z]:(?:\\{_FOLDER})*\\({_NAME}))"
)


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A model that another was made from.

    Attributes:
        name: as a hub calls it, or its folder's name.
        on_hub: whether it is a hub's.
        licence: ``license``, ``license_name`` and ``license_link`` of its card's front matter, those that are there.
        files: of its terms.
    """

    name: str
    on_hub: bool
    licence: Mapping[str, str]
    files: tuple[str, ...]


def ancestor(folder: Path, hub_name: str | None = None) -> Ancestor:
    """
    Args:
        hub_name: where it is known better.
    """
    name = hub_name or hub_name_of(folder)
    licence = front_matter(folder / "README.md")
    return Ancestor(
        name or folder.name,
        name is not None,
        {key: str(licence[key]) for key in _LICENCE_KEYS if licence.get(key)},
        tuple(file.name for file in files_of(folder, TERMS)),
    )


def hub_name_of(folder: Path) -> str | None:
    """OWNER/NAME of a folder in the hub's cache, or one whose config.json says so."""
    if found := _IN_HUB_CACHE.search(str(folder.resolve())):
        return f"{found[1]}/{found[2]}"
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def front_matter(card: Path) -> dict[str, Any]:
    """Of a model card; empty where it has none, or there is none."""
    try:
        found = _FRONT.match(card.read_text(encoding="utf-8"))
        content = OmegaConf.to_container(OmegaConf.create(found[1])) if found else {}
    except Exception:  # YAML of others
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def run_config(run: Path | None) -> DictConfig:
    """config.yaml of a run; empty where there is none."""
    file = run / "config.yaml" if run else None
    if file is None or not file.is_file():
        return OmegaConf.create({})
    loaded = OmegaConf.load(file)
    return loaded if isinstance(loaded, DictConfig) else OmegaConf.create({})


def student_folder(cfg: DictConfig) -> Path | None:
    """Of the model that a run began with."""
    return next(_folders(cfg, ""), None)


def teacher_folders(cfg: DictConfig) -> list[Path]:
    return list(_folders(cfg, "teacher_"))


def _folders(cfg: DictConfig, prefix: str) -> Iterator[Path]:
    for model in _listed(cfg.get(f"{prefix}model")):
        if isinstance(model, DictConfig) and isinstance(model.get("path"), str):
            yield local_path(model["path"])
    for checkpointer in _listed(cfg.get(f"{prefix}checkpointer")):
        if isinstance(checkpointer, DictConfig) and isinstance(checkpointer.get("checkpoint_dir"), str):
            yield local_path(checkpointer["checkpoint_dir"])


def data_of(run: Path | None, cfg: DictConfig) -> list[str]:
    """A line for each dataset that a run learned: its name, and how many rows where run.json says so."""
    try:
        noted = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"] if run else []
        return [
            f"{public_name(str(one['source']))}: {counted(int(one['rows']), 'row')}"
            + (f", {int(tokens):,} supervised tokens" if (tokens := one.get("supervised_tokens")) else "")
            for one in noted
        ]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    datasets = [one for one in _listed(cfg.get("dataset")) if isinstance(one, DictConfig)]
    return [public_name(str(one.get("source") or one.get("_component_") or "")) for one in datasets]


def hub_datasets(cfg: DictConfig) -> list[str]:
    """Those that are a hub's: OWNER/NAME, and no file here."""
    sources = [str(one.get("source")) for one in _listed(cfg.get("dataset")) if isinstance(one, DictConfig)]
    return [name for name in sources if _HUB_NAME.fullmatch(name) and not Path(name).suffix and not Path(name).exists()]


def public_name(source: str) -> str:
    """A hub's name, an address or a component whole; of a path its last name."""
    is_address = "://" in source and not source.startswith("file://")
    if is_address or (_HUB_NAME.fullmatch(source) and not Path(source).exists() and not Path(source).suffix):
        return source
    return Path(source).name


def without_paths(text: str) -> str:
    """A text in which each whole path is its last name."""
    return _PATH.sub(lambda found: found[1] or found[2], text)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, ListConfig) else [value]
