"""How near two sets of numbers are."""

from collections.abc import Sequence

import torch


def off(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """The most of the pairs' norm of the difference over norm of ``wanted``; NaN where one is."""
    each = [
        ((a.detach().double().cpu() - b.detach().double().cpu()).norm() / b.detach().double().cpu().norm()).item()
        for a, b in zip(found, wanted, strict=True)
    ]
    return max(each, key=lambda value: (value != value, value))
