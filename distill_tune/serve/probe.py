"""What is asked of servers before any step, so that a wrong one is an error and not a wrong loss."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from distill_tune.cache.encoding import TopEncoding
from distill_tune.cache.vocabulary_file import fingerprint_of
from distill_tune.data.batch import Batch, Row, joined
from distill_tune.errors import UserError, one_line
from distill_tune.losses import TopTokens
from distill_tune.models.tokenizer_files import open_tokenizer
from distill_tune.models.vocabulary import Vocabulary, written_by
from distill_tune.serve.connection import NoAnswer, ServerError
from distill_tune.serve.engine import Engine
from distill_tune.serve.own import DistillTune

_SENTENCE = "The weather was fine, so we went for a walk along the river and had lunch at home."
_MOST_NAMES, _NAMES_AT_A_TIME = 4096, 512  # tokens
# Nats, on average and of a single token: what bf16 and other kernels make of the likeliest.
_SAME, _ONCE = 0.05, 0.5
_SHOWN = 80  # characters


class Tokens:
    """The tokens of the rows, beside a server's.

    Args:
        tokenizer: that writes the rows.
        student: the folder whose tokenizer writes them, where ``tokenizer`` is not transformers'.

    Raises:
        UserError: there is none that can be read.
    """

    def __init__(self, tokenizer: Any, student: Path) -> None:
        self._transformers = getattr(tokenizer, "transformers_tokenizer", None) or open_tokenizer(student)
        own = written_by(tokenizer) or Vocabulary.of(student)
        if own is None or self._transformers is None:
            raise UserError(f"no tokenizer in {student} to prove a server's tokens by: put its tokenizer files there")
        self._own = own
        self.sentence: list[int] = self._transformers.encode(_SENTENCE, add_special_tokens=False)

    @property
    def size(self) -> int:
        """How many there are, as far as the tokenizer tells."""
        return max(self._own.tokens) + 1

    def differing(self, engine: Engine) -> dict[int, str]:
        """The ids that are other tokens to a server that tells all its tokens, each with what it is there.

        Raises:
            UserError: its tokenizer is another one altogether, or it has none.
        """
        if not isinstance(engine, DistillTune):
            return {}
        if engine.tokenizer == fingerprint_of(self._own):
            return {}
        told = f"url={engine.server.url}"
        if (its := engine.vocabulary()) is None:
            raise UserError(f"{told}: its teacher has no tokenizer to prove its tokens by; put one into its folder")
        told += ": its teacher's tokenizer is not that of the rows; take kind=hidden, and name it as teacher_tokenizer"
        return self._own.require_same_ordinary(its, told)

    def differing_by_name(self, engine: Engine, used: numpy.ndarray) -> dict[int, str]:
        """Likewise of one that writes the tokens it is given: those of the rows, or many of them, evenly spread.

        Raises:
            UserError: it writes none.
        """
        few = used if len(used) <= _MOST_NAMES else used[numpy.linspace(0, len(used) - 1, _MOST_NAMES).astype(int)]
        found, size = {}, min(_NAMES_AT_A_TIME, engine.about.most_tokens or _NAMES_AT_A_TIME) - 1
        for start in range(0, len(few), max(1, size)):
            ids = few[start : start + max(1, size)].tolist()
            names = engine.names_of(ids)
            if names is None:
                return {}
            if not names:
                raise UserError(
                    f"url={engine.server.url}: does not tell the text of tokens, so they cannot be "
                    "proven to be those of the rows; start it with its tokenizer"
                )
            for index in ids:
                mine, its = self._transformers.decode([index]), names.get(index)
                # Half of a character is written in several ways.
                if its is None or "\ufffd" in mine + its or _plain(mine) == _plain(its):
                    continue
                found[index] = f"{mine[:_SHOWN]!r} is {its[:_SHOWN]!r}"
        return found


class Known(NamedTuple):
    """Nats a token that the teacher gives a known sentence, at least, and what chance would."""

    nats: float
    chance: float


def require_known_answer(engines: Sequence[Engine], tokens: Tokens, vocab_size: int, k: int) -> Known:
    """What the servers say of a known sentence, which must be the same.

    Args:
        k: log-probabilities of a position that a run will ask for.

    Raises:
        UserError: they do not serve the same teacher, or not so many log-probabilities; there is no answer.
    """
    size = engines[0].about.vocab_size
    most = min([k, vocab_size, *(engine.about.most_log_probs or k for engine in engines)])
    encoding = TopEncoding(vocab_size if size is None else min(size, vocab_size), most)
    batch = _sentence(engines, tokens)
    records = [_asked(engine, batch, encoding) for engine in engines]
    first = records[0]
    for engine, other in zip(engines[1:], records[1:], strict=True):
        off = torch.cat([_apart(first, other), _apart(other, first)])
        if off.mean() > _SAME or off.max() > _ONCE:
            raise UserError(
                f"url={engine.server.url}: does not serve the same teacher as {engines[0].server.url}: the likeliest "
                f"tokens after each of a known sentence's are {off.mean():.2g} nats apart, and {off.max():.2g} at most"
            )
    wanted = batch.targets[0, batch.supervised_positions]
    among = first.ids == wanted[:, None]
    rest = first.log_rest - math.log(max(1, vocab_size - first.ids.shape[1]))
    own = torch.where(among.any(-1), first.log_probs.masked_fill(~among, -torch.inf).amax(-1), rest)
    return Known(-own.clamp(min=-30).mean().item(), math.log(vocab_size))


def require_others(engines: Sequence[Engine], tokens: Tokens, vocab_size: int, count: int) -> None:
    """
    Args:
        count: tokens of each position.

    Raises:
        UserError: a server does not tell of tokens that are named to it for each position.
    """
    batch = _sentence(engines, tokens)
    own = batch.targets[0, batch.supervised_positions]  # [n]
    batch = dataclasses.replace(batch, likeliest=(own[:, None] + torch.arange(count)) % vocab_size)
    for engine in engines:
        record = _asked(engine, batch, TopEncoding(vocab_size, 1), f"k_of_student={count}: ")
        is_own = (record.ids == own[:, None]) & record.is_token
        if not is_own.any(-1).all():
            told = f"url={engine.server.url}: k_of_student={count}"
            raise UserError(f"{told}: does not tell of the tokens that it is given")


def require_temperature(engines: Sequence[Engine], tokens: Tokens, vocab_size: int, temperature: float) -> None:
    """
    Raises:
        UserError: log-probabilities are not softened by the temperature that is asked for; there is no answer.
    """
    batch = _sentence(engines, tokens)
    for engine in engines:
        if isinstance(engine, DistillTune):
            continue
        plain = _asked(engine, batch, TopEncoding(vocab_size, 2))
        softened = _asked(engine, batch, TopEncoding(vocab_size, 2, temperature))
        # A softmax's logits differ by what they differed by, over the temperature.
        wanted = (plain.log_probs[:, 0] - plain.log_probs[:, 1]) / temperature
        off = (softened.log_probs[:, 0] - softened.log_probs[:, 1] - wanted).abs()
        if (off > _SAME + 0.02 * wanted).any():
            raise UserError(
                f"url={engine.server.url}: temperature={temperature:g} does not soften the log-probabilities that "
                f"{engine.about.engine} gives (vLLM: start it with --logprobs-mode processed_logprobs); take "
                "temperature=1, or a distill-tune serve"
            )


def describe(engines: Sequence[Engine], kind: str, k: int | None, known: Known) -> str:
    """
    Args:
        k: of kind ``top_k``.
    """
    about = engines[0].about
    where = ", ".join(engine.server.url for engine in engines)
    of_kind = kind if k is None else f"{kind}, over the {k} likeliest tokens and the rest"
    told = (
        f"teacher served by {about.engine} at {where}: {about.model}, kind {of_kind}; a known sentence has "
        f"{known.nats:.2f} nats a token"
    )
    if known.nats > known.chance:
        told += f", more than chance ({known.chance:.2f}): is it trained, and of this language?"
    return told


def _apart(one: TopTokens, other: TopTokens) -> torch.Tensor:
    """By how many nats they differ on what is the likeliest token of each position to one, ``[n]``, at least.

    To the other it is no likelier than the last that it lists, where it is not among those.
    """
    is_it = other.ids == one.ids[:, :1]
    its = other.log_probs.masked_fill(~is_it, -torch.inf).amax(-1)
    own, last = one.log_probs[:, 0], other.log_probs.amin(-1)
    return torch.where(is_it.any(-1), (own - its).abs(), (own - last).clamp(min=0))


def _asked(engine: Engine, batch: Batch, encoding: TopEncoding, what: str = "") -> TopTokens:
    """
    Raises:
        UserError: there is no answer.
    """
    with answered_by(engine, what or f"k={encoding.k}: "):
        record = encoding.beside(batch.likeliest).decode(engine.records(batch, encoding, 0))
        if len(record) != (wanted := len(batch.supervised_positions)):
            raise NoAnswer(f"{len(record)} positions, where {wanted} were asked for")
        return record


@contextlib.contextmanager
def answered_by(engine: Engine, what: str = "") -> Iterator[None]:
    """
    Args:
        what: is asked for, to be told.

    Raises:
        UserError: an engine gives no answer, with its address.
    """
    try:
        yield
    except (ServerError, ValueError) as error:
        raise UserError(f"url={engine.server.url}: {what}{one_line(error)}") from error


def _sentence(engines: Sequence[Engine], tokens: Tokens) -> Batch:
    most = min(engine.about.most_tokens or len(tokens.sentence) for engine in engines)
    row = torch.tensor(tokens.sentence[:most], dtype=torch.int32)
    return joined([Row(row, row)])


def _plain(text: str) -> str:
    return text.replace("\u2581", " ").strip()
