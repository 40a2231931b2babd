"""Which losses a stored kind of signal can serve, for checks before anything is loaded."""

from distill_tune.losses.aligned import Aligned
from distill_tune.losses.chunk_likelihood import ChunkLikelihood
from distill_tune.losses.divergences import Divergence, ForwardKL
from distill_tune.losses.likelihoods import TokenLikelihoods
from distill_tune.losses.sparse import SampledTokens, SparseSignal, TopTokens
from distill_tune.losses.token_weights import TeacherCertainty, TokenWeight
from distill_tune.losses.top_k import TopK


def unserved(
    kind: str,
    divergence: Divergence,
    token_weight: TokenWeight | None = None,
    *,
    temperature: float | None = 1.0,
    recorded_temperature: float = 1.0,
    k: int | None = None,
    combination: str | None = None,
) -> str | None:
    """Why a record of this kind cannot serve a loss, with the kind that could; None where it can.

    Args:
        kind: ``sampled``, ``top_k``, ``aligned`` (of a teacher with another tokenizer), ``likelihood`` (of such a one),
            or any other, which serves everything.
        temperature: of the loss; None where it is a schedule.
        k: of a ``top_k`` record.
        combination: of several teachers, of which this is one: ``mixture``, ``sum``, ``by_row``.
    """
    if kind in ("aligned", TokenLikelihoods.kind):
        if combination == "mixture":
            return "a mixture is over tokens that teachers of other tokenizers do not have: combine by sum or by_row"
        if token_weight is not None:
            return f"{type(token_weight).__name__} is of a teacher's own tokens, which are not the student's"
        if kind == "aligned":
            return None
        if not isinstance(divergence, ChunkLikelihood):
            return (
                f"a likelihood record serves ChunkLikelihood, with a teacher of another tokenizer, not "
                f"{type(divergence).__name__}: take that as kd_loss, or kind hidden"
            )
    elif getattr(divergence, "aligned", False):
        return f"{type(divergence).__name__} is for a teacher of another tokenizer, and this one has the student's"
    elif kind not in (SampledTokens.kind, TopTokens.kind):
        return None
    of = f"a {kind} record"
    if temperature is None:
        return f"{of} serves one temperature, and temperature is a schedule: take kind hidden, which serves any"
    if temperature != recorded_temperature:
        return (
            f"{of} made at temperature {recorded_temperature:g} serves no other, and the loss is at {temperature:g}: "
            f"make one at {temperature:g}, or one of kind hidden, which serves any"
        )
    if kind == TokenLikelihoods.kind:
        return None
    if combination == "mixture":
        return f"{of} does not know what a mixture needs of its tail: combine by sum or by_row, or take kind hidden"
    name = type(divergence).__name__
    if kind == SampledTokens.kind and not isinstance(divergence, ForwardKL):
        return f"{of} serves ForwardKL, not {name}: kind top_k serves it over its k tokens and the rest, hidden exactly"
    if kind == TopTokens.kind and k is not None and isinstance(divergence, TopK) and divergence.k > k:
        return f"{of} of {k} tokens cannot serve TopK of {divergence.k}: make one of {divergence.k}, or of kind hidden"
    if token_weight is None:
        return None
    if kind == SampledTokens.kind and isinstance(token_weight, TeacherCertainty):
        if temperature == 1:
            return None
        return f"{of} knows the teacher's certainty at its own temperature alone: take temperature 1, or kind hidden"
    others = " (TeacherCertainty: sampled as well)" if isinstance(token_weight, TeacherCertainty) else ""
    return f"{of} does not know what {type(token_weight).__name__} needs of the teacher: take kind hidden{others}"


def require_served(
    record: SparseSignal, n: int, divergence: Divergence, token_weight: TokenWeight | None, temperature: float
) -> None:
    """
    Raises:
        ValueError: the record is not of n rows, or cannot serve this loss.
    """
    if len(record) != n:
        raise ValueError(f"a {record.kind} record of {len(record)} rows, where {n} are to be learned")
    reason = unserved(
        record.kind,
        divergence,
        token_weight,
        temperature=temperature,
        recorded_temperature=record.temperature,
        k=min(record.ids.shape[1], record.vocab_size),
    )
    if reason:
        raise ValueError(reason)


def require_served_between_tokenizers(
    signal: Aligned,
    n: int,
    vocab_size: int,
    divergence: Divergence,
    token_weight: TokenWeight | None,
    temperature: float,
    common_vocab_size: int | None,
) -> None:
    """
    Args:
        n, vocab_size: of the student.

    Raises:
        ValueError: positions of other rows or classes of other vocabularies, or a loss that cannot be had.
    """
    kind, recorded_temperature = "aligned", 1.0
    if isinstance(record := signal.signal, TokenLikelihoods):
        kind, recorded_temperature = record.kind, record.temperature
        if len(record) != len(signal.targets):
            raise ValueError(f"a {kind} record of {len(record)} rows, where the teacher has {len(signal.targets)}")
    if reason := unserved(
        kind, divergence, token_weight, temperature=temperature, recorded_temperature=recorded_temperature
    ):
        raise ValueError(reason)
    if len(signal.positions) != n:
        raise ValueError(f"positions of {len(signal.positions)} rows, where {n} are to be learned")
    classes = len(signal.classes.student), len(signal.classes.teacher)
    if classes != (vocab_size, signal.vocab_size):
        raise ValueError(f"classes of {classes} tokens, the models have logits of {(vocab_size, signal.vocab_size)}")
    if common_vocab_size not in (None, vocab_size):
        raise ValueError(
            f"common_vocab_size={common_vocab_size}: a teacher of another tokenizer is compared over all of the "
            f"student's {vocab_size} tokens"
        )
