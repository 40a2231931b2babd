"""What the cache of rows is found by: everything that decides how a row becomes tokens."""

import sys
import types

import pytest
from omegaconf import OmegaConf
from tiny_tokenizer import write_tokenizer

from distill_tune.config.components import find_component
from distill_tune.data import dates
from distill_tune.data.row_identity import identity_of

OURS = {"_component_": "distill_tune.data.chat", "source": "rows.json"}


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """A folder of a user's own on the search path; returns what writes a module there."""
    root = tmp_path / "own"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def identity(folder, dataset=OURS, **tokenizer):
    tokenizer = {"_component_": "distill_tune.data.hf_tokenizer", "path": str(folder)} | tokenizer
    return identity_of(OmegaConf.create(dataset), OmegaConf.create(tokenizer))


@pytest.mark.parametrize("named", ["", "tokenizer.json", "original/tokenizer.model"])
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
    ],
)
def test_every_file_of_the_tokenizer_counts_be_its_path_the_folder_or_a_file(folder, name, named):
    (folder / "original").mkdir()
    (folder / "original" / "tokenizer.model").write_text("Meta's own")
    before = identity(folder / named)
    assert identity(folder / named) == before
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    changed = identity(folder / named)
    assert changed != before
    (folder / name).write_text('{"a": 1}')
    assert identity(folder / named) not in (before, changed)


def test_a_file_that_an_argument_names_counts_wherever_it_lies(folder, tmp_path):
    template = tmp_path / "elsewhere" / "mine.template"
    template.parent.mkdir()
    template.write_text("a")
    before = identity(folder, template={"file": str(template)})
    template.write_text("b")
    assert identity(folder, template={"file": str(template)}) != before


def test_weights_beside_the_tokenizer_do_not_count(folder):
    before = identity(folder)
    (folder / "model.safetensors").write_bytes(b"0" * 8)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert identity(folder) == before


def test_the_date_counts_only_where_a_template_asks_for_it(folder, monkeypatch):
    def on(day: str):
        dates.set_today(day)
        return identity(folder)

    monkeypatch.setattr(dates, "_of_run", None)
    assert on("2026-03-01") == on("2026-03-02")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    assert on("2026-03-01") != on("2026-03-02")
    assert on("2026-03-01") == on("2026-03-01")


def test_the_code_of_a_users_own_dataset_counts_with_the_modules_of_ones_own_that_it_imports(folder, own_modules):
    own_modules("my_rows.py", "import json, torch, my_cleaning\ndef rows(tokenizer, source): ...\n")
    own_modules("my_cleaning.py", "def clean(text):\n    from my_package.words import STOP\n    return text\n")
    own_modules("my_package/__init__.py", "")
    own_modules("my_package/words.py", "from . import more\nSTOP = 1\n")
    own_modules("my_package/more.py", "")
    own_modules("my_other.py", "")
    mine = {"_component_": "my_rows.rows", "source": "rows.json"}
    find_component("my_rows.rows")
    before = identity(folder, mine)
    own_modules("my_other.py", "UNUSED = 1\n")
    assert identity(folder, mine) == before != identity(folder)
    seen = [before]
    for name in ("my_package/more.py", "my_package/words.py", "my_cleaning.py", "my_rows.py"):
        own_modules(name, "def rows(tokenizer, source): ...\n# another\nimport my_cleaning, my_package.words\n")
        seen.append(identity(folder, mine))
        assert seen[-1] not in seen[:-1], name


def test_packages_without_an_init_file_count_too(folder, own_modules):
    own_modules("my_code/rows.py", "from my_code.cleaning import clean\nfrom . import more\ndef rows(tokenizer): ...\n")
    own_modules("my_code/cleaning.py", "def clean(text): ...\n")
    own_modules("my_code/more.py", "")
    mine = {"_component_": "my_code.rows.rows"}
    find_component("my_code.rows.rows")
    seen = [identity(folder, mine)]
    assert seen[0]["code"]
    for name in ("my_code/more.py", "my_code/cleaning.py"):
        own_modules(name, "clean = another = 1\n")
        seen.append(identity(folder, mine))
        assert seen[-1] not in seen[:-1], name


def test_a_transform_below_the_dataset_and_a_template_named_by_a_tokenizer_count_too(folder, own_modules):
    own_modules("my_transform.py", "class Transform: ...\n")
    own_modules("my_template.py", "class Template: ...\n")
    nested = OURS | {"message_transform": {"_component_": "my_transform.Transform"}}
    find_component("my_transform.Transform")
    find_component("my_template.Template")
    before = identity(folder, nested, prompt_template="my_template.Template")
    own_modules("my_transform.py", "class Transform:\n    changed = True\n")
    changed = identity(folder, nested, prompt_template="my_template.Template")
    own_modules("my_template.py", "class Template:\n    changed = True\n")
    assert before != changed != identity(folder, nested, prompt_template="my_template.Template")


def test_a_file_that_a_users_own_dataset_is_given_counts(folder, own_modules, tmp_path):
    own_modules("my_prompts.py", "def rows(tokenizer, prompts): ...\n")
    (tmp_path / "prompts.md").write_text("a")
    mine = {"_component_": "my_prompts.rows", "prompts": str(tmp_path / "prompts.md")}
    find_component("my_prompts.rows")
    before = identity(folder, mine)
    (tmp_path / "prompts.md").write_text("b")
    assert identity(folder, mine) != before


def test_an_installed_package_counts_by_its_version_and_known_ones_by_theirs(folder):
    versions = identity(folder)["versions"]
    assert any(version.startswith("transformers ") for version in versions)
    assert any(version.startswith("jinja2 ") for version in versions)
    assert identity(folder, {"_component_": "numpy.asarray"})["code"]["numpy"].startswith("numpy ")


def test_without_source_there_is_no_cache(folder, monkeypatch):
    made = types.ModuleType("made_at_run_time")
    made.rows = lambda tokenizer: []
    monkeypatch.setitem(sys.modules, "made_at_run_time", made)
    assert identity(folder, {"_component_": "made_at_run_time.rows"}) is None
