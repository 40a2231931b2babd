"""Asks vLLM: ``prompt_logprobs`` of its completions (docs.vllm.ai, OpenAI-compatible server, extra parameters).

``prompt_logprobs[i]`` is the distribution that token i of the prompt was predicted from, without one for the first; by
token ids as text it has the k likeliest, and the prompt's own token beside them where it is none.

Tokens that are named for each position are told of by another route alone, ``/inference/v1/generate``, whose
``prompt_logprob_token_ids`` are a list for each token from ``prompt_logprob_start`` + 1 on (docs.vllm.ai, prompt token
ID logprobs): ``prompt_token_id_logprobs`` is a matrix in float32, a .npy file in base64.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy
import torch

from distill_tune.cache.encoding import AnyEncoding, LikelihoodEncoding, TopEncoding
from distill_tune.data.batch import Batch
from distill_tune.serve.connection import NoAnswer, Refused, Server
from distill_tune.serve.engine import about_of, asked_for_json, read_from
from distill_tune.serve.top_answers import Position, blobs_of, blobs_of_likelihoods, rows_asked_for

NAME = "vllm"
_PATH, _OF_TOKENS = "/v1/completions", "/inference/v1/generate"
_SAME = 0.5  # nats, by which two answers on a token may differ: what bf16 and other kernels make of it, at most
# What a model's generation_config.json would have changed, where the server lists what it samples from.
_NEUTRAL = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class VLLM:
    """
    Args:
        model: of those that it serves; None where there is one.

    Raises:
        NoAnswer, Refused: it is not there, or another kind of server.
    """

    def __init__(self, server: Server, model: str | None = None) -> None:
        self.server = server
        self.about = about_of(server, model, NAME)

    def records(self, batch: Batch, encoding: AnyEncoding, seed: int) -> list[bytes]:
        assert isinstance(encoding, TopEncoding | LikelihoodEncoding)
        rows, k = rows_asked_for(batch), encoding.k if isinstance(encoding, TopEncoding) else 0
        answers = self._prompt_logprobs([tokens for tokens, _ in rows], k, encoding.temperature)
        with read_from(_PATH):
            pairs = zip(rows, answers, strict=True)
            found = [[_position(answer, tokens, at) for at in places] for (tokens, places), answer in pairs]
        if isinstance(encoding, LikelihoodEncoding):
            own = [
                [position[tokens[at]] for position, at in zip(of_row, places, strict=True)]
                for (tokens, places), of_row in zip(rows, found, strict=True)
            ]
            return blobs_of_likelihoods(own, batch, encoding)
        return blobs_of(found, batch, encoding, self._of_others(rows, found, batch))

    def _of_others(
        self,
        rows: Sequence[tuple[list[int], list[int]]],
        likeliest: Sequence[Sequence[Position]],
        batch: Batch,
    ) -> torch.Tensor | None:
        """Log-probabilities of the batch's ``likeliest`` tokens, ``[n, j]``; None where it has none.

        Args:
            rows: of each its tokens, and the places of those that are learned.
            likeliest: what it has said of the same positions.

        Raises:
            NoAnswer: an answer of another form.
            Refused: it does not know the route, or tells of a token otherwise than it did before.
        """
        if batch.likeliest is None:
            return None
        of_rows = batch.likeliest.split(list(batch.num_supervised))
        found = [
            self._of_tokens(tokens, places, others.tolist())
            for (tokens, places), others in zip(rows, of_rows, strict=True)
        ]
        told = [position for of_row in likeliest for position in of_row]
        log_probs = torch.cat(found)
        for position, others, values in zip(told, batch.likeliest.tolist(), log_probs.tolist(), strict=True):
            for token, value in zip(others, values, strict=True):
                if not abs(position.get(token, value) - value) <= _SAME:
                    raise Refused(
                        200,
                        f"{_OF_TOKENS} gives token {token} the log-probability {value:.2f}, {_PATH} "
                        f"{position[token]:.2f}; with --logprobs-mode raw_logprobs they are the same",
                    )
        return log_probs

    def _of_tokens(self, tokens: Sequence[int], places: Sequence[int], others: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of one row, ``[places, j]``."""
        width = len(others[0]) if others else 0
        if not places:
            return torch.zeros(0, width)
        start, of_place = places[0], dict(zip(places, others, strict=True))
        body = {
            "model": self.about.model,
            "token_ids": list(tokens),
            "sampling_params": {
                "max_tokens": 1,
                "temperature": 1.0,
                "prompt_logprob_start": start - 1,
                "prompt_logprob_token_ids": [of_place.get(at, others[0]) for at in range(start, len(tokens))],
                **_NEUTRAL,
            },
        }
        found = asked_for_json(self.server, _OF_TOKENS, body)
        with read_from(_OF_TOKENS):
            content = base64.b64decode(found["prompt_token_id_logprobs"])
            matrix = numpy.load(io.BytesIO(content), allow_pickle=False).astype(numpy.float32)
            if matrix.shape != (len(tokens) - start, width):
                raise NoAnswer(f"{_OF_TOKENS}: a matrix {matrix.shape} of {len(tokens) - start} positions")
            return torch.from_numpy(matrix[[at - start for at in places]])

    def names_of(self, ids: Sequence[int]) -> dict[int, str]:
        """Where it does not tokenise, its tokens have no text, and there is nothing here."""
        prompt = [ids[0], *ids]  # nothing is told of the first
        (answer,) = self._prompt_logprobs([prompt], 0, 1.0)
        with read_from(_PATH):
            named = zip(prompt[1:], answer[1:], strict=True)
            texts = {token: entry[str(token)].get("decoded_token") for token, entry in named if str(token) in entry}
        return {token: text for token, text in texts.items() if text is not None}

    def _prompt_logprobs(self, prompts: Sequence[Sequence[int]], k: int, temperature: float) -> list[Any]:
        body = {
            "model": self.about.model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": 1,
            "prompt_logprobs": k,
            "temperature": temperature,
            **_NEUTRAL,
        }
        found = asked_for_json(self.server, _PATH, body)
        with read_from(_PATH):
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
            answers = [choice["prompt_logprobs"] for choice in choices]
            if [len(answer) for answer in answers] != [len(prompt) for prompt in prompts]:
                raise NoAnswer(f"prompt_logprobs of {len(answers)} rows, where {len(prompts)} were asked for")
        return answers


def _position(answer: Any, tokens: Sequence[int], at: int) -> Position:
    """What token ``at`` was predicted from.

    Raises:
        NoAnswer: it is of another token.
    """
    entry = answer[at]
    if not isinstance(entry, dict) or str(tokens[at]) not in entry:
        raise NoAnswer(f"prompt_logprobs[{at}] does not have the prompt's own token {tokens[at]}")
    return {int(token): float(value["logprob"]) for token, value in entry.items()}
