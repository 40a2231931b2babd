"""The ways to learn from a teacher that cached.py compares, as overrides of the config cached_teacher."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Way:
    """
    Attributes:
        cache: settings of the recipe teacher_cache; none where the teacher is there, or not needed.
        overrides: of the run.
    """

    name: str
    cache: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        return self.name.replace(" ", "_")

    def settings(self, folder: Path, kd_ratio: float) -> list[str]:
        """Of a run, with the caches in ``folder``."""
        found = [f"kd_ratio={kd_ratio:g}", *self.overrides]
        if self.cache:
            path = folder / "caches" / self.short
            found.append(f"teacher_model={{_component_: distill_tune.teachers.Cached, path: {path}}}")
        return found


# Without soft targets the student overfits at the learning rate of distillation: it gets the demo's.
FINE_TUNING = Way("fine-tuning", overrides=("kd_ratio=0", "optimizer.lr=3e-4"))
LIVE = Way("live teacher")
# 24 draws of the demo's teacher are about twelve distinct tokens.
SAMPLED = [Way(f"{m} draws", ("cache.kind=sampled", f"cache.draws={m}")) for m in (3, 12, 24, 50)]
TOP_K = [Way(f"top {k} and the rest", ("cache.kind=top_k", f"+cache.k={k}")) for k in (4, 12, 50)]
HIDDEN = Way("hidden states", ("cache.kind=hidden",))
WAYS = [FINE_TUNING, LIVE, *SAMPLED, *TOP_K, HIDDEN]

# The live teacher's word at some positions alone.
POSITIONS = [
    Way("20 % least certain", overrides=("+kd_loss._component_=positions.UncertainPositions", "+kd_loss.share=0.2")),
    Way("20 % at random", overrides=("+kd_loss._component_=positions.RandomPositions", "+kd_loss.share=0.2")),
]
