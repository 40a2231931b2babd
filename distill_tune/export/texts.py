"""What an exported model is compared with its source on: texts, a conversation, and rows of tokens."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune import data
from distill_tune.errors import UserError
from distill_tune.export.source import Source

TEXTS = (
    "The river rose during the night, and by morning the lower fields were under water.",
    "  Two spaces, a\ttab,\n\na blank line, and trailing ones:   ",
    "def mean(values):\n    return sum(values) / len(values) if values else 0.0\n",
    "3.14159, 2^64 = 18446744073709551616, and 1e-5 of 7,350 are 0.0735.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "Grüße aus Köln! Ça va? ¿Qué tal? Здравствуйте. مرحبا. 👩‍🔬🚀",
    '{"name": "Ada", "born": 1815, "tags": ["a", null, true]}',
    "Q: What does a teacher model give its student?\nA: Its whole distribution over the next token.",
)
TURNS = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 is 5."},
    {"role": "user", "content": "再加一呢？"},
)
LONGEST = 256  # tokens of a row
_MOST_ROWS, _MOST_TOKENS = 16, 2048
_MOST_BYTES = 2**30  # of logits in float32, which are kept until the export has its own


@dataclasses.dataclass(frozen=True)
class Rows:
    """
    Attributes:
        tokens: of each row, at least two.
        told: where they are from.
    """

    tokens: Sequence[Sequence[int]]
    told: str


def rows_for(source: Source) -> Rows:
    """Some rows of the run's dataset_val, where the run is known and its rows can be read; else :data:`TEXTS`."""
    most = max(min(_MOST_TOKENS, _MOST_BYTES // (4 * source.vocab_size)), 2)
    longest = min(LONGEST, source.decoder.max_seq_len)
    try:
        found, told = _rows_of_run(source), "rows of the run's dataset_val"
    except UserError:
        found = []
    if not found:
        found, told = [source.tokenizer.encode(text) for text in TEXTS], "built-in texts"
    rows: list[list[int]] = []
    for row in found:
        room = most - sum(map(len, rows))
        cut = [token for token in row if token < source.vocab_size][: min(longest, room)]
        if len(cut) > 1:
            rows.append(cut)
    return Rows(rows, f"{len(rows)} {told}")


def _rows_of_run(source: Source) -> list[list[int]]:
    """
    Raises:
        UserError: they cannot be read.
    """
    if source.run is None:
        return []
    cfg: Any = OmegaConf.load(source.run / "config.yaml")
    dataset = cfg.get("dataset_val")
    if dataset is None or not all(map(_is_ours, dataset if isinstance(dataset, ListConfig) else [dataset])):
        return []
    tokenizer_config = OmegaConf.create(
        {"_component_": "distill_tune.data.hf_tokenizer", "path": str(source.tokenizer.folder)}
    )
    prepared, _ = data.prepare_rows(dataset, source.tokenizer, tokenizer_config, on_bad_row="skip")
    some = [(rows.tokens, rows.offsets[: _MOST_ROWS + 1].tolist()) for rows in prepared]
    return [tokens[start:stop].tolist() for tokens, bounds in some for start, stop in itertools.pairwise(bounds)]


def _is_ours(dataset: DictConfig) -> bool:
    """Whether reading it runs no code but this package's."""
    return str(dataset.get("_component_", "")).startswith("distill_tune.data.")


def written_turns(tokenizer: Any) -> str:
    """A conversation as the chat template writes it; ``""`` for a tokenizer without one, or one that refuses it."""
    if not tokenizer.chat_template:
        return ""
    try:
        return tokenizer.apply_chat_template(list(TURNS), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes
        return f"refused: {type(error).__name__}"
