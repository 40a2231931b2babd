"""Python's collector of cycles, which looks at all objects again and again while a great many are made."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """For what makes a great many objects without cycles: collections would look at all others again and again.

    Beside torch's they take two thirds of the time of syntax trees, and half of that of a large tokenizer.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
