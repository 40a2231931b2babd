"""A folder's tokenizer as a GGUF file has it: llama.cpp's tokens, their types, scores or merges, ends and template."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from distill_tune.data.ends import answer_end, exported_stops
from distill_tune.data.tokenizer import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.export.gguf.scores import scores
from distill_tune.export.texts import TEXTS, written_turns
from distill_tune.models.decoder_config import read_config_json
from distill_tune.models.gguf_config import gguf_field, gguf_reader
from distill_tune.models.gguf_pretokenizers import parts, pretokenizer_name
from distill_tune.models.tokenizer_files import read_tokenizer

# llama.cpp's types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"
_SPACE = "\u2581"
# What puts the mark in the place of a space.
_WITH_MARKS = (
    {"type": "Prepend", "prepend": _SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Added tokens that no text has, whatever a tokenizer.json says of them.
_CONTROL = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]")
_NEVER = -1000.0  # the score of what is never joined from pieces
_ENDS = ("eos", "eot", "eom")  # what a file has room for, in the order in which llama.cpp's programs look for them
_ELSEWHERE = "llama.cpp's own converter may know more: --llama-cpp DIR"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """
    Attributes:
        model: :data:`SENTENCEPIECE` or :data:`BYTE_LEVEL`.
        pre: how texts are cut into words.
        tokens: one for each row of the embeddings.
        types: of each.
        scores: of each, of SentencePiece.
        merges: of a byte-level tokenizer, by rank.
        ids: of ``bos``, ``eos``, ``eot``, ``eom``, ``unk``, ``pad``.
        ends: all that end an answer, in the order in which the student's folder names them.
        add_bos, add_eos: whether every text is put between them.
        add_space_prefix: whether llama.cpp puts a space before a text, and behind each control token.
        source_space: how the source does so, see :func:`_space_before`.
        chat_template: one, several by name, or None.
        left_out: tokens for which the model has no row.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    ids: dict[str, int]
    ends: list[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    source_space: str | None
    chat_template: str | dict[str, str] | None
    left_out: int

    @classmethod
    def of_folder(cls, folder: Path, vocab_size: int) -> "Tokenizer":
        """
        Args:
            vocab_size: rows of the embeddings; those without a token get one that nothing is written with.

        Raises:
            UserError: there is no tokenizer, or none that llama.cpp computes; it names no end of a text.
        """
        own = _opened(folder)
        state = json.loads(own.backend_tokenizer.to_str())
        if state["model"]["type"] != "BPE":
            raise UserError(
                f"{folder}: its tokenizer is {state['model']['type']}, not written as GGUF but BPE; {_ELSEWHERE}"
            )
        model = _model(state, folder)
        unknown = own.unk_token if model == SENTENCEPIECE else None
        tokens, types = _tokens(own.backend_tokenizer, model, unknown, vocab_size)
        merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in _merges(state)]
        add_bos, add_eos, ids, ends = _marks(own, folder, vocab_size)
        of_pieces = None
        if model == SENTENCEPIECE:
            of_pieces = _scores(state, merges, types, vocab_size, folder)
        elif not merges:
            raise UserError(f"{folder}: its tokenizer has no merges, without which llama.cpp opens none")
        return cls(
            model=model,
            pre="default" if model == SENTENCEPIECE else pretokenizer_name(state),
            tokens=tokens,
            types=types,
            scores=of_pieces,
            merges=None if model == SENTENCEPIECE else [" ".join(pair) for pair in merges],
            ids=ids,
            ends=ends,
            add_bos=add_bos,
            add_eos=add_eos,
            add_space_prefix=_space_prefix(own, state),
            source_space=_space_before(state),
            chat_template=own.chat_template or None,
            left_out=sum(token >= vocab_size for token in own.backend_tokenizer.get_vocab().values()),
        )

    def add_to(self, writer: Any) -> None:
        """
        Args:
            writer: a ``GGUFWriter``.
        """
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for name, token in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        if isinstance(self.chat_template, dict):
            named = [{"name": name, "template": text} for name, text in self.chat_template.items()]
            writer.add_chat_template(named)
        elif self.chat_template:
            writer.add_chat_template(self.chat_template)

    @property
    def unsaid_ends(self) -> list[str]:
        """The ends beyond those that a file has room for."""
        return [self.tokens[token] for token in self.ends if token not in [self.ids.get(name) for name in _ENDS]]


