"""The KD head: the loss owns the output layer, so that no full set of logits is ever made."""

import dataclasses
import functools
from collections.abc import Sequence

import torch

from distill_tune.losses.aligned import Aligned
from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import Divergence, ForwardKL
from distill_tune.losses.mixture import Mixture
from distill_tune.losses.pieces import even_pieces, pieces_between_cuts
from distill_tune.losses.projection import Projection
from distill_tune.losses.rows import losses_and_gradient
from distill_tune.losses.signals import SumOfTeachers, TeacherOfEachRow, TeacherSignal, added_up, said
from distill_tune.losses.sparse import SparseSignal
from distill_tune.losses.token_weights import TokenWeight
from distill_tune.losses.unserved import require_served, require_served_between_tokenizers, unserved

# What the logits of one chunk may take, student and teacher together (other devices as a CPU): enough for products that
# run at full speed.
CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
_EVEN_ROWS = 64  # products of a multiple of so many rows run best


@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over the supervised tokens, never means: the caller divides by the token count of its whole step.

    Attributes:
        loss: (1 - kd_ratio) * ce + kd_ratio * T^2 * kd, differentiable.
        ce: summed cross-entropy, detached; 0 where ``kd_ratio`` is 1.
        kd: summed divergence at the temperature, without T^2, detached; 0 without a teacher.
        hidden: summed :class:`~distill_tune.losses.HiddenLoss`, with its weight part of ``loss``, detached.
    """

    loss: torch.Tensor
    ce: torch.Tensor
    kd: torch.Tensor
    hidden: torch.Tensor

    @classmethod
    def zero(cls, device: torch.device) -> "LossSums":
        return cls(*(torch.zeros((), device=device) for _ in dataclasses.fields(cls)))

    @classmethod
    def total(cls, sums: "Sequence[LossSums]") -> "LossSums":
        """Of some micro-batches, one or more."""
        return functools.reduce(cls.__add__, sums)

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def plus_hidden(self, between_layers: torch.Tensor, weight: float) -> "LossSums":
        """With the sum of a :class:`~distill_tune.losses.HiddenLoss`, differentiable, and its weight."""
        return LossSums(self.loss + weight * between_layers, self.ce, self.kd, between_layers.detach())

    def detach(self) -> "LossSums":
        return LossSums(*(value.detach() for value in self.values()))

    def values(self) -> tuple[torch.Tensor, ...]:
        return self.loss, self.ce, self.kd, self.hidden


def per_token(sums: Sequence[float], num_tokens: int, prefix: str = "") -> dict[str, float]:
    """Means for the log from the values of :class:`LossSums`; ``hidden_loss`` where there is one."""
    loss, ce, kd, hidden = (value / num_tokens for value in sums)
    means = {"loss": loss, "ce_loss": ce, "kd_loss": kd} | ({"hidden_loss": hidden} if hidden else {})
    return {prefix + name: value for name, value in means.items()}


def distillation_loss(
    hidden: torch.Tensor,
    projection: Projection,
    targets: torch.Tensor,
    signal: TeacherSignal | SparseSignal | Aligned | SumOfTeachers | TeacherOfEachRow | None = None,
    *,
    kd_ratio: float = 0.0,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    common_vocab_size: int | None = None,
    cross_entropy: CrossEntropy | None = None,
    divergence: Divergence | None = None,
    token_weight: TokenWeight | None = None,
    num_own: int = 0,
) -> LossSums:
    """(1 - kd_ratio) * CE + kd_ratio * T^2 * D(teacher_T || student_T), summed over tokens, with its exact gradient.

    1. The rows are cut into chunks whose logits fit CHUNK_BYTES.
    2. A chunk's hidden states go through the student's projection, and the teacher's rows through its own: once.
       A record has no logits: its tokens are compared with the student's. Where a teacher has another tokenizer
       chunks end at common boundaries, and each has the teacher's rows that it asks.
    3. Cross-entropy and divergence give their values and, in closed form, the gradient for the student's logits, which
       is written over them. All that is float32; the gradient takes the dtype of the hidden states.
    4. One more product takes it back to the hidden states, and one each to the projection's trainable parameters.
    5. The next chunk uses the same memory; the sums and the gradients, scaled by what arrives from above, are all that
       backward needs.

    So memory does not grow with the batch, and the gradient is that of the plain formula. Under FSDP the projection's
    weight must be gathered when this is called and until backward is through.

    Args:
        hidden: the student's last hidden states at the supervised positions, ``[n, d]``.
        projection: the student's output layer.
        targets: the token ids to predict, ``[n]``, int64.
        signal: the teacher's word on the same rows; needed where ``kd_ratio`` > 0.
        kd_ratio: share of the divergence, 0 to 1. At 0 no teacher is asked, at 1 no cross-entropy is formed.
        temperature: T; both distributions are softmax(logits / T) in the divergence. As T grows, T^2 * KL tends to half
            the mean squared difference of the centred logits (Hinton et al. 2015, eq. 4).
        temperature_squared: False leaves T^2 out: gradients fall with it as T grows.
        common_vocab_size: compare only the first so many tokens, renormalised; for vocabularies that differ by padding
            rows. Default: all.
        cross_entropy: default :class:`CrossEntropy`.
        divergence: default :class:`ForwardKL`.
        token_weight: what each token's divergence is multiplied by; default 1.
        num_own: so many rows, the first ones, are of answers that the student has written itself: they have no
            cross-entropy, which would teach them as if they were right.

    Raises:
        ValueError: ``kd_ratio`` > 0 without a signal, or 0 with rows of the student's own; a vocabulary that has not
            all that is compared; a record that cannot serve this loss, or is of other rows; a loss between tokenizers
            where there is one tokenizer, and what no such loss can serve.
    """
    if kd_ratio > 0 and signal is None:
        raise ValueError(f"kd_ratio is {kd_ratio}, but there is no teacher signal")
    if num_own and kd_ratio == 0:
        raise ValueError(f"num_own is {num_own}, and with a kd_ratio of 0 nothing is learned of such rows")
    divergence = divergence or ForwardKL()
    terms = [] if kd_ratio == 0 or signal is None else added_up(signal)
    compared = common_vocab_size or projection.vocab_size
    of_one_tokenizer = [term for _, term in terms if not isinstance(term, Aligned)]
    narrowest = min([projection.vocab_size, *(term.vocab_size for term in of_one_tokenizer)])
    if terms and narrowest < compared:
        raise ValueError(f"common_vocab_size: {compared} tokens are to be compared, a model has logits of {narrowest}")
    for _, term in terms:
        if isinstance(term, Aligned):
            require_served_between_tokenizers(
                term, len(hidden), projection.vocab_size, divergence, token_weight, temperature, common_vocab_size
            )
        elif isinstance(term, SparseSignal):
            require_served(term.within(compared), len(hidden), divergence, token_weight, temperature)
        elif reason := unserved("logits", divergence):
            raise ValueError(reason)
    mixture = Mixture(
        kd_ratio,
        temperature,
        common_vocab_size,
        cross_entropy or CrossEntropy(),
        divergence,
        token_weight,
        temperature_squared,
        softcap=projection.softcap,
        teachers=[(share, term.softcap) for share, term in terms] or [(1.0, None)],
    )
    trainable = projection.trainable
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or bool(trainable))
    signals = [term.serving(divergence) if isinstance(term, SparseSignal) else term for _, term in terms]
    loss, ce, kd = _ChunkedLoss.apply(projection, mixture, targets, signals, num_own, differentiate, hidden, *trainable)
    return LossSums(loss, ce, kd, torch.zeros_like(ce))


class _ChunkedLoss(torch.autograd.Function):
    """Walks the chunks in forward and keeps the finished gradients for backward."""

    @staticmethod
    def forward(ctx, projection, mixture, targets, signals, num_own, differentiate, hidden, *trainable):
        chunks = _chunks(len(hidden), num_own, projection.vocab_size, signals, hidden)
        rows = max((stop - start for start, stop in chunks), default=1)
        memory = projection.memory(rows, 0, hidden.dtype)
        teacher_memory = [
            signal.memory(signal.most_rows(chunks) if isinstance(signal, Aligned) else rows, slot)
            for slot, signal in enumerate(signals, 1)
        ]
        hidden_gradient = torch.empty_like(hidden)
        totals = [torch.zeros_like(p, dtype=torch.float32) for p in trainable] if differentiate else []
        ce_sum = kd_sum = hidden.new_zeros((), dtype=torch.float32)
        of_own = dataclasses.replace(mixture, kd_ratio=1.0)  # without cross-entropy
        for start, stop in chunks:
            chunk = hidden[start:stop].detach().requires_grad_(differentiate)  # [c, d]
            is_own = start < num_own
            with torch.set_grad_enabled(differentiate):
                logits = projection.logits(chunk, None if memory is None else memory[: stop - start])  # [c, v]
            words = [
                said(signal, start, stop, of_signal) for signal, of_signal in zip(signals, teacher_memory, strict=True)
            ]
            ce, kd, gradient = losses_and_gradient(
                of_own if is_own else mixture, logits.detach(), targets[start:stop], words, hidden.dtype
            )
            if is_own and mixture.kd_ratio < 1:
                gradient.mul_(mixture.kd_ratio)
            ce_sum, kd_sum = ce_sum + ce, kd_sum + kd
            if differentiate:
                hidden_gradient[start:stop] = projection.backward(chunk, logits, gradient, totals)
            del logits, words, gradient  # before the next chunk's are made
        ctx.save_for_backward(hidden_gradient, *(g.to(p.dtype) for g, p in zip(totals, trainable, strict=False)))
        ctx.mark_non_differentiable(ce_sum, kd_sum)
        loss = (1 - mixture.kd_ratio) * ce_sum + mixture.kd_weight * kd_sum
        return loss, ce_sum, kd_sum

    @staticmethod
    def backward(ctx, loss_gradient, *_):
        return None, None, None, None, None, None, *(g * loss_gradient.to(g.dtype) for g in ctx.saved_tensors)


def _chunks(
    n: int,
    num_own: int,
    vocab_size: int,
    signals: Sequence[TeacherSignal | SparseSignal | Aligned],
    hidden: torch.Tensor,
) -> list[tuple[int, int]]:
    """Of n rows, from and to; as many as the budget holds, of about the same size; cut behind the first ``num_own``."""
    aligned = [signal for signal in signals if isinstance(signal, Aligned)]
    v_t = sum(signal.logits_per_row for signal in signals if not isinstance(signal, Aligned))
    of_row = chunk_bytes_per_row(vocab_size, v_t, hidden.dtype)
    budget, chunks = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"]), []
    for first, end in ((0, num_own), (num_own, n)):
        if aligned:
            of_teachers = [(it.positions.cut(first, end)[0], 4 * it.signal.logits_per_row) for it in aligned]
            pieces = pieces_between_cuts(end - first, of_row, of_teachers, budget)
        else:
            pieces = even_pieces(end - first, chunk_rows(n, of_row, hidden.device))
        chunks += [(first + start, first + stop) for start, stop in pieces]
    return chunks


def chunk_bytes_per_row(vocab_size: int, teacher_vocab_size: int, dtype: torch.dtype) -> int:
    """Logits of both in float32, and the gradient where it cannot take their place."""
    gradient = 0 if dtype == torch.float32 else dtype.itemsize
    return vocab_size * (4 + gradient) + teacher_vocab_size * 4


def chunk_rows(n: int, bytes_per_row: int, device: torch.device) -> int:
    """Rows of a chunk: as many as the budget holds, and chunks of about the same size."""
    most = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // bytes_per_row)
    if most > _EVEN_ROWS:
        most -= most % _EVEN_ROWS
    num_chunks = max(1, -(-n // most))
    even = -(-n // num_chunks)
    return min(most, even + -even % _EVEN_ROWS) if n > most else max(1, n)
