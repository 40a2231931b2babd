import json
from pathlib import Path

import pytest
from tiny_tokenizer import TEMPLATE, write_tokenizer
from tokenizers import Tokenizer, models

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data import hf_tokenizer
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError

from torchtune.data import Message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


MESSAGES = [
    Message("user", "hello", masked=True),
    Message("assistant", "你好 there"),
    Message("user", "more", masked=True),
    Message("assistant", "no"),
]


def test_the_chat_template_decides_and_answers_with_their_end_are_learned(folder):
    tokenizer = hf_tokenizer(str(folder))
    tokens, mask = tokenizer.tokenize_messages(MESSAGES)
    assert tokenizer.decode([t for t, masked in zip(tokens, mask, strict=True) if not masked]) == "你好 thereno"
    assert [t for t, masked in zip(tokens, mask, strict=True) if not masked].count(tokenizer.eos_id) == 2
    asked = tokenizer.prompt([{"role": "user", "content": "hello"}])
    assert tokens[: len(asked)] == asked


def test_it_is_what_transformers_makes_of_the_folder(folder):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=TEMPLATE)
    turns = [{"role": message.role, "content": message.text_content} for message in MESSAGES]
    assert hf_tokenizer(str(folder)).tokenize_messages(MESSAGES)[0] == theirs.apply_chat_template(turns)["input_ids"]


def test_a_template_of_its_own_file_counts_and_a_refusal_is_told(folder):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + TEMPLATE)
    with pytest.raises(RowError, match="the chat template refuses it: no system turns"):
        hf_tokenizer(str(folder)).tokenize_messages([Message("system", "Be brief.", masked=True), *MESSAGES])


def test_without_a_template_turns_follow_each_other(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = hf_tokenizer(str(folder / "tokenizer.json"))
    tokens, mask = tokenizer.tokenize_messages(MESSAGES[:2])
    assert tokenizer.decode(tokens) == "hello\n你好 there"
    assert mask[-1] is False


def test_broken_or_missing_files_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="has no tokenizer"):
        hf_tokenizer(str(empty))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        hf_tokenizer(str(folder))
    (empty / "tokenizer.json").write_text(Tokenizer(models.BPE()).to_str())
    with pytest.raises(UserError, match="no end-of-sequence token"):
        hf_tokenizer(str(empty))
