"""`distill-tune serve` as tests start it, and a server before it that fails."""

import contextlib
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request

from loopback import LoopbackServer, Reply


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


@contextlib.contextmanager
def serving(tmp_path_factory, command_server, *arguments, **environment):
    """The command and its URL, for tests of one file; it has to end well."""

    def start(*line, **more):
        folder, output = (tmp_path_factory.mktemp(name) for name in ("serve", "output"))
        return command_server.start(["-m", "distill_tune", *map(str, line)], folder, os.environ | more, output)

    command, url = started(start, *arguments, **environment)
    yield command, url
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


class Proxy(LoopbackServer):
    """Between a run and a server.

    Args:
        fails: how, of the path and the number of scorings asked for: ``hang up``, ``overloaded``, ``half`` an
            answer, ``silent`` for a second.
    """

    def __init__(self, url, fails):
        self.asked, self.behind, self._fails, self._counts = 0, url, fails, threading.Lock()
        super().__init__(self._reply)

    def _reply(self, method, path, body):
        with self._counts:
            self.asked += path.startswith("/score")
            asked = self.asked
        how = self._fails(path, asked)
        if how == "silent":
            time.sleep(1)
        if how in ("hang up", "silent"):
            return None
        if how == "overloaded":
            return Reply(503, b"")
        request = urllib.request.Request(self.behind + path, body or None, method=method)
        try:
            with urllib.request.urlopen(request) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read())
        return Reply(200, content, sent=len(content) // 2 if how == "half" else None)
