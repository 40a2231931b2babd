"""rollouts.jsonl: some answers with the teacher's marks, readable."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_tune.disk import write_text
from distill_tune.metrics_file import read_metrics

FILE = "rollouts.jsonl"


class WrittenRollouts:
    """Appends to rollouts.jsonl of a run's folder; what a disk refuses is told once and left out.

    Args:
        folder: the run's.
        step: that the run goes on from: lines of later ones are taken out, since they will come again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path, self._is_told = folder / FILE, False
        kept = [line for line in read_metrics(self._path) if line.get("step", 0) <= step] if step else []
        self._or_told(lambda: write_text(self._path, _text(kept)))

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        def append() -> None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_text(lines))

        self._or_told(append)

    def _or_told(self, act: Any) -> None:
        try:
            act()
        except OSError as error:
            if not self._is_told:
                print(f"{self._path}: {error.strerror}; rollouts are left out, the run goes on", file=sys.stderr)
            self._is_told = True


def _text(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def marked(tokenizer: Any, tokens: Sequence[int], log_ratio: Sequence[float]) -> list[list[Any]]:
    """Each token of an answer as text, with log p - log q of it; null where the teacher does not tell."""
    marks: list[list[Any]] = []
    for at, ratio in enumerate(log_ratio):
        before = tokenizer.decode(list(tokens[at - 1 : at])) if at else ""
        text = tokenizer.decode(list(tokens[max(0, at - 1) : at + 1]))[len(before) :]  # alone, it would lose its space
        marks.append([text, round(ratio, 3) if math.isfinite(ratio) else None])
    return marks
