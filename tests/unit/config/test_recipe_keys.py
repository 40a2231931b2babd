"""What keys a config may have: those of the shipped recipes by a table, of a copy also what it reads in any way."""

import ast
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill_tune.config.files import find_recipe, recipes_folder
from distill_tune.config.keys import KEYS, READ_BY, Needed
from distill_tune.config.recipe_keys import Recipe, check_keys
from distill_tune.config.values import check_values
from distill_tune.errors import UserError
from distill_tune.evaluation import named_models, tasks
from distill_tune.evaluation import preparation as evaluation_of_config
from distill_tune.training import answers, preparation, questions, writers

ALL = {key: 1 for key, entry in KEYS.items() if isinstance(entry.default, Needed) and not entry.recipes}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """mine.py: kd_single_device with more lines: at its top level, and where main begins."""
    monkeypatch.chdir(tmp_path)

    def make(at_top: str = "", in_main: str = "", main: str = "def main(cfg: DictConfig) -> None:\n") -> Path:
        text = find_recipe("kd_single_device").read_text()
        (whole_main,) = [line for line in text.splitlines(keepends=True) if line.startswith("def main(")]
        text = text.replace(whole_main, f"{at_top}\n\n{main}    {in_main}\n")
        (tmp_path / "mine.py").write_text(text)
        return tmp_path / "mine.py"

    return make


def faults(recipe, overrides=(), **more):
    return check_keys(OmegaConf.create(ALL | more), Recipe(recipe), "", overrides)[0]


@pytest.mark.parametrize(
    ("at_top", "in_main"),
    [
        ("def helper(settings):\n    return settings.my_key", "helper(cfg)"),
        ("", "c = cfg; c.my_key"),
        ("", 'getattr(cfg, "my_key", None)'),
        ("", 'cfg.pop("my_key", None)'),
        ("from omegaconf import OmegaConf", "OmegaConf.select(cfg, 'my_key.nested', default=0)"),
        ('KEY = "my_key"', "cfg.get(KEY)"),
        ("import helpers", "helpers.read(cfg)"),
        ("from package.inner import read", "read(cfg)"),
        ("from elsewhere import read", "read(cfg)"),
        ("", 'cfg[f"my_{name}"]'),
    ],
)
def test_a_copy_may_read_a_key_in_any_way(copy, tmp_path, at_top, in_main):
    (tmp_path / "helpers.py").write_text("def read(config):\n    return config['my_key']\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").write_text("def read(config):\n    return config['my_key']\n")
    assert faults(copy(at_top, in_main), my_key=5) == []


@pytest.mark.parametrize(
    ("at_top", "in_main"),
    [
        ("def lr_of(cfg):\n    return cfg.lr", "lr_of(cfg.optimizer)"),
        ("", "cfg.added = 3"),
        ("", 'value = cfg["k"] if "k" in cfg else 0'),
    ],
)
def test_what_a_copy_reads_elsewhere_sets_or_asks_for_is_not_missing(copy, at_top, in_main):
    assert faults(copy(at_top, in_main)) == []


def test_what_another_override_takes_its_value_from_is_read():
    recipe, rows = find_recipe("kd_single_device"), {"_component_": "distill_tune.data.instruct"}
    overrides = ["dataset_test.source=held_out.json", "dataset_val=${dataset_test}"]
    assert faults(recipe, overrides, dataset_test=rows, dataset_val=rows) == []
    assert faults(recipe, overrides[:1], dataset_test=rows)[0].startswith(
        "dataset_test: kd_single_device does not read"
    )


