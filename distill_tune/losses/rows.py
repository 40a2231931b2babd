"""The elementwise half of the head: a chunk's logits become its losses and, in place, their own gradient."""

import functools
import importlib.util
from collections.abc import Callable, Sequence

import torch

from distill_tune.losses.against_record import against, set_apart
from distill_tune.losses.aligned import AlignedWord
from distill_tune.losses.chunk_likelihood import ChunkLikelihood
from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import HUGE, Distribution, ForwardKL, distribution
from distill_tune.losses.mixture import Mixture
from distill_tune.losses.pieces import even_pieces, pieces_between_cuts
from distill_tune.losses.signals import Word, capped, part_of
from distill_tune.losses.sparse import SampledTokens, SparseSignal
from distill_tune.losses.token_weights import TeacherCertainty, TokenWeight

# So much of a chunk's logits is worked on at a time, in float32: it stays in a CPU's cache from one pass to the next;
# elsewhere it is enough for kernels at full speed, and what they leave between them is small beside the chunk.
_PART_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


# (ce sum, kd sum, gradient ``[b, v]``)
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# What makes it: of the student's logits, targets, what the teachers say, and memory to work in, three times ``[b, v]``.
Work = Callable[[Mixture, torch.Tensor, torch.Tensor, Sequence[Word], Sequence[torch.Tensor]], Part]


def losses_and_gradient(
    mixture: Mixture,
    logits: torch.Tensor,
    targets: torch.Tensor,
    words: Sequence[Word],
    dtype: torch.dtype = torch.float32,
) -> Part:
    """Summed cross-entropy and divergence of some rows, float32, and the mixture's gradient for the logits, ``[c, v]``.

    Args:
        logits: the student's, before any cap, ``[c, v]``; overwritten by the gradient where they are of ``dtype``.
        targets: token ids ``[c]``.
        words: what each of the mixture's teachers says: logits ``[c, v_t]``, before any cap, overwritten, or a record
            of so many rows, or rows of another tokenizer; empty without a divergence.
        dtype: of the gradient.
    """
    out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    if _has_kernel(mixture, logits, words):
        from distill_tune.losses import triton_rows

        ce, kd = triton_rows.losses_and_gradient(
            logits,
            targets,
            words[0] if words else None,  # type: ignore[arg-type]
            out,
            kd_ratio=mixture.kd_ratio,
            kd_weight=mixture.kd_weight,
            temperature=mixture.temperature,
            common_vocab_size=mixture.common_vocab_size,
            softcap=mixture.softcap,
            teacher_softcap=mixture.teachers[0][1],
        )
        return ce.sum(), kd.sum(), out
    if _has_kernel_for_record(mixture, logits, words):
        from distill_tune.losses import triton_record

        ce, kd = triton_record.losses_and_gradient(mixture, logits, targets, words[0], out)  # type: ignore[arg-type]
        return ce.sum(), kd.sum(), out
    ce = kd = torch.zeros((), device=logits.device)
    part_bytes = _PART_BYTES.get(logits.device.type, _PART_BYTES["cuda"])
    work = _in_place(mixture, logits, words) or _plain
    parts = _parts(logits, words, part_bytes)
    rows = max((stop - start for start, stop in parts), default=0)
    # Made once for all parts: memory that is new each time costs as much as an exponential.
    scratch = [logits.new_empty(rows, logits.shape[1], dtype=torch.float32) for _ in range(3)]
    for start, stop in parts:
        part = slice(start, stop)
        of_part = [part_of(word, start, stop) for word in words]
        student = logits[part].float()
        own = [memory[: len(student)] for memory in scratch]
        ce_part, kd_part, gradient = work(mixture, student, targets[part], of_part, own)
        if gradient.data_ptr() != out[part].data_ptr():
            out[part] = gradient
        ce, kd = ce + ce_part, kd + kd_part
    return ce, kd, out


