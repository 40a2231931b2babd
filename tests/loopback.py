"""HTTP servers of tests, on this machine alone."""

import http.server
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """
    Attributes:
        headers: beside Content-Length.
        sent: bytes of ``content`` before the connection ends; None for all.
    """

    status: int
    content: bytes
    headers: Mapping[str, str] = {}
    sent: int | None = None


class LoopbackServer:
    """Answers in threads, until it is closed.

    Args:
        reply: to a method, a path and a body; None hangs up.

    Attributes:
        url: with a port that was free.
    """

    def __init__(self, reply: Callable[[str, str, bytes], Reply | None]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if (found := reply(self.command, self.path, body)) is None:
                    return
                self.send_response(found.status)
                for name, value in {**found.headers, "Content-Length": str(len(found.content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(found.content[: found.sent])

            do_GET = do_POST = answer

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
