"""Of an evaluation's documents those that a report shows: answers side by side, and tokens by their divergence."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_tune.reports.run_files import is_figure

_SHOWN_ROLLOUTS = 3
_MOST_CHARACTERS, _MOST_TOKENS = 500, 120
_MOST_MODELS = 5  # whose answers stand side by side
_MOST_MARKED = 3  # models by which a text is marked
_LEVELS = (0.1, 0.3, 1.0, 2.0, 4.0)  # nats a token: above each begins another colour


@dataclasses.dataclass(frozen=True)
class Answers:
    """
    Attributes:
        texts: by whose they are: the reference, then the models in the order of :func:`labels_of`.
    """

    title: str
    prompt: str
    texts: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class MarkedText:
    """A text whose tokens each have a figure, in nats.

    Attributes:
        by: the model whose distance from the teacher the figures are.
        tokens: text and figure; None where there is none.
    """

    title: str
    by: str
    prompt: str
    tokens: Sequence[tuple[str, float | None]]
    is_cut: bool = False


def labels_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Of all models: the teacher, the student before its training, then what training made of it."""
    first = [label for label in (evaluation.get("teacher"), evaluation.get("base")) if label]
    return first + students_of(evaluation)


def students_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Those that are neither the teacher nor the student before its training."""
    others = (evaluation.get("teacher"), evaluation.get("base"))
    return [label for label in evaluation.get("models") or {} if label not in others]


def nats_a_byte(sample: Mapping[str, Any], label: str) -> float | None:
    """Of a document's answer: what can be compared whatever the tokens are. None of a model that has not read it."""
    of_model = (sample.get("models") or {}).get(label) or {}
    nll, size = of_model.get("text_nll", of_model.get("nll")), of_model.get("bytes")
    return nll / size if is_figure(nll) and is_figure(size) and size else None


def shown_answers(evaluation: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], most: int) -> list[Answers]:
    """Of the first documents that models have answered."""
    found: list[Answers] = []
    labels = labels_of(evaluation)[:_MOST_MODELS]
    for sample in samples:
        models = sample.get("models") or {}
        texts = {label: (models.get(label) or {}).get("answer") for label in labels}
        answered = {label: _cut(text) for label, text in texts.items() if isinstance(text, str)}
        if answered:
            reference = {"reference": _cut(sample["reference"])} if sample.get("reference") else {}
            found.append(Answers(_title(sample), _cut(sample.get("prompt") or ""), reference | answered))
        if len(found) == most:
            break
    return found


def marked_texts(
    evaluation: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], most: int
) -> list[list[MarkedText]]:
    """Of the first documents with tokens the same text by each student's divergence: a list for each document."""
    found = []
    labels = [label for label in labels_of(evaluation) if label != evaluation.get("teacher")][:_MOST_MARKED]
    for sample in samples:
        if tokens := sample.get("tokens"):
            texts = [_by(label, sample, tokens) for label in labels]
            found.append([text for text in texts if any(figure is not None for _, figure in text.tokens)])
        if len(found) == most:
            break
    return [texts for texts in found if texts]


def marked_rollouts(rollouts: Sequence[Mapping[str, Any]]) -> list[MarkedText]:
    """The last answers that a student wrote while it trained, by how much less likely each token is to the teacher."""
    found = []
    for line in [line for line in rollouts if isinstance(line.get("marks"), list)][-_SHOWN_ROLLOUTS:]:
        marks = [(str(text), -ratio if is_figure(ratio) else None) for text, ratio in line["marks"]]
        title = f"step {line.get('step')}, {line.get('row')}"
        found.append(
            MarkedText(title, "student", _cut(str(line.get("prompt", ""))), marks[:_MOST_TOKENS], _is_long(marks))
        )
    return found


def level_of(figure: float | None) -> int:
    """From 0 to as many as :func:`levels` has."""
    return sum(figure >= bound for bound in _LEVELS) if figure is not None else 0


def levels() -> Sequence[float]:
    """The figure, in nats, with which each level begins, from level 1 on."""
    return _LEVELS


def _by(label: str, sample: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]]) -> MarkedText:
    marks = []
    for token in tokens[:_MOST_TOKENS]:
        figure = (token.get("forward_kl") or {}).get(label)
        marks.append((str(token.get("text", "")), float(figure) if is_figure(figure) else None))
    return MarkedText(_title(sample), label, _cut(sample.get("prompt") or ""), marks, _is_long(tokens))


def _is_long(tokens: Sequence[Any]) -> bool:
    return len(tokens) > _MOST_TOKENS


def _title(sample: Mapping[str, Any]) -> str:
    category = f", {sample['category']}" if sample.get("category") else ""
    return f"document {sample.get('document')}{category}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rstrip() + " …"
