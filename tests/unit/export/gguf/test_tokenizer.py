"""Tokenizers in GGUF files: what transformers, and SentencePiece itself, make of them beside the folder's own."""

import dataclasses
import json
import re
from pathlib import Path

import gguf
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tiny_tokenizer import TEMPLATE, write_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from distill_tune.data import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.export.gguf.tokenizer import Tokenizer as OfFile
from distill_tune.export.gguf.tokenizer import tell_space_prefix, texts_alike
from distill_tune.export.texts import written_turns
from distill_tune.models.gguf_pretokenizers import pretokenizer
from distill_tune.models.gguf_tokenizer import around_texts_of_file
from distill_tune.models.tokenizer_files import read_tokenizer

TEXTS = (
    "The river rose, didn't it?",
    "你好，世界！",
    "def f(x):\n    return x ** 2  # 12345\n\n\n\tpass\n",
    "a  b   c\t\td    \n\n\ne  ",
    "Grüße 🦙 привет",
)
RUN = "\u2581\u2581"
SIZES = {"embedding_length": 64, "attention.head_count": 4}
CORPUS = ["the river rose and the fields were under water", "def mean(values):    return sum(values)", "你好 世界"] * 20


def write_file(folder: Path, size: int = 500, architecture: str = "llama") -> OfFile:
    """The tokenizer alone, as a file without weights in a folder of its own."""
    found = OfFile.of_folder(folder, size)
    (folder / "gguf").mkdir()
    writer = gguf.GGUFWriter(folder / "gguf" / "model.gguf", architecture)
    for name, value in SIZES.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    found.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return found


def names(folder: Path) -> dict[int, str]:
    return {token: text for text, token in AutoTokenizer.from_pretrained(folder).get_vocab().items()}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes") / "student"
    folder.mkdir()
    write_tokenizer(folder, texts=CORPUS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {"<think>": False, "<|tool|>": False, "<|pad|>": True}
    state = json.loads((folder / "tokenizer.json").read_text())
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    start = 1 + max(state["model"]["vocab"].values())
    state["added_tokens"] += [
        {"id": start + number, "content": text, "special": special, **common}
        for number, (text, special) in enumerate(added.items())
    ]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|pad|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    return folder, write_file(folder)


def test_transformers_reads_the_same_byte_level_tokenizer(byte_level):
    folder, _ = byte_level
    own = AutoTokenizer.from_pretrained(folder)
    read = AutoTokenizer.from_pretrained(folder / "gguf", gguf_file="model.gguf")
    chat = [{"role": "user", "content": "hello there"}]
    for text in (*TEXTS, own.apply_chat_template(chat, tokenize=False), "a<think>b</think><|tool|>"):
        assert read(text)["input_ids"] == own(text)["input_ids"], text
    assert read.chat_template == own.chat_template == TEMPLATE


def cut_as(folder: Path, name: str) -> Path:
    """A byte-level folder that cuts texts as what llama.cpp calls so, trained on what that makes of the corpus."""
    cuts, whole_words = pretokenizer(name)
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer, tokenizer.decoder = cuts, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *TEXTS], trainer)
    if whole_words:  # a word that no merge makes
        state = json.loads(tokenizer.to_str())
        state["model"]["vocab"]["12345"] = 480
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return save(folder, tokenizer, eos_token="<|im_end|>")


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3"])
def test_our_own_reader_cuts_texts_as_the_source_does(tmp_path, name):
    folder = cut_as(tmp_path / name, name)
    assert write_file(folder).pre == name
    own, read = read_tokenizer(folder), read_tokenizer(folder / "gguf" / "model.gguf")
    for text in (*TEXTS, "12345 123 1", "ab<|im_end|>cd"):
        assert read.encode(text) == own.encode(text), text
        assert read.decode(read.encode(text)) == own.decode(own.encode(text))
    assert read.eos_token == "<|im_end|>"


@pytest.mark.parametrize(("name", "begins"), [("llama-bpe", True), ("qwen2", False)])
def test_our_own_reader_begins_texts_as_llama_cpp_does_where_a_file_leaves_it_out(tmp_path, monkeypatch, name, begins):
    folder = cut_as(tmp_path / name, name)
    writer, of_folder = gguf.GGUFWriter(tmp_path / "model.gguf", "llama"), OfFile.of_folder(folder, 500)
    monkeypatch.setattr(writer, "add_add_bos_token", lambda puts_bos: None)
    dataclasses.replace(of_folder, ids=of_folder.ids | {"bos": 9}).add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = read_tokenizer(tmp_path / "model.gguf")
    assert (read.encode("ab")[0] == 9) == begins


