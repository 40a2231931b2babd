"""Files and folders that a config's components name and that are not there, or not what is read."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from distill_tune.config.files import configs_folder, how_to_read_cache, is_cache, is_model_folder, no_model_at
from distill_tune.config.nodes import components_of, is_model

# Of arguments, by name: what there is not, where what is asked is not so. Those of tokenizers, and of checkpointers.
_NAMED = {
    **dict.fromkeys(("merges_file", "merges_path", "special_tokens_path", "vocab_path"), ("file", os.path.exists)),
    "checkpoint_dir": ("folder", os.path.isdir),
}
_DOWNLOAD = re.compile(r"^# +(distill-tune download \S+/(\S+))$", re.MULTILINE)

_LEFT_IN = re.compile(r"^output_dir: (\S+)$", re.MULTILINE)
_RUN = r"^# +(distill-tune run \S+ --config (?:\S+/)?{}) *$"


class MissingFile(str):
    """A fault, in words."""


def missing_files(config: DictConfig, source: str = "", needs_weights: bool = True) -> Iterator[MissingFile]:
    """
    Args:
        source: the YAML text, whose head may say how models are got, before those of shipped configs.
        needs_weights: False where a model's config.json is enough.
    """
    for key, path, what in _missing(config, needs_weights):
        yield MissingFile(f"{key}={path}: {what}{_how_to_get(Path(path), source)}")


def _missing(config: DictConfig, needs_weights: bool) -> Iterator[tuple[str, str, str]]:
    """Key, path, and what there is not."""
    for key, component in components_of(config):
        texts = {str(name): value for name, value in component.items() if isinstance(value, str)}
        if "path" in texts and (told := _told_of(key, texts["_component_"], texts["path"])):
            yield f"{key}.path", texts["path"], told
        for name, (what, is_there) in _NAMED.items():
            if name in texts and not is_there(texts[name]):
                yield f"{key}.{name}", texts[name], f"no such {what}"
        folder, files = texts.get("checkpoint_dir", ""), component.get("checkpoint_files")
        is_enough = not needs_weights and os.path.isfile(os.path.join(folder, "config.json"))
        for name in files if os.path.isdir(folder) and isinstance(files, ListConfig) and not is_enough else ():
            if not os.path.isfile(file := os.path.join(folder, str(name))):
                yield f"{key}.checkpoint_files", file, "no such file"


def _told_of(key: str, name: str, path: str) -> str | None:
    """What is wrong with the path of a model or a tokenizer."""
    if key.startswith(("tokenizer", "teacher_tokenizer")):
        if name.startswith("torchtune.") and os.path.isdir(path):
            what = f"is a folder, {name} reads a file, such as tokenizer.model"
            return f"{what}; distill_tune.data.hf_tokenizer reads folders"
        return None if os.path.exists(path) else "no such file"
    if not is_model(key) or name.startswith("torchtune.models."):  # which reads none, and is told of its arguments
        return None
    if name.endswith(".EarlierCheckpoint"):
        has_state = os.path.isfile(f"{path}/state.json")
        return None if has_state else "no checkpoint of a run; name a folder checkpoints/step_N"
    if name.endswith(".Cached") and not is_cache(path):
        if os.path.exists(path):
            return "is no cache of a teacher, which has a manifest.json; name another folder"
        made_by = f"distill-tune run teacher_cache --config ... cache.kind=sampled output_dir={path}"
        return f"no cache of a teacher; make one from this config with its teacher: {made_by}"
    if name.endswith(".Cached"):
        return None
    if path.endswith(".gguf"):
        of_student = "a GGUF file can be a teacher; a student needs a Hugging Face model folder"
        return "no such file" if not os.path.isfile(path) else of_student if key == "model" else None
    if is_cache(path):
        return f"is a cache of a teacher, and no model's folder; {how_to_read_cache(key, path)}"
    return None if is_model_folder(path) else no_model_at(path)


def _how_to_get(path: Path, source: str) -> str:
    """The command that gets the model's folder that a path is in, or leaves it, as a config's head has it."""
    for config in configs_folder().rglob("*.yaml"):
        text = config.read_text(encoding="utf-8")
        left, command = _LEFT_IN.search(text), re.search(_RUN.format(config.stem), text, re.MULTILINE)
        if left and command and Path(left[1]) in path.parents:
            return f"; it is what this leaves: {command[1]}"
    heads = [source, *(config.read_text(encoding="utf-8") for config in configs_folder().rglob("*.yaml"))]
    for command, name in _DOWNLOAD.findall("\n".join(heads)):
        if name in path.parts:
            folder = Path(*path.parts[: path.parts.index(name) + 1])
            return f"; get it: {command}" + ("" if folder == Path("models") / name else f" --output {folder}")
    return ""
