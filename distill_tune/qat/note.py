"""What a folder says of the format that its weights were trained for, in a file that no other tool reads."""

import json
from pathlib import Path
from typing import Any

from distill_tune.qat.schemes import Scheme

NOTE = "quantization_aware_training.json"


def write_note(folder: Path, scheme: Scheme | None) -> None:
    """Put :data:`NOTE` into a folder: the format as `distill-tune export --to` names it (``fits``), and ``groupsize``.

    Args:
        scheme: None of weights that were trained as they are, of which nothing is said.
    """
    if scheme is not None:
        note = {"fits": scheme.fits, "groupsize": scheme.groupsize}
        (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def trained_for(folder: Path) -> dict[str, Any] | None:
    """The note of a folder; None where its weights were trained as they are."""
    file = folder / NOTE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
