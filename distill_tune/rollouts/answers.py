"""What the answers of a step are like, told from their tokens alone."""

from collections.abc import Container, Sequence

from distill_tune.generation import Completion

_GRAM = 4  # tokens
_FEWEST = 24  # tokens of an answer of which it is asked whether it repeats itself


def measures_of(answers: Sequence[Completion], num_tokens: int, seconds: float) -> dict[str, float]:
    """For a step's line of metrics; nothing without answers.

    Args:
        answers: the student's, of all ranks.
        num_tokens: of all that were written, the teachers' included.
        seconds: that it took.
    """
    if not answers:
        return {}
    lengths = [len(answer.tokens) for answer in answers]

    def share(number: int) -> float:
        return number / len(answers)

    return {
        "rollouts": len(answers),
        "rollout_length": share(sum(lengths)),
        "rollout_cut": share(sum(is_cut(answer) for answer in answers)),
        "rollout_empty": share(sum(is_empty(answer) for answer in answers)),
        "rollout_repeating": share(sum(is_repeating(answer) for answer in answers)),
        "rollout_seconds": seconds,
        "rollout_tokens_per_second": num_tokens / seconds if seconds else 0.0,
    }


def before_tokens(answer: Completion, tokens: Container[int]) -> Completion:
    """The answer as it is, or cut before the first of ``tokens`` in it, with the finish reason ``other_token``."""
    for at, token in enumerate(answer.tokens):
        if token in tokens:
            return Completion(answer.tokens[:at], answer.log_probs[:at], "other_token")
    return answer


def is_cut(answer: Completion) -> bool:
    """Whether it was ended by a bound, not by itself."""
    return answer.finish_reason != "stop"


def is_empty(answer: Completion) -> bool:
    """Whether there is nothing in it before its end."""
    return not is_cut(answer) and len(answer.tokens) <= 1


def is_repeating(answer: Completion) -> bool:
    """Whether it was cut for that, or more than half of its runs of four tokens came before; a short one never is."""
    tokens = answer.tokens
    if answer.finish_reason == "repetition" or len(tokens) < _FEWEST:
        return answer.finish_reason == "repetition"
    grams = [tokens[at : at + _GRAM] for at in range(len(tokens) - _GRAM + 1)]
    return len(set(grams)) < len(grams) / 2