def test_what_a_copy_no_longer_needs_is_not_missing(copy):
    recipe = Recipe(copy(in_main='cfg.epochs = 3; cfg["device"] = "cpu"'))
    config = OmegaConf.create({key: 1 for key in ALL if key not in ("epochs", "device")})
    assert check_keys(config, recipe, "") == ([], [])
    del config["dataset"], config["output_dir"]
    missing = [f"{key}: missing; the recipe needs it: {KEYS[key].meaning}" for key in ("dataset", "output_dir")]
    assert check_keys(config, recipe, "") == (missing, [])


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("kd_raito", "kd_raito: no such key, did you mean kd_ratio?"),
        ("mode", "mode: no such key, did you mean model or models?"),
        ("my_alhpa", "my_alhpa: no such key, did you mean my_alpha?"),
        ("warmup_steps", "warmup_steps: no such key, did you mean lr_scheduler.num_warmup_steps?"),
    ],
)
def test_a_key_that_is_almost_another_is_told_in_a_copy_too(copy, key, told):
    recipe = Recipe(copy(in_main='cfg.get("my_alpha", 1)'))
    config = OmegaConf.create(ALL | {"lr_scheduler": {"num_warmup_steps": 5}, key: 1})
    assert check_keys(config, recipe, "") == ([told], [])  # and not as one that nothing reads, too


@pytest.mark.parametrize(("at_top", "is_sure"), [("", True), ("import json", True), ("import my_package", False)])
def test_a_key_like_another_is_a_line_where_a_copy_imports_what_is_not_read(copy, at_top, is_sure):
    told = ["tokeniser: no such key, did you mean tokenizer?"]
    found = check_keys(OmegaConf.create(ALL | {"tokeniser": 3}), Recipe(copy(at_top)), "")
    assert found == ((told, []) if is_sure else ([], told))


def test_a_key_that_a_copy_does_not_name_is_told(copy):
    config = OmegaConf.create(ALL | {"my_key": 1, "zzz": 1})
    recipe = Recipe(copy("", "cfg.my_key"))
    assert check_keys(config, recipe, "") == ([], ["zzz: mine.py does not name it; does it read it?"])
    assert check_keys(config, recipe, "path: ${zzz}") == ([], [])


def test_a_shipped_recipe_reads_no_key_that_is_not_known():
    recipe = Recipe(find_recipe("kd_single_device"))
    told = check_keys(OmegaConf.create(ALL | {"zzz": 1}), recipe, "")
    assert told == (["zzz: no such key, and nothing would read it"], [])


def test_a_key_that_only_an_interpolation_reads_is_read():
    config = OmegaConf.create(ALL | {"root": "a", "kd_raito": 2})
    told, _ = check_keys(config, Recipe(find_recipe("kd_single_device")), "output_dir: ${root}/b")
    assert told == ["kd_raito: no such key, did you mean kd_ratio?"]


def test_a_key_of_another_recipe_may_stand_in_a_file_but_not_on_the_command_line(copy):
    for recipe in (find_recipe("kd_single_device"), copy()):
        assert faults(recipe, fsdp_cpu_offload=True) == []
        told = faults(recipe, ["fsdp_cpu_offload=True"], fsdp_cpu_offload=True)
        assert told == [f"fsdp_cpu_offload: {recipe.stem} does not read it; the recipe kd_distributed does"]
    assert faults(copy(in_main="cfg.fsdp_cpu_offload"), ["fsdp_cpu_offload=True"], fsdp_cpu_offload=True) == []
    assert faults(find_recipe("kd_distributed"), ["fsdp_cpu_offload=True"], fsdp_cpu_offload=True) == []


def test_a_key_that_nothing_heeds_beside_the_others_is_left_to_a_copy_that_reads_it_in_its_own_way(copy):
    config = OmegaConf.create({"kd_ratio": 0, "log_every_n_steps": 5})
    told = ["log_every_n_steps=5: nothing heeds it without metric_logger; leave it out"]
    assert check_values(config, Recipe(copy(in_main="cfg.model")).reads_otherwise) == told
    recipe = Recipe(copy(in_main="every = cfg.log_every_n_steps"))
    assert check_values(config, recipe.reads_otherwise) == []


