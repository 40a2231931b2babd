"""What a model says of each token of a document, and how far that is from what the teacher says."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy
import torch

from distill_tune import losses
from distill_tune.data.batch import Batch, Row, joined
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.errors import UserError
from distill_tune.evaluation.documents import Written
from distill_tune.evaluation.windows import Window, windows
from distill_tune.losses.divergences import HUGE
from distill_tune.losses.signals import MixtureOfTeachers, SumOfTeachers, TeacherSignal, capped
from distill_tune.teachers import Teacher

_BATCH_TOKENS = 8192  # of documents that are scored together, and of windows that are read together
_COPIES = 4  # of each model's logits of a row, in float64, that are alive at once
_FIRST = 5  # tokens


@dataclasses.dataclass(frozen=True)
class PerToken:
    """Of one model and one document, of its ``p`` tokens but the first; of ``n`` of them, the supervised, a part.

    Attributes:
        nll: negative log-likelihood, nats, ``[p]``, float64.
        supervised, is_text: see :class:`~distill_tune.evaluation.documents.Written`, ``[p]``, bool.
        confidence: the largest probability, ``[n]``, float64.
        correct: whether it is that of the token that follows, ``[n]``, bool.
        to_teacher: None of the teacher itself, and where teacher and model have other tokenizers.
    """

    nll: numpy.ndarray
    supervised: numpy.ndarray
    is_text: numpy.ndarray
    confidence: numpy.ndarray
    correct: numpy.ndarray
    to_teacher: "ToTeacher | None" = None


@dataclasses.dataclass(frozen=True)
class ToTeacher:
    """How far a model's distribution q over the next token is from the teacher's p, at each supervised token, ``[n]``.

    Attributes:
        forward_kl: KL(p || q) = sum_v p (log p - log q), nats, float64.
        reverse_kl: KL(q || p), nats, float64.
        total_variation: half the sum of all differences of probabilities, from 0 to 1, float64.
        agreement: whether the likeliest token is the same, bool.
        agreement_top5: how many of the five likeliest tokens are the same, as a share, float64.
    """

    forward_kl: numpy.ndarray
    reverse_kl: numpy.ndarray
    total_variation: numpy.ndarray
    agreement: numpy.ndarray
    agreement_top5: numpy.ndarray


class Reader(NamedTuple):
    """A loaded model, and how it reads documents.

    Attributes:
        name: for messages.
        model: called with a batch of windows.
        context: tokens that it reads at most; None for any number.
        stride: see :func:`~distill_tune.evaluation.windows.windows`.
        reads_last: a window's last token is read, too, though nothing is predicted from it; else a window may have one
            token more than is read.
    """

    name: str
    model: Teacher
    context: int | None = None
    stride: int | None = None
    reads_last: bool = True

    @property
    def window(self) -> int | None:
        """Tokens of a window at most."""
        return None if self.context is None else self.context + (not self.reads_last)

    def windows(self, length: int) -> list[Window]:
        return windows(length, self.window, self.stride)


def batches_of(documents: Sequence[Written]) -> Iterator[list[int]]:
    """The numbers of documents that are scored together, those of about one length, the longest first."""
    together, taken = list[int](), 0
    for number in sorted(range(len(documents)), key=lambda number: -len(documents[number].tokens)):
        length = len(documents[number].tokens)
        if together and taken + length > _BATCH_TOKENS:
            yield together
            together, taken = [], 0
        together.append(number)
        taken += length
    if together:
        yield together


@torch.no_grad()
def score(
    reader: Reader,
    documents: Sequence[Written],
    device: torch.device,
    teacher: Reader | None = None,
    as_teacher_reads: Sequence[Written] | None = None,
    supervised_alone: bool = False,
) -> list[PerToken]:
    """One :class:`PerToken` a document.

    Each model reads its own windows; then both are projected to the vocabulary, some rows at a time, and what is
    wanted of them is taken in one pass. Where they have other numbers of tokens, as by padding rows, the distributions
    are compared on those that both have, renormalised.

    Args:
        teacher: of the same tokens; None compares with none.
        as_teacher_reads: the same documents, where it reads them behind other prompts.
        supervised_alone: no other tokens are predicted, nor told of.

    Raises:
        UserError: the model's logits are no numbers, or it holds a token of a document for impossible.
    """
    predicted = [document.supervised | (not supervised_alone) for document in documents]
    of_each = list(zip(documents, predicted, strict=True))
    supervised = numpy.concatenate([document.supervised[1:][told[1:]] for document, told in of_each])
    targets = torch.from_numpy(numpy.concatenate([document.tokens[1:][told[1:]] for document, told in of_each]))
    targets = targets.to(device)
    said = _Said.of(reader, of_each, device)
    of_teacher = [(document, document.supervised) for document in as_teacher_reads or documents]
    its = teacher and _Said.of(teacher, of_teacher, device)
    before = [0, *itertools.accumulate(supervised.tolist())]  # supervised rows before each row
    vocabularies = said.vocab_size + (its.vocab_size if its else 0)
    rows = losses.chunk_rows(len(targets), 8 * _COPIES * vocabularies, device)
    parts = list[dict[str, torch.Tensor]]()
    for start in range(0, len(targets), rows):
        stop = min(start + rows, len(targets))
        logits = said.logits(start, stop)
        wanted = torch.from_numpy(supervised[start:stop]).to(device)
        part = _of_own(logits, targets[start:stop], wanted)
        if its and before[start] < before[stop]:
            part |= _compared(logits[wanted], its.logits(before[start], before[stop], slot=2))
        parts.append(part)
    found = {
        name: torch.cat([part[name] for part in parts if name in part]).cpu().numpy()
        for name in dict.fromkeys(itertools.chain.from_iterable(parts))
    }
    _require_numbers(reader.name, found["nll"])
    return list(_by_document(of_each, found))


def _by_document(
    documents: Sequence[tuple[Written, numpy.ndarray]], found: dict[str, numpy.ndarray]
) -> Iterator[PerToken]:
    """
    Args:
        documents: each with which of its tokens are predicted, ``[s]``.
    """
    row = of_supervised = 0
    for document, told in documents:
        predicted, supervised = slice(row, row + int(told[1:].sum())), document.supervised[1:][told[1:]]
        learned = slice(of_supervised, of_supervised + int(supervised.sum()))
        row, of_supervised = predicted.stop, learned.stop
        names = [field.name for field in dataclasses.fields(ToTeacher)]
        of_teacher = {name: found[name][learned] for name in names if name in found}
        yield PerToken(
            found["nll"][predicted],
            supervised,
            document.is_text[1:][told[1:]],
            found["confidence"][learned],
            found["correct"][learned],
            ToTeacher(**of_teacher) if of_teacher else None,
        )


def _of_own(logits: torch.Tensor, targets: torch.Tensor, supervised: torch.Tensor) -> dict[str, torch.Tensor]:
    total = logits.logsumexp(-1)
    nll = total - logits.gather(1, targets[:, None])[:, 0]
    most, likeliest = logits[supervised].max(-1)
    confidence = (most - total[supervised]).exp()
    return {"nll": nll, "confidence": confidence, "correct": likeliest == targets[supervised]}


def _compared(logits: torch.Tensor, teacher_logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """``[n, v]`` and ``[n, v_t]`` to what of them is kept of each row, ``[n]``."""
    common = min(logits.shape[-1], teacher_logits.shape[-1])
    log_q, log_p = (of[:, :common].log_softmax(-1).clamp_(min=-HUGE) for of in (logits, teacher_logits))
    q, p = log_q.exp(), log_p.exp()
    first, its_first = (of.topk(min(_FIRST, common), dim=-1).indices for of in (log_q, log_p))
    same = (first[:, :, None] == its_first[:, None, :]).any(-1)
    difference = log_p.sub_(log_q)
    return {
        "forward_kl": torch.linalg.vecdot(p, difference),
        "reverse_kl": -torch.linalg.vecdot(q, difference),
        "total_variation": p.sub_(q).abs_().sum(-1) / 2,
        "agreement": first[:, 0] == its_first[:, 0],
        "agreement_top5": same.to(difference.dtype).mean(-1),
    }


class _Said:
    """What a model says of the rows of some batches, one after another."""

    def __init__(self, signals: Sequence[TeacherSignal], sizes: Sequence[int]) -> None:
        self._signals, self._ends = signals, [0, *itertools.accumulate(sizes)]
        self.vocab_size = signals[0].logits_per_row

    @classmethod
    def of(cls, reader: Reader, documents: Sequence[tuple[Written, numpy.ndarray]], device: torch.device) -> "_Said":
        """
        Args:
            documents: each with which of its tokens are predicted, ``[s]``; the first never is.
        """
        signals, sizes = list[TeacherSignal](), list[int]()
        for batch in read_together(reader, documents):
            signals.append(signal_of(reader.model, batch.to(device)))
            sizes.append(len(batch.supervised_positions))
        return cls(signals, sizes)

    def logits(self, start: int, stop: int, slot: int = 1) -> torch.Tensor:
        """Of some rows, ``[stop - start, v]``, float64 where the device has it.

        Args:
            slot: of the memory that they may share with those of the next call.
        """
        parts = []
        for signal, (first, last) in zip(self._signals, itertools.pairwise(self._ends), strict=True):
            begin, end = max(start, first) - first, min(stop, last) - first
            if begin < end:
                found = signal.logits(begin, end, signal.memory(end - begin, slot))
                parts.append(capped(found, signal.softcap).to(precise(found.device)))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def signal_of(model: Teacher, batch: Batch) -> TeacherSignal:
    """What a model says of a batch; of several whose divergences are added up, their mixture."""
    signal: Any = model(batch)
    if isinstance(signal, SumOfTeachers):
        return MixtureOfTeachers(cast(Sequence[TeacherSignal], signal.signals), signal.weights)
    return signal


def precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which has none


def read_together(reader: Reader, documents: Sequence[tuple[Written, numpy.ndarray]]) -> Iterator[Batch]:
    """All windows of the documents, some thousand tokens at a time."""
    together, taken = list[Row](), 0
    for document, predicted in documents:
        for start, stop, first in reader.windows(len(document.tokens)):
            if together and taken + stop - start > _BATCH_TOKENS:
                yield joined(together)
                together, taken = [], 0
            labels = numpy.where(predicted[start:stop], document.tokens[start:stop], IGNORE_INDEX)
            labels[: first - start] = IGNORE_INDEX
            tokens = document.tokens[start : stop if reader.reads_last else stop - 1]
            together.append(Row(torch.from_numpy(tokens), torch.from_numpy(labels)))
            taken += stop - start
    yield joined(together)


def _require_numbers(name: str, nll: numpy.ndarray) -> None:
    if numpy.isnan(nll).any():
        raise UserError(
            f"{name}: its logits are no numbers (NaN), so what it says means nothing; its weights are broken, or need "
            "another dtype"
        )
    if numpy.isinf(nll).any():
        raise UserError(f"{name}: holds a token of the documents for impossible: its perplexity is infinite")
