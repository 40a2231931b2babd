"""What a server of another kind is asked for: which it is, what it serves, its tokens, its records."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from distill_tune.cache.encoding import AnyEncoding, LikelihoodEncoding, TopEncoding
from distill_tune.data.batch import Batch
from distill_tune.errors import UserError, one_line
from distill_tune.serve.connection import NoAnswer, Server

_TOLD = 80  # characters


class About(NamedTuple):
    """
    Attributes:
        engine: as a user knows it.
        kinds: of records that it gives.
        vocab_size: of its logits; None where it does not say.
        width: of its hidden states; 0 where it gives none.
        most_tokens: of a row; None where it does not say.
        most_log_probs: of a position; None where only asking tells.
        no_others: why it does not tell of tokens that are named for each position, beside the likeliest; empty where
            it does.
        content: tells teachers apart whose word differs; None where it does not say.
    """

    engine: str
    model: str
    kinds: tuple[str, ...]
    vocab_size: int | None = None
    width: int = 0
    most_tokens: int | None = None
    most_log_probs: int | None = None
    content: str | None = None
    no_others: str = ""


class Engine(Protocol):
    """Its methods raise :class:`~distill_tune.serve.connection.ServerError`.

    An answer that is none of its form is no answer.
    """

    server: Server
    about: About

    def records(self, batch: Batch, encoding: AnyEncoding, seed: int) -> list[bytes]:
        """Each row's record, as ``encoding`` keeps it; one of ``top_k`` also of the batch's ``likeliest`` tokens,
        where it has such.
        """
        ...

    def names_of(self, ids: Sequence[int]) -> dict[int, str] | None:
        """How the server writes each token; None where it tells all its tokens in another way, or none."""
        ...


def asked_for_json(server: Server, path: str, body: Any = None) -> Any:
    """GET, or POST with a body of JSON.

    Raises:
        NoAnswer, Refused: there is no answer, or it is no JSON.
    """
    content = None if body is None else json.dumps(body).encode()
    found = server.ask(path, content, type="" if content is None else "application/json")
    try:
        return json.loads(found)
    except ValueError as error:
        raise NoAnswer(f"{path}: an answer that is no JSON: {found[:60]!r}") from error


@contextlib.contextmanager
def read_from(path: str) -> Iterator[None]:
    """For what reads an answer as if it had its form.

    Raises:
        NoAnswer: it has another one.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        told = f"{path}: an answer of another form ({type(error).__name__}: {one_line(error)[:_TOLD]})"
        raise NoAnswer(told) from error


def about_of(server: Server, named: str | None, engine: str) -> About:
    """What a server of OpenAI's form, which lists log-probabilities of a prompt, tells of the model that it serves.

    Raises:
        NoAnswer, Refused: it is not there, or of another engine.
        UserError: it serves others, or several.
    """
    card = _model_of(server, named)
    if card.get("owned_by") != engine:
        raise NoAnswer(f"/v1/models: is of {card.get('owned_by')}")
    longest = card.get("max_model_len")
    with read_from("/v1/models"):
        # One more token is always written.
        most = None if longest is None else int(longest) - 1
    return About(engine, str(card["id"]), (TopEncoding.kind, LikelihoodEncoding.kind), most_tokens=most)


def _model_of(server: Server, named: str | None) -> dict[str, Any]:
    """The model that a server of OpenAI's form serves, as it tells of it.

    Raises:
        NoAnswer, Refused: it tells of none.
        UserError: it serves others, or several.
    """
    with read_from("/v1/models"):
        cards = {str(card["id"]): card for card in asked_for_json(server, "/v1/models")["data"]}
    models = [card for card in cards.values() if card.get("parent") is None]  # the others are adapters of theirs
    if named is None and len(models) == 1:
        return models[0]
    if named not in cards:
        what = f"does not serve model={named}" if named else "serves several models: name one with model"
        raise UserError(f"url={server.url}: {what}; there are {', '.join(cards) or 'none'}")
    return cards[named]
