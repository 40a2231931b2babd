"""Asks SGLang: ``/generate`` with ``return_logprob`` (docs.sglang.io, sampling parameters and native APIs).

``input_token_logprobs`` has (log-probability, id, text) of each token of the prompt from ``logprob_start_len`` on, and
``input_top_logprobs`` the likeliest in its place; of the first of them there is nothing, whatever the start. From
0.5.17 on the likeliest come as arrays in base64, 11 bytes each instead of some 30, where
``return_flat_raw_top_logprobs_b64`` asks for it; earlier ones do not heed it.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy

from distill_tune.cache.encoding import AnyEncoding, LikelihoodEncoding, TopEncoding
from distill_tune.data.batch import Batch
from distill_tune.serve.connection import NoAnswer, Server
from distill_tune.serve.engine import about_of, asked_for_json, read_from
from distill_tune.serve.top_answers import Position, blobs_of, blobs_of_likelihoods, rows_asked_for

NAME = "sglang"
_PATH = "/generate"
_NEUTRAL = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 1}
_NO_OTHERS = "the tokens that it is given to tell of (token_ids_logprob) are the same at every position"
_CLIPPED = 0  # which it writes in place of a vocabulary's last ids


class SGLang:
    """
    Args:
        model: of those that it serves; None where there is one.

    Raises:
        NoAnswer, Refused: it is not there, or another kind of server.
    """

    def __init__(self, server: Server, model: str | None = None) -> None:
        self.server = server
        self.about = about_of(server, model, NAME)._replace(no_others=_NO_OTHERS)

    def records(self, batch: Batch, encoding: AnyEncoding, seed: int) -> list[bytes]:
        assert isinstance(encoding, TopEncoding | LikelihoodEncoding)
        rows, k = rows_asked_for(batch), encoding.k if isinstance(encoding, TopEncoding) else 0
        starts = [places[0] - 1 if places else 0 for _, places in rows]
        answers = self._generate([tokens for tokens, _ in rows], starts, k, encoding.temperature, False)
        likelihoods: list[list[float]] = []
        found: list[list[Position]] = []
        with read_from(_PATH):
            for (tokens, places), start, answer in zip(rows, starts, answers, strict=True):
                own = answer["input_token_logprobs"]
                likelihoods.append([_of_own(own, tokens, at, start) for at in places])
                if k:
                    top = _likeliest(answer, len(own)) if places else []
                    found.append([_position(top, tokens, at, start) for at in places])
        if isinstance(encoding, LikelihoodEncoding):
            return blobs_of_likelihoods(likelihoods, batch, encoding)
        return blobs_of(found, batch, encoding)

    def names_of(self, ids: Sequence[int]) -> dict[int, str]:
        prompt = [ids[0], *ids]
        (answer,) = self._generate([prompt], [0], 1, 1.0, True)
        found = {}
        with read_from(_PATH):
            for token, (_, index, text) in zip(prompt, answer["input_token_logprobs"], strict=False):
                if index == token and text is not None:
                    found[token] = str(text)
        return found

    def _generate(
        self, prompts: Sequence[Sequence[int]], starts: Sequence[int], k: int, temperature: float, with_text: bool
    ) -> list[dict[str, Any]]:
        body = {
            "input_ids": [list(prompt) for prompt in prompts],
            "sampling_params": {"temperature": temperature, **_NEUTRAL},
            "return_logprob": True,
            "logprob_start_len": list(starts),
            "top_logprobs_num": k,
            "return_text_in_logprobs": with_text,
            "return_flat_raw_top_logprobs": k > 0,
            "return_flat_raw_top_logprobs_b64": k > 0,
        }
        found = asked_for_json(self.server, _PATH, body)
        with read_from(_PATH):
            answers = [one["meta_info"] for one in found]
            lengths = [len(answer["input_token_logprobs"]) for answer in answers]
        wanted = [len(prompt) - start for prompt, start in zip(prompts, starts, strict=True)]
        if lengths != wanted:
            raise NoAnswer(f"input_token_logprobs of {lengths} tokens, where {wanted} were asked for")
        return answers


def _likeliest(answer: Any, size: int) -> list[Position]:
    """Of each token of which ``input_token_logprobs`` tells, by id; of those of which nothing is known, nothing.

    Raises:
        NoAnswer: they are of other tokens, or in another form.
    """
    if "input_top_logprobs_val_flat_b64" in answer:
        try:
            rows, k = answer["input_top_logprobs_shape"]
            values, ids = (
                numpy.frombuffer(
                    base64.b64decode(answer[f"input_top_logprobs_{name}_flat_b64"]),
                    numpy.dtype(answer[f"input_top_logprobs_{name}_flat_b64_dtype"]).newbyteorder("<"),
                )
                .reshape(rows, k)
                .tolist()
                for name in ("val", "idx")
            )
            nothing: list[Position] = [{}] * min(answer["input_top_logprobs_null_prefix"], size + 1)
        except (KeyError, TypeError, ValueError) as error:
            raise NoAnswer(f"{_PATH}: input_top_logprobs in another form") from error
        found = nothing + [dict(zip(*of_one, strict=True)) for of_one in zip(ids, values, strict=True)]
    else:
        nested = answer.get("input_top_logprobs") or []
        found = [{int(entry[1]): float(entry[0]) for entry in of_one or ()} for of_one in nested]
    if len(found) != size:
        raise NoAnswer(f"input_top_logprobs of {len(found)} tokens, where {size} were asked for")
    return found


def _of_own(own: Any, tokens: Sequence[int], at: int, start: int) -> float:
    """Log-probability of token ``at``.

    Raises:
        NoAnswer: it is of another token.
    """
    value, token = own[at - start][:2]
    if token not in (tokens[at], _CLIPPED):
        raise NoAnswer(f"input_token_logprobs[{at - start}] is not that of token {at}, {tokens[at]}")
    return float(value)


def _position(top: Sequence[Position], tokens: Sequence[int], at: int, start: int) -> Position:
    """What token ``at`` was predicted from.

    Raises:
        NoAnswer: nothing is told of it.
    """
    if not top[at - start]:
        raise NoAnswer(f"input_top_logprobs[{at - start}], of token {at}, {tokens[at]}, has nothing")
    return top[at - start]
