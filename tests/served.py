"""`distill-tune serve` as tests start it."""

import contextlib
import re
import time


def started(start_cli, *arguments, **environment):
    """The command and its URL, once it answers."""
    command = start_cli("serve", "--port", 0, "--device", "cpu", *arguments, **environment)
    until, found = time.monotonic() + 60, None
    while not found:
        assert time.monotonic() < until, command.told()
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):  # the process has not yet come to its streams
            found = re.search(r"on (http://\S+)", command.told()[0])
    return command, found[1]
