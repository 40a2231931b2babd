"""A GGUF file as llama.cpp itself has it, through its Python package llama-cpp-python, where that is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill_tune.export.opened import Opened

_F32 = 0  # ggml's number of it
_TEMPLATE = "tokenizer.chat_template"


def open_with_llama_cpp(file: Path, longest: int) -> Opened | None:
    """On the CPU, with keys and values in float32; None where the package is not installed.

    Args:
        longest: of the rows that it is to read.
    """
    try:
        import llama_cpp
    except ModuleNotFoundError:
        return None
    model = llama_cpp.Llama(
        str(file), n_ctx=longest, n_batch=longest, logits_all=True, type_k=_F32, type_v=_F32, verbose=False
    )

    def logits(row: Sequence[int]) -> torch.Tensor:
        model.reset()
        model.eval(row)
        return torch.from_numpy(model.scores[: len(row)].copy())

    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter
    return Opened(f"llama-cpp-python {llama_cpp.__version__}", logits, _Tokenizer(model, formatter))


class _Tokenizer:
    """What of a tokenizer is compared: token ids by llama.cpp, the file's chat template by its Python package."""

    def __init__(self, model: Any, formatter: Any) -> None:
        self._model, self._formatter = model, formatter
        self.chat_template = model.metadata.get(_TEMPLATE)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._model.tokenize(text.encode(), special=True)}

    def apply_chat_template(self, turns: list[dict[str, str]], add_generation_prompt: bool, **settings: Any) -> str:
        bos, eos = (self._text(token) for token in (self._model.token_bos(), self._model.token_eos()))
        return self._formatter(self.chat_template, eos, bos, add_generation_prompt)(messages=turns).prompt

    def _text(self, token: int) -> str:
        return self._model._model.token_get_text(token) if token >= 0 else ""
