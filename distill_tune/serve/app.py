"""The server's answers: ``GET /about``, ``GET /vocabulary``, ``GET /output_layer``, ``POST /score``."""

import asyncio
import functools
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from distill_tune.cache.encoding import (
    MOST_DRAWS,
    AnyEncoding,
    HiddenEncoding,
    LikelihoodEncoding,
    SampledEncoding,
    TopEncoding,
)
from distill_tune.cache.output_layer import output_layer_as_bytes
from distill_tune.cache.vocabulary_file import fingerprint_of
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.errors import UserError, one_line
from distill_tune.losses import LinearProjection
from distill_tune.models.vocabulary import Vocabulary
from distill_tune.serve.scorer import SEED, Scorer
from distill_tune.serve.wire import OTHERS, WireError, records_as_bytes, rows_of, with_others

MOST_TOP = 1024  # log-probabilities of a position
MOST_BYTES = 2**30  # of an answer; to make one takes several times that
_BYTES_A_TOKEN = 16  # of a request's body, at most; with a safetensors header
_HEADER = 4096
_WAITING = 64  # requests; more are told to come again
_SETTINGS: dict[str, dict[str, Callable[[str], Any]]] = {
    SampledEncoding.kind: {
        "draws": int,
        "temperature": float,
        "proposal_temperature": float,
        "vocab_size": int,
        SEED: int,
    },
    TopEncoding.kind: {"k": int, "temperature": float, "vocab_size": int, OTHERS: int},
    HiddenEncoding.kind: {},
    LikelihoodEncoding.kind: {"temperature": float},
}
_CONTENT = "content"  # of the teacher that is asked, as /about tells it
_BINARY = "application/octet-stream"


def application(
    scorer: Scorer,
    *,
    model: str,
    content: str,
    vocabulary: Vocabulary | None,
    projection: Any,
    most_tokens_of_row: int,
    most_tokens_of_request: int,
    token: str | None = None,
) -> Starlette:
    """
    Args:
        model: its name, to be told.
        content: a digest of its weights and of how they are computed with.
        vocabulary: of its tokenizer, where it has one that can be read.
        projection: its output layer; hidden states are given where it is a plain one.
        token: that every request must bear; None asks for none.
    """
    plain = projection if isinstance(projection, LinearProjection) else None
    kinds = [kind for kind in _SETTINGS if kind != HiddenEncoding.kind or plain is not None]
    about = {
        "engine": "distill-tune",
        "model": model,
        "content": content,
        "vocab_size": scorer.vocab_size,
        "width": scorer.width,
        "kinds": kinds,
        "most_tokens_of_row": most_tokens_of_row,
        "most_tokens_of_request": most_tokens_of_request,
        "most_bytes_of_answer": MOST_BYTES,
        "most_log_probs": min(MOST_TOP, scorer.vocab_size),
        "most_draws": MOST_DRAWS,
        "tokenizer": None if vocabulary is None else fingerprint_of(vocabulary),
    }
    device, waiting = asyncio.Lock(), asyncio.Semaphore(_WAITING)  # one forward pass at a time

    async def tell_about(request: Request) -> Response:
        return JSONResponse(about)

    async def tell_vocabulary(request: Request) -> Response:
        if vocabulary is None:
            raise HTTPException(404, "the teacher's folder has no tokenizer that can be read")
        return JSONResponse({"tokens": dict(vocabulary.tokens), "added": sorted(vocabulary.added)})

    async def give_output_layer(request: Request) -> Response:
        if plain is None:
            raise HTTPException(404, "the teacher's output layer is quantised or has an adapter: no kind hidden")
        return Response(await to_thread.run_sync(output_layer_as_bytes, plain), media_type=_BINARY)

    async def score(request: Request) -> Response:
        if request.query_params.get(_CONTENT, content) != content:
            raise HTTPException(409, f"serves another teacher now, {model}")
        encoding, seed, others = _asked_for(request.query_params, scorer, kinds)
        body = await _body(request, _HEADER + (_BYTES_A_TOKEN + 4 * others) * most_tokens_of_request)
        try:
            rows = rows_of(body, vocab_size=scorer.vocab_size, most_tokens=most_tokens_of_row)
            rows = with_others(rows, body, others, encoding.vocab_size) if others else rows
        except WireError as error:
            raise HTTPException(400, str(error)) from error
        if (total := sum(len(row.tokens) for row in rows)) > most_tokens_of_request:
            raise HTTPException(413, f"a request of {total} tokens: at most {most_tokens_of_request} are taken")
        positions = sum(int((row.labels != IGNORE_INDEX).sum()) for row in rows)
        if positions * (encoding.bytes_of_position()[1] + 4 * others) > MOST_BYTES:
            told = f"{positions} positions of kind {encoding.kind}: an answer has {MOST_BYTES} bytes at most"
            raise HTTPException(413, f"{told}; ask for fewer of them, or for less of each")
        if waiting.locked():
            raise HTTPException(503, f"{_WAITING} requests are waiting; come again", {"Retry-After": "1"})
        async with waiting, device:
            if await request.is_disconnected():
                return Response(status_code=499)
            try:
                answer = await to_thread.run_sync(lambda: records_as_bytes(scorer(rows, encoding, seed)))
            except UserError as error:
                raise HTTPException(422, one_line(error)) from error
        return Response(answer, media_type=_BINARY)

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        @functools.wraps(answer)
        async def after_token(request: Request) -> Response:
            if token is not None:
                given = request.headers.get("authorization", "").removeprefix("Bearer ")
                if not hmac.compare_digest(given.encode(), token.encode()):
                    raise HTTPException(401, "a wrong token, or none", {"WWW-Authenticate": "Bearer"})
            return await answer(request)

        return after_token

    routes = [
        Route("/about", guarded(tell_about)),
        Route("/vocabulary", guarded(tell_vocabulary)),
        Route("/output_layer", guarded(give_output_layer)),
        Route("/score", guarded(score), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _tell, Exception: _tell_failure})


