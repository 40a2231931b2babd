import json
from pathlib import Path

import pytest
from tiny_tokenizer import TEMPLATE, write_tokenizer

from distill_tune.data import hf_tokenizer
from distill_tune.models.tokenizer_files import open_tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A student's and a teacher's: the same tokenizer, other sizes."""
    made = [tmp_path / name for name in ("student", "teacher")]
    for layers, folder in enumerate(made):
        folder.mkdir()
        write_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
    return made


def test_the_same_files_are_read_once(folders):
    student, teacher = map(open_tokenizer, folders)
    assert student is teacher
    assert hf_tokenizer(str(folders[0])).transformers_tokenizer is student


def test_where_the_template_stands_and_the_dtype_make_no_other_tokenizer(folders):
    """As model/ has them beside the base's folder."""
    first = open_tokenizer(folders[0])
    settings = json.loads((folders[0] / "tokenizer_config.json").read_text())
    (folders[0] / "chat_template.jinja").write_text(TEMPLATE)
    for template in ({}, {"chat_template": "an older one"}):
        without = {key: value for key, value in settings.items() if key != "chat_template"}
        (folders[0] / "tokenizer_config.json").write_text(json.dumps(without | template, indent=2))
        (folders[0] / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
        assert open_tokenizer(folders[0]) is first


def test_several_templates_are_not_the_one_of_the_same_text(folders):
    first = open_tokenizer(folders[0])
    settings = json.loads((folders[0] / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": TEMPLATE}]
    (folders[0] / "tokenizer_config.json").write_text(json.dumps(settings))
    several = open_tokenizer(folders[0])
    assert (first.chat_template, several.chat_template) == (TEMPLATE, {"default": TEMPLATE})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("additional_chat_templates/tool_use.jinja", "{{ messages }}"),
        ("config.json", json.dumps({"model_type": "qwen2"})),
        ("special_tokens_map.json", "{}"),
        ("tokenizer_config.json", json.dumps({"eos_token": "<|im_start|>", "chat_template": TEMPLATE})),
    ],
)
def test_other_files_are_read(folders, file, text):
    first = open_tokenizer(folders[0])
    (folders[0] / file).parent.mkdir(exist_ok=True)
    (folders[0] / file).write_text(text)
    assert open_tokenizer(folders[0]) not in (None, first)


def test_a_template_of_a_run_is_not_the_folders(folders, tmp_path):
    (tmp_path / "other.jinja").write_text("{{ messages }}")
    assert hf_tokenizer(str(folders[0]), chat_template=str(tmp_path / "other.jinja")).transformers_tokenizer
    assert open_tokenizer(folders[0]).chat_template == TEMPLATE


def test_what_cannot_be_read_is_told_once(folders, capsys):
    (folders[0] / "tokenizer.json").write_text("{")
    assert [open_tokenizer(folders[0]) for _ in range(2)] == [None, None]
    assert capsys.readouterr().out.count("cannot be read by transformers") == 1
