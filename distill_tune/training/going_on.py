"""What is told where a run cannot write what it leaves: from where it can go on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from distill_tune.errors import UserError, one_line


@contextlib.contextmanager
def told_where_to_go_on(folder: Path) -> Iterator[None]:
    """
    Args:
        folder: model/ or adapter/ of a run, which is written inside.

    Raises:
        UserError: it could not be written; the newest checkpoint beside it is named, if there is one.
    """
    try:
        yield
    except (OSError, SafetensorError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        names = [path.name for path in (folder.parent / "checkpoints").glob("step_*")]
        steps = [int(name[5:]) for name in names if name[5:].isdigit()]
        if not steps:
            raise UserError(f"{folder}: could not be written after the last step: {reason}") from error
        newest = folder.parent / "checkpoints" / f"step_{max(steps)}"
        raise UserError(
            f"{folder}: could not be written after the last step: {reason}; {newest} is whole: "
            "mend it, and the same command with resume=auto goes on from there"
        ) from error
