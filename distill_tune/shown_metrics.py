"""A step's figures as people see them, while it trains and after."""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

# By a short name: the figure's own, and how it is written.
_SHOWN = {
    "length": ("tokens_per_answer", "{:.0f} tokens/answer"),
    "bytes": ("bytes_per_token", "{:.1f} bytes/token"),
    "perplexity": ("perplexity", "perplexity {:.2f}"),
    "loss": ("loss", "loss {:.3f}"),
    "kd": ("kd_loss", "kd {:.3f}"),
    "ce": ("ce_loss", "ce {:.3f}"),
    "rollouts": ("rollout_length", "{:.0f} tokens/answer"),
    "lr": ("lr", "lr {:.1e}"),
    "speed": ("tokens_per_second", "{:,.0f} tokens/s"),
}


def shown_metrics(line: Mapping[str, Any]) -> dict[str, str]:
    """Those that a step has: losses, of answers their length, of documents perplexity, learning rate, tokens/s, memory.

    A part of the loss that has no weight is 0, and left out; what is not finite is null in a file.
    """
    parts = {}
    for short, (name, text) in _SHOWN.items():
        if name in line and (line[name] != 0 or short not in ("kd", "ce")):
            parts[short] = text.format(math.nan if line[name] is None else line[name])
    if "rollouts" in parts and "rollout_cut" in line:
        parts["rollouts"] += f", {line['rollout_cut']:.0%} cut"
    if memory := line.get("peak_memory_bytes"):
        parts["memory"] = f"{memory / 2**30:.2f} GiB"
    return parts


def duration(seconds: float) -> str:
    """``0:01:05``, ``2 days, 3:00:00``."""
    return str(timedelta(seconds=round(seconds)))
