"""Asks vLLM: ``prompt_logprobs`` of its completions (docs.vllm.ai, OpenAI-compatible server, extra parameters).

``prompt_logprobs[i]`` is the distribution that token i of the prompt was predicted from, without one for the first; by
token ids as text it has the k likeliest, and the prompt's own token beside them where it is none.
"""

from collections.abc import Sequence
from typing import Any

from distill_tune.cache.encoding import TopEncoding
from distill_tune.data.batch import Batch
from distill_tune.serve.connection import NoAnswer, Server
from distill_tune.serve.engine import AnyEncoding, about_of, asked_for_json, read_from
from distill_tune.serve.top_answers import Position, blobs_of, rows_asked_for

NAME = "vllm"
_PATH = "/v1/completions"
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
        assert isinstance(encoding, TopEncoding)
        rows = rows_asked_for(batch)
        answers = self._prompt_logprobs([tokens for tokens, _ in rows], encoding.k, encoding.temperature)
        with read_from(_PATH):
            pairs = zip(rows, answers, strict=True)
            found = [[_position(answer, tokens, at) for at in places] for (tokens, places), answer in pairs]
        return blobs_of(found, batch, encoding)

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
