"""What a server's answer means for the one who asked."""

import pytest
from loopback import LoopbackServer, Reply

from distill_tune.serve.connection import Busy, NoAnswer, Refused, Server


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
