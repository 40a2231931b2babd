"""What a row's loss is a mixture of."""

import dataclasses
from collections.abc import Sequence

from distill_tune.losses.aligned import AlignedMethod
from distill_tune.losses.byte_prefix import BytePrefixMass
from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import Divergence
from distill_tune.losses.token_weights import TokenWeight


@dataclasses.dataclass(frozen=True)
class Mixture:
    """(1 - kd_ratio) * CE + kd_ratio * T^2 * D(teacher_T || student_T); see :func:`distillation_loss`.

    Attributes:
        teachers: of each teacher whose divergence is part of the sum, its share and the cap of its logits.
    """

    kd_ratio: float
    temperature: float
    common_vocab_size: int | None
    cross_entropy: CrossEntropy
    divergence: Divergence
    token_weight: TokenWeight | None = None
    temperature_squared: bool = True
    softcap: float | None = None
    teachers: Sequence[tuple[float, float | None]] = ((1.0, None),)

    @property
    def kd_weight(self) -> float:
        """What a teacher's divergence counts in the loss, apart from its share."""
        return self.kd_ratio * (self.temperature**2 if self.temperature_squared else 1)

    @property
    def between_tokenizers(self) -> AlignedMethod:
        """What compares a teacher of another tokenizer."""
        return aligned_method(self.divergence)


def aligned_method(kd_loss: Divergence | AlignedMethod) -> AlignedMethod:
    """What a ``kd_loss`` is for a teacher of another tokenizer: itself where it is made for that, else byte-prefix mass
    compared by it."""
    is_method = getattr(kd_loss, "aligned", False)
    return kd_loss if is_method else BytePrefixMass(kd_loss)  # type: ignore[return-value, arg-type]
