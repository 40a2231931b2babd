"""The true bytes of a tokenizer's tokens, and what it changes of a text."""

import contextlib
import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import tiktoken
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from distill_tune.errors import UserError

WHITE_SPACE = b" \t\n\r\x0b\x0c"

_WORD_START = "\u2581"  # SentencePiece's
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_IDEOGRAM = re.compile("[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# Where a tokenizer of torchtune's or ours keeps the one that it is made of.
_WITHIN = (
    "transformers_tokenizer",
    "backend_tokenizer",
    "base_tokenizer",
    "tokenizer_model",
    "_spm_model",
    "spm_model",
    "tt_model",
    "tokenizer",
)

_SAMPLES = (
    "The Loire is 1,006 km long; it is the longest river.",
    "def mean(values): return sum(values) / len(values)",
    "a (b) 'c' x = 3.14159",
    "naïve café, 你好，世界！ 🙂 मध्य",
)
_RARE = "\U0010fffd"  # for private use: a token of its own in no vocabulary
# A text, what may come of it, and what is then told.
_CHANGES = (
    ("xA", "xa", "lower case"),
    ("x\u00e9", "xe", "strips accents"),
    ("x\uff41", "xa", "NFKC"),
    ("xe\u0301", "x\u00e9", "NFC"),
    ("x\u00e9", "xe\u0301", "NFD"),
    ("x  y", "x y", "collapses spaces"),
    ("x\ny", "x y", "new lines become spaces"),
    ("x ", "x", "strips spaces at the end"),
    ("  x", "x", "strips spaces at the start"),
    ("x", " x", "begins a text with a space"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenBytes:
    """
    Attributes:
        of: the bytes of each id; None of a control token, and of an id without a token.
        controls: special tokens and what ends texts and answers, by their texts.
        notes: what the tokenizer changes of a text: ``NFC``, ``lower case``, ``begins a text with a space``.
    """

    of: tuple[bytes | None, ...]
    controls: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def lengths(self) -> numpy.ndarray:
        """How many bytes each id has, ``[v]``, int64; 0 where it has none."""
        return numpy.array([len(token or b"") for token in self.of], numpy.int64)

    @functools.cached_property
    def control_texts(self) -> Mapping[int, str]:
        """The texts of the special tokens, by id."""
        return {token: text for text, token in self.controls.items()}


def token_bytes(tokenizer: Any) -> TokenBytes:
    """What each token of a tokenizer stands for in a text: no word-start marks, no byte alphabets.

    A space that SentencePiece's or WordPiece's tokens have before a word is theirs: ``b" the"``. Found by the decoder,
    normaliser and pre-tokeniser that the tokenizer has, and tried on sample texts.

    Args:
        tokenizer: :func:`~distill_tune.data.tokenizer.hf_tokenizer`'s, a fast one of transformers', one of tokenizers,
            or one of torchtune's.

    Raises:
        UserError: it is of another kind, or its tokens do not spell the sample texts.
    """
    try:
        inner, special = _inner(tokenizer)
        return _found(inner, frozenset(special.items()), frozenset(_ends(tokenizer)))
    except UserError as error:
        folder = getattr(tokenizer, "folder", None)
        name = f"the tokenizer of {folder}" if folder else f"tokenizer {type(tokenizer).__name__}"
        raise UserError(f"{name}: {error}") from error


def split(tokenizer: Any, text: str) -> list[bytes]:
    """A text as the bytes of its tokens; of a token without bytes none.

    Args:
        tokenizer: as of :func:`token_bytes`.
    """
    of = token_bytes(tokenizer).of
    return [of[token] or b"" for token in _encoder(_inner(tokenizer)[0])(text)]


def _inner(tokenizer: Any) -> tuple[Any, dict[str, int]]:
    """What a tokenizer is made of, and the special tokens that those around it were given."""
    inner, special = tokenizer, dict[str, int]()
    while not isinstance(inner, Tokenizer | SentencePieceProcessor | tiktoken.Encoding):
        special = _special_tokens(inner) | special
        if hasattr(inner, "byte_decoder") and hasattr(inner, "encoder"):
            break
        name = next((name for name in _WITHIN if hasattr(inner, name)), None)
        if name is None:
            raise UserError(
                "does not tell the bytes of its tokens, by which student and teacher of different tokenizers are "
                "compared; take distill_tune.data.hf_tokenizer"
            )
        inner = getattr(inner, name)
    return inner, special


def _encoder(inner: Any) -> Callable[[str], Sequence[int]]:
    """A text's tokens, none before and none behind it."""
    if isinstance(inner, Tokenizer):
        return lambda text: inner.encode(text, add_special_tokens=False).ids
    if isinstance(inner, SentencePieceProcessor):
        return inner.encode
    if isinstance(inner, tiktoken.Encoding):
        return functools.partial(inner.encode, disallowed_special=())
    return functools.partial(inner.encode, add_bos=False, add_eos=False)


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Of torchtune's, which are given them beside the file."""
    found = getattr(tokenizer, "special_tokens", None)
    return dict(found) if isinstance(found, Mapping) else {}


def _ends(tokenizer: Any) -> Iterator[int]:
    """The tokens that end a text or an answer, which a folder's files may take for ordinary added ones."""
    if isinstance(end := getattr(tokenizer, "eos_id", None), int):
        yield end
    with contextlib.suppress(UserError):  # of a template that texts may not need
        if isinstance(end := getattr(tokenizer, "template_end", None), int):
            yield end


@functools.lru_cache(maxsize=8)  # by what is opened once for a folder
def _found(tokenizer: Any, special: frozenset[tuple[str, int]], ends: frozenset[int]) -> TokenBytes:
    if isinstance(tokenizer, Tokenizer):
        found, controls = _of_tokenizers(tokenizer)
        controls |= {name: end for end in ends if (name := tokenizer.id_to_token(end)) is not None}
    elif isinstance(tokenizer, SentencePieceProcessor):
        found, controls = _of_sentencepiece(tokenizer)
    elif isinstance(tokenizer, tiktoken.Encoding):
        found, controls = _of_tiktoken(tokenizer)
    else:
        found, controls = {token: _of_byte_alphabet(text) for text, token in tokenizer.encoder.items()}, {}
    controls |= dict(special)
    of: list[bytes | None] = [None] * (1 + max((*found, *controls.values()), default=0))
    for token, text in found.items():
        of[token] = text or None
    for token in controls.values():
        of[token] = None
    encode = _encoder(tokenizer)
    _check(of, encode)
    return TokenBytes(tuple(of), controls, tuple(_notes(of, encode)))


def _of_tokenizers(tokenizer: Tokenizer) -> tuple[dict[int, bytes], dict[str, int]]:
    ordinary = tokenizer.get_vocab(with_added_tokens=False)
    spelled = _spelling(tokenizer)
    found = {token: spelled(text) for text, token in ordinary.items()}
    controls = {}
    if unknown := _unknown(tokenizer.model):
        controls[unknown] = ordinary[unknown]
    for token, added in tokenizer.get_added_tokens_decoder().items():
        if added.special:
            controls[added.content] = token
        elif added.content not in ordinary:  # which has its own way to write a space
            found[token] = added.content.encode()
    return found, controls


def _unknown(model: Any) -> str | None:
    """The token that stands for any text that has none."""
    if (named := getattr(model, "unk_token", None)) is not None:
        return named
    tokens = model.tokenize(_RARE)  # Unigram does not name it
    return model.id_to_token(tokens[0].id) if len(tokens) == 1 else None


def _of_sentencepiece(pieces: SentencePieceProcessor) -> tuple[dict[int, bytes], dict[str, int]]:
    found, controls = {}, {}
    for token in range(pieces.get_piece_size()):
        text = pieces.id_to_piece(token)
        if pieces.is_byte(token):
            found[token] = bytes.fromhex(text[3:5])
        elif pieces.is_control(token) or pieces.is_unknown(token):
            controls[text] = token
        elif not pieces.is_unused(token):
            found[token] = text.replace(_WORD_START, " ").encode()
    return found, controls


def _of_tiktoken(encoding: tiktoken.Encoding) -> tuple[dict[int, bytes], dict[str, int]]:
    controls = {text: encoding.encode_single_token(text) for text in encoding.special_tokens_set}
    found = {}
    for token in range(encoding.n_vocab):
        try:
            found[token] = encoding.decode_single_token_bytes(token)
        except KeyError:
            continue  # a gap before the special tokens
    return found, controls


def _spelling(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    """How an ordinary token's text is made bytes: what its decoder does to each; without one, what made the tokens."""
    steps = list(_parts(tokenizer.decoder, "decoders"))
    if not steps:
        steps = [*_parts(tokenizer.normalizer, "normalizers"), *_parts(tokenizer.pre_tokenizer, "pretokenizers")]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _of_byte_alphabet
    if "CTC" in kinds:
        raise UserError("its tokens are sounds (CTC); distillation needs a tokenizer of texts")
    words = next((step for step in steps if step["type"] == "WordPiece"), None)
    if words or type(tokenizer.model).__name__ == "WordPiece":
        return functools.partial(_of_word_piece, (words or {}).get("prefix", "##"))
    replaced = dict(_replaced(steps))
    has_bytes = "ByteFallback" in kinds or getattr(tokenizer.model, "byte_fallback", False)

    def spelled(text: str) -> bytes:
        if has_bytes and text.startswith("<0x") and (byte := _BYTE.fullmatch(text)):
            return bytes.fromhex(byte[1])
        for mark, content in replaced.items():
            text = text.replace(mark, content)
        return text.encode()

    return spelled


def _replaced(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What a token's text has in place of what is written."""
    for step in steps:
        if step["type"] == "Metaspace":
            yield step["replacement"], " "
        elif step["type"] == "BPEDecoder":
            yield step["suffix"], " "
        elif step["type"] == "Replace" and (mark := step["pattern"].get("String")):
            # A normaliser's has it the other way round.
            yield (step["content"], mark) if mark == " " else (mark, step["content"])


def _parts(component: Any, name: str) -> Iterator[dict[str, Any]]:
    """A component's state, or those of the parts of a sequence."""
    if component is not None:
        state = json.loads(component.__getstate__())
        yield from state.get(name, ()) if state["type"] == "Sequence" else (state,)


def _of_byte_alphabet(text: str) -> bytes:
    table = _byte_alphabet()
    try:
        return bytes(table[char] for char in text)
    except KeyError:  # put into the vocabulary as it stands
        return text.encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: a visible character for each byte, itself where it is one, and those from U+0100 on for the others."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _of_word_piece(prefix: str, text: str) -> bytes:
    """A word has a space before it; a mark of punctuation has none, nor has a Chinese character."""
    if text.startswith(prefix):
        return text.removeprefix(prefix).encode()
    has_space = text[:1].isalnum() and not _IDEOGRAM.match(text)
    return (f" {text}" if has_space else text).encode()


def _written(of: Sequence[bytes | None], encode: Callable[[str], Sequence[int]], text: str) -> bytes:
    return b"".join(of[token] or b"" for token in encode(text))


def _check(of: Sequence[bytes | None], encode: Callable[[str], Sequence[int]]) -> None:
    """
    Raises:
        UserError: the tokens of a sample do not spell it, but for what normalisers change.
    """
    for text in _SAMPLES:
        tokens = encode(text)
        found = b"".join(of[token] or b"" for token in tokens)
        if any(of[token] is None for token in tokens):
            continue  # of characters that it has no tokens for; or it leaves them out
        folded, wanted = _folded(found.decode(errors="replace")), iter(_folded(text))
        if (text.isascii() and not folded) or not all(char in wanted for char in folded):
            raise UserError(
                f"writes {text!r} in tokens whose bytes are {found!r}: what its tokens stand for cannot be told, by "
                "which student and teacher of different tokenizers are compared"
            )


def _folded(text: str) -> str:
    """What no normaliser changes: letters without case, accents and white space."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(char for char in decomposed if not unicodedata.combining(char) and not char.isspace())


def _notes(of: Sequence[bytes | None], encode: Callable[[str], Sequence[int]]) -> Iterator[str]:
    """What comes of small texts."""
    before = b" " if _written(of, encode, "x") == b" x" else b""
    for text, changed, note in _CHANGES:
        if _written(of, encode, text) == (changed if changed.startswith(" ") else before.decode() + changed).encode():
            yield note
    if _RARE.encode() not in _written(of, encode, _RARE):
        yield "has no tokens for some characters"
