"""Files and folders that a config's components name and that are not there."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from distill_tune.config.components import how_to_read_cache
from distill_tune.config.files import configs_folder, is_cache, is_model_folder
from distill_tune.config.nodes import components_of, is_model

_OF_TOKENIZERS = ("path", "merges_file", "vocab_path", "merges_path", "special_tokens_path")
_OF_OTHER_FOLDERS = (".EarlierCheckpoint", ".Cached")  # whose paths are no models' folders
_DOWNLOAD = re.compile(r"^# +(distill-tune download \S+/(\S+))$", re.MULTILINE)


class MissingFile(str):
    """A fault, in words.

    Attributes:
        key: that names the file, with dots.
        path: of it.
    """

    key: str
    path: Path

    @property
    def is_of_weights(self) -> bool:
        """Whether it is of a model, not of a tokenizer."""
        return self.key.startswith(("model.", "teacher_model.", "checkpointer.", "teacher_checkpointer."))


def missing_files(config: DictConfig, source: str = "") -> Iterator[MissingFile]:
    """
    Args:
        source: the YAML text, whose head may say how models are got.
    """
    for key, path, what in _missing(config):
        fault = MissingFile(f"{key}={path}: {what}{_how_to_get(Path(path), source)}")
        fault.key, fault.path = key, Path(path)
        yield fault


def _missing(config: DictConfig) -> Iterator[tuple[str, str, str]]:
    """Key, path, and what there is not."""
    for key, component in components_of(config):
        texts = {str(name): value for name, value in component.items() if isinstance(value, str)}
        if key.startswith("tokenizer"):
            for name in _OF_TOKENIZERS:
                if name in texts and not os.path.exists(texts[name]):
                    yield f"{key}.{name}", texts[name], "no such file"
        path = texts.get("path")
        reads_none = texts["_component_"].startswith("torchtune.models.")  # is told of its arguments
        is_of_other = texts["_component_"].endswith(_OF_OTHER_FOLDERS)
        if path is not None and is_model(key) and not (reads_none or is_of_other):
            if path.endswith(".gguf") and not os.path.isfile(path):
                yield f"{key}.path", path, "no such file"
            elif not path.endswith(".gguf") and not is_model_folder(path):
                told = "no such folder, or it has no config.json; name a Hugging Face model folder"
                if is_cache(path):
                    told = f"is a cache of a teacher, and no model's folder; {how_to_read_cache(key, path)}"
                yield f"{key}.path", path, told
        folder, files = texts.get("checkpoint_dir"), component.get("checkpoint_files")
        if folder is not None and not os.path.isdir(folder):
            yield f"{key}.checkpoint_dir", folder, "no such folder"
        elif folder is not None and isinstance(files, ListConfig):
            for file in (os.path.join(folder, str(name)) for name in files):
                if not os.path.isfile(file):
                    yield f"{key}.checkpoint_files", file, "no such file"


def _how_to_get(path: Path, source: str) -> str:
    """The command of the config's head, or of a shipped one, that gets the model's folder that a path is in."""
    texts = [source, *(config.read_text(encoding="utf-8") for config in configs_folder().rglob("*.yaml"))]
    for command, name in _DOWNLOAD.findall("\n".join(texts)):
        if name in path.parts:
            folder = Path(*path.parts[: path.parts.index(name) + 1])
            return f"; get it: {command}" + ("" if folder == Path("models") / name else f" --output {folder}")
    return ""
