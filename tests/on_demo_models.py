"""Shipped configs that run on the demo's models: what each needs besides, few rows and what a user has at hand."""

import json
from pathlib import Path

from tiny import write_model
from tiny_gguf import write_gguf

FOLDERS = ("tiny/", "signals/", "migrate/", "generate/")
FEW_ROWS = ["dataset.num_rows=16", "dataset.min_characters=30"]


def needed(name: str, checkpoint: str, url: str) -> list[str]:
    """Overrides of a config, in a folder with :func:`write_needed`.

    Args:
        checkpoint: that an earlier run of tiny has left.
        url: of a server of the demo's teacher.
    """
    of_one = {
        "signals/mixed_datasets": ["dataset.0.num_rows=16", "dataset.0.min_characters=30", "dataset.1.num_rows=8"],
        "signals/teacher_of_each_row": ["dataset.source=rows.json"],
        "signals/earlier_checkpoint": [*FEW_ROWS, f"teacher_model.path={checkpoint}"],
        "signals/served_teacher": [*FEW_ROWS, f"teacher_model.url={url}"],
        "signals/gguf_teacher": [*FEW_ROWS, "tokenizer.path=plain/tokenizer.model", "model.path=plain"],
    }
    return of_one.get(name, FEW_ROWS)


def write_needed(folder: Path, rows: list[dict[str, str]], tokenizer_file: Path) -> None:
    of_teachers = [row | {"teacher_id": ("large", "small")[number % 2]} for number, row in enumerate(rows)]
    (folder / "rows.json").write_text(json.dumps(of_teachers))
    write_gguf(write_model(folder / "plain", tokenizer_file, seed=5, width=64), folder / "teacher.gguf", "Q8_0")
