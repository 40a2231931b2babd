"""Decoding steps as CUDA graphs: a step of a small model takes the CPU longer to start than the GPU to run."""

from collections.abc import Callable, Sequence

import torch

Step = Callable[[int, int], tuple[torch.Tensor, ...]]
Capture = Callable[[Step, int, int], tuple[Callable[[], None], tuple[torch.Tensor, ...]]]

_LEAST_LENGTH = 256


def captured(step: Step, rows: int, length: int) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """A step as a graph: what runs it again, and what it writes then."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(rows, length)
    return graph.replay, found


class StepGraphs:
    """A step for each size of batch that is met, as powers of two; rows and positions beyond those asked for are idle.

    They read the weights where these lie now, so they last no longer than a model is ready.

    Args:
        step: of so many rows, the longest of which has so many positions; waits for nothing, and reads and writes
            tensors that stay where they are.
        state: those that a step changes.
        most_rows, most_length: that the cache has.
        capture: makes a graph.
    """

    def __init__(
        self,
        step: Step,
        state: Sequence[torch.Tensor],
        most_rows: int,
        most_length: int,
        capture: Capture = captured,
    ) -> None:
        self._step, self._state, self._capture = step, state, capture
        self._most_rows, self._most_length = most_rows, most_length
        self._graphs: dict[tuple[int, int], tuple[Callable[[], None], tuple[torch.Tensor, ...]]] = {}

    def __call__(self, rows: int, longest: int) -> tuple[torch.Tensor, ...]:
        size = (
            min(_power_of_two(rows), self._most_rows),
            min(max(_LEAST_LENGTH, _power_of_two(longest)), self._most_length),
        )
        if size not in self._graphs:
            self._graphs[size] = self._made(*size)
        replay, found = self._graphs[size]
        replay()
        return tuple(part[:rows].clone() for part in found)

    def _made(self, rows: int, length: int) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
        before = [part.clone() for part in self._state]
        self._step(rows, length)  # libraries take their memory at their first call, which no graph may
        torch.accelerator.synchronize()
        made = self._capture(self._step, rows, length)
        for part, was in zip(self._state, before, strict=True):
            part.copy_(was)
        return made


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