def test_our_own_reader_reads_control_and_added_tokens_and_the_template(byte_level):
    folder, _ = byte_level
    own, read = read_tokenizer(folder), read_tokenizer(folder / "gguf" / "model.gguf")
    text = own.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) + "a<think>b</think><|tool|>"
    assert read.encode(text) == own.encode(text)
    assert (read.chat_template, read.pad_token) == (own.chat_template, own.pad_token)
    assert read.get_vocab() == own.get_vocab()  # without rows that nothing is written with


def test_our_own_reader_reads_pieces(pieces):
    folder, _ = pieces
    own, read = read_tokenizer(folder), read_tokenizer(folder / "gguf" / "model.gguf")
    for text in (*TEXTS, "你好 12345"):
        assert read.encode(text) == own.encode(text), text
        assert read.decode(read.encode(text)) == own.decode(own.encode(text))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre": "default"}, "as what llama.cpp calls default, of which none but gpt-2, smollm"),
        ({"model": "t5"}, "is of the kind t5, of which none but gpt2 and llama are read"),
    ],
)
def test_a_file_whose_way_of_cutting_is_not_known_is_refused(tmp_path, byte_level, changes, said):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    dataclasses.replace(byte_level[1], **changes).add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=rf"tokenizer.path=.*model.gguf: .*{said}.*; name a folder with the same one"):
        hf_tokenizer(str(tmp_path / "model.gguf"))


def test_types_ends_and_flags_are_said(byte_level):
    folder, found = byte_level
    known = names(folder)
    kinds = {known[token]: kind for token, kind in enumerate(found.types) if token in known}
    assert kinds["<|im_start|>"] == kinds["<|tool|>"] == kinds["<|pad|>"] == 3  # control, whatever its file says
    assert (kinds["<think>"], kinds["a"]) == (4, 1)
    assert (found.model, found.pre, found.add_bos, found.add_eos) == ("gpt2", "gpt-2", False, False)
    end, start, pad = (next(token for token, text in known.items() if text == name) for name in MARKS)
    assert found.ids == {"pad": pad, "eos": end, "eot": start}
    assert found.ends == [end, start]
    assert found.unsaid_ends == []


MARKS = ("<|im_end|>", "<|im_start|>", "<|pad|>")