def _asked_for(query: QueryParams, scorer: Scorer, kinds: list[str]) -> tuple[AnyEncoding, int, int]:
    """The encoding, the seed, and the number of further tokens of each position."""
    kind = query.get("kind", "")
    if kind not in kinds:
        raise HTTPException(400, f"kind={kind[:40]}: must be one of {', '.join(kinds)}")
    settings: dict[str, Any] = {}
    for name, text in query.items():
        if name in ("kind", _CONTENT):
            continue
        if name not in _SETTINGS[kind]:
            raise HTTPException(400, f"{name[:40]}: kind {kind} has {', '.join(_SETTINGS[kind]) or 'no settings'}")
        try:
            settings[name] = _SETTINGS[kind][name](text)
        except ValueError as error:
            raise HTTPException(400, f"{name}={text[:40]}: is no number") from error
    others = settings.get(OTHERS, 0)
    if settings.get("k", 1) > MOST_TOP:
        raise HTTPException(400, f"k={settings['k']}: must be from 1 to {MOST_TOP}")
    if not 0 <= others <= MOST_TOP:
        raise HTTPException(400, f"{OTHERS}={others}: must be from 0 to {MOST_TOP}")
    if not 0 < settings.get("vocab_size", 1) <= scorer.vocab_size:
        raise HTTPException(400, f"vocab_size={settings['vocab_size']}: must be from 1 to {scorer.vocab_size}")
    seed = settings.get(SEED, 0)
    if not 0 <= seed < 2**63:
        raise HTTPException(400, f"seed={seed}: must be at least 0 and fit 63 bits")
    try:
        encoding = scorer.encoding(kind, settings)
    except (TypeError, ValueError) as error:
        raise HTTPException(400, one_line(error)) from error
    if isinstance(encoding, TopEncoding) and others and encoding.k + others > encoding.vocab_size:
        raise HTTPException(400, f"k and {OTHERS} are more than the {encoding.vocab_size} tokens that there are")
    return encoding, seed, others


async def _body(request: Request, most: int) -> bytes:
    """
    Raises:
        HTTPException: more bytes than ``most``: no more of them are read.
    """
    body = bytearray()
    if int(request.headers.get("content-length", "0")) > most:
        raise HTTPException(413, f"a body of more than {most} bytes")
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise HTTPException(413, f"a body of more than {most} bytes")
    return bytes(body)


async def _tell(request: Request, error: Any) -> Response:
    return PlainTextResponse(error.detail, error.status_code, error.headers)


async def _tell_failure(request: Request, error: Exception) -> Response:
    """Starlette raises the error once more, so that the server's own output has its traceback."""
    return PlainTextResponse(json.dumps(f"{type(error).__name__}: {one_line(error)}"[:300]), 500)