def test_a_file_that_is_no_recipe_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def main(cfg:")
    with pytest.raises(UserError, match="not valid Python"):
        Recipe(tmp_path / "broken.py")
    (tmp_path / "other.py").write_text("print(1)")
    with pytest.raises(UserError, match=r"nothing in it calls distill_tune\.config\.run_recipe"):
        Recipe(tmp_path / "other.py")


def test_a_key_of_one_recipe_is_needed_there_and_refused_where_it_is_asked_of_another():
    stored, trained = find_recipe("teacher_cache"), find_recipe("kd_single_device")
    (told,) = faults(stored)
    assert told.startswith("cache: missing; the recipe needs it: what is stored: cache.kind=sampled, top_k, hidden or")
    assert faults(stored, ["cache.kind=sampled"], cache={"kind": "sampled"}) == []
    assert faults(trained, cache={"kind": "sampled"}) == []  # one file serves all
    told = faults(trained, ["cache.kind=sampled"], cache={"kind": "sampled"})
    assert told == ["cache: kd_single_device does not read it without teacher_cache; the recipe teacher_cache does"]


def test_a_recipe_may_begin_with_a_byte_order_mark_and_have_a_main_of_any_kind(copy):
    recipe = copy()
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
    assert faults(recipe) == []
    assert faults(copy(main="async def main(cfg: DictConfig) -> None:\n")) == []


def test_a_recipe_is_distributed_where_it_joins_the_others():
    assert [Recipe(find_recipe(name)).is_distributed for name in ("kd_single_device", "kd_distributed")] == [
        False,
        True,
    ]


def reads_in(path: Path) -> dict[str, object]:
    """By key, the default with which ``cfg.get`` reads it; Needed where ``cfg.key`` does."""
    found: dict[str, object] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cfg" and node.attr != "get":
            found[node.attr] = Needed
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "cfg.get":
            default = node.args[1] if len(node.args) > 1 else ast.Constant(None)
            found.setdefault(node.args[0].value, default.value if isinstance(default, ast.Constant) else None)
    return found


def test_the_table_has_every_key_that_the_recipes_read_with_its_default():
    of_both = reads_in(Path(preparation.__file__)) | reads_in(recipes_folder() / "kd_single_device.py")
    of_all = of_both | reads_in(recipes_folder() / "kd_distributed.py")
    of_cache = reads_in(recipes_folder() / "teacher_cache.py")
    of_answers = reads_in(recipes_folder() / "generate.py")
    for module in (answers, questions, writers):
        of_answers |= reads_in(Path(module.__file__))
    of_evaluation = reads_in(recipes_folder() / "evaluate.py")
    for module in (evaluation_of_config, named_models, tasks):
        of_evaluation |= reads_in(Path(module.__file__))
    of_evaluation |= {key: default for key, default in of_both.items() if "prompt" in key}  # by reading_of
    assert set(of_all | of_cache | of_answers | of_evaluation) == set(KEYS)
    assert set(of_answers) == READ_BY["generate"]
    assert set(of_evaluation) == READ_BY["evaluate"]
    alone = {
        "generate": set(of_answers) - set(of_all),
        "evaluate": set(of_evaluation) - set(of_all),
        "kd_distributed": set(of_all) - set(of_both),
        "teacher_cache": set(of_cache) - set(of_all),
    }
    assert {name: {key for key in KEYS if name in KEYS[key].recipes} for name in alone} == alone
    for key, default in (of_answers | of_evaluation | of_all).items():
        told = KEYS[key].default
        if default is Needed:
            assert isinstance(told, Needed), key
        else:
            assert told == default or (default is None and KEYS[key].values.takes_null), key


def test_the_table_says_which_function_reads_what_is_needed():
    for node in ast.parse(Path(preparation.__file__).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            body = ast.unparse(node)
            for key, entry in KEYS.items():
                if isinstance(entry.default, Needed) and entry.default.by == node.name:
                    assert f"cfg.{key}" in body, key


def test_null_is_a_value_of_every_key_that_has_no_other_by_default():
    assert [key for key, entry in KEYS.items() if entry.default is None and entry.values.fault(None)] == []
