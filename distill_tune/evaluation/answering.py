"""What models answer to the prompts of documents, the same however many are answered together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from distill_tune import generation
from distill_tune.evaluation.named_models import NamedModel
from distill_tune.generation.answers import FINISHED
from distill_tune.generation.record import sample_key
from distill_tune.generation.requests import require_numbers
from distill_tune.generation.texts import text_of
from distill_tune.teachers import HuggingFace, LiveTeacher, Teacher


@dataclasses.dataclass(frozen=True)
class Answered:
    """
    Attributes:
        text: without its end.
        num_tokens: with it.
        finished: it ended by itself, and was not cut.
    """

    text: str
    num_tokens: int
    finished: bool


def answers(
    model: NamedModel,
    loaded: Teacher,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: generation.Sampling,
    *,
    seed: int = 0,
    max_slots: int = 64,
    cache_bytes: int | None = None,
) -> list[Answered | None]:
    """An answer to each prompt; None of a prompt that leaves no room for one. None at all of a model that writes none.

    Args:
        tokenizer: that wrote the prompts.
        seed: of what is drawn; with it the prompt decides, and not where it stands.

    Raises:
        UserError: the model's logits are no numbers.
    """
    if not isinstance(loaded, LiveTeacher | HuggingFace) or model.folder is None:
        return [None] * len(prompts)
    ends = generation.ends_of(tokenizer, model.folder, loaded.vocab_size)
    generator = generation.generator_of(
        loaded.model, ends, sampling, tokenizer=tokenizer, cache_bytes=cache_bytes, max_slots=max_slots
    )
    most = loaded.max_seq_len
    fitting = [number for number, prompt in enumerate(prompts) if most is None or len(prompt) < most]
    completions = generator.generate([_request(prompts[number], seed) for number in fitting])
    found: list[Answered | None] = [None] * len(prompts)
    for number, completion in zip(fitting, completions, strict=True):
        require_numbers(completion, model.label)
        tokens, finished = list(completion.tokens), completion.finish_reason == FINISHED
        has_end = finished and tokens[-1:] and tokens[-1] in ends
        text = text_of(tokenizer, tokens[:-1] if has_end else tokens)
        found[number] = Answered(text if finished else text.rstrip("\ufffd"), len(tokens), finished)
    return found


def _request(prompt: Sequence[int], seed: int) -> generation.Request:
    of_prompt = int(sample_key({}, 0, prompt, 0)[:15], 16)
    return generation.Request(prompt, generation.stream_of(seed, 0, of_prompt, 0))
