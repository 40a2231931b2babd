from pathlib import Path

import pytest
from omegaconf import OmegaConf

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
    config = OmegaConf.create({"root": "a", "needed": "a/b", "also": 1, "mabe": 2})
    faults = check_keys(config, tmp_path / "recipe.py", "needed: ${root}/b")
    assert faults == ["mabe: no such key, did you mean maybe?"]


def test_a_key_of_another_recipe_may_stand_in_a_file_but_not_on_the_command_line(tmp_path: Path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    config = OmegaConf.create({"needed": 1, "also": 1, "fsdp_cpu_offload": True})
    assert check_keys(config, tmp_path / "recipe.py", "") == []
    told = check_keys(config, tmp_path / "recipe.py", "", ["fsdp_cpu_offload=True"])
    assert told == ["fsdp_cpu_offload: recipe does not read it; kd_distributed does"]


def test_a_file_that_is_no_recipe_is_told(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def main(cfg:")
    with pytest.raises(UserError, match="not valid Python"):
        keys_of_recipe(tmp_path / "broken.py")
    (tmp_path / "other.py").write_text("print(1)")
    with pytest.raises(UserError, match=r"has no function main\(cfg\)"):
        keys_of_recipe(tmp_path / "other.py")