def _parts(logits: torch.Tensor, words: Sequence[Word], budget: int) -> list[tuple[int, int]]:
    """Rows of each part, from and to."""
    aligned = [word for word in words if isinstance(word, AlignedWord)]
    n, of_row = len(logits), 4 * logits.shape[1]
    if not aligned:
        return even_pieces(n, max(1, budget // of_row))
    # As many of the student's as elsewhere, where a teacher's vocabulary is as large and its rows as many.
    of_teachers = [(word.on_cpu, 4 * word.logits.shape[1]) for word in aligned]
    return pieces_between_cuts(n, of_row, of_teachers, budget * (1 + len(aligned)))


def _is_usual(mixture: Mixture) -> bool:
    """But for the divergence."""
    plain = type(mixture.cross_entropy) is CrossEntropy and mixture.token_weight is None
    return plain and [share for share, _ in mixture.teachers] == [1.0]


def _has_kernel(mixture: Mixture, logits: torch.Tensor, words: Sequence[Word] = ()) -> bool:
    """On CUDA, for the losses that the kernel knows, where Triton is installed (PyTorch's CUDA builds bring it)."""
    known = type(mixture.divergence) is ForwardKL and all(isinstance(word, torch.Tensor) for word in words)
    return logits.is_cuda and known and _is_usual(mixture) and _has_triton()


def _has_kernel_for_record(mixture: Mixture, logits: torch.Tensor, words: Sequence[Word]) -> bool:
    is_record = bool(words) and isinstance(words[0], SparseSignal)
    return logits.is_cuda and is_record and _in_place(mixture, logits, words) is _scattered and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _in_place(mixture: Mixture, logits: torch.Tensor, words: Sequence[Word]) -> Work | None:
    """What does the work of :func:`_plain` for the usual losses where all is of the same tokens; None for others."""
    v = logits.shape[1]
    if not _is_usual(mixture) or mixture.softcap is not None or mixture.common_vocab_size not in (None, v):
        return None
    if not words or isinstance(words[0], SparseSignal):
        return _scattered
    if isinstance(words[0], AlignedWord):
        return None
    same = words[0].shape[1] == v and mixture.teachers[0][1] is None
    return _shared if same and type(mixture.divergence) is ForwardKL else None


def _scattered(
    mixture: Mixture,
    student: torch.Tensor,
    targets: torch.Tensor,
    words: Sequence[Word],
    scratch: Sequence[torch.Tensor],
) -> Part:
    """:func:`_plain` for cross-entropy, and a record's divergence where there is one: the student's exponentials, each
    row times one number, and what the target and the record's tokens have besides."""
    ce_share = 1 - mixture.kd_ratio if words else 1.0
    largest = student.amax(-1, keepdim=True)
    at_target = student.gather(1, targets[:, None]) - largest
    if not words:
        kd, ce_sum = student.new_zeros(()), student.sub_(largest).exp_().sum(-1, keepdim=True)
        gradient = student.mul_(ce_share / ce_sum)
    else:
        record, temperature = words[0], mixture.temperature
        assert isinstance(record, SparseSignal)
        tokens, of_ce = record.ids.long(), None
        if ce_share and temperature not in (1, 2):
            of_ce = torch.sub(student, largest, out=scratch[0]).exp_()
        torch.add(largest / -temperature, student, alpha=1 / temperature, out=student)
        at_tokens, exponentials = student.gather(1, tokens), student.exp_()
        if ce_share and temperature == 2:  # an exponential takes ten times as long as a product
            of_ce = torch.square(exponentials, out=scratch[0])
        found = against(record, mixture.divergence, at_tokens, *set_apart(record, exponentials))
        weight = mixture.kd_weight / temperature  # 1/T from the chain rule through logits / T
        of_tokens, of_rest, kd = found.of_tokens * weight, found.of_rest * weight, found.values.sum()
        if temperature == 1:
            ce_sum = found.total
            of_tokens += found.tokens * (ce_share / ce_sum)
            of_rest += ce_share / ce_sum
        gradient = exponentials.mul_(of_rest).scatter_add_(1, tokens, of_tokens)
        if of_ce is not None:
            ce_sum = of_ce.sum(-1, keepdim=True)
            gradient.addcmul_(of_ce, ce_share / ce_sum)
        if not ce_share:
            return kd.new_zeros(()), kd, gradient
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -ce_share))
    return (ce_sum.log() - at_target).sum(), kd, gradient


def _shared(
    mixture: Mixture,
    student: torch.Tensor,
    targets: torch.Tensor,
    words: Sequence[Word],
    scratch: Sequence[torch.Tensor],
) -> Part:
    """:func:`_plain` for cross-entropy and forward KL: as few exponentials a logit as there can be, all in place.

    With shifted logits s and t, and Z the sums of their exponentials, KL = sum(e^t (t - s)) / Z_t - log Z_t + log Z_s.
    """
    teacher = words[0].float()  # type: ignore[union-attr]
    temperature, has_ce = mixture.temperature, mixture.kd_ratio < 1
    student.sub_(student.amax(-1, keepdim=True)).clamp_(min=-HUGE)
    teacher.sub_(teacher.amax(-1, keepdim=True)).clamp_(min=-HUGE)
    at_target = student.gather(1, targets[:, None])
    of_ce = None
    if temperature != 1:
        of_ce = torch.exp(student, out=scratch[0]) if has_ce else None
        student.div_(temperature)
        teacher.div_(temperature)
    difference = torch.sub(teacher, student, out=scratch[1])
    student_sum = student.exp_().sum(-1, keepdim=True)
    teacher_sum = teacher.exp_().sum(-1, keepdim=True)
    gap = torch.linalg.vecdot(teacher, difference)[:, None] / teacher_sum
    kd = (gap - teacher_sum.log() + student_sum.log()).sum()
    if temperature == 1:
        ce_sum = student_sum
        gradient = student.div_(student_sum).sub_(teacher.mul_(mixture.kd_ratio / teacher_sum))
    else:
        weight = mixture.kd_weight / temperature  # 1/T from the chain rule through logits / T
        gradient = student.mul_(weight / student_sum).sub_(teacher.mul_(weight / teacher_sum))
        if of_ce is not None:
            ce_sum = of_ce.sum(-1, keepdim=True)
            gradient.addcmul_(of_ce, (1 - mixture.kd_ratio) / ce_sum)
    if not has_ce:
        return kd.new_zeros(()), kd, gradient
    share = gradient.new_full(targets[:, None].shape, mixture.kd_ratio - 1)
    gradient.scatter_add_(1, targets[:, None], share)
    return (ce_sum.log() - at_target).sum(), kd, gradient


