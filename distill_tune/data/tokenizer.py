"""A Hugging Face tokenizer.json with its chat template, in the form that torchtune's datasets expect."""

import functools
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError

from torchtune.data import Message

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


class HFTokenizer:
    """tokenizer.json of a model folder; see :func:`hf_tokenizer`."""

    def __init__(self, folder: Path, max_seq_len: int | None) -> None:
        from tokenizers import Tokenizer

        self.max_seq_len = max_seq_len
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._config = _read_json(folder / "tokenizer_config.json")
        self._generation = _read_json(folder / "generation_config.json") | _read_json(folder / "config.json")
        self._template = _chat_template(folder, self._config)
        self.bos_id = self._special_id("bos")
        self.eos_id = self._special_id("eos")
        if self.eos_id is None:
            named = (
                f"names {self._token_text('eos')}, which tokenizer.json does not have"
                if self._token_text("eos")
                else ""
            )
            raise UserError(
                f"tokenizer.path={folder}: no end-of-sequence token: tokenizer_config.json "
                f"{named or 'names no eos_token, nor config.json an eos_token_id'}"
            )
        self.pad_id = 0  # padded positions are never looked at
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def added_tokens(self) -> list[int]:
        """The ids that tokenizer.json adds to the ordinary vocabulary: special tokens."""
        return list(self._tokenizer.get_added_tokens_decoder())

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        bos = [self.bos_id] if add_bos and self.bos_id is not None else []
        return [*bos, *tokens, *([self.eos_id] if add_eos and self.eos_id is not None else [])]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids))

    def tokenize_messages(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """
        Returns:
            The tokens of the whole conversation as the chat template writes it, and for each whether it is masked: all
            but what the template writes for the unmasked turns, end-of-turn token included.
        """
        rendered, spans = self._render(messages)
        try:
            encoding = self._tokenizer.encode(rendered, add_special_tokens=False)
        except Exception as error:  # tokenizers raises nothing more special
            raise RowError(f"the tokenizer refuses it: {error}") from error
        mask = [not any(start < stop_ and stop > start_ for start_, stop_ in spans) for start, stop in encoding.offsets]
        if self.max_seq_len is not None:
            return encoding.ids[: self.max_seq_len], mask[: self.max_seq_len]
        return encoding.ids, mask

    def __call__(self, sample: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        """For torchtune's datasets: ``messages`` become ``tokens`` and ``mask``."""
        tokens, mask = self.tokenize_messages(sample.pop("messages"))
        return sample | {"tokens": tokens, "mask": mask}

    def prompt(self, messages: list[Message]) -> list[int]:
        """The tokens after which the model is to answer."""
        return self._tokenizer.encode(self._apply(messages, True), add_special_tokens=False).ids

    def _render(self, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the character spans to be learned."""
        whole = self._apply(messages, False)
        if all(not message.masked for message in messages):
            return whole, [(0, len(whole))]
        spans: list[tuple[int, int]] = []
        for index, message in enumerate(messages):
            if message.masked:
                continue
            before = self._apply(messages[:index], message.role == "assistant") if index else ""
            after = self._apply(messages[: index + 1], False)
            if not (whole.startswith(after.rstrip()) and after.startswith(before)):
                # Templates that rewrite earlier turns (dropping their reasoning, say): find the text itself.
                start = whole.find(message.text_content.strip(), spans[-1][1] if spans else 0)
                if start < 0:
                    raise RowError(f"the chat template drops turn {index + 1}")
                spans.append((start, start + len(message.text_content.strip())))
            else:
                spans.append((len(before), len(after.rstrip())))
        return whole, spans

    def _apply(self, messages: list[Message], add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.text_content} for message in messages]
        if self._template is None:
            bos = self._token_text("bos")
            return bos + "".join(
                turn["content"] + (self._token_text("eos") if turn["role"] == "assistant" else "\n") for turn in turns
            )
        import jinja2

        try:
            return self._compiled.render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._token_text("bos"),
                eos_token=self._token_text("eos"),
                unk_token=self._token_text("unk"),
                pad_token=self._token_text("pad"),
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise RowError(f"the chat template refuses it: {error}") from error

    @functools.cached_property
    def _compiled(self) -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self._template or "")

    def _special_id(self, kind: str) -> int | None:
        text = self._token_text(kind)
        if text and (found := self._tokenizer.token_to_id(text)) is not None:
            return found
        ids = self._generation.get(f"{kind}_token_id")
        return ids[0] if isinstance(ids, list) else ids

    def _token_text(self, kind: str) -> str:
        token = self._config.get(f"{kind}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if token is None and isinstance(ids := self._generation.get(f"{kind}_token_id"), int):
            token = self._tokenizer.id_to_token(ids)
        return token or ""


def hf_tokenizer(path: str, max_seq_len: int | None = None) -> HFTokenizer:
    """The tokenizer of a Hugging Face model folder: tokenizer.json, with the chat template that the folder has.

    Without a template, the turns follow each other, a new line after each question, the eos token after each answer.

    Args:
        path: the folder, or its tokenizer.json.
        max_seq_len: rows are cut there.

    Raises:
        UserError: no tokenizer.json there, or one that cannot be read.
    """
    folder = Path(os.path.expanduser(path))
    folder = folder.parent if folder.name == "tokenizer.json" else folder
    if not os.path.isfile(folder / "tokenizer.json"):
        raise UserError(f"tokenizer.path={path}: the folder has no tokenizer.json")
    try:
        return HFTokenizer(folder, max_seq_len)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise UserError(f"tokenizer.path={path}: cannot be read: {error}") from error


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / _TEMPLATE_FILES[0]).is_file():
        return (folder / _TEMPLATE_FILES[0]).read_text(encoding="utf-8")
    template = config.get("chat_template") or _read_json(folder / _TEMPLATE_FILES[1]).get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or next(iter(named.values()))
    return template


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
