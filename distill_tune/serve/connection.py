"""One request to a server, by the standard library alone."""

import contextlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any

from distill_tune.errors import UserError, one_line

_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_BUSY, _AWAY = 429, 503  # which means the same where the answer says when to come again
_TO_CONNECT = 20.0  # seconds, at most
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")  # what came first was no TLS
_TLS = "\x15\x03"  # how a server of TLS begins that has been asked without
_TOLD = 300  # characters of what a server says


class ServerError(Exception):
    """A request that had no answer, in a line, without the server's address."""


class NoAnswer(ServerError):
    """A later one may have: no connection, no time, a server that is overloaded or has failed."""


class Unreachable(NoAnswer):
    """There was no connection, or it broke."""


class Busy(NoAnswer):
    """It has too much to do, and says so."""


class Refused(ServerError):
    """Another one would have none either.

    Attributes:
        status: of HTTP; 0 where it did not come to that.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(": ".join(filter(None, [str(status or ""), reason])))
        self.status = status


class Server:
    """
    Args:
        url: ``http://machine:8000``, with or without a path; also https.
        token: sent as a bearer's; None sends none.
        timeout: seconds without a byte after which there is no answer.

    Raises:
        UserError: no such URL.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 300) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise UserError(f"url={url}: {error}") from error
        if parts.username:
            raise UserError(
                f"url={parts.scheme}://...@{parts.hostname}: names a user; a server is given a token, as token"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise UserError(f"url={url}: must be http://machine:port or https://machine:port")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise UserError("token: must be of printable ASCII characters")
        self.url = url.rstrip("/")
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._is_secure, self._timeout = parts.scheme == "https", timeout
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(
        self, path: str, body: bytes | None = None, query: Mapping[str, Any] | None = None, type: str = ""
    ) -> bytes:
        """The answer's body; GET, or POST with a ``body``.

        Args:
            type: of the body.

        Raises:
            NoAnswer, Refused: there is none.
        """
        target = self._path + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        connection, missing = self._connection(), "no connection"
        try:
            connection.connect()
            missing, connection.timeout = "no answer", self._timeout
            connection.sock.settimeout(self._timeout)
            headers = self._headers | ({"Content-Type": type} if type else {})
            connection.request("GET" if body is None else "POST", target, body, headers)
            answer = connection.getresponse()
            found = answer.read()
        except ssl.SSLCertVerificationError as error:
            raise Refused(0, f"its certificate is not trusted ({error.verify_message})") from error
        except ssl.SSLError as error:
            if error.reason in _NO_TLS:
                raise Refused(0, "does not speak TLS: take http:// in place of https://") from error
            raise Unreachable(one_line(error)) from error
        except TimeoutError as error:
            raise Unreachable(f"{missing} for {connection.timeout:g} seconds") from error
        except http.client.BadStatusLine as error:
            if str(error).startswith(_TLS):
                raise Refused(0, "speaks TLS: take https:// in place of http://") from error
            raise Unreachable(one_line(error)) from error
        except (OSError, http.client.HTTPException) as error:
            told = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise Unreachable(told) from error
        finally:
            connection.close()
        if answer.status == 200:
            return found
        reason = _reason(found.decode(errors="replace"))
        if answer.status == _BUSY or (answer.status == _AWAY and "Retry-After" in answer.headers):
            raise Busy(f"{answer.status}: {reason}")
        if answer.status in _TRY_AGAIN:
            raise NoAnswer(f"{answer.status}: {reason}")
        raise Refused(answer.status, reason)

    def _connection(self) -> http.client.HTTPConnection:
        timeout = min(self._timeout, _TO_CONNECT)
        if self._is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)


def _reason(text: str) -> str:
    """What a server says of a fault: of OpenAI's form and FastAPI's its message alone."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(text)
        error = told.get("error", told)
        text = str(error["message"] if "message" in error else error["detail"])
    return " ".join(text.split())[:_TOLD]
