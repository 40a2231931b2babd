"""What student and teacher think of each token of an answer."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import losses, models
from distill_tune.data.batch import Batch
from distill_tune.losses.signals import added_up, capped
from distill_tune.losses.sparse import SampledTokens, SparseSignal, TopTokens
from distill_tune.teachers import Teacher

from torchtune.modules import TransformerDecoder

_LIKELIEST = 16  # tokens of each, of which it is told how many are the same


@dataclasses.dataclass(frozen=True)
class Marks:
    """Of the supervised positions of a batch, at temperature 1, ``[n]`` each, float32, on the CPU.

    Of a teacher that gives records, or has another tokenizer, what it does not tell is no number.

    Attributes:
        log_prob: of the token, under the student as it trains.
        log_ratio: log p - log q of the token, p the teacher's.
        student_entropy, teacher_entropy: in nats.
        overlap: share of the student's 16 likeliest tokens that are among the teacher's.
    """

    log_prob: torch.Tensor
    log_ratio: torch.Tensor
    student_entropy: torch.Tensor
    teacher_entropy: torch.Tensor
    overlap: torch.Tensor

    def __getitem__(self, part: slice) -> "Marks":
        return Marks(*(values[part] for values in vars(self).values()))


@torch.no_grad()
def marks_of(
    student: TransformerDecoder,
    head: models.OutputHead,
    teacher: Teacher,
    batch: Batch,
    common_vocab_size: int | None = None,
) -> Marks:
    """
    Args:
        student: in eval mode, its ``head`` taken.
        batch: on its device.
    """
    terms = added_up(teacher(batch))
    targets = batch.targets[0, batch.supervised_positions]
    terms = [(share, term) for share, term in terms if not isinstance(term, losses.Aligned)]
    terms = [(share / sum(share for share, _ in terms), term) for share, term in terms]
    v = min([common_vocab_size or head.vocab_size, *(term.vocab_size for _, term in terms)])
    named = 0 if batch.likeliest is None else batch.likeliest.shape[1]
    parts = [
        _of_chunk(logits, targets[start : start + len(logits)], terms, start, v, named)
        for start, logits in _logits_of(student, head, batch, sum(term.logits_per_row for _, term in terms))
    ]
    if not parts:
        return Marks(*(torch.zeros(0) for _ in dataclasses.fields(Marks)))
    return Marks(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))


@torch.no_grad()
def likeliest_of(
    student: TransformerDecoder, head: models.OutputHead, batch: Batch, count: int, common_vocab_size: int | None
) -> torch.Tensor:
    """Tokens that the student holds likeliest at each supervised position, likeliest first, ``[n, count]``, on the CPU.

    Args:
        student: in eval mode, its ``head`` taken.
        batch: on its device.
        common_vocab_size: of the first so many tokens alone.
    """
    found = [
        logits[:, : common_vocab_size or head.vocab_size].topk(count).indices.cpu()
        for _, logits in _logits_of(student, head, batch)
    ]
    return torch.cat([torch.zeros(0, count, dtype=torch.long), *found])


def _logits_of(
    student: TransformerDecoder, head: models.OutputHead, batch: Batch, others_per_row: int = 0
) -> Iterator[tuple[int, torch.Tensor]]:
    """The student's logits at the supervised positions in chunks ``[c, v]``, float32, each with its first one's number.

    Args:
        others_per_row: logits of a position that whoever takes them makes beside.
    """
    hidden, _ = models.hidden_states(student, batch.tokens, batch.attention())
    head.gather()
    projection, hidden = head.projection_for_loss(), hidden[0, batch.supervised_positions]  # [n, d]
    # Of each: logits, and what is made of them in float32.
    per_row = 4 * losses.chunk_bytes_per_row(projection.vocab_size, others_per_row, hidden.dtype)
    rows = losses.chunk_rows(len(hidden), per_row, hidden.device)
    for start in range(0, len(hidden), rows):
        chunk = hidden[start : start + rows]
        memory = projection.memory(len(chunk), 0, hidden.dtype)
        yield start, capped(projection.logits(chunk, memory).float(), projection.softcap)
    head.release()


def _of_chunk(
    logits: torch.Tensor, targets: torch.Tensor, terms: list[tuple[float, Any]], start: int, v: int, named: int
) -> tuple[torch.Tensor, ...]:
    """The values of :class:`Marks` of some rows.

    Args:
        named: tokens of a record, its last ones, that are in it because the student holds them likely.
    """
    whole = logits.log_softmax(-1)  # [c, v]
    log_prob = whole.gather(1, targets[:, None])[:, 0]
    compared = logits[:, :v].log_softmax(-1)
    known = targets < v
    own = compared.gather(1, targets.where(known, 0)[:, None])[:, 0]
    of_teacher = _log_probs(terms, start, start + len(logits), v)
    unknown = torch.full_like(log_prob, torch.nan)
    if of_teacher is None:
        return log_prob, unknown, _entropy(compared), unknown, unknown
    if isinstance(of_teacher, SparseSignal):
        its, entropy, likeliest = _of_record(of_teacher, targets, named)
    else:
        its = of_teacher.gather(1, targets.where(known, 0)[:, None])[:, 0]
        entropy, likeliest = _entropy(of_teacher), of_teacher.topk(min(_LIKELIEST, v)).indices
    mine = compared.topk(min(_LIKELIEST, v)).indices
    shared = (mine[:, :, None] == likeliest[:, None, :]).any(-1).float().mean(-1)
    return log_prob, (its - own).where(known, unknown), _entropy(compared), entropy, shared


def _log_probs(terms: list[tuple[float, Any]], start: int, stop: int, v: int) -> Any:
    """The teacher's logarithms ``[c, v]``, of several their mixture; of one that gives records, its record; None
    without any in these tokens."""
    mixed = None
    for share, term in terms:
        if isinstance(term, SparseSignal):
            return term[start:stop]
        logits = capped(term.logits(start, stop, term.memory(stop - start)), term.softcap)[:, :v].float()
        of_term = logits.log_softmax(-1) + torch.tensor(share, device=logits.device).log()
        mixed = of_term if mixed is None else torch.logaddexp(mixed, of_term)
    return mixed


def _of_record(record: Any, targets: torch.Tensor, named: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of each target, entropy, and likeliest tokens, as far as a record tells."""
    ids, nothing = record.ids.long(), torch.full_like(targets, torch.nan, dtype=torch.float32)
    if isinstance(record, SampledTokens):
        return nothing, record.entropy.float(), ids
    assert isinstance(record, TopTokens)
    is_target = (ids == targets[:, None]) & record.is_token
    found = record.log_probs.float().where(is_target, 0.0).sum(-1)
    of_teacher = record.log_probs[:, : max(1, ids.shape[1] - named)]
    likeliest = ids.gather(1, of_teacher.topk(min(_LIKELIEST, of_teacher.shape[1])).indices)
    return found.where(is_target.any(-1), nothing), nothing, likeliest


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:
    return -(log_probs.exp() * log_probs.clamp(min=-1e30)).sum(-1)
