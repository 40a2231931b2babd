from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill_tune.config.files import config_names, configs_folder, recipes_folder
from distill_tune.config.keys import check_keys, keys_of_recipe
from distill_tune.errors import UserError

RECIPE = """
def main(settings):
    settings.needed, settings["also"]
    settings.get("maybe", 1)
    def inner():
        return settings.get("deep")
    settings.items()
"""


def test_the_keys_are_read_off_the_recipes_source(tmp_path: Path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    keys = keys_of_recipe(tmp_path / "recipe.py")
    assert (keys.required, keys.optional) == ({"needed", "also"}, {"maybe", "deep"})


def test_a_key_that_only_an_interpolation_reads_is_read(tmp_path: Path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    keys = keys_of_recipe(tmp_path / "recipe.py")
    config = OmegaConf.create({"root": "a", "needed": "a/b", "also": 1, "mabe": 2})
    assert check_keys(config, keys, "needed: ${root}/b") == ["mabe: no such key, did you mean maybe?"]


def test_a_file_that_is_no_recipe_is_told(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def main(cfg:")
    with pytest.raises(UserError, match="not valid Python"):
        keys_of_recipe(tmp_path / "broken.py")
    (tmp_path / "other.py").write_text("print(1)")
    with pytest.raises(UserError, match=r"has no function main\(cfg\)"):
        keys_of_recipe(tmp_path / "other.py")


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_has_only_keys_and_arguments_that_are_read(name):
    from distill_tune.config.components import check_components
    from distill_tune.config.load import load_config

    path = configs_folder() / f"{name}.yaml"
    config = load_config(path)
    keys = keys_of_recipe(recipes_folder() / "kd_single_device.py")
    assert check_keys(config, keys, path.read_text()) == []
    assert check_components(config) == []


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    # As published on the models' pages: parameters of the base weights.
    [
        ("llama3_2/8B_to_1B_lora", 1_235_814_400, 8_030_261_248),
        ("qwen2_5/7B_to_0_5B_lora", 494_032_768, 7_615_616_512),
    ],
)
def test_the_models_of_a_config_have_the_published_sizes(name, student, teacher):
    from distill_tune import models
    from distill_tune.config.load import load_config

    config = load_config(configs_folder() / f"{name}.yaml")
    model = models.build_on_meta("model", config.model)
    adapters = models.adapter_names(model)
    assert sum(p.numel() for key, p in model.named_parameters() if key not in adapters) == student
    assert sum(p.numel() for p in models.build_on_meta("teacher_model", config.teacher_model).parameters()) == teacher
