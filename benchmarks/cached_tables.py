"""Tables of what cached.py found, in Markdown."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cached_ways import FINE_TUNING, LIVE, POSITIONS, WAYS, Way

NEAR = 0.01  # nats: what arXiv 2503.16870 says of some twelve distinct drawn tokens

# The figures of each item that is there, by section and name.
Found = Mapping[tuple[str, str], Mapping[str, Any]]


def name_of(way: Way, kd_ratio: float, seed: int) -> str:
    return f"kd_ratio {kd_ratio:g}, seed {seed}: {way.name}"


def all_tables(found: Found, kd_ratios: Sequence[float], seeds: int, rounds: int) -> str:
    lines = list(_cost(found, rounds))
    for kd_ratio in kd_ratios:
        if any(section == "worth" and f"kd_ratio {kd_ratio:g}," in name for section, name in found):
            lines += _worth(found, kd_ratio, seeds)
    if any(section == "positions" for section, _ in found):
        lines += _positions(found, kd_ratios, seeds)
    if of_angles := found.get(("angles", "angles")):
        lines += ["", "### Angles to the gradient of the whole distribution", "", *of_angles["lines"]]
    return "\n".join(lines) + "\n"


def _cost(found: Found, rounds: int) -> Iterator[str]:
    yield "### What each costs"
    yield ""
    yield "| way | bytes a token | distinct tokens | seconds a step | beside fine-tuning | beside the live teacher |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    steps = {way.name: _steps(found, way, rounds) for way in WAYS}
    for way in WAYS:
        stored = found.get(("caches", way.name), {})
        size = f"{stored['bytes']:.1f}" if stored else ""
        distinct = f"{stored['distinct']:.1f}" if stored.get("distinct") else ""
        cells = [size, distinct, *_seconds(steps, way)]
        yield f"| {way.name} | " + " | ".join(cells) + " |"


def _steps(found: Found, way: Way, rounds: int) -> dict[tuple[int, int], float]:
    """Seconds of each step, by round and step; without the first quarter of a run, which is slower."""
    seconds: dict[tuple[int, int], float] = {}
    for number in range(rounds):
        taken = found.get(("seconds", f"round {number}: {way.name}"), {}).get("step_seconds", [])
        seconds |= {(number, step): of for step, of in enumerate(taken) if step >= len(taken) // 4}
    return seconds


def _seconds(steps: Mapping[str, Mapping[tuple[int, int], float]], way: Way) -> Iterator[str]:
    """Each step beside that of the same rows in the same round."""
    own = steps[way.name]
    yield f"{statistics.median(own.values()):.4f}" if own else ""
    for other in (steps[FINE_TUNING.name], steps[LIVE.name]):
        ratios = [seconds / other[step] for step, seconds in own.items() if step in other]
        yield f"{statistics.median(ratios):.3f}" if ratios else ""


def _worth(found: Found, kd_ratio: float, seeds: int) -> Iterator[str]:
    yield from _heading(found, f"### What each is worth, kd_ratio {kd_ratio:g}")
    for way in WAYS:
        yield _row(way.name, *_both(found, "worth", way, kd_ratio, seeds))
    yield ""
    for way in WAYS:
        if not way.cache:
            continue
        own, live = _both(found, "worth", way, kd_ratio, seeds)
        differences = _differences(own, live, "cross_entropy")
        if not differences:
            continue
        far = abs(statistics.mean(differences)) > NEAR
        distinct = found.get(("caches", way.name), {}).get("distinct")
        tokens = f" ({distinct:.1f} distinct tokens)" if distinct else ""
        yield (
            f"- {way.name}{tokens}: {_spread(differences, '+.4f')} nats from the live teacher's cross-entropy, "
            f"{'not within' if far else 'within'} {NEAR:g}."
        )


def _positions(found: Found, kd_ratios: Sequence[float], seeds: int) -> Iterator[str]:
    for kd_ratio in kd_ratios:
        yield from _heading(found, f"### Positions at which it is distilled, kd_ratio {kd_ratio:g}")
        yield _row("all", *_both(found, "worth", LIVE, kd_ratio, seeds))
        for way in POSITIONS:
            yield _row(way.name, *_both(found, "positions", way, kd_ratio, seeds))


def _heading(found: Found, title: str) -> Iterator[str]:
    yield from ("", title, "")
    yield "| way | seeds | perplexity | KL from the teacher | agreement | cross-entropy above live | KL above live |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, figures in found.get(("worth", "untrained"), {}).items():
        yield _row(name, {0: figures}, {})


def _both(found: Found, section: str, way: Way, kd_ratio: float, seeds: int) -> list[dict[int, Mapping[str, float]]]:
    """The figures of each seed that is there, and the live teacher's."""
    # Fine-tuning knows no kd_ratio: it is run once.
    sources = [("worth", way, None)] if way is FINE_TUNING else [(section, way, kd_ratio)]
    sources.append(("worth", LIVE, kd_ratio))
    return [
        {
            seed: found[key]
            for seed in range(seeds)
            if (key := (of_section, name_of(of_way, 0 if ratio is None else ratio, seed))) in found
        }
        for of_section, of_way, ratio in sources
    ]


def _row(name: str, own: Mapping[int, Mapping[str, float]], live: Mapping[int, Mapping[str, float]]) -> str:
    if not own:
        return f"| {name} | 0 | | | | | |"
    perplexity = [math.exp(of["cross_entropy"]) for of in own.values()]
    kl, agreement = ([of[key] for of in own.values()] for key in ("kl", "agreement"))
    cells = [_spread(perplexity, ".2f"), _spread(kl, ".4f"), _spread(agreement, ".1%")]
    for key in ("cross_entropy", "kl"):
        differences = [] if own == live else _differences(own, live, key)
        cells.append(_spread(differences, "+.4f") if differences else "")
    return f"| {name} | {len(own)} | " + " | ".join(cells) + " |"


def _differences(
    own: Mapping[int, Mapping[str, float]], live: Mapping[int, Mapping[str, float]], key: str
) -> list[float]:
    """Between runs of the same seed, which take the same rows in the same order."""
    return [of[key] - live[seed][key] for seed, of in own.items() if seed in live]


def _spread(values: Sequence[float], form: str) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else mean
