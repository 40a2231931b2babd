"""What a run, or figures, were made with."""

import functools
import platform
from importlib.metadata import version

import distill_tune

_PACKAGES = ("torch", "torchtune", "torchao", "transformers")


@functools.cache
def versions() -> dict[str, str]:
    """Of this package, those that figures depend on, and Python."""
    found = {name: version(name) for name in _PACKAGES}
    return {"distill-tune": distill_tune.__version__, **found, "Python": platform.python_version()}
