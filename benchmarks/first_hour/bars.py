"""What the figures are held to."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from first_hour.items import HEAD, STEPS
from first_hour.outcome import NEEDS_CUDA, OK

TIMES_TRL, SHARE_OF_PRODUCTS, INT4_GIB = 1.5, 0.5, 24
# Of plan to the measured peak. The small models are of some 200 MB on a CPU, where a process's own memory shows.
PLAN_WITHIN = {False: 0.1, True: 0.25}


class Bar(NamedTuple):
    """
    Attributes:
        held: None where nothing is measured, or on a CPU, for which no bar was set.
        why: what is measured; where nothing is, the reason.
    """

    name: str
    bar: str
    figure: str
    held: bool | None
    why: str


def plan_ratios(results: Sequence[Mapping[str, Any]], small: bool) -> list[dict[str, Any]]:
    """Of each case that was measured, plan's estimate over the peak of a process."""
    found = []
    for result in results:
        if result["section"] == STEPS and result["state"] == OK and "torchtune" not in result["name"]:
            figures = result["figures"]
            ratio = figures["expected_bytes"] / figures["peak_bytes"]
            bound = PLAN_WITHIN[small]
            found.append(
                {
                    "case": result["name"],
                    "expected_bytes": figures["expected_bytes"],
                    "peak_bytes": figures["peak_bytes"],
                    "ratio": ratio,
                    "bound": bound,
                    "held": abs(ratio - 1) <= bound,
                }
            )
    return found


def bars(results: Sequence[Mapping[str, Any]], device: str) -> list[Bar]:
    def bar(section: str, name: str, of: str, wanted: str, figure: Any, holds: Any) -> Bar:
        result = next((r for r in results if (r["section"], r["name"]) == (section, name)), None)
        if result is None or result["state"] != OK:
            return Bar(of, wanted, "", None, _why_not(result))
        value, told = figure(result["figures"])
        if device != "cuda":
            return Bar(of, wanted, told, None, "measured on a CPU, for which there is no bar")
        return Bar(of, wanted, told, holds(value), name)

    def share(figures: Mapping[str, Any]) -> tuple[float, str]:
        value = figures["flops"] / figures["seconds"] / figures["rate"]
        return value, f"{value:.0%}"

    def gib(figures: Mapping[str, Any]) -> tuple[float, str]:
        value = figures["peak_bytes"] / 2**30
        return value, f"{value:.1f} GiB"

    return [
        bar(
            HEAD,
            "head beside TRL's",
            "the head beside TRL's Triton head",
            f"{TIMES_TRL} times as fast",
            lambda figures: (figures["times_as_fast"], f"{figures['times_as_fast']:.2f} times"),
            lambda value: value >= TIMES_TRL,
        ),
        bar(
            STEPS,
            "long",
            "products of a whole step, 8B teacher, 1B student with LoRA",
            f"{SHARE_OF_PRODUCTS:.0%} of a large product's rate",
            share,
            lambda value: value >= SHARE_OF_PRODUCTS,
        ),
        bar(
            STEPS,
            "long_int4",
            "8B teacher in int4, 1B student with LoRA",
            f"at most {INT4_GIB} GiB",
            gib,
            lambda value: value <= INT4_GIB,
        ),
    ]


def _why_not(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not measured: it was left out"
    if result["state"] == NEEDS_CUDA:
        return NEEDS_CUDA
    return f"{result['state']}: {result.get('reason', '')}"
