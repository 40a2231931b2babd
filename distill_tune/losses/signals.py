"""What a teacher says about the supervised positions, in the forms that the loss can use."""

import dataclasses
import math
from collections.abc import Sequence

import torch

from distill_tune.losses.aligned import Aligned, AlignedWord
from distill_tune.losses.divergences import ForwardKL
from distill_tune.losses.projection import Projection
from distill_tune.losses.sparse import SparseSignal
from distill_tune.losses.teacher_signal import TeacherSignal
from distill_tune.losses.unserved import unserved
from distill_tune.to_device import to_device


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """The teacher's last hidden states ``[n, d]`` and its output layer.

    Attributes:
        layers: further hidden states, ``[s, d]`` each, for a :class:`~distill_tune.losses.HiddenLoss`.
        supervised: which of their positions the ``n`` are, int64.
    """

    hidden: torch.Tensor
    projection: Projection
    layers: Sequence[torch.Tensor] = ()
    supervised: torch.Tensor | None = None

    @property
    def vocab_size(self) -> int:
        return self.projection.vocab_size

    @property
    def logits_per_row(self) -> int:
        return self.projection.vocab_size

    @property
    def softcap(self) -> float | None:
        return self.projection.softcap

    def memory(self, rows: int, slot: int = 1) -> torch.Tensor | None:
        return self.projection.memory(rows, slot, self.hidden.dtype)

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return self.projection.logits(self.hidden[start:stop], memory)


@dataclasses.dataclass(frozen=True)
class DenseLogits:
    """Logits ``[n, v]`` that are there already, from a teacher that gives nothing else."""

    values: torch.Tensor
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.values.shape[1]

    @property
    def logits_per_row(self) -> int:
        return self.values.shape[1]

    def memory(self, rows: int, slot: int = 1) -> torch.Tensor | None:
        return None

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        return self.values[start:stop].clone()


@dataclasses.dataclass(frozen=True)
class MixtureOfTeachers:
    """One distribution from several teachers: sum_i w_i p_i, over the tokens that all of them have.

    At a temperature T it is this mixture that is softened, softmax(log(sum_i w_i p_i) / T).

    Attributes:
        signals: of the teachers, for the same rows.
        weights: of each; their sum is 1.
    """

    signals: Sequence[TeacherSignal]
    weights: Sequence[float]
    softcap: None = None

    @property
    def vocab_size(self) -> int:
        return min(signal.vocab_size for signal in self.signals)

    @property
    def logits_per_row(self) -> int:
        return max(signal.logits_per_row for signal in self.signals) + 3 * self.vocab_size

    def memory(self, rows: int, slot: int = 1) -> torch.Tensor | None:
        return None

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        mixed = None
        for signal, weight in zip(self.signals, self.weights, strict=True):
            logits = capped(signal.logits(start, stop, signal.memory(stop - start)), signal.softcap)
            weighted = logits[:, : self.vocab_size].float().log_softmax(-1).add_(math.log(weight))
            mixed = weighted if mixed is None else torch.logaddexp(mixed, weighted)
        assert mixed is not None
        return mixed


@dataclasses.dataclass(frozen=True)
class SumOfTeachers:
    """A divergence from each of several teachers, added up with their weights: sum_i w_i D(p_i, q).

    Attributes:
        signals: of the teachers, for the same rows.
        weights: of each; their sum is 1.
    """

    signals: Sequence[TeacherSignal | SparseSignal | Aligned]
    weights: Sequence[float]


@dataclasses.dataclass(frozen=True)
class TeacherOfEachRow:
    """Of each row the word of one teacher, over the tokens that all of them have.

    Attributes:
        signals: of the teachers, each for its own rows in their order.
        owned: of each teacher, which rows these are, ascending, int64, on the CPU.
    """

    signals: Sequence[TeacherSignal | Aligned]
    owned: Sequence[torch.Tensor]
    softcap: None = None

    @property
    def vocab_size(self) -> int:
        return min(signal.vocab_size for signal in self.signals)

    @property
    def logits_per_row(self) -> int:
        return max(signal.logits_per_row for signal in self.signals) + self.vocab_size

    def memory(self, rows: int, slot: int = 1) -> torch.Tensor | None:
        return None

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        out = None
        for signal, rows in zip(self.signals, self.owned, strict=True):
            first, last = torch.searchsorted(rows, torch.tensor([start, stop])).tolist()
            assert not isinstance(signal, Aligned)  # see added_up
            logits = capped(signal.logits(first, last, signal.memory(last - first)), signal.softcap)
            if out is None:
                out = logits.new_empty(stop - start, self.vocab_size, dtype=torch.float32)
            here = to_device(rows[first:last] - start, out.device)
            out[here] = logits[:, : self.vocab_size].float()
        assert out is not None
        return out


# What a teacher says of some rows: logits ``[c, v]``, a record of them, or rows of another tokenizer.
Word = torch.Tensor | SparseSignal | AlignedWord


def said(signal: TeacherSignal | SparseSignal | Aligned, start: int, stop: int, memory: torch.Tensor | None) -> Word:
    """Of rows ``start`` to ``stop``; the loss may overwrite logits.

    Args:
        memory: for no fewer rows than these.
    """
    if isinstance(signal, SparseSignal):
        return signal[start:stop]
    if isinstance(signal, Aligned):
        return signal.word(start, stop, memory)
    return signal.logits(start, stop, None if memory is None else memory[: stop - start])


def part_of(word: Word, start: int, stop: int) -> Word:
    """What is said of some of its rows."""
    return word.part(start, stop) if isinstance(word, AlignedWord) else word[start:stop]


def added_up(
    signal: "TeacherSignal | SparseSignal | Aligned | SumOfTeachers | TeacherOfEachRow",
) -> list[tuple[float, TeacherSignal | SparseSignal | Aligned]]:
    """The signals that each have a divergence of their own, with their shares.

    Raises:
        ValueError: records or teachers of other tokenizers in a mixture, or beside another kind of signal where each
            row has its own teacher.
    """
    if isinstance(signal, SumOfTeachers):
        pairs = zip(signal.weights, signal.signals, strict=True)
        return [(weight * share, term) for weight, one in pairs for share, term in added_up(one)]
    several = getattr(signal, "signals", ())
    aligned = [one for one in several if isinstance(one, Aligned)]
    records = [one for one in several if isinstance(one, SparseSignal)]
    if not records and not aligned:
        return [(1.0, signal)]  # type: ignore[list-item]
    if isinstance(signal, MixtureOfTeachers):
        kind = records[0].kind if records else "aligned"
        raise ValueError(unserved(kind, ForwardKL(), combination="mixture"))
    assert isinstance(signal, TeacherOfEachRow)
    if aligned:
        if len(aligned) < len(several):
            raise ValueError("by_row: where a teacher has another tokenizer than the student all of them must have one")
        n = sum(len(rows) for rows in signal.owned)
        return [(1.0, one.among(rows, n)) for one, rows in zip(aligned, signal.owned, strict=True)]
    if {type(one) for one in several} != {type(records[0])}:
        raise ValueError(f"by_row: a {records[0].kind} record of one teacher needs one of the same kind of each other")
    return [(1.0, type(records[0]).of_each_row(records, signal.owned))]  # type: ignore[arg-type]


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else (logits / softcap).tanh_().mul_(softcap)
