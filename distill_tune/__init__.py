"""distill-tune: train a small language model to follow a large one."""

__version__ = "0.1.0"
