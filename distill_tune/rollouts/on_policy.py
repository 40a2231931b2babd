"""Which rows of a step the student answers itself, and which its teacher does."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy

from distill_tune.errors import UserError
from distill_tune.generation import Sampling, Server
from distill_tune.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """On-policy distillation (GKD, Agarwal et al. 2023, arXiv 2306.13649): the student learns from its own answers.

    Attributes:
        lmbda: share of each step's rows whose answers the student writes, from 0 to 1, or a schedule.
        seq_kd: the other rows have answers that the teacher writes, in place of the data's.
        samples_per_prompt: answers of the student's to each of its rows.
        sampling: how answers are drawn; its arguments serve.
        every: the answers of so many steps are written at once, so the last of them by weights that many steps less one
            old: more rows at a time, and a student that has moved on meanwhile.
        server: vLLM on GPUs of its own, which answers for the student; its adapters or weights are sent there before
            (docs/generation_servers.md). Default: the student itself, here.
        log_every_n_steps: how often the teacher's marks on the student's answers are measured and written.

    Raises:
        UserError: a value is out of its range.
    """

    lmbda: float | Schedule = 1.0
    seq_kd: bool = False
    samples_per_prompt: int = 1
    sampling: Sampling | dict[str, Any] | None = dataclasses.field(default_factory=Sampling)
    every: int = 1
    server: Server | None = None
    log_every_n_steps: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.lmbda, int | float) and not 0 <= self.lmbda <= 1:
            raise UserError(f"rollouts.lmbda={self.lmbda}: must be from 0 to 1, or a schedule")
        for name in ("samples_per_prompt", "every", "log_every_n_steps"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"rollouts.{name}={value}: must be at least 1")
        if not isinstance(self.server, Server | None):
            raise UserError(
                f"rollouts.server={self.server}: must be a component, {{_component_: distill_tune.generation.Server, "
                "url: ...}, or null"
            )
        if isinstance(self.sampling, Mapping):
            object.__setattr__(self, "sampling", _sampling_of(self.sampling))
        elif self.sampling is None:
            object.__setattr__(self, "sampling", Sampling())
        elif not isinstance(self.sampling, Sampling):
            raise UserError(f"rollouts.sampling={self.sampling}: must be arguments, {{max_new_tokens: ...}}, or null")


def _sampling_of(arguments: Mapping[str, Any]) -> Sampling:
    known = [field.name for field in dataclasses.fields(Sampling)]
    if unknown := [name for name in arguments if name not in known]:
        raise UserError(f"rollouts.sampling.{unknown[0]}: no such argument; it takes {', '.join(known)}")
    try:
        return Sampling(**arguments)
    except UserError as error:
        raise UserError(f"rollouts.sampling.{error}") from error


def own_rows(num_rows: int, share: float, seed: int, step: int) -> numpy.ndarray:
    """Which rows of a step the student answers, ``[num_rows]``, bool: a function of seed and step.

    ``share`` times the rows, whose fraction of a row is drawn, so that on average over steps it is met.
    """
    generator = numpy.random.Generator(numpy.random.PCG64([seed, step]))
    count = min(num_rows, math.floor(share * num_rows + generator.random()))
    chosen = numpy.zeros(num_rows, bool)
    chosen[generator.permutation(num_rows)[:count]] = True
    return chosen
