"""Folders that are exported."""

from pathlib import Path

from architectures import write_architecture
from tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 285  # as many tokens as tiny_tokenizer makes of its texts


def write_base(folder: Path, name: str = "qwen2", **changes: object) -> Path:
    """With a byte-level tokenizer whose chat template ends turns in its eos, id 1."""
    settings: dict = {"vocab_size": VOCAB_SIZE, "eos_token_id": 1, "bos_token_id": None, "num_hidden_layers": 2}
    write_architecture(folder, name, **settings | changes)
    write_tokenizer(folder, VOCAB_SIZE)
    return folder
