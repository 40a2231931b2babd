"""Where recipes and configs lie, and which file a name means."""

import os
from collections.abc import Sequence
from pathlib import Path

from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.errors import UserError

# torchtune's configs, but for what they are run on.
_CONFIGS_OF_TORCHTUNE = {
    "8B_to_1B_KD_lora": "llama3_2/8B_to_1B_lora",
    "1.5_to_0.5B_KD_lora": "qwen2/1.5B_to_0.5B_lora",
}

_YAML, _SHOWN = (".yaml", ".yml"), 3
_PACKAGE = Path(__file__).parent.parent
_DEMO = "demo:"
_NAME_ONE = "name a Hugging Face model folder"
OF_RUN = ("model", "adapter")  # where in its output_dir a run leaves the student


def local_path(name: str) -> Path:
    """A path as a user writes it: ``~`` is the home folder, also where no shell has read it; ``demo:student`` and
    its like are the models that travel with the package.
    """
    if name in demo_names():
        return demo_model_folder(name.removeprefix(_DEMO))
    return Path(os.path.expanduser(name))


def is_model_folder(path: str | Path) -> bool:
    """Whether it has the config.json of a model of Hugging Face, or an adapter's."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("config.json", "adapter_config.json"))


def model_at(path: Path, kinds: Sequence[str] = OF_RUN) -> Path:
    """The folder of a model, or its file; of a run's output_dir that of the student which it has left.

    Args:
        kinds: of :data:`OF_RUN`, in the order in which they are looked for.
    """
    left = [path / kind for kind in kinds if is_model_folder(path / kind)]
    return left[0] if left and not is_model_folder(path) else path


def no_model_at(path: str | Path) -> str:
    """What a path is that is no model's folder, and what to name in its place."""
    return _known_at(Path(path)) or f"no such folder, or it has no config.json; {_NAME_ONE}"


def nothing_at(path: Path) -> str:
    """As :func:`no_model_at`, with which of its last cases it is."""
    kind = "has no config.json" if path.is_dir() else no_folder_at(path)
    return _known_at(path) or f"{kind}; {_NAME_ONE}"


def no_folder_at(path: Path) -> str:
    """What a path is that is no folder."""
    return "is a file" if path.exists() else "no such folder"


def _known_at(path: Path) -> str | None:
    """None where it is nothing that there is a name for."""
    if str(path).startswith(_DEMO):
        return f"no such model travels with the package; there are {', '.join(demo_names())}"
    if is_cache(path):
        return "is a cache of a teacher, which holds no model; name a model's folder"
    if (path / "generation.json").is_file():
        return "holds answers, which generate wrote, and no model; name a model's folder"
    run = path.parents[path.parts[::-1].index("checkpoints")] if "checkpoints" in path.parts[-2:] else path
    if (model := model_at(run)) != run:
        return f"is no model's folder; name {model}"
    if (run / "checkpoints").is_dir():
        return (
            "is of a run that has left no model yet; its own command with resume=auto goes on with it, "
            "and distill-tune export makes a model of its newest checkpoint"
        )
    if (run / "config.yaml").is_file():
        return "is of a run that has left neither a model nor a checkpoint yet; its own command begins it anew"
    return None


def is_cache(path: str | Path) -> bool:
    """Whether recipes/teacher_cache.py, or a run with ``teacher_cache``, has written there."""
    return os.path.isfile(os.path.join(path, "manifest.json"))


def how_to_read_cache(key: str, path: str) -> str:
    """How a config names the folder of a cache."""
    return f"write '{key}={{_component_: distill_tune.teachers.Cached, path: {path}}}'"


def folders_of_own_modules(recipe: Path) -> list[str]:
    """Where a user's own components lie: beside the recipe, and in the current folder."""
    return [str(recipe.resolve().parent), os.getcwd()]


def recipes_folder() -> Path:
    return _shipped("recipes")


def configs_folder() -> Path:
    return _shipped("configs")


def demo_model_folder(name: str) -> Path:
    """The folder of a model that travels with the package."""
    return _PACKAGE / "_demo_models" / name


def demo_names() -> list[str]:
    """What commands call the models that travel with the package: ``demo:student`` and its like."""
    return [f"{_DEMO}{path.name}" for path in sorted((_PACKAGE / "_demo_models").iterdir()) if is_model_folder(path)]


def _shipped(name: str) -> Path:
    """A wheel carries the folder inside the package; in a source tree it stands beside it."""
    inside = _PACKAGE / f"_{name}"
    return inside if inside.is_dir() else _PACKAGE.parent / name


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.py"))


def config_names() -> list[str]:
    root = configs_folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe, given by name or path.

    Raises:
        UserError: there is none; near names are listed.
    """
    path = local_path(name)
    if path.suffix == ".py":
        if path.is_file():
            return path
        raise UserError(f"recipe {name}: no such file")
    if name in recipe_names():
        return recipes_folder() / f"{name}.py"
    if (ours := name.replace("knowledge_distillation_", "kd_")) in recipe_names():
        raise UserError(f"recipe {name}: torchtune's; here it is {ours}")
    if name in _spellings_of_configs():
        raise UserError(f"recipe {name}: is a config; distill-tune run kd_single_device --config {name}")
    raise _no_such("recipe", f"recipe {name}", name, recipe_names())


def find_config(name: str, or_recipe: bool = False) -> Path:
    """The file of a config, given by path, by its name below configs/, or by its bare name where that is unique.

    Args:
        or_recipe: whether the name may also be a recipe's, or that of a .py file.

    Raises:
        UserError: there is none, or several; the names are listed.
    """
    path = local_path(name)
    if or_recipe and (path.suffix == ".py" or name in recipe_names()):
        return find_recipe(name)
    if path.suffix in _YAML and (there := [file for file in (path, configs_folder() / path) if file.is_file()]):
        return there[0]
    names = config_names()
    matches = [name] if name in names else [full for full in names if full.rpartition("/")[2] == name]
    matches = matches or [full for full in names if full.startswith(f"{name}/")]
    if len(matches) == 1:
        return configs_folder() / f"{matches[0]}.yaml"
    if matches:
        raise UserError(f"config {name}: several have this name, take one of {', '.join(matches)}")
    if told := _told_of(path):
        raise UserError(f"config {name}: {told}")
    bare = name.rpartition("/")[2].removesuffix("_single_device").removesuffix("_distributed")
    if bare in _CONFIGS_OF_TORCHTUNE:
        raise UserError(f"config {name}: torchtune's; here it is {_CONFIGS_OF_TORCHTUNE[bare]}, for every KD recipe")
    if or_recipe:
        raise _no_such("recipe or config", name, name, [*recipe_names(), *_spellings_of_configs()])
    raise _no_such("config", f"config {name}", name, _spellings_of_configs())


def _told_of(path: Path) -> str | None:
    """Why what a path means cannot be a config."""
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir() if file.suffix in _YAML and file.is_file())
        return "is a folder; name a YAML file in it" + (f": {', '.join(found[:_SHOWN])}" if found else "; it has none")
    if path.suffix in _YAML:
        return "no such file"
    return f"is not named as YAML is; a config's name ends in {' or '.join(_YAML)}" if path.exists() else None


def _no_such(what: str, where: str, name: str, names: Sequence[str]) -> UserError:
    near = did_you_mean(nearest(name, names))
    return UserError(f"{where}: no such {what}{near}; `distill-tune ls` lists them all")


def _spellings_of_configs() -> list[str]:
    """Whole names, and their last parts."""
    names = config_names()
    return [*names, *(full.rpartition("/")[2] for full in names)]
