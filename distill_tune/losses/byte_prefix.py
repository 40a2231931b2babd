"""Byte-prefix mass: any divergence between models of different tokenizers, over what both can say in bytes."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from distill_tune.losses.aligned import AlignedWord
from distill_tune.losses.byte_moves import CHAIN, NONE, ByteMoves
from distill_tune.losses.divergences import Distribution, Divergence, ForwardKL
from distill_tune.to_device import to_device

_TINY = torch.finfo(torch.float32).tiny


class BytePrefixMass:
    """``divergence`` between the student's next token and the teacher's, each counted by bytes (arXiv 2607.22334).

    A teacher's token t speaks for the longest token of the student's that is a byte-prefix of t, M(t). The tokens M(t)
    are the classes; a student's token that is none of them counts for the longest class that is a byte-prefix of it.
    So a class is the event that the text goes on with its bytes, and, as far as the next token tells, not with those of
    a longer class. What has no counterpart, such as control tokens, is one more class, the rest; of a student without
    such a token the teacher's are left out, and its other tokens' probabilities renormalised.

    y is the student's token in a row, T the teacher's token that holds y's first byte.

    1. At a common boundary the probabilities of both are summed by class, and ``divergence`` compares the sums.
    2. Where y lies in the middle of T both are conditional on the bytes of T that the student has read: the teacher's
       tokens that begin with these bytes, normalised, each by the longest token of the student's that is a byte-prefix
       of what follows. The student's tokens count for the longest of those; all others are the rest, against the
       teacher's token that ends with the bytes read.
    3. T's own probability goes to y wherever M(T) is another class: whole where y ends within T; where y goes on beyond
       T, times the probabilities of the teacher's tokens that y spans, the last one's being that of all its tokens that
       go on with y's bytes, and not with those of a longer class. Where y is no class it is made one, in this row.
    4. Where y begins with a space before T that the teacher's text has not, as SentencePiece's tokenizers write it
       before a text, it is as in 2, but nothing is read: all of the teacher's tokens count, each by the longest token
       of the student's that is a byte-prefix of a space and its bytes. Control tokens have the classes of 1.

    What is exact. A class that the teacher spells with one token alone has its true probability. One that it can also
    spell with several of its tokens has a lower bound of it, and the class of the first of them an upper bound. Not so
    y: the row's own tokens spell it, and its probability is exact where they are the teacher's only spelling of its
    bytes, a lower bound otherwise. Within T the bytes read are taken as the beginning of one token. So all is exact
    where bytes have one spelling and the student's tokens are the teacher's or parts of them: a student with the
    teacher's distribution over texts has no loss, and with one tokenizer it is ``divergence`` itself. A student's token
    that is no class is not told from the others of its class, except as y.

    Its gradient is that of what is computed, with the teacher constant: a token's logit has its share of the gradient
    of its class, q(token) / q(class).

    Args:
        divergence: default forward KL. :class:`~distill_tune.losses.TopK` takes the k likeliest classes,
            :class:`~distill_tune.losses.LogitMSE` the logarithms of their probabilities.
    """

    aligned: ClassVar[bool] = True

    def __init__(self, divergence: Divergence | None = None) -> None:
        self.divergence = divergence or ForwardKL()

    def __call__(
        self, student: Distribution, teacher: Distribution, targets: torch.Tensor, word: AlignedWord
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~distill_tune.losses.aligned.AlignedMethod`.

        Raises:
            ValueError: the positions come without their ``moves``.
        """
        positions, moves = word.on_cpu, word.on_cpu.moves
        if moves is None:
            raise ValueError("byte-prefix mass needs the moves of the alignment: VocabularyMap.positions makes them")
        _leave_out(teacher, word.classes.of_teacher_alone)
        share = _shares(teacher, word, moves)
        owns = (moves.share != NONE) & (moves.to < 0)
        inside = (positions.known & ~positions.boundary).nonzero()[:, 0]
        by_class = [positions.boundary & ~owns, positions.boundary & owns]
        # Before the teacher's probabilities are changed for the rows at boundaries, and the student's are used up.
        found = [
            (these, self._inside(student, teacher, targets, word, moves, share, these))
            for these in _few_at_a_time(moves, inside, student.probs.numel() // 8)
        ]
        moved = _set_apart(teacher, word, share)
        if len(rows := by_class[1].nonzero()[:, 0]):
            found.append((rows, self._with_own(student, teacher, targets, word, rows, moved)))
        if bool(by_class[0].all()):
            return self._at_boundaries(student, teacher, word, None, moved, student.log_probs)
        if len(rows := by_class[0].nonzero()[:, 0]):
            here = to_device(rows, student.probs.device)
            of_rows = Distribution(*(of.index_select(0, here) for of in student))
            found.append((rows, self._at_boundaries(of_rows, teacher, word, rows, moved, of_rows.log_probs)))
        values, gradient = student.probs.new_zeros(len(positions)), student.log_probs.zero_()
        for rows, of_these in found:
            here = to_device(rows, values.device)
            values[here], gradient[here] = of_these
        return values, gradient

    def _at_boundaries(
        self,
        student: Distribution,
        teacher: Distribution,
        word: AlignedWord,
        rows: torch.Tensor | None,
        moved: torch.Tensor,
        out: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows whose y is a class, or has no move; None: of all."""
        moves = word.on_cpu.moves
        assert moves is not None
        chosen = slice(None) if rows is None else rows
        of_teacher = _by_class(teacher, word, chosen)
        of_student = word.classes.of_student.sums(student, least=_TINY)
        with_move = (moves.share[chosen] != NONE).nonzero()[:, 0]
        if len(with_move):
            device = out.device
            to = to_device(moves.to[chosen][with_move], device)
            mass = moved[to_device(torch.arange(len(moves.to))[chosen][with_move], device)]
            here = to_device(with_move, device)
            total = of_teacher.probs[here, to] + mass
            of_teacher.probs[here, to], of_teacher.log_probs[here, to] = total, total.log()
        several = of_student.probs.index_select(1, word.classes.of_student.several)
        values, gradient = self.divergence(of_student, of_teacher)
        return values, word.classes.of_student.to_tokens(gradient, several, student.probs, out)

    def _with_own(
        self,
        student: Distribution,
        teacher: Distribution,
        targets: torch.Tensor,
        word: AlignedWord,
        rows: torch.Tensor,
        moved: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows whose y is no class: it leaves its own, and has a column of its own behind the classes."""
        here = to_device(rows, student.probs.device)
        tokens, mass = targets[here][:, None], moved[here][:, None]
        of_student = Distribution(*(of.index_select(0, here) for of in student))
        own = Distribution(*(of.gather(1, tokens) for of in of_student))
        of_student.probs.scatter_(1, tokens, 0.0)
        of_student.log_probs.scatter_(1, tokens, math.log(_TINY))
        groups = word.classes.of_student
        sums = groups.sums(of_student, least=_TINY)
        of_teacher = _by_class(teacher, word, rows)
        several = sums.probs.index_select(1, groups.several)
        values, gradient = self.divergence(
            Distribution(*(torch.cat(pair, 1) for pair in zip(sums, own, strict=True))),
            Distribution(torch.cat([of_teacher.log_probs, mass.log()], 1), torch.cat([of_teacher.probs, mass], 1)),
        )
        of_own = gradient[:, -1:]
        out = groups.to_tokens(gradient[:, :-1].contiguous(), several, of_student.probs, of_student.log_probs)
        return values, out.scatter_(1, tokens, of_own)

    def _inside(
        self,
        student: Distribution,
        teacher: Distribution,
        targets: torch.Tensor,
        word: AlignedWord,
        moves: ByteMoves,
        share: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows that are at no boundary: a column for each token that may follow, for y's own, for the rest."""
        device, lists, m = student.probs.device, moves.inside[rows], len(rows)
        most = int(moves.widths[lists].max())
        own, rest, width = most, most + 1, most + 2
        to = moves.to[rows].masked_fill((moves.share[rows] == NONE) | (moves.to[rows] < 0), own)
        owns = ((moves.share[rows] != NONE) & (moves.to[rows] < 0)).nonzero()[:, 0]

        # The teacher's tokens that begin with the bytes read, if any.
        here = to_device(rows, device)
        owner, ids, columns, starts = moves.teacher_lists.of(lists, device)
        columns = columns.masked_fill_(columns < 0, rest).add_(owner, alpha=width)
        at = to_device(word.on_cpu.at[rows], device)
        mass = teacher.probs.take(ids.add_(at[owner], alpha=teacher.probs.shape[1]))
        of_t = starts + to_device(moves.rank[rows], device)
        own_share, p = share[here], mass[of_t]
        mass[of_t] = p * (1 - own_share)
        masses = mass.new_zeros(m * width).index_add_(0, columns, mass).view(m, width)
        masses.scatter_add_(1, to_device(to, device)[:, None], (p * own_share)[:, None])
        total = masses.sum(1, keepdim=True)
        of_teacher = masses.div_(total.clamp(min=_TINY))

        # The student's, each by the longest column that is a byte-prefix of it.
        probs = student.probs.index_select(0, here)
        own_rows = to_device(owns, device)
        own_tokens = targets[here][own_rows]
        own_probs = probs[own_rows, own_tokens]
        probs[own_rows, own_tokens] = torch.zeros_like(own_probs)
        owner, ids, columns, _ = moves.student_lists.of(lists, device)
        tokens, columns = ids.add_(owner, alpha=probs.shape[1]), columns.add_(owner, alpha=width)
        listed = probs.take(tokens)
        of_student = probs.new_zeros(m * width).index_add_(0, columns, listed).view(m, width)
        of_student[own_rows, own] = own_probs
        probs.view(-1).index_fill_(0, tokens, 0.0)
        of_student[:, rest] = probs.sum(1)
        divisor = of_student.clamp(min=_TINY)

        values, gradient = self.divergence(
            Distribution(divisor.log(), of_student), Distribution(of_teacher.log(), of_teacher)
        )
        # Of a teacher that finds the bytes read impossible there is nothing to learn.
        gradient.masked_fill_(total == 0, 0.0)
        of_own = gradient[own_rows, own]
        ratio = gradient.div_(divisor)
        out = probs.mul_(ratio[:, rest:])
        out.view(-1).index_copy_(0, tokens, listed.mul_(ratio.view(-1)[columns]))
        out[own_rows, own_tokens] = of_own
        return values.masked_fill(total[:, 0] == 0, 0.0), out


def _few_at_a_time(moves: ByteMoves, inside: torch.Tensor, most: int) -> Sequence[torch.Tensor]:
    """Rows at no boundary, so many together as list no more tokens than ``most``, or one more row."""
    if not len(inside):
        return []
    lists = moves.inside[inside]
    listed = moves.teacher_lists.lengths[lists] + moves.student_lists.lengths[lists]
    group = listed.cumsum(0) // max(1, most)
    return inside.tensor_split((group[1:] != group[:-1]).nonzero()[:, 0] + 1)  # type: ignore[return-value]


def _leave_out(teacher: Distribution, tokens: torch.Tensor) -> None:
    """Gives some tokens no probability, in place, and renormalises the others."""
    if len(tokens):
        total = teacher.probs.index_fill_(1, tokens, 0.0).sum(1, keepdim=True).clamp_(min=_TINY)
        teacher.probs.div_(total)
        teacher.log_probs.index_fill_(1, tokens, -math.inf).sub_(total.log_())


def _shares(teacher: Distribution, word: AlignedWord, moves: ByteMoves) -> torch.Tensor:
    """How much of T's probability goes to y, ``[c]``; 0 where none does."""
    device = teacher.probs.device
    share = (moves.share != NONE).float()
    chains = (moves.share == CHAIN).nonzero()[:, 0]
    share = to_device(share, device)
    if not len(chains):
        return share
    at, last = word.on_cpu.at[chains], word.on_cpu.last[chains]
    # The tokens between the first and the last one, as long as the longest such chain.
    between = at[:, None] + torch.arange(1, max(1, int((last - at).max())))
    is_between = to_device(between < last[:, None], device)
    between = to_device(between.clamp(max=len(word.targets) - 1), device)
    log_probs = teacher.log_probs[between, word.targets[between]].masked_fill(~is_between, 0.0).sum(1)
    owner, ids, _, _ = moves.tails.of(moves.tail[chains], device)
    tokens = ids.add_(to_device(last, device)[owner], alpha=teacher.probs.shape[1])
    ends = log_probs.new_zeros(len(chains)).index_add_(0, owner, teacher.probs.take(tokens))
    share[to_device(chains, device)] = log_probs.exp().mul_(ends).clamp_(max=1.0)
    return share


def _set_apart(teacher: Distribution, word: AlignedWord, share: torch.Tensor) -> torch.Tensor:
    """Takes from T's probability, in place, what goes to y in rows at boundaries; returns it, ``[c]``.

    So it is never the difference of two sums, which would have no digits where T is nearly all of its class.
    """
    moves = word.on_cpu.moves
    assert moves is not None
    moved = torch.zeros_like(share)
    rows = (word.on_cpu.boundary & (moves.share != NONE)).nonzero()[:, 0]
    if len(rows):
        here, at = to_device(rows, share.device), to_device(word.on_cpu.at[rows], share.device)
        tokens, of_rows = word.targets[at], share[here]
        p = teacher.probs[at, tokens]
        moved[here] = p * of_rows
        teacher.probs[at, tokens] = p * (1 - of_rows)
        teacher.log_probs[at, tokens] += torch.log1p(-of_rows)
    return moved


def _by_class(teacher: Distribution, word: AlignedWord, rows: torch.Tensor | slice) -> Distribution:
    """The teacher's rows that answer the student's, by class, ``[n, k]``."""
    at = word.on_cpu.at[rows]
    if len(at) != len(word.targets):
        here = to_device(at, teacher.probs.device)
        teacher = Distribution(*(of.index_select(0, here) for of in teacher))
    return word.classes.of_teacher.sums(teacher)
