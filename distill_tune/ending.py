"""How a command or a run ends: what its user is told, and its exit code."""

import errno
import os
import signal
import sys
import time
import traceback

from distill_tune.errors import FinishedRun, UserError
from distill_tune.launch import num_processes
from distill_tune.secrets import hide_secrets
from distill_tune.streams import OutputLost, lead_nowhere
from distill_tune.waiting import has_waited_in_vain, where_it_lost_a_rank, who_tells, whom_it_waited_for

_GRACE, _GRACE_OF_OTHERS = 10, 3  # seconds


class told_without_traceback:
    """Turns a :class:`UserError` into its message on stderr and exit code 2, and Ctrl-C into a line and 130.

    Of several processes that fail, the first one tells why, with its rank; the others end in silence. With
    DISTILL_TUNE_TRACEBACK=1 in the environment the traceback is shown, for those who edit a recipe.
    """

    def __enter__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a user's text may be none that can be written

    def __exit__(self, kind: type | None, error: BaseException | None, where: object) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        if isinstance(error, FinishedRun):
            print(error)
            return True
        if isinstance(error, OutputLost):
            lead_nowhere(sys.stdout)
            if error.errno == errno.EPIPE:  # as `| head` ends other commands
                sys.exit(128 + signal.SIGPIPE)
            print(f"distill-tune: stdout: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        status = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1
        has_waited = has_waited_in_vain(error)
        if status == 1 and num_processes() > 1:
            # A lost connection is another's failure: torchrun has time to find that one, and ends this one meanwhile.
            time.sleep(_GRACE_OF_OTHERS)
        if (who := who_tells()) is not None:
            print(_told(error, who, has_waited), file=sys.stderr)
        elif status != 130:  # a terminal's Ctrl-C ends all alike
            time.sleep(_GRACE)  # torchrun ends all when one ends: the one that tells must come first
        if who != "":
            end_at_once(status)
        sys.exit(status)


def _told(error: BaseException, who: str, has_waited: bool) -> str:
    if isinstance(error, UserError) and os.environ.get("DISTILL_TUNE_TRACEBACK") != "1":
        return f"distill-tune: {who}{hide_secrets(str(error))}"
    if isinstance(error, KeyboardInterrupt):
        return f"distill-tune: {who}interrupted"
    if told := whom_it_waited_for(error) if has_waited else where_it_lost_a_rank(error):
        return f"distill-tune: {who}{told}"
    shown = hide_secrets("".join(traceback.format_exception(error))).rstrip("\n")
    return f"distill-tune: {who}failed:\n{shown}" if who else shown


def end_at_once(status: int) -> None:
    """End without waiting for the other processes, which the usual way out of a process group would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
