"""llama.cpp's names of pre-tokenizers beside those that transformers reads in its files."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from distill_tune.errors import UserError
from distill_tune.models.gguf_pretokenizers import pretokenizer_name


def state(*steps, whole_words=False, normaliser=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    tokenizer.normalizer = normaliser
    return json.loads(tokenizer.to_str())


def split(regex):
    return pre_tokenizers.Split(Regex(regex), "isolated")


def byte_level(words=False, space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=words)


@pytest.mark.parametrize(
    ("name", "whole_words"),
    [
        ("llama-bpe", True),
        ("dbrx", False),
        ("qwen2", False),
        ("qwen35", False),
        ("tekken", True),
        ("gpt-4o", False),
    ],
)
def test_a_name_is_that_under_which_transformers_cuts_so(name, whole_words):
    cut = state(split(GGUF_PRE_TOKENIZER_SPLITS[name]), byte_level(), whole_words=whole_words)
    assert pretokenizer_name(cut) == name


def test_names_of_steps():
    assert pretokenizer_name(state(byte_level(words=True))) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert pretokenizer_name(state(digits, byte_level(words=True))) == "smollm"
    steps = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")
    assert pretokenizer_name(state(*map(split, steps), digits, byte_level())) == "deepseek-coder"


def test_new_lines_may_be_spelled_or_stand_there():
    spelled = GGUF_PRE_TOKENIZER_SPLITS["qwen2"]
    there = spelled.replace(r"\r", "\r").replace(r"\n", "\n")
    assert there != spelled
    assert pretokenizer_name(state(split(there), byte_level(), normaliser=normalizers.NFC())) == "qwen2"


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        (state(split(r"\p{L}+"), byte_level()), r"\\p\{L\}\+; llama.cpp's own converter"),
        (state(byte_level(words=True, space=True)), "add_prefix_space"),
        (state(byte_level(words=True), normaliser=normalizers.Lowercase()), "it changes texts first .Lowercase."),
        (state(byte_level(words=True), whole_words=True), "a word that is a token before any merge"),
    ],
)
def test_what_has_no_name_is_refused_with_what_to_do(unknown, said):
    with pytest.raises(UserError, match=f"has no name in llama.cpp that we know: .*{said}"):
        pretokenizer_name(unknown)
