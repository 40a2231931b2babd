"""How a task is asked in chat."""

from collections.abc import Callable
from typing import Any

from distill_tune.errors import UserError


def chat_template_of(name: str, tokenizer: Any) -> Callable[..., str]:
    """What writes a conversation as a model reads it.

    Args:
        name: for messages.

    Raises:
        UserError: nothing does.
    """
    of_transformers: Any = getattr(tokenizer, "transformers_tokenizer", None)
    if getattr(of_transformers, "chat_template", None) is None:
        raise UserError(
            f"tasks_in_chat=True: {name} has no chat template; take a folder's tokenizer that has one "
            "(distill_tune.data.hf_tokenizer), or leave tasks_in_chat out"
        )
    return of_transformers.apply_chat_template