def _plain(
    mixture: Mixture,
    logits: torch.Tensor,
    targets: torch.Tensor,
    words: Sequence[Word],
    scratch: Sequence[torch.Tensor],
) -> Part:
    """(ce sum, kd sum, gradient ``[b, v]``), float32 throughout.

    Args:
        scratch: three times ``[b, v]``, to work in.
    """
    slope = None
    if mixture.softcap is not None:
        logits = (logits / mixture.softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(mixture.softcap)

    ce = kd = logits.new_zeros(())
    v, temperature = mixture.common_vocab_size or logits.shape[-1], mixture.temperature
    is_same = temperature == 1 and v == logits.shape[-1]  # cross-entropy and divergence see one distribution
    gradient = student = None
    if mixture.kd_ratio < 1:
        student = distribution(logits if is_same or not words else logits.clone(), scratch[0])
        values, gradient = mixture.cross_entropy(student, targets, scratch[1])
        ce = values.sum()
        gradient.mul_(1 - mixture.kd_ratio)
    if words and (student is None or not is_same):
        student = distribution(_scaled(logits[:, :v], temperature), scratch[0][:, :v])
    for number, ((share, softcap), word) in enumerate(zip(mixture.teachers, words, strict=False), 1):
        assert student is not None
        # A divergence may overwrite what it is given.
        own = student if number == len(words) else Distribution(*(part.clone() for part in student))
        if isinstance(word, torch.Tensor):
            of_teacher = capped(word[:, :v].float(), softcap)
            values, kd_gradient, weight = _with_logits(mixture, own, of_teacher, targets, scratch[2][:, :v])
        elif isinstance(word, AlignedWord):
            values, kd_gradient = _between_tokenizers(mixture, own, word, targets, softcap)
            weight = None
        else:
            tokens = word.ids.long()
            at_tokens = own.log_probs.gather(1, tokens)
            found = against(word, mixture.divergence, at_tokens, *set_apart(word, own.probs))
            values = found.values
            kd_gradient = own.probs.mul_(found.of_rest).scatter_add_(1, tokens, found.of_tokens)
            weight = None if mixture.token_weight is None else _token_weights(mixture.token_weight, word, v)
        if weight is not None:
            values, kd_gradient = values * weight, kd_gradient.mul_(weight[:, None])
        kd = kd + share * values.sum()
        # 1/T from the chain rule through logits / T.
        factor = share * mixture.kd_weight / temperature
        if gradient is None and is_same and len(words) == 1:
            gradient = kd_gradient.mul_(factor)
            continue
        if gradient is None:  # and not that of a first teacher, whose memory the next one takes
            gradient = torch.zeros_like(logits)
        gradient[:, :v].add_(kd_gradient, alpha=factor)
    assert gradient is not None
    return ce, kd, gradient if slope is None else gradient.mul_(slope)


def _with_logits(
    mixture: Mixture, student: Distribution, logits: torch.Tensor, targets: torch.Tensor, memory: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A divergence ``[b]``, its gradient for the student's scaled logits ``[b, v]``, what each token counts ``[b]``.

    Args:
        logits: the teacher's, overwritten.
        memory: for its probabilities, ``[b, v]``.
    """
    weight, weigh = None, mixture.token_weight
    if weigh is not None and mixture.temperature != 1:
        weight = weigh(distribution(logits.clone(), memory), targets)
    teacher = distribution(_scaled(logits, mixture.temperature), memory)
    if weigh is not None and mixture.temperature == 1:
        weight = weigh(teacher, targets)
    values, gradient = mixture.divergence(student, teacher)
    return values, gradient, weight


def _between_tokenizers(
    mixture: Mixture, student: Distribution, word: AlignedWord, targets: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A divergence ``[b]``, its gradient for the student's scaled logits ``[b, v]``.

    Args:
        word: its logits are overwritten.
        softcap: of these.
    """
    if word.log_probs is not None:
        assert isinstance(mixture.divergence, ChunkLikelihood)  # no other is served
        return mixture.divergence.of_log_probs(student, word.log_probs, targets, word.on_cpu)
    of_teacher = _scaled(capped(word.logits.float(), softcap), mixture.temperature)
    teacher = distribution(of_teacher, torch.empty_like(of_teacher))
    return mixture.between_tokenizers(student, teacher, targets, word)


def _token_weights(weigh: TokenWeight, record: SparseSignal, v: int) -> torch.Tensor:
    assert isinstance(weigh, TeacherCertainty) and isinstance(record, SampledTokens)  # no other is served
    return weigh.of_entropy(record.entropy, v)


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """In place."""
    return logits if temperature == 1 else logits.div_(temperature)