def _opened(folder: Path) -> Any:
    try:
        own = read_tokenizer(folder)
    except UserError as error:
        raise UserError(f"{folder}: its tokenizer {error}; a GGUF file carries one") from error
    if not own.is_fast:
        raise UserError(f"{folder}: transformers makes no tokenizer.json of its tokenizer ({type(own).__name__})")
    return own


def _model(state: Mapping[str, Any], folder: Path) -> str:
    steps = [*parts(state["pre_tokenizer"], "pretokenizers"), *parts(state["decoder"], "decoders")]
    if any(step["type"] == "ByteLevel" for step in steps):
        return BYTE_LEVEL
    changes = [step for step in parts(state["normalizer"], "normalizers") if step not in _WITH_MARKS]
    cuts = [step for step in parts(state["pre_tokenizer"], "pretokenizers") if not _is_of_spaces(step)]
    if changes or cuts or not state["model"].get("byte_fallback"):
        others = ", ".join(dict.fromkeys(step["type"] for step in [*changes, *cuts]))
        raise UserError(
            f"{folder}: its tokenizer ({others or 'without bytes'}) is neither one of bytes nor SentencePiece's, and "
            f"not written as GGUF; {_ELSEWHERE}"
        )
    return SENTENCEPIECE


def _is_of_spaces(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Metaspace" or (step["type"] == "Split" and step["pattern"] == {"String": " "})


def _merges(state: Mapping[str, Any]) -> Sequence[Any]:
    return state["model"].get("merges") or ()


def _tokens(tokenizer: Any, model: str, unknown: str | None, vocab_size: int) -> tuple[list[str], list[int]]:
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [""] * vocab_size, [UNUSED] * vocab_size
    for text, token in tokenizer.get_vocab().items():
        if token >= vocab_size:
            continue
        types[token] = NORMAL
        if text == unknown:
            types[token] = UNKNOWN
        elif token in added and (added[token].special or _CONTROL.fullmatch(text)):
            types[token] = CONTROL
        elif token in added and not _is_never_met(text, added[token], model):
            types[token] = USER_DEFINED
            if model == SENTENCEPIECE:  # looked for in the text as it was given
                text = text.replace(_SPACE, " ")
        elif model == SENTENCEPIECE and _BYTE.fullmatch(text):
            types[token] = BYTE
        tokens[token] = text
    known = set(tokens)
    for token, kind in enumerate(types):
        if kind == UNUSED:
            name = f"[PAD{token}]"
            while name in known:  # llama.cpp opens no file in which a token is there twice
                name = f"[{name}]"
            tokens[token] = name
    if len(set(tokens)) < len(tokens):
        twice = next(text for text in tokens if tokens.count(text) > 1)
        raise UserError(f"tokenizer.json: {twice!r} is written by two tokens, with which llama.cpp opens no file")
    return tokens, types


def _is_never_met(text: str, added: Any, model: str) -> bool:
    """Of an added token with marks of spaces that is looked for before they are put in: it is joined from pieces, as
    Gemma's runs of spaces are."""
    return model == SENTENCEPIECE and _SPACE in text and not added.normalized


def _scores(
    state: Mapping[str, Any], merges: Sequence[Any], types: Sequence[int], vocab_size: int, folder: Path
) -> list[float]:
    found = scores(state["model"]["vocab"], merges)
    if found is None:
        raise UserError(
            f"{folder}: its tokenizer was trained on merges, which llama.cpp does with bytes alone: its pieces would "
            f"be joined in another way; {_ELSEWHERE}"
        )
    found = (found + [0.0] * vocab_size)[:vocab_size]
    apart = (CONTROL, USER_DEFINED, UNUSED)
    return [_NEVER if kind in apart else score for kind, score in zip(types, found, strict=True)]


def _space_before(state: Mapping[str, Any]) -> str | None:
    """How a tokenizer puts a space before a text: ``prepend``, behind control tokens too, as llama.cpp does;
    ``always``, there too but where one is; ``first``, at the beginning of a text that has none; None, not at all."""
    if any(step["type"] == "Prepend" for step in parts(state["normalizer"], "normalizers")):
        return "prepend"
    cuts = [step for step in parts(state["pre_tokenizer"], "pretokenizers") if step["type"] == "Metaspace"]
    schemes = [step.get("prepend_scheme", "always") for step in cuts]
    return next((scheme for scheme in schemes if scheme != "never"), None)


def _space_prefix(own: Any, state: Mapping[str, Any]) -> bool:
    """Whether llama.cpp is to put spaces before texts: where the source does so, but not where chats, which are what
    the student learned, have the source's tokens without these spaces alone."""
    if _space_before(state) is None:
        return False
    chat = written_turns(own)
    wanted = own.encode(chat, add_special_tokens=False)
    return _in_llama_cpp(chat, state, True) == wanted or _in_llama_cpp(chat, state, False) != wanted


def _in_llama_cpp(text: str, state: Mapping[str, Any], space_prefix: bool) -> list[int]:
    """Tokens by llama.cpp's rule: a space before each part of a text between control and added tokens, or before none.

    Args:
        state: of the tokenizer, as tokenizer.json has it.
    """
    steps = _WITH_MARKS if space_prefix else _WITH_MARKS[1:]
    changed = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "added_tokens": [token | {"normalized": False} for token in state["added_tokens"]],
    }
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**state, **changed}))
    return tokenizer.encode(text, add_special_tokens=False).ids


