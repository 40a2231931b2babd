"""Where recipes and configs lie, and which file a name means."""

import os
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


def local_path(name: str) -> Path:
    """A path as a user writes it: ``~`` is the home folder, also where no shell has read it."""
    return Path(os.path.expanduser(name))


def is_model_folder(path: str | Path) -> bool:
    """Whether it has the config.json of a model of Hugging Face, or an adapter's."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("config.json", "adapter_config.json"))


def is_cache(path: str | Path) -> bool:
    """Whether recipes/teacher_cache.py, or a run with ``teacher_cache``, has written there."""
    return os.path.isfile(os.path.join(path, "manifest.json"))


def folders_of_own_modules(recipe: Path) -> list[str]:
    """Where a user's own components lie: beside the recipe, and in the current folder."""
    return [str(recipe.resolve().parent), os.getcwd()]


def recipes_folder() -> Path:
    return _shipped("recipes")


def configs_folder() -> Path:
    return _shipped("configs")


def demo_model_folder(name: str) -> Path:
    """The folder of a model that travels with the package: ``teacher`` or ``student``."""
    return _PACKAGE / "_demo_models" / name


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
    if name in (names := config_names()) or name in {full.rpartition("/")[2] for full in names}:
        raise UserError(f"recipe {name}: is a config; distill-tune run kd_single_device --config {name}")
    raise UserError(
        f"recipe {name}: no such recipe{did_you_mean(nearest(name, recipe_names()))}; `distill-tune ls` lists them all"
    )


def find_config(name: str) -> Path:
    """The file of a config, given by path, by its name below configs/, or by its bare name where that is unique.

    Raises:
        UserError: there is none, or several; the names are listed.
    """
    path = local_path(name)
    if path.suffix in _YAML:
        if path.is_file():
            return path
        if (configs_folder() / path).is_file():
            return configs_folder() / path
        raise UserError(f"config {name}: {_told_of(path) or 'no such file'}")
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
    near = did_you_mean(nearest(name, _spellings_of_configs()))
    raise UserError(f"config {name}: no such config{near}; `distill-tune ls` lists them all")


def _told_of(path: Path) -> str | None:
    """Why what is there cannot be a config."""
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir() if file.suffix in _YAML and file.is_file())
        return "is a folder; name a YAML file in it" + (f": {', '.join(found[:_SHOWN])}" if found else "; it has none")
    return f"is not named as YAML is; a config's name ends in {' or '.join(_YAML)}" if path.exists() else None


def find_recipe_or_config(name: str) -> Path:
    """The file that a name of `distill-tune ls` means; a recipe's name or a .py file is a recipe.

    Raises:
        UserError: there is none; near names of both are listed.
    """
    if name in recipe_names() or name.endswith(".py"):
        return find_recipe(name)
    try:
        return find_config(name)
    except UserError as error:
        if "no such config" not in str(error):
            raise
        there_are = [*recipe_names(), *_spellings_of_configs()]
        near = did_you_mean(nearest(name, there_are))
        raise UserError(f"{name}: no such recipe or config{near}; `distill-tune ls` lists them all") from error


def _spellings_of_configs() -> list[str]:
    """Whole names, and their last parts."""
    names = config_names()
    return [*names, *(full.rpartition("/")[2] for full in names)]
