"""The bytes of tokens: those of a text's tokens, one after another, are the text."""

import base64
import functools
import json
import re

import pytest
from tiny_tokenizer import write_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.alignment.token_bytes import token_bytes
from distill_tune.data import hf_tokenizer
from distill_tune.errors import UserError

TEXTS = (
    "The Loire is 1,006 km long;\n\n  def mean(values):\n\treturn sum(values)\r\n",
    "你好，世界！ naïve café e\u0301 🙂 हिन्दी \u00a0 ",
    "  indented\n\n\n\nand  spaced 3.14159",
)
ADDED = "a <think> b</think>\n\n       c"
CORPUS = (*TEXTS, "the longest river of France is the Loire and the def mean of all values", *"abcxyzA()'=/!,.")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARK = "\u2581"


def spelled(tokenizer, encode, text: str) -> bytes:
    of = token_bytes(tokenizer).of
    return b"".join(of[token] or b"(none)" for token in encode(text))


def of_tokenizers(tokenizer: Tokenizer, text: str) -> bytes:
    return spelled(tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, text)


def byte_level(prefix: bool = False, normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|end|>"])
    added = ("<think>", "     ")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def word_start_bpe(**parts) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, as Llama 2, Mistral and Gemma have it."""
    pieces = [
        "<unk>",
        *BYTES,
        MARK,
        *"abcdefghijklmnopqrstuvwxyzT.,()",
        f"{MARK}t",
        "he",
        f"{MARK}the",
        MARK * 2,
        "\n\n",
    ]
    merges = [(MARK, "t"), ("h", "e"), (f"{MARK}t", "he"), (MARK, MARK)]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    strip = [decoders.Strip(" ", 1, 0)] if "prepend" in str(parts).lower() else []
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = parts.get("decoder") or decoders.Sequence(steps)
    return tokenizer


def gemma() -> Tokenizer:
    """With new lines and runs of spaces among the added tokens, too."""
    tokenizer = word_start_bpe(normalizer=normalizers.Replace(" ", MARK))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("\n\n", MARK * 2)])
    return tokenizer


def unigram(normalizer) -> Tokenizer:
    """As ALBERT's and T5's: without byte fallback."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
LLAMA_2 = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("made", "before", "before_space"),
    [
        (byte_level(), "", ""),
        (byte_level(prefix=True), " ", ""),
        (gemma(), "", ""),
        (word_start_bpe(normalizer=LLAMA_2), " ", " "),
        (word_start_bpe(pre_tokenizer=METASPACE), " ", ""),
        (word_start_bpe(pre_tokenizer=METASPACE, decoder=decoders.Metaspace()), " ", ""),
    ],
    ids=["byte level", "byte level, prefix", "gemma", "llama 2", "metaspace", "metaspace decoder"],
)
def test_of_each_kind_they_spell_the_text(made, before, before_space, text):
    assert of_tokenizers(made, text) == f"{before_space if text.startswith(' ') else before}{text}".encode()
    assert token_bytes(made).notes == (("begins a text with a space",) if before else ())


def test_added_tokens_have_their_texts_and_special_ones_none():
    made = byte_level()
    found = token_bytes(made)
    assert found.of[made.token_to_id("<think>")] == b"<think>"
    assert found.of[made.token_to_id("     ")] == b"     "
    assert found.of[made.token_to_id("<|end|>")] is None
    assert found.controls == {"<|end|>": made.token_to_id("<|end|>")}
    assert of_tokenizers(made, ADDED) == ADDED.encode()
    made = gemma()
    found = token_bytes(made)
    assert found.of[made.token_to_id("\n\n")] == b"\n\n"
    assert found.of[made.token_to_id(MARK * 2)] == b"  "  # an ordinary piece, too
    assert found.controls == {"<unk>": 0}


def test_tokens_of_words_begin_with_their_space():
    made = word_piece()
    assert of_tokenizers(made, "The mean (values),  the Loire") == b" the mean( values), the loire"
    assert of_tokenizers(made, "你好 the") == "你好 the".encode()
    assert token_bytes(made).controls["[UNK]"] == made.token_to_id("[UNK]")
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    assert of_tokenizers(made, "The mean of") == b"The mean of "


