"""`distill-tune serve` as tests start it, and a server before it that fails."""

import contextlib
import http.server
import os
import re
import signal
import threading
import time
import urllib.request


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


class Proxy:
    """Between a run and a server.

    Args:
        fails: how, of the path and the number of scorings asked for: ``hang up``, ``overloaded``, ``half`` an
            answer, ``silent`` for a second.
    """

    def __init__(self, url, fails):
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.asked += self.path.startswith("/score")
                how = fails(self.path, proxy.asked)
                if how == "silent":
                    time.sleep(1)
                if how in ("hang up", "silent"):
                    return
                if how == "overloaded":
                    self.send_error(503)
                    return
                request = urllib.request.Request(proxy.behind + self.path, body or None, method=self.command)
                with urllib.request.urlopen(request) as response:
                    content = response.read()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if how == "half" else content)

            do_GET = do_POST = answer

            def log_message(self, *arguments):
                pass

        self.asked, self.behind = 0, url
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
