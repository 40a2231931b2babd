"""One seed for all that is drawn."""

import random

import torch

from distill_tune.training.distributed import from_main_process


def seed_everything(seed: int | None) -> int:
    """Seed PyTorch on every device; None draws a seed, the same on every rank. Returns it, to be written down."""
    if seed is None:
        seed = from_main_process(random.SystemRandom().randrange(2**31))
    random.seed(seed)
    torch.manual_seed(seed)
    return seed
