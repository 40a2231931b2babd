"""The tokenizer that a GGUF file carries, as one of transformers'."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from distill_tune.errors import UserError
from distill_tune.models.gguf_config import gguf_field, gguf_reader
from distill_tune.models.gguf_pretokenizers import pretokenizer

_SENTENCEPIECE, _BYTE_LEVEL = "llama", "gpt2"
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # llama.cpp's types of tokens
_WITH_BOS = ("llama-bpe", "tekken")  # to whose texts llama.cpp adds it where a file does not say
_ADDED = (_CONTROL, _USER_DEFINED)
_SPACE = "\u2581"
_MARKS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def read_gguf_tokenizer(path: Path) -> Any:
    """Tokens, merges or scores, the way of cutting texts, control tokens and chat template as the file has them.

    A byte-level tokenizer cuts as llama.cpp's name for it says; nothing is normalised. One of SentencePiece joins what
    scores highest first, and where the file says so puts a space before a text and behind each control or added token,
    as llama.cpp does, also where there is one.

    Raises:
        UserError: the file cannot be read, or has no tokenizer, or one of another kind.
    """
    reader = gguf_reader(path)
    field = functools.partial(_field, reader)
    kind, tokens = field("model", None), field("tokens", [])
    types = field("token_type", None) or [1] * len(tokens)
    vocabulary = {text: token for token, text in enumerate(tokens) if types[token] != _UNUSED}
    if kind == _BYTE_LEVEL:
        tokenizer = _byte_level(vocabulary, field("merges", []), field("pre", "default"))
    elif kind == _SENTENCEPIECE:
        unknown = next((text for text, token in vocabulary.items() if types[token] == _UNKNOWN), None)
        scores = dict(zip(tokens, field("scores", []), strict=False))
        of_pieces = {text: scores[text] for text, token in vocabulary.items() if types[token] not in _ADDED}
        tokenizer = _sentencepiece(vocabulary, of_pieces, unknown, field("add_space_prefix", True))
    else:
        raise UserError(f"its tokenizer is of the kind {kind}, of which none but gpt2 and llama are read")
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False, special=types[token] == _CONTROL)
            for text, token in vocabulary.items()
            if types[token] in _ADDED
        ]
    )
    ids = {name: field(f"{named}_token_id", None) for name, named in _MARKS.items()}
    before, behind = around_texts_of_file(path)
    _put_around(tokenizer, *([(tokens[token], token) for token in of_side] for of_side in (before, behind)))

    from transformers import PreTrainedTokenizerFast

    marks = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=gguf_field(reader, "tokenizer.chat_template", None), **marks
    )


def around_texts_of_file(path: Path) -> tuple[list[int], list[int]]:
    """What llama.cpp puts before every text and behind it by the settings of a file, where it has them, and its own."""
    field = functools.partial(_field, gguf_reader(path))
    pieces = field("model", "") == _SENTENCEPIECE
    puts_bos = field("add_bos_token", pieces or field("pre", "") in _WITH_BOS)
    bos, eos = field("bos_token_id", 1 if pieces else 11), field("eos_token_id", 2 if pieces else 11)
    return [bos] * bool(puts_bos), [eos] * bool(field("add_eos_token", False))


def _field(reader: Any, name: str, default: Any) -> Any:
    return gguf_field(reader, f"tokenizer.ggml.{name}", default)


def _byte_level(vocabulary: Mapping[str, int], merges: Sequence[str], pre: str) -> Tokenizer:
    cuts, whole_words = pretokenizer(pre)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(vocab=dict(vocabulary), merges=pairs, ignore_merges=whole_words))
    tokenizer.pre_tokenizer, tokenizer.decoder = cuts, decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    vocabulary: Mapping[str, int], scores: Mapping[str, float], unknown: str | None, space_before: bool
) -> Tokenizer:
    """
    Args:
        scores: of the tokens that are joined from others.
    """
    cuts = ((text[:at], text[at:]) for text in scores for at in range(1, len(text)))
    pairs = [pair for pair in cuts if pair[0] in scores and pair[1] in scores]
    pairs.sort(key=lambda pair: -scores[pair[0] + pair[1]])
    model = BPE(vocab=dict(vocabulary), merges=pairs, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    tokenizer = Tokenizer(model)
    before: list[Any] = [normalizers.Prepend(_SPACE)] * space_before
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * space_before)
    return tokenizer


def _put_around(tokenizer: Tokenizer, before: list[tuple[str, int]], behind: list[tuple[str, int]]) -> None:
    """Have texts that are written by themselves begin and end with such tokens."""
    if marks := before + behind:
        parts = [*(text for text, _ in before), "$A", *(text for text, _ in behind)]
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=marks)
