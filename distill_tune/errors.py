"""The one exception that a user sees."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in a config, a file or a row: shown without a traceback, with exit code 2.

    The message names the key or file, the value found, and what to do.
    """


class Faults(UserError):
    """Several mistakes at once."""

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{count} in {where}", *(f"  {fault}" for fault in self.faults)]))
