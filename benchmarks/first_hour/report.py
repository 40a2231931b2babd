"""RESULTS_<card>.md, and the same with all errors as one file of JSON that names neither user nor machine."""

import getpass
import json
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from first_hour.bars import bars, plan_ratios
from first_hour.items import BRANCHES, CONFIGS, GENERATION, HEAD, MACHINE, STEPS, TESTS
from first_hour.outcome import FAILED, NEEDS_CUDA, NOT_MEASURED, OFF, OK
from first_hour.workers import BENCHMARKS

STATES = (OK, OFF, FAILED, NEEDS_CUDA, NOT_MEASURED)


def words(result: Mapping[str, Any]) -> str:
    """An outcome in a line."""
    state = result["state"]
    if state in (FAILED, NOT_MEASURED):
        return f"{state}: {result['reason'][:300]}"
    if state == NEEDS_CUDA or "off" not in result:
        return str(state)
    off = result["off"] if isinstance(result["off"], str) else f"{result['off']:.1e}"
    told = f"off by {off}, may be {result['bound']:.0e}" + (f"; {result['told']}" if result["told"] else "")
    return f"ok ({told})" if state == OK else told


def counted(results: Sequence[Mapping[str, Any]]) -> str:
    counts = {state: sum(result["state"] == state for result in results) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def write(results: Sequence[dict[str, Any]], device: str, small: bool, minutes: float, folder: Path) -> list[Path]:
    """Both files; the paths of what was written."""
    results = [without_names(result) for result in results]
    machine = next((result.get("figures", {}) for result in results if result["section"] == MACHINE), {})
    card = re.sub(r"[^\w.]+", "_", machine.get("card", device) if device == "cuda" else "CPU").strip("_")
    whole = {
        "device": device,
        "small": small,
        "minutes": round(minutes, 1),
        "machine": machine,
        **{section: _of(results, section) for section in (BRANCHES, TESTS, CONFIGS, STEPS, HEAD, GENERATION)},
        "plan": plan_ratios(results, small),
        "bars": [bar._asdict() for bar in bars(results, device)],
    }
    paths = [folder / f"RESULTS_{card}.{kind}" for kind in ("md", "json")]
    folder.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(markdown(whole, results), encoding="utf-8")
    paths[1].write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths


def markdown(whole: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    machine, small = whole["machine"], " --small" if whole["small"] else ""
    lines = [
        f"# Results: {machine.get('card', whole['device'])}",
        "",
        f"`python benchmarks/gpu.py --first-hour --device {whole['device']}{small}`, {whole['minutes']:.0f} minutes: "
        f"{counted(results)}.",
        *(["", "Tiny sizes: it shows that all of it runs; its figures say nothing of speed."] if small else []),
        *_table("Machine", ["what", "found"], [[name, _shown(value)] for name, value in machine.items()]),
        *_table("Bars", ["of", "bar", "figure", "held"], [_bar(bar) for bar in whole["bars"]]),
        *_table("Branches, against the CPU's numbers", ["branch", "outcome"], _outcomes(whole[BRANCHES])),
        *_table("Tests marked gpu", ["tests", "outcome"], _outcomes(whole[TESTS])),
        *_table("Configs in bf16, three steps each", ["run", "outcome"], _outcomes(whole[CONFIGS])),
        *_table(
            "Steps of random models" if small else "Steps of a 1B student and an 8B teacher, random weights",
            ["case", "processes", "seconds a step", "tokens/s", "TFLOP/s", "share of a product's rate", "peak", "loss"],
            [_step(result) for result in whole[STEPS]],
        ),
        *_table(
            "plan beside the measured peak",
            ["case", "plan", "measured", "ratio", "may be off by", "held"],
            [
                [
                    of["case"],
                    _gib(of["expected_bytes"]),
                    _gib(of["peak_bytes"]),
                    f"{of['ratio']:.2f}",
                    f"{of['bound']:.0%}",
                    _held(of["held"]),
                ]
                for of in whole["plan"]
            ],
        ),
        *_table("Head", ["what", "found"], [row for result in whole[HEAD] for row in _named(result)]),
        *_table("Answers", ["what", "found"], [row for result in whole[GENERATION] for row in _named(result)]),
    ]
    return "\n".join(lines) + "\n"


def _of(results: Sequence[dict[str, Any]], section: str) -> list[dict[str, Any]]:
    return [result for result in results if result["section"] == section]


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    shown = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *cells)]
    return ["", f"## {title}", "", *(shown if rows else ["Left out."])]


def _outcomes(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[result["name"], words(result) + _more(result)] for result in results]


def _more(result: Mapping[str, Any]) -> str:
    figures = result.get("figures", {})
    if "losses" in figures:
        return f": loss {figures['losses'][0]:.4f} to {figures['losses'][-1]:.4f}, {figures['seconds']:.2f} s a step"
    return ": " + _shown(figures) if figures else ""


def _bar(bar: Mapping[str, Any]) -> list[str]:
    held = _held(bar["held"]) if bar["held"] is not None else bar["why"]
    return [bar["name"], bar["bar"], bar["figure"], held]


def _held(held: bool) -> str:
    return "yes" if held else "no"


def _step(result: Mapping[str, Any]) -> list[str]:
    if result["state"] != OK:
        return [result["name"], words(result), *[""] * 6]
    figures = result["figures"]
    rate = figures["flops"] / figures["seconds"]
    return [
        result["name"],
        str(figures["ranks"]),
        f"{figures['seconds']:.3f}",
        f"{figures['tokens'] * figures['ranks'] / figures['seconds']:,.0f}",
        f"{rate / 1e12:.1f}",
        f"{rate / figures['rate']:.0%}",
        _gib(figures["peak_bytes"]),
        f"{figures['loss']:.3f}",
    ]


def _named(result: Mapping[str, Any]) -> list[list[str]]:
    if result["state"] != OK:
        return [[result["name"], words(result)]]
    return [[name, _shown(value)] for name, value in result["figures"].items()]


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(of)}" for name, of in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def without_names(value: Any) -> Any:
    """The same without the user's folders and name, and the machine's; of any strings in it but our own words."""
    if isinstance(value, dict):
        ours = ("section", "name", "state")
        return {key: of if key in ours else without_names(of) for key, of in value.items()}
    if isinstance(value, list):
        return [without_names(of) for of in value]
    return _without_names(value) if isinstance(value, str) else value


def _without_names(text: str) -> str:
    folders = {
        str(BENCHMARKS.parent): ".",
        sys.prefix: "PYTHON",
        sys.base_prefix: "PYTHON",
        str(Path.home()): "~",
    }
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, folders[folder])
    text = re.sub(r"/(?:home|Users)/[^/\s\"':]+", "~", text)
    for name, instead in (
        (socket.gethostname(), "HOST"),
        (socket.gethostname().split(".")[0], "HOST"),
        (_user(), "USER"),
    ):
        if len(name) > 2:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", instead, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