def test_merges_are_in_order(byte_level):
    folder, found = byte_level
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert found.merges == [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def test_tokens_without_a_row_are_left_out(byte_level):
    folder, whole = byte_level
    few = OfFile.of_folder(folder, 300)
    assert few.tokens == whole.tokens[:300]
    assert few.left_out == len(names(folder)) - 300


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A folder as Llama 2 has it, of a SentencePiece model."""
    folder = tmp_path_factory.mktemp("pieces") / "student"
    folder.mkdir()
    settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 380, "character_coverage": 1.0}
    settings |= {"minloglevel": 2, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    settings |= {"allow_whitespace_only_pieces": True}
    SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), **settings)
    own = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    own |= {"legacy": True, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    run = {"id": state["model"]["vocab"][RUN], "content": RUN, **flags}  # as Gemma has its runs of spaces
    state["added_tokens"].append(run)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder, write_file(folder)


def sentencepiece_of(found: OfFile) -> SentencePieceProcessor:
    """SentencePiece itself, of the file's tokens, scores and types alone."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    kinds = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}  # llama.cpp's types are SentencePiece's
    for text, score, kind in zip(found.tokens, found.scores, found.types, strict=True):
        model.pieces.add(piece=text, score=score, type=kinds[kind])
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    model.normalizer_spec.add_dummy_prefix = found.add_space_prefix
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def test_the_scores_join_pieces_as_the_merges_do(pieces):
    folder, found = pieces
    processor, own = sentencepiece_of(found), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert processor.encode(text) == own(text, add_special_tokens=False)["input_ids"], text


def test_transformers_reads_the_same_pieces(pieces):
    folder, found = pieces
    own = AutoTokenizer.from_pretrained(folder)
    read = AutoTokenizer.from_pretrained(folder / "gguf", gguf_file="model.gguf")
    for text in TEXTS:
        assert read(text)["input_ids"] == own(text)["input_ids"], text
    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert (found.add_bos, found.add_eos, found.add_space_prefix) == (True, False, True)
    assert found.ids == {"bos": 1, "eos": 2, "unk": 0}
    assert [found.types[token] for token in (0, 1, 2, 3)] == [2, 3, 3, 6]
    assert found.types[450] == 5


LLAMA_2 = (
    "{% for message in messages %}{% if message.role == 'user' %}<s>[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} </s>{% endif %}{% endfor %}"
)
SPACED = LLAMA_2.replace("<s>[INST]", "<s> [INST]")
WITHOUT_MARKS = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"


def with_spaces(folder: Path, pieces: Path, scheme: str, template: str | None) -> Path:
    """A SentencePiece folder that puts spaces before texts in one of transformers' ways."""
    state = json.loads((pieces / "tokenizer.json").read_text())
    state["normalizer"], state["pre_tokenizer"] = None, None
    if scheme == "prepend":
        steps = [normalizers.Prepend(RUN[0]), normalizers.Replace(" ", RUN[0])]
        tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        state["pre_tokenizer"] = {"type": "Metaspace", "replacement": RUN[0], "split": False, "prepend_scheme": scheme}
        tokenizer = Tokenizer.from_str(json.dumps(state))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return save(folder, tokenizer, **marks, **({"chat_template": template} if template else {}))


def by_llama_cpps_rule(found: OfFile, text: str) -> list[int]:
    """SentencePiece's tokens of each part between control tokens by itself."""
    processor, tokens = sentencepiece_of(found), []
    for part in filter(None, re.split("(</?s>)", text)):
        tokens += [found.tokens.index(part)] if part in ("<s>", "</s>") else processor.encode(part)
    return tokens


@pytest.mark.parametrize(
    ("scheme", "template", "flag", "texts"),
    [
        ("first", LLAMA_2, False, 8),
        ("first", SPACED, False, 8),
        ("first", WITHOUT_MARKS, True, 7),
        ("first", None, True, 7),
        ("always", LLAMA_2, True, 7),
        ("always", SPACED, False, 8),
        ("prepend", LLAMA_2, True, 8),
        ("prepend", SPACED, True, 8),
        ("never", LLAMA_2, False, 8),
    ],
)
def test_spaces_before_texts_are_said_so_that_chats_have_the_sources_tokens(
    tmp_path, pieces, scheme, template, flag, texts
):
    folder = with_spaces(tmp_path / "student", pieces[0], scheme, template)
    found = write_file(folder)
    assert found.add_space_prefix == flag
    file = folder / "gguf" / "model.gguf"
    own, read = read_tokenizer(folder), read_tokenizer(file)
    alike = texts_alike(own, file)
    assert len(alike) == texts
    for text in filter(None, [*alike, written_turns(own)]):
        wanted = own(text, add_special_tokens=False)["input_ids"]
        assert read(text, add_special_tokens=False)["input_ids"] == by_llama_cpps_rule(found, text) == wanted, text


@pytest.mark.parametrize(("scheme", "said"), [("first", {"add_prefix_space": False}), ("always", {})])
def test_llama_cpps_converter_is_told_of_spaces_before_texts_where_it_asks(tmp_path, pieces, scheme, said):
    folder = with_spaces(tmp_path, pieces[0], scheme, LLAMA_2)
    before = json.loads((folder / "tokenizer_config.json").read_text())
    tell_space_prefix(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text()) == before | said


def test_a_run_of_spaces_is_joined_of_pieces(pieces):
    """Where the tokenizer looks for it among the marks that are put in later, and so never meets it."""
    folder, found = pieces
    token = found.tokens.index(RUN)
    assert token in AutoTokenizer.from_pretrained(folder).added_tokens_decoder
    assert found.types[token] == 1


def save(folder: Path, tokenizer: Tokenizer, **settings: str) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def trained_on_merges() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def lower_case() -> Tokenizer:
    tokenizer = trained_on_merges()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (trained_on_merges, "was trained on merges, which llama.cpp does with bytes alone"),
        (word_level, "its tokenizer is WordLevel, not written as GGUF but BPE"),
        (lower_case, "Lowercase. is neither one of bytes nor SentencePiece's"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_compute_is_refused(tmp_path, make, said):
    with pytest.raises(UserError, match=f"{said}.*--llama-cpp DIR"):
        OfFile.of_folder(save(tmp_path, make(), eos_token="</s>"), 400)


def test_a_text_without_an_end_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"], settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r'set "eos_token_id" in generation_config.json'):
        OfFile.of_folder(tmp_path, 400)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert OfFile.of_folder(tmp_path, 400).ids["eos"] == 7


@pytest.mark.parametrize(
    ("said", "around"),
    [
        ({"model": "llama"}, ([1], [])),
        ({"model": "gpt2", "pre": "qwen2", "bos_token_id": 9}, ([], [])),
        ({"model": "gpt2", "pre": "llama-bpe", "bos_token_id": 9}, ([9], [])),
        ({"model": "llama", "add_bos_token": False, "add_eos_token": True, "eos_token_id": 7}, ([], [7])),
    ],
)
def test_what_is_put_around_texts_is_that_of_llama_cpp_where_a_file_leaves_it_out(tmp_path, said, around):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name, value in said.items():
        writer.add_key_value(f"tokenizer.ggml.{name}", value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert around_texts_of_file(tmp_path / "model.gguf") == around


def test_a_fourth_end_is_told(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0, 5, 9]}))
    found = OfFile.of_folder(tmp_path, 400)
    assert [found.ids[name] for name in ("eos", "eot", "eom")] == [1, 0, 5]
    assert found.unsaid_ends == [found.tokens[9]]
