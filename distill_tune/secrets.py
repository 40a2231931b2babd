"""Tokens and passwords: what must not reach a log, a written config, a report or a traceback."""

import os
import re
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

_HIDDEN = "***"
_WORDS = "api_?key|secret|password|passwd|credential"
_VARIABLES = re.compile(rf"token$|{_WORDS}", re.IGNORECASE)
# Not eos_token and its like, which are words of a model.
_KEYS = re.compile(rf"^((hf|hub|auth|use_auth|access|api|github|modelscope|wandb)_)?token$|{_WORDS}", re.IGNORECASE)
# As hubs and trackers write them: Hugging Face, OpenAI and alike, GitHub, AWS; and what stands in a URL before the @.
_SHAPES = re.compile(
    r"\b(?:hf_|sk-|ghp_|github_pat_|ms-)[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_SHORTEST = 8  # characters; a shorter value would be found in ordinary words


def hide_secrets(text: str) -> str:
    """The text without the values of environment variables that hold secrets, and without what looks like one."""
    for name, value in os.environ.items():
        if _VARIABLES.search(name) and len(value) >= _SHORTEST:
            for written in (value, repr(value)[1:-1]):  # as errors show what has line ends or the like
                text = text.replace(written, _HIDDEN)
    return _SHAPES.sub(_HIDDEN, text)


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Its values, resolved; what stands under a key like ``token`` or ``api_key`` is hidden, and secrets elsewhere."""
    return cast(dict[str, Any], _hidden(OmegaConf.to_container(config, resolve=True)))


def without_secrets(config: DictConfig) -> DictConfig:
    """:func:`plain_config`, as a config again."""
    return OmegaConf.create(plain_config(config))


def _hidden(node: Any, key: str = "") -> Any:
    if isinstance(node, Mapping):
        return {name: _hidden(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_hidden(value, key) for value in node]
    if not isinstance(node, str):
        return node
    return _HIDDEN if _KEYS.search(key) and node else hide_secrets(node)


def hide_in_arguments(arguments: list[str]) -> list[str]:
    """The command line's overrides, as ``without_secrets`` has their values."""
    parts = (argument.partition("=") for argument in arguments)
    return [hide_secrets(f"{key}{equals}{_hidden(value, key.rpartition('.')[2])}") for key, equals, value in parts]
