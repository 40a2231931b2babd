"""What a model answers."""

from typing import Any

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)

from torchtune.data import Message
from torchtune.generation import generate
from torchtune.modules import TransformerDecoder


def answer(model: TransformerDecoder, tokenizer: Any, question: str, max_tokens: int = 60) -> str:
    """The likeliest continuation of a user's question, token by token.

    Args:
        model: a whole model, its output head in place.
        tokenizer: any of torchtune's or ours.
    """
    device = next(model.parameters()).device
    if hasattr(tokenizer, "prompt"):
        prompt = tokenizer.prompt([{"role": "user", "content": question}])
    else:
        prompt, _ = tokenizer.tokenize_messages([Message("user", question)], add_end_tokens=False)
    tokens, _ = generate(
        model.eval(),
        torch.tensor(prompt, device=device),
        max_generated_tokens=min(max_tokens, model.max_seq_len - len(prompt)),
        top_k=1,
        stop_tokens=[tokenizer.eos_id],
    )
    generated = tokens[0, len(prompt) :].tolist()
    if tokenizer.eos_id in generated:
        generated = generated[: generated.index(tokenizer.eos_id)]
    return tokenizer.decode(generated).strip()
