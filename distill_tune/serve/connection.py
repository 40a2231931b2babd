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
_TOLD = 300  # characters of what a server says


class ServerError(Exception):
    """A request that had no answer, in a line, without the server's address."""


class NoAnswer(ServerError):
    """A later one may have: no connection, no time, a server that is overloaded or has failed."""


class Unreachable(NoAnswer):
    """There was no connection, or it broke."""


class Refused(ServerError):
    """Another one would have none either.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}" if reason else str(status))
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
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UserError(f"url={url}: must be http://machine:port or https://machine:port")
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
        connection = self._connection()
        try:
            headers = self._headers | ({"Content-Type": type} if type else {})
            connection.request("GET" if body is None else "POST", target, body, headers)
            answer = connection.getresponse()
            found = answer.read()
        except ssl.SSLError as error:
            raise Refused(0, one_line(error)) from error
        except TimeoutError as error:
            raise Unreachable(f"no answer for {self._timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            told = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise Unreachable(told) from error
        finally:
            connection.close()
        if answer.status == 200:
            return found
        reason = _reason(found.decode(errors="replace"))
        if answer.status in _TRY_AGAIN:
            raise NoAnswer(f"{answer.status}: {reason}")
        raise Refused(answer.status, reason)

    def _connection(self) -> http.client.HTTPConnection:
        if self._is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)


def _reason(text: str) -> str:
    """What a server says of a fault: of OpenAI's form and FastAPI's its message alone."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(text)
        error = told.get("error", told)
        text = str(error["message"] if "message" in error else error["detail"])
    return " ".join(text.split())[:_TOLD]
