"""Which of the samples become rows: filters, then the best of each prompt, then what compares answers with others."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from distill_tune.counts import counted
from distill_tune.errors import UserError, one_line
from distill_tune.generation.answers import Answer, Question, Sample, answer_of

Score = Callable[[Answer], float]
Filter = Callable[[Answer], bool]

EMPTY, WRONG, NOT_BEST = "empty", "below min_score", "not the best"
_CUT_BY = {"length": "by max_new_tokens or the model's length", "repetition": "by max_repetitions"}  # finish reasons


@dataclasses.dataclass(frozen=True)
class Chosen:
    """
    Attributes:
        taken_by: what leaves it out; empty where it is kept.
    """

    sample: Sample
    answer: Answer
    score: float | None
    taken_by: str = ""


@dataclasses.dataclass
class Choice:
    """
    Attributes:
        filters: by the names that are told.
        score: None takes all samples.
        best_per_prompt: so many of each prompt, by score.
        min_score: an answer below is wrong.
        thinking: ``keep``, ``drop`` or ``field``.
        taken: how many samples each reason has left out.
        ended: how many samples ended by each finish reason, kept or not.
    """

    filters: Mapping[str, Filter] = dataclasses.field(default_factory=dict)
    score: Score | None = None
    best_per_prompt: int = 1
    min_score: float | None = None
    thinking: str = "keep"
    taken: Counter[str] = dataclasses.field(default_factory=Counter)
    ended: Counter[str] = dataclasses.field(default_factory=Counter)

    def is_right(self, question: Question, sample: Sample) -> bool:
        """Whether a sample is good enough for no other to be asked for: no filter takes it, and its score suffices.

        Raises:
            UserError: score or filter fails.
        """
        return self.min_score is None or not self._judged(question, sample).taken_by

    def of(self, question: Question, samples: Sequence[Sample]) -> Iterator[Chosen]:
        """All of a prompt's samples, with what leaves each out.

        Raises:
            UserError: score or filter fails.
        """
        found = [self._judged(question, sample) for sample in samples]
        if self.score is not None:
            left = sorted((one for one in found if not one.taken_by), key=lambda one: -(one.score or 0.0))
            worse = {one.sample.key for one in left[self.best_per_prompt :]}
            found = [_left_out(one, NOT_BEST) if one.sample.key in worse else one for one in found]
        for one in found:
            if not one.taken_by:
                one = self._filtered(question, one, after_choice=True)
            self.taken.update([one.taken_by])
            self.ended.update([one.sample.finish_reason])
            yield one

    def _judged(self, question: Question, sample: Sample) -> Chosen:
        answer = answer_of(question, sample, self.thinking)
        chosen = Chosen(sample, answer, None)
        if not answer.text.strip():
            return _left_out(chosen, EMPTY)
        chosen = self._filtered(question, chosen, after_choice=False)
        if chosen.taken_by:
            return chosen
        chosen = dataclasses.replace(chosen, score=self._score(question, answer))
        is_wrong = self.min_score is not None and (chosen.score or 0.0) < self.min_score
        return _left_out(chosen, WRONG) if is_wrong else chosen

    def _filtered(self, question: Question, chosen: Chosen, after_choice: bool) -> Chosen:
        for name, keeps in self.filters.items():
            if getattr(keeps, "after_choice", False) == after_choice:
                with _named(f"filter {name}", question):
                    if not keeps(chosen.answer):
                        return _left_out(chosen, name)
        return chosen

    def _score(self, question: Question, answer: Answer) -> float | None:
        if self.score is None:
            return None
        with _named("score", question):
            return float(self.score(answer))

    def told(self) -> str:
        """A table of what each reason has left out, and a line of how many were cut, kept or not."""
        total, kept = self.taken.total(), self.taken[""]
        lines = [f"{kept:,} of {counted(total, 'answer')} kept"]
        reasons = [EMPTY, *self.filters, WRONG, NOT_BEST]
        order = sorted((name for name in self.taken if name), key=reasons.index)
        width = max(map(len, order), default=0)
        lines += [f"  {name:<{width}}  {self.taken[name]:>7,}  {self.taken[name] / total:.1%}" for name in order]
        cut = [f"{self.ended[why]:,} {told}" for why, told in _CUT_BY.items() if self.ended[why]]
        if cut:
            lines.append(f"cut, not ended by the model: {', '.join(cut)}, of {counted(total, 'answer')}")
        return "\n".join(lines)


class _named:
    """What fails inside is told with its name and the row."""

    def __init__(self, name: str, question: Question) -> None:
        self._name, self._question = name, question

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            raise UserError(f"{self._name}: {self._question.origin}: {one_line(error)}") from error


def _left_out(chosen: Chosen, by: str) -> Chosen:
    return dataclasses.replace(chosen, taken_by=by)
