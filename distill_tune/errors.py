"""The one exception that a user sees."""

from collections.abc import Iterator, Sequence

from distill_tune.counts import counted


def one_line(error: Exception) -> str:
    """What an error says, in a line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class UserError(Exception):
    """A mistake in a config, a file or a row: shown without a traceback, with exit code 2.

    The message names the key or file, the value found, and what to do.
    """


class Faults(UserError):
    """Several mistakes at once."""

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__(
            "\n".join([f"{counted(len(self.faults), 'fault')} in {where}", *(f"  {fault}" for fault in self.faults)])
        )


class FinishedRun(Exception):
    """A run that was asked for again and has nothing left to do: its message is shown, with exit code 0."""


class CollectedFaults:
    """Faults of several blocks, ``with faults: ...``, each of which ends at its first; :meth:`tell` raises them all."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._faults: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._faults)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, UserError):
            self._faults += error.faults if isinstance(error, Faults) else [str(error)]
        return isinstance(error, UserError)

    def tell(self) -> None:
        """
        Raises:
            UserError: there were faults.
        """
        if len(self._faults) == 1:
            raise UserError(self._faults[0])
        if self._faults:
            raise Faults(self._where, self._faults)
