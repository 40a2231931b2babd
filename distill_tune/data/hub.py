"""Whether rows may be fetched from the hub: `distill-tune validate` reads local files alone."""

import contextlib
import contextvars
from collections.abc import Iterator

from distill_tune.errors import UserError

_may_fetch = contextvars.ContextVar("may_fetch", default=True)


class RowsOnHub(UserError):
    """Rows that are not read, since they are no local file."""


@contextlib.contextmanager
def local_files_alone() -> Iterator[None]:
    """Within, :class:`RowsOnHub` is raised in place of a request to the hub or to any other address."""
    token = _may_fetch.set(False)
    try:
        yield
    finally:
        _may_fetch.reset(token)


def require_hub(source: str) -> None:
    """
    Raises:
        RowsOnHub: only local files are to be read.
    """
    if not _may_fetch.get():
        raise RowsOnHub(f"{source} is no local file")
