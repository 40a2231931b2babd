"""What a person sees of a run: a live bar in a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

_WIDE = 120  # columns; a narrower terminal gets the numbers without the bar
_LINES_A_RUN = 40  # without a terminal, about so many lines whatever the run's length


class Progress:
    """Shows loss, kd_loss, ce_loss, learning rate, tokens/s, memory and time left.

    Args:
        total: steps of the run.
        done: steps taken before it was resumed.
        every: steps between plain lines, where there is no terminal; None for some 40 lines a run.
    """

    def __init__(self, total: int, done: int = 0, every: int | None = None) -> None:
        self._console = Console()
        self._total = total
        self._every = every or max(1, total // _LINES_A_RUN)
        self._bar = Bar(
            TextColumn("step {task.completed}/{task.total}"),
            *([BarColumn(bar_width=20)] if self._console.width >= _WIDE else []),
            TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, shown="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, metrics: Mapping[str, float]) -> None:
        """After each step."""
        step = int(metrics["step"])
        shown = _shown(metrics)
        self._bar.update(self._task, completed=step, shown=shown)
        if not self._console.is_terminal and (step % self._every == 0 or step in (1, self._total)):
            self._console.print(f"step {step}/{self._total}  {shown}", soft_wrap=True, highlight=False)

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._console.print(message, soft_wrap=True, highlight=False, markup=False)


def _shown(metrics: Mapping[str, float]) -> str:
    parts = [f"loss {metrics['loss']:.3f}"]
    parts += [f"{name.removesuffix('_loss')} {metrics[name]:.3f}" for name in ("kd_loss", "ce_loss") if metrics[name]]
    parts.append(f"lr {metrics['lr']:.1e}")
    parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    parts.append(f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB")
    return "  ".join(parts)
