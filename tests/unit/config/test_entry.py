"""How a recipe starts, whatever its main is."""

import sys

from distill_tune.config.entry import _file_of

RECIPE = """\ufefffrom distill_tune import config
from torch.distributed.elastic.multiprocessing.errors import record


@record
def main(cfg):
    print("mine is", cfg.get("mine"))


if __name__ == "__main__":
    config.run_recipe(main)
"""


def test_a_decorated_main_in_a_file_with_a_byte_order_mark_is_validated_and_run(write_config, cli, tmp_path):
    write_config()
    (tmp_path / "mine.py").write_text(RECIPE, encoding="utf-8")
    for command, told in (("validate", "config.yaml: valid for mine"), ("run", "mine is 5")):
        done = cli(command, "mine.py", "--config", "config.yaml", "+mine=5")
        assert told in done.stdout, done.stderr
        assert done.returncode == 0


def test_a_recipe_that_another_script_runs_is_still_the_recipe(tmp_path):
    """As under python -m cProfile, or in a test of one's own."""
    (tmp_path / "mine.py").write_text(RECIPE, encoding="utf-8")
    names = {"__name__": "mine"}
    exec(compile(RECIPE.lstrip("\ufeff"), tmp_path / "mine.py", "exec"), names)
    assert getattr(sys.modules["__main__"], "__file__", None) != str(tmp_path / "mine.py")
    assert _file_of(names["main"]) == tmp_path / "mine.py"
