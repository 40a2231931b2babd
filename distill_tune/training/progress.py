"""What a person sees of a run: a live bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

_WIDE = 120  # columns; a narrower terminal gets the numbers without the bar
_BAR = 20  # columns
_FIRST_TO_GO = ("lr", "speed", "ce", "kd", "rollouts", "memory")  # where a line is too narrow
# Without a terminal: the first steps, by which one sees that it runs, then by time, however long a step or a run is.
_FIRST_STEPS = 3
_SECONDS_BETWEEN_LINES = 60


class Progress:
    """Shows loss, kd_loss, ce_loss, learning rate, tokens/s, memory and time left; of a cache bytes in place of losses,
    of answers their length, of documents the perplexity.

    Args:
        total: steps of the run.
        done: steps taken before it was resumed.
        unit: what is counted.
        file: that has a line of each.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "step", file: str = "metrics.jsonl") -> None:
        self._unit, self._file = unit, file
        self._console = Console()
        self._total, self._done = total, done
        self._started = self._first_ended = self._told = time.monotonic()
        one_line = Column(no_wrap=True)
        self._has_bar = self._console.width >= _WIDE
        self._bar = Bar(
            TextColumn("{task.fields[step]}", table_column=one_line),
            *([BarColumn(bar_width=_BAR)] if self._has_bar else []),
            TextColumn("{task.fields[shown]}", table_column=one_line),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, step=self._step(done), shown="")

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, metrics: Mapping[str, float]) -> None:
        """After each step."""
        step, now = int(metrics["step"]), time.monotonic()
        left = f"{_duration(self._seconds_left(step, now))} left"
        if self._console.is_terminal:
            room = self._console.width - len(self._step(step)) - (_BAR + 1 if self._has_bar else 0) - 1
            shown = _fitting(_parts(metrics) | {"left": left}, room)
            self._bar.update(self._task, completed=step, step=self._step(step), shown=shown)
        elif step - self._done <= _FIRST_STEPS or step == self._total or now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            times = f"{_duration(now - self._started)} elapsed  {left}"
            self.say(f"{self._step(step)}  {'  '.join(_parts(metrics).values())}  {times}")
            are_quick = now - self._first_ended < _SECONDS_BETWEEN_LINES
            if step - self._done == _FIRST_STEPS and step < self._total and are_quick:
                self.say(f"from here on a line comes at most once a minute; {self._file} has every {self._unit}")

    def expect(self, total: int) -> None:
        """So many steps in all, since there are more now."""
        self._total = total
        self._bar.update(self._task, total=total)

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._console.print(message, soft_wrap=True, highlight=False, markup=False)

    def _step(self, step: int) -> str:
        return f"{self._unit} {step}/{self._total}"

    def _seconds_left(self, step: int, now: float) -> float:
        """By the mean of the steps so far; the first one, in which much is done once, counts while it is alone."""
        taken = step - self._done
        if taken <= 1:
            self._first_ended = now
            return (now - self._started) * (self._total - step)
        return (now - self._first_ended) / (taken - 1) * (self._total - step)


def _parts(metrics: Mapping[str, float]) -> dict[str, str]:
    if "tokens_per_answer" in metrics:
        parts = {"length": f"{metrics['tokens_per_answer']:.0f} tokens/answer"}
    elif "bytes_per_token" in metrics:
        parts = {"bytes": f"{metrics['bytes_per_token']:.1f} bytes/token"}
    elif "perplexity" in metrics:
        parts = {"perplexity": f"perplexity {metrics['perplexity']:.2f}"}
    else:
        parts = {"loss": f"loss {metrics['loss']:.3f}"}
        parts |= {name: f"{name} {metrics[f'{name}_loss']:.3f}" for name in ("kd", "ce") if metrics[f"{name}_loss"]}
        if "rollout_length" in metrics:
            length, cut = metrics["rollout_length"], metrics["rollout_cut"]
            parts |= {"rollouts": f"{length:.0f} tokens/answer, {cut:.0%} cut"}
        parts |= {"lr": f"lr {metrics['lr']:.1e}"}
    return parts | {
        "speed": f"{metrics['tokens_per_second']:,.0f} tokens/s",
        "memory": f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB",
    }


def _fitting(parts: Mapping[str, str], width: int) -> str:
    """As many of the parts as fit into so many columns."""
    parts = dict(parts)
    for name in _FIRST_TO_GO:
        if len("  ".join(parts.values())) <= width:
            break
        parts.pop(name, None)
    return "  ".join(parts.values())


def _duration(seconds: float) -> str:
    """``0:01:05``, ``2 days, 3:00:00``."""
    return str(timedelta(seconds=round(seconds)))
