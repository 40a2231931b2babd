"""A run that is looked at again and again: of its metrics only what was appended is read."""

import array
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from distill_tune.reports.findings import Finding, findings_of
from distill_tune.reports.run_files import RunFiles, find_runs, is_figure, opened
from distill_tune.shown_metrics import duration

_REMEMBERED = 256  # bytes of the last line that was read, by which a file that took this one's place is noticed
_RECENT = 100  # steps
# Rules that are asked while a run goes on, what they look at of a step, and how many more lines make it worth while.
_RULES = (
    "steps_not_applied",
    "divergence_does_not_fall",
    "cross_entropy_rises_while_the_divergence_falls",
    "overfits",
)
_LOSSES = tuple(f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "kd_loss", "ce_loss"))
_LOOKED_AT = ("step", "applied", "kd_ratio", "temperature", *_LOSSES)
_SHOWN = ("seconds", *_LOSSES)
_MORE = 1.01
_SILENT_STEPS, _SILENT_SECONDS = 20, 60  # without a line; both


class FollowedRuns:
    """
    Args:
        folders: of a run each, or with runs below them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._runs: dict[Path, FollowedRun] = {}

    def read(self) -> "list[FollowedRun]":
        """All that there are by now, as they are now, the newest first."""
        there = opened([run for folder in self._folders for run in find_runs(folder)])
        self._runs = {files.path: self._runs.get(files.path) or FollowedRun(files) for files in there}
        for files in there:
            self._runs[files.path].read(files)
        return sorted(self._runs.values(), key=lambda run: run.began, reverse=True)


class FollowedRun:
    """
    Attributes:
        files: the run's, as they were at the last :meth:`read`; of a step they have what findings look at.
        state: as it was then.
        last: the newest line that has a step; empty before the first.
        validated: the newest line that has a validation; empty before the first.
        seconds_silent: since the last line, or, before the first, since the run began.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files, self.state = files, files.state
        self._metrics = files.path / "metrics.jsonl"
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.last: Mapping[str, Any] = {}
        self.validated: Mapping[str, Any] = {}
        self._lines: list[Mapping[str, Any]] = []
        self._looked_at = 0
        self._findings: list[Finding] = []
        self.seconds_silent = 0.0
        self._read_to, self._before = 0, b""
        self._columns = {name: (array.array("d"), array.array("d")) for name in _SHOWN}

    def read(self, files: RunFiles) -> None:
        """What is new. A file that took the place of the one that was read, as a resumed run's, is read whole.

        Args:
            files: the same folder's, which remember nothing yet.
        """
        self.state = files.state
        with contextlib.suppress(OSError), self._metrics.open("rb") as stream:
            stream.seek(self._read_to - len(self._before))
            if stream.read(len(self._before)) != self._before:
                self._begin_anew()
                stream.seek(0)
            for text in stream:
                if not text.endswith(b"\n"):
                    break  # it comes whole another time
                self._read_to += len(text)
                self._before = text[-_REMEMBERED:]
                with contextlib.suppress(ValueError, RecursionError):  # cut short, and gone on after
                    self._add(json.loads(text))
        self.files = _Followed(files.path, files.name, self._lines)
        self.seconds_silent = max(time.time() - self._written(), 0.0)
        if len(self._lines) > self._looked_at * _MORE:
            self._looked_at, self._findings = len(self._lines), findings_of(self.files, _RULES)

    @property
    def alarms(self) -> list[str]:
        """What is wrong, each in some sentences with its figures."""
        told = [f"{finding.told} To try: {finding.to_try}." for finding in self._findings]
        each = self.seconds_per_step
        if self.state == "running" and each and self.seconds_silent > max(_SILENT_STEPS * each, _SILENT_SECONDS):
            told.append(f"No new line for {duration(self.seconds_silent)}; a step takes {each:.3g} s.")
        return told

    def _add(self, line: Any) -> None:
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            return
        self.last = line
        if "val_loss" in line:
            self.validated = line
        self._lines.append({name: line[name] for name in _LOOKED_AT if name in line})
        for name in _SHOWN:
            if is_figure(line.get(name)):
                steps, values = self._columns[name]
                steps.append(line["step"])
                values.append(line[name])

    def column(self, name: str) -> tuple[Sequence[float], Sequence[float]]:
        """Steps and their seconds or one of their losses, of the steps that have it; what is not finite is left out."""
        return self._columns[name]

    @property
    def seconds_per_step(self) -> float | None:
        """By the last steps, with what comes between steps (validation, checkpoints) since the run began or went on."""
        steps, seconds = self.column("seconds")
        if not steps:
            return None
        recent = statistics.fmean(seconds[1:][-_RECENT:] or seconds)  # in the first one much is done once
        with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            began = datetime.fromisoformat(self.files.facts["started"]).timestamp()
            first = self.files.facts.get("resumed_from") or 0
            between = (self._written() - began) / sum(
                value for step, value in zip(steps, seconds, strict=True) if step > first
            )
            return recent * max(between, 1.0)
        return recent

    @property
    def seconds_left(self) -> float | None:
        """Of a run that goes on and says how many steps it takes."""
        total, each = self.files.total_steps, self.seconds_per_step
        if self.state != "running" or total is None or each is None:
            return None
        return each * max(total - self.last["step"], 0)

    @property
    def began(self) -> float:
        """Seconds since the epoch; when it went on, of a run that was resumed."""
        return _changed(self.files.path / "config.yaml") or self._written()

    def _written(self) -> float:
        """When the last line was, or, before the first, when the run began."""
        of_line = _changed(self._metrics) if self.last else None
        return of_line or _changed(self.files.path / "config.yaml") or _changed(self.files.path) or time.time()


@dataclasses.dataclass(frozen=True)
class _Followed(RunFiles):
    """Files of a run whose metrics are read elsewhere."""

    lines: Sequence[Mapping[str, Any]]

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        return self.lines


def _changed(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None
