"""What a model answers."""

from collections.abc import Sequence
from typing import Any

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.conversation import prompt_tokens
from distill_tune.data.ends import answer_end
from distill_tune.generation import Decoder, Request, Sampling

from torchtune.modules import TransformerDecoder


def answers(model: TransformerDecoder, tokenizer: Any, questions: Sequence[str], max_tokens: int = 60) -> list[str]:
    """The likeliest continuations of a user's questions, token by token.

    Args:
        tokenizer: any of torchtune's or ours.
    """
    ends = {end for end in (answer_end(tokenizer), tokenizer.eos_id) if end is not None}
    decoder = Decoder(model, ends, Sampling(max_tokens, temperature=0))
    requests = [Request(prompt_tokens(tokenizer, [{"role": "user", "content": question}])) for question in questions]
    kept = ([token for token in of.tokens if token not in ends] for of in decoder.generate(requests))
    return [tokenizer.decode(tokens).strip() for tokens in kept]