def tell_space_prefix(folder: Path) -> None:
    """Have llama.cpp's own converter write what :class:`Tokenizer` does of spaces before texts: it asks
    tokenizer_config.json, and else takes them for granted."""
    file = folder / "tokenizer_config.json"
    own = read_tokenizer(folder)
    if own.is_fast and file.is_file():
        state = json.loads(own.backend_tokenizer.to_str())
        if _space_before(state) and not _space_prefix(own, state):
            file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"add_prefix_space": False}), "utf-8")


def is_of_pieces(file: Path) -> bool:
    """Whether the tokenizer of a file is one of SentencePiece."""
    return bool(gguf_field(gguf_reader(file), "tokenizer.ggml.model", "") == SENTENCEPIECE)


def texts_alike(own: Any, file: Path) -> list[str]:
    """Texts that are the same tokens in llama.cpp, whose flag of a file puts other spaces before some than the source.

    Args:
        own: the source's tokenizer, of transformers'.
    """
    scheme = _space_before(json.loads(own.backend_tokenizer.to_str())) if own.is_fast else None
    if scheme is None or scheme == "prepend":
        return list(TEXTS)
    if gguf_field(gguf_reader(file), "tokenizer.ggml.add_space_prefix", True):
        return [text for text in TEXTS if not text.startswith(" ")]
    return [text if text.startswith(" ") else f" {text}" for text in TEXTS]


def _marks(own: Any, folder: Path, vocab_size: int) -> tuple[bool, bool, dict[str, int], list[int]]:
    """Whether texts are put between bos and eos; the ids of what marks a text; all ends."""
    config = read_config_json(folder, "folder") if (folder / "config.json").is_file() else {}
    before, behind = around_texts(own)
    if len(before) > 1 or len(behind) > 1:
        told = own.convert_ids_to_tokens([*before, *behind])
        raise UserError(f"{folder}: its tokenizer puts {' '.join(told)} around every text, GGUF one token on each side")
    bos = before[0] if before else own.bos_token_id if own.bos_token_id is not None else config.get("bos_token_id")
    end, ends = ends_of(folder, vocab_size)
    eos = behind[0] if behind else own.eos_token_id
    in_order = dict.fromkeys(token for token in (eos, end, *ends) if token is not None and token < vocab_size)
    if not in_order:
        raise UserError(
            f"{folder}: neither tokenizer nor generation_config.json names the end of a text, and llama.cpp would take "
            'token 11 for it; set "eos_token_id" in generation_config.json'
        )
    pad = own.pad_token_id if own.pad_token_id is not None else config.get("pad_token_id")
    ids = {"bos": bos, "unk": own.unk_token_id, "pad": pad} | dict(zip(_ENDS, in_order, strict=False))
    known = {name: token for name, token in ids.items() if isinstance(token, int) and 0 <= token < vocab_size}
    return bool(before), bool(behind), known, list(dict.fromkeys([*ends, *in_order]))


def ends_of(folder: Path, vocab_size: int) -> tuple[int | None, list[int]]:
    """The end of an answer as the chat template writes it, and all tokens at which the model of a folder stops."""
    try:
        writes: Any = hf_tokenizer(str(folder))
        end = answer_end(writes)
    except UserError:  # without an end of its own, or with a template that cannot be used
        writes, end = None, None
    return end, exported_stops(writes, folder, vocab_size)


def around_texts(own: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer of transformers' puts before every text, and behind it."""
    whole, inside = own("a")["input_ids"], own("a", add_special_tokens=False)["input_ids"]
    start = next(at for at in range(len(whole)) if whole[at : at + len(inside)] == inside)
    return whole[:start], whole[start + len(inside) :]
