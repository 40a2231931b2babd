"""Answers that grow without end, or repeat themselves, told while it happens."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

_WINDOW = 10  # steps
_LONGER, _MORE_CUT, _MORE_REPEATING = 1.5, 0.2, 0.1
_MOST_CUT = 0.9


class AnswerWatch:
    """Compares the last steps' answers with the first ones', those of a run's metrics before a resume included.

    Args:
        history: lines of metrics.jsonl.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self._lines: list[Mapping[str, Any]] = []
        self._told = ""
        for line in history:
            self.alarm(line)

    def alarm(self, line: Mapping[str, Any]) -> str | None:
        """What is wrong since this step, where it was not told of the step before."""
        if "rollout_length" not in line:
            return None
        self._lines.append(line)
        del self._lines[_WINDOW:-_WINDOW]  # all that is looked at are the first and the last
        found, text = self._found()
        is_new, self._told = found != self._told, found
        return text if is_new and found else None

    def _found(self) -> tuple[str, str]:
        """A name for what is wrong, and a text."""
        first, last = self._lines[:_WINDOW], self._lines[-_WINDOW:]
        if len(last) < _WINDOW:
            return "", ""
        cut, was_cut = (_mean(lines, "rollout_cut") for lines in (last, first))
        length, was = (_mean(lines, "rollout_length") for lines in (last, first))
        repeating, was_repeating = (_mean(lines, "rollout_repeating") for lines in (last, first))
        if length > _LONGER * was and cut > was_cut + _MORE_CUT:
            return "length", (
                f"answers run away: {length:.0f} tokens on average, {was:.0f} at first, and {cut:.0%} are cut; where "
                "student and teacher end answers otherwise, mend that first"
            )
        if repeating > was_repeating + _MORE_REPEATING:
            return "repeating", (
                f"answers repeat themselves: {repeating:.0%} of them, {was_repeating:.0%} at first; more of the data's "
                "own answers (rollouts.lmbda) or a lower optimizer.lr may help"
            )
        if cut > _MOST_CUT:
            return "cut", (
                f"{cut:.0%} of the answers are cut, so hardly an end is learned; where finish_reason in rollouts.jsonl "
                "is length, raise rollouts.sampling.max_new_tokens, or train on the data's answers first"
            )
        return "", ""


def _mean(lines: list[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(float(line[name]) for line in lines)
