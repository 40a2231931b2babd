"""What a server's answer means for the one who asked."""

import contextlib
import socket
import threading

import pytest
from loopback import LoopbackServer, Reply

from distill_tune.errors import UserError
from distill_tune.serve.connection import Busy, NoAnswer, Refused, Server, Unreachable


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(429, b""), Busy),
        (Reply(503, b"", {"Retry-After": "1"}), Busy),
        (Reply(503, b""), NoAnswer),  # as a proxy says whose server is gone
        (Reply(500, b""), NoAnswer),
        (Reply(200, b"whole", sent=2), NoAnswer),
        (Reply(400, b""), Refused),
        (Reply(404, b""), Refused),
        (None, NoAnswer),
    ],
)
def test_an_answer_without_content_is_of_its_kind(reply, kind):
    server = LoopbackServer(lambda method, path, body: reply)
    with pytest.raises(kind) as raised:
        Server(server.url).ask("/about")
    assert type(raised.value) is kind or (kind is NoAnswer and not isinstance(raised.value, Busy))
    server.close()


def test_what_a_server_says_is_told_without_its_wrapping():
    server = LoopbackServer(lambda method, path, body: Reply(400, b'{"error": {"message": "too\\n long"}}'))
    with pytest.raises(Refused, match=r"^400: too long$"):
        Server(server.url).ask("/score", b"")
    server.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_that_breaks_while_it_is_made_may_be_tried_again(scheme):
    """As of a proxy that is being restarted, in the handshake of TLS as well."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                connection.recv(10000)
                connection.close()

        answering = threading.Thread(target=hang_up)
        answering.start()
        with pytest.raises(Unreachable):
            Server(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}", timeout=5).ask("/score", b"x")
        answering.join()


@pytest.mark.parametrize("token", ["a-secret-token\n", "a-secret\r\nX: y", "секрет-секрет"])
def test_a_token_that_no_header_takes_is_told_without_its_value(token):
    with pytest.raises(UserError, match="token: must be of printable ASCII") as raised:
        Server("http://127.0.0.1:1", token)
    assert "secret" not in str(raised.value) and "секрет" not in str(raised.value)
