"""The tokenizer of a Hugging Face folder, with its chat template, as transformers makes it of all its files."""

import copy
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.chat_template import ChatTemplate, Span
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, Tokens, Turn
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError
from distill_tune.models.tokenizer_files import GGUF, has_tokenizer, read_tokenizer

from torchtune.data import Message

# What a template is given of the conversation itself.
_OF_THE_RENDERER = ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "conversations")


class HFTokenizer:
    """transformers' tokenizer of a model folder; see :func:`hf_tokenizer`.

    Attributes:
        folder: whose files it is made from.
        transformers_tokenizer: what transformers makes of them.
        max_seq_len: what torchtune's datasets are given is cut there.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, max_seq_len: int | None, chat_template_kwargs: Mapping[str, Any] | None
    ) -> None:
        self.folder, self.max_seq_len, self.transformers_tokenizer = folder, max_seq_len, tokenizer
        self._tokenizer = tokenizer.backend_tokenizer
        self._template = ChatTemplate(tokenizer, chat_template_kwargs or {}, f"tokenizer.path={folder}")

    @property
    def bos_id(self) -> int | None:
        return self.transformers_tokenizer.bos_token_id

    @property
    def eos_id(self) -> int:
        return self.transformers_tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        return 0  # padded positions are never looked at

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def added_tokens(self) -> list[int]:
        """The ids that were added to the ordinary vocabulary: special tokens."""
        return list(self.transformers_tokenizer.added_tokens_decoder)

    @functools.cached_property
    def template_end(self) -> int | None:
        """The token that the chat template ends an answer with; None where that is no token."""
        end = self._template.end
        return self.transformers_tokenizer.convert_tokens_to_ids(end) if end else None

    @property
    def spelled_end(self) -> str | None:
        """What looks like a token at the end of an answer, where the tokenizer has no such token."""
        return None if self._template.end else self._template.spelled_end

    def without_arguments(self) -> "HFTokenizer":
        """The same without ``chat_template_kwargs``."""
        return HFTokenizer(self.folder, self.transformers_tokenizer, self.max_seq_len, None)

    def check_chat_template(self) -> None:
        """
        Raises:
            UserError: what of its chat template is an answer cannot be told.
        """
        self._template.check()

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """Plain text as tokens; begin and end of a sequence where the tokenizer itself writes them.

        Args:
            add_bos, add_eos: False leaves them out.
        """
        tokens = self._tokenizer.encode(text).ids
        if not add_bos and tokens[:1] == [self.bos_id]:
            tokens = tokens[1:]
        if not add_eos and tokens[-1:] == [self.eos_id]:
            tokens = tokens[:-1]
        return tokens

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def tokenise_conversation(self, conversation: Conversation) -> Tokens:
        """
        Returns:
            The tokens of the whole conversation as the chat template writes it, and which are learned: what it writes
            for the learned turns, behind the generation prompt, ends included.

        Raises:
            RowError: template or tokenizer refuses the conversation, or which tokens are learned cannot be told.
            UserError: the chat template cannot be used.
        """
        written = self._template.written(conversation)
        try:
            encoding = self._tokenizer.encode(written.text, add_special_tokens=False)
        except Exception as error:  # tokenizers raises nothing more special
            raise RowError(f"the tokenizer refuses it: {error}") from error
        tokens = numpy.asarray(encoding.ids, numpy.int32)
        offsets = numpy.asarray(encoding.offsets, numpy.int64).reshape(-1, 2)
        learned = _touched(offsets, written.learned, len(written.text))
        return Tokens(
            tokens,
            numpy.where(learned, tokens, numpy.int32(IGNORE_INDEX)),
            _touched(offsets, written.texts, len(written.text)),
            written.dropped,
        )

    def tokenize_messages(self, messages: list[Message], add_end_tokens: bool = True) -> tuple[list[int], list[bool]]:
        """As torchtune's tokenizers: tokens, and for each whether it is masked."""
        turns = tuple({"role": message.role, "content": message.text_content} for message in messages)
        learned = tuple(not message.masked for message in messages)
        tokens = self.tokenise_conversation(Conversation(turns, learned))
        mask = (tokens.labels == IGNORE_INDEX).tolist()
        return tokens.tokens.tolist()[: self.max_seq_len], mask[: self.max_seq_len]

    def __call__(self, sample: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        """For torchtune's datasets: ``messages`` become ``tokens`` and ``mask``."""
        tokens, mask = self.tokenize_messages(sample.pop("messages"))
        return sample | {"tokens": tokens, "mask": mask}

    def prompt(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The tokens after which the model is to answer."""
        text = self._template.render(turns, tools, add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def hf_tokenizer(
    path: str,
    max_seq_len: int | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> HFTokenizer:
    """The tokenizer of a Hugging Face model folder, with the chat template that the folder has.

    Without a template, the turns follow each other, a new line after each question, the eos token after each answer.

    Args:
        path: the folder, or a file of it: its tokenizer.json, or original/tokenizer.model, which torchtune names; or a
            GGUF file.
        max_seq_len: rows are cut there.
        chat_template: a Jinja file in place of the folder's own; it is exported with the student.
        chat_template_kwargs: given to the template: ``{enable_thinking: False}``.

    Raises:
        UserError: no tokenizer there, or one that cannot be read.
    """
    if taken := [name for name in chat_template_kwargs or {} if name in _OF_THE_RENDERER]:
        raise UserError(f"tokenizer.chat_template_kwargs.{taken[0]}: the template is given the row's own; leave it out")
    folder = model_folder_of(Path(os.path.expanduser(path)))
    tokenizer = _from_folder(path, folder)
    if chat_template is not None:
        file = Path(os.path.expanduser(chat_template))
        tokenizer = copy.copy(tokenizer)
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"tokenizer.chat_template={chat_template}: cannot be read: {error}") from error
    return HFTokenizer(folder, tokenizer, max_seq_len, chat_template_kwargs)


def model_folder_of(path: Path) -> Path:
    """The folder that a path means, which may name a file of it: tokenizer.json, or original/tokenizer.model."""
    if path.suffix not in (".json", ".model"):
        return path
    return path.parent.parent if path.parent.name == "original" else path.parent


def _from_folder(path: str, folder: Path) -> Any:
    if not folder.exists() or folder.is_dir() == (folder.suffix == GGUF):
        raise UserError(f"tokenizer.path={path}: no such folder, nor a GGUF file")
    if not has_tokenizer(folder):  # of its settings alone transformers makes one that knows no text
        raise UserError(f"tokenizer.path={path}: the folder has no tokenizer.json; is the download complete?")
    try:
        tokenizer = read_tokenizer(folder)
    except UserError as error:
        then = "name a folder with the same one" if folder.suffix == GGUF else "is the download complete?"
        raise UserError(f"tokenizer.path={path}: {error}; {then}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer.path={path}: transformers reads it as {type(tokenizer).__name__}, which does not say where in "
            "a text its tokens stand; save it once with a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer.path={path}: no end-of-sequence token: tokenizer_config.json names no eos_token")
    return tokenizer


def _touched(offsets: numpy.ndarray, spans: Sequence[Span], length: int) -> numpy.ndarray:
    """Which tokens have a character in one of the spans, ``[s]``, bool.

    Args:
        offsets: first character and the one after the last of each token, ``[s, 2]``.
    """
    inside = numpy.zeros(length + 1, numpy.int64)
    for start, stop in spans:
        inside[start + 1 : stop + 1] = 1
    before = inside.cumsum()  # characters inside before each place
    return before[offsets[:, 1]] > before[offsets[:, 0]]