@pytest.mark.parametrize(
    ("made", "notes"),
    [
        (byte_level(normalizer=normalizers.NFC()), {"NFC"}),
        (byte_level(normalizer=normalizers.NFKC()), {"NFC", "NFKC"}),
        (byte_level(normalizer=normalizers.Lowercase()), {"lower case"}),
        (byte_level(normalizer=normalizers.Strip()), {"strips spaces at the start", "strips spaces at the end"}),
        (
            byte_level(normalizer=normalizers.Replace(Regex(r"\s+"), " ")),
            {"collapses spaces", "new lines become spaces"},
        ),
        (
            unigram(normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])),
            {"lower case", "strips accents", "NFKC", "begins a text with a space", "has no tokens for some characters"},
        ),
    ],
)
def test_what_a_normaliser_changes_is_told(made, notes):
    assert set(token_bytes(made).notes) == notes


def test_a_folder_and_what_transformers_makes_of_it(tmp_path):
    write_tokenizer(tmp_path)
    made = hf_tokenizer(str(tmp_path))
    found = token_bytes(made)
    assert found is token_bytes(made.without_arguments())  # of the same files
    assert found.of == token_bytes(made.transformers_tokenizer).of
    assert list(found.controls) == ["<|im_start|>", "<|im_end|>"]
    assert spelled(made, lambda text: made.encode(text), TEXTS[1]) == TEXTS[1].encode()
    assert found.lengths[made.encode("hello")].sum() == 5


def test_the_end_of_answers_is_a_control_token_though_the_folder_has_it_as_an_ordinary_one(tmp_path):
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = [{**token, "special": False} for token in content["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|im_start|>"'))
    found = token_bytes(hf_tokenizer(str(tmp_path)))
    assert found.controls["<|im_end|>"] == 1
    assert found.of[1] is None


def test_torchtunes_sentencepiece(tokenizer_file):
    from torchtune.models.llama2 import llama2_tokenizer
    from torchtune.models.phi3 import phi3_mini_tokenizer

    for build in (llama2_tokenizer, phi3_mini_tokenizer):
        made = build(str(tokenizer_file))
        encode = functools.partial(made.encode, add_bos=False, add_eos=False)
        for text in TEXTS[:2]:
            assert spelled(made, encode, text) == f" {' '.join(re.split(' +', text.strip(' ')))}".encode()
        found = token_bytes(made)
        assert {"collapses spaces", "begins a text with a space"} < set(found.notes)
        assert (found.of[1], found.controls["</s>"]) == (None, 2)
    assert found.controls["<|end|>"] == 32_007


def test_torchtunes_tiktoken(tmp_path):
    from torchtune.models.llama3 import llama3_tokenizer

    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b" th", b" the"]
    ranks = "\n".join(f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (tmp_path / "tokenizer.model").write_text(ranks)
    made = llama3_tokenizer(str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        assert spelled(made, lambda text: made.encode(text, add_bos=False, add_eos=False), text) == text.encode()
    assert token_bytes(made).of[256:260] == (b"th", b" th", b" the", None)
    assert token_bytes(made).controls["<|eot_id|>"] == made.eot_id


def test_torchtunes_qwen(tmp_path):
    from torchtune.models.qwen2 import qwen2_tokenizer

    byte_level().model.save(str(tmp_path))
    special = {"<|endoftext|>": 400, "<|im_start|>": 401, "<|im_end|>": 402}
    (tmp_path / "special.json").write_text(
        json.dumps({"added_tokens": [{"content": t, "id": i} for t, i in special.items()]})
    )
    made = qwen2_tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), str(tmp_path / "special.json"))
    for text in TEXTS[::2]:
        assert spelled(made, lambda text: made.encode(text, add_bos=False, add_eos=False), text) == text.encode()
    assert token_bytes(made).controls == special
    assert token_bytes(made).notes == ("NFC",)


def test_a_tokenizer_that_does_not_tell_is_refused():
    with pytest.raises(UserError, match="tokenizer object: does not tell the bytes of its tokens"):
        token_bytes(object())


def test_a_tokenizer_whose_tokens_do_not_spell_its_texts_is_refused():
    made = byte_level()
    made.decoder = decoders.Metaspace()
    with pytest.raises(UserError, match="tokenizer Tokenizer: writes 'The Loire is"):
        token_bytes(made)
    made.decoder = decoders.CTC()
    with pytest.raises(UserError, match="CTC"):
        token_bytes(made)
