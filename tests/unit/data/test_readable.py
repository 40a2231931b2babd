"""Tokens as text: nothing torn, nothing lost, nothing that a terminal would obey."""

import json

import pytest
import tiny_tokenizer

from distill_tune.config import instantiate
from distill_tune.data.conversation import Conversation, tokenise
from distill_tune.data.readable import Piece, name_of, pieces, visible

TURNS = (
    {"role": "user", "content": "hello 你好?"},
    {"role": "assistant", "content": " 好🙂 there "},
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "🙂"},
)


@pytest.fixture
def chatml(tmp_path):
    tiny_tokenizer.write_tokenizer(tmp_path)
    return instantiate({"_component_": "distill_tune.data.hf_tokenizer", "path": str(tmp_path)})


@pytest.fixture
def torchtunes(tokenizer_file):
    return instantiate({"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file)})


def read(tokenizer, learned=(False, True, False, True)):
    row = tokenise(tokenizer, Conversation(TURNS, learned))
    return pieces(tokenizer, row.tokens.tolist(), row.labels.tolist())


def test_a_row_is_cut_where_it_begins_or_ceases_to_be_learned(chatml):
    assert read(chatml) == [
        Piece("<|im_start|>user\nhello 你好?<|im_end|>\n<|im_start|>assistant\n", False),
        Piece(" 好🙂 there <|im_end|>", True),
        Piece("\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", False),
        Piece("🙂<|im_end|>", True),
        Piece("\n", False),
    ]


def test_of_sentencepiece_no_space_is_lost_between_what_is_learned_and_what_is_not(torchtunes):
    assert [piece.learned for piece in read(torchtunes)] == [False, True, False, True]
    assert "".join(piece.text for piece in read(torchtunes)).replace("  ", " ") == (
        "<bos>[INST] hello 你好? [/INST] 好🙂 there<eos><bos>[INST] x [/INST] 🙂<eos>"
    )


def test_a_character_of_several_tokens_is_whole_whatever_is_learned_of_it(chatml):
    tokens = chatml.encode("a🙂b", add_bos=False, add_eos=False)
    for cut in range(len(tokens) + 1):
        labels = [-100] * cut + tokens[cut:]
        assert "".join(piece.text for piece in pieces(chatml, tokens, labels)) == "a🙂b"


def test_of_torchtunes_tiktoken_headers_and_special_tokens_are_there(tmp_path):
    from base64 import b64encode

    ranks = {bytes([byte]): byte for byte in range(256)}
    (tmp_path / "tokenizer.model").write_text(
        "\n".join(f"{b64encode(word).decode()} {rank}" for word, rank in ranks.items())
    )
    component = {"_component_": "torchtune.models.llama3.llama3_tokenizer", "path": str(tmp_path / "tokenizer.model")}
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert read(instantiate(component))[:2] == [
        Piece(f"<|begin_of_text|>{header('user')}hello 你好?<|eot_id|>", False),
        Piece(f"{header('assistant')}好🙂 there<|eot_id|>", True),  # torchtune's own mask
    ]


def test_special_tokens_have_names(chatml, torchtunes):
    assert name_of(chatml, chatml.eos_id) == "<|im_end|>"
    assert (name_of(torchtunes, 1), name_of(torchtunes, 2)) == ("<bos>", "<eos>")


def test_a_terminal_obeys_nothing_of_a_row():
    assert visible("a\nb\t\x1b[31m\x07\u202e\u2028\r好🙂\u200d") == "a↵\nb\t\\x1b[31m\\x07\\u202e\\u2028\\r好🙂\u200d"
    assert json.loads(f'"{visible("é")}"') == "é"
