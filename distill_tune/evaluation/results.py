"""What was measured of every document, as the figures of results.json and the lines of samples.jsonl."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy

from distill_tune.disk import write_text
from distill_tune.evaluation.answer_scores import scored
from distill_tune.evaluation.answering import Answered
from distill_tune.evaluation.calibration import calibration, calibration_sums
from distill_tune.evaluation.documents import Document, Documents, Written
from distill_tune.evaluation.scoring import PerToken
from distill_tune.evaluation.significance import Columns, intervals, pairs
from distill_tune.evaluation.tasks import Reached, task_figures, task_pairs
from distill_tune.versions import versions

VERSION = 1
_SAMPLES = ("nll", "text_nll", "tokens", "bytes", "forward_kl", "agreed", "compared")
_WHOLE = ("tokens", "bytes", "agreed", "compared")
_OF_ANSWERS = ("answered", "exact_match", "rouge_l", "answer_tokens", "finished")


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that was found of one model.

    Attributes:
        about: ``path``, ``kind``, ``parameters``, ``file_bytes``, ``speed`` and ``peak_memory_bytes`` of results.json.
        reading: by which of the documents' tokenizers it read them.
        tokens: of each document.
        answers: to each document; None of those that were not answered.
        tasks: what it reaches in tasks of lm-eval, by their names.
    """

    about: Mapping[str, Any]
    reading: int
    tokens: Sequence[PerToken]
    answers: Sequence[Answered | None]
    tasks: Mapping[str, Reached] = dataclasses.field(default_factory=dict)


def columns_of(measured: Measured, documents: Documents) -> Columns:
    """Sums over each document alone, ``[d]``: what figures, intervals and tests are made of."""
    rows = [
        _of_document(*parts)
        for parts in zip(
            documents.documents, documents.written[measured.reading], measured.tokens, measured.answers, strict=True
        )
    ]
    return {name: numpy.array([row[name] for row in rows], numpy.float64) for name in rows[0]}


def _of_document(document: Document, written: Written, tokens: PerToken, answer: Answered | None) -> dict[str, float]:
    supervised, of_text = tokens.supervised, tokens.is_text
    found = {
        "nll": tokens.nll[supervised].sum(),
        "text_nll": tokens.nll[supervised & of_text].sum(),
        "tokens": supervised.sum(),
        "bytes": written.supervised_bytes,
        "all_nll": tokens.nll.sum(),
        "all_text_nll": tokens.nll[of_text].sum(),
        "all_tokens": len(tokens.nll),
        "all_bytes": written.num_bytes,
    }
    if (to_teacher := tokens.to_teacher) is not None:
        found |= {
            "forward_kl": to_teacher.forward_kl.sum(),
            "reverse_kl": to_teacher.reverse_kl.sum(),
            "total_variation": to_teacher.total_variation.sum(),
            "agreed": to_teacher.agreement.sum(),
            "agreed_top5": to_teacher.agreement_top5.sum(),
            "compared": len(to_teacher.agreement),
        }
    score = scored(answer.text, document.reference) if answer else None
    return found | {
        "answered": float(answer is not None),
        "exact_match": score.exact_match if score else 0.0,
        "rouge_l": score.rouge_l if score else 0.0,
        "answer_tokens": answer.num_tokens if answer else 0,
        "finished": float(bool(answer and answer.finished)),
    }


def on_common_answers(columns: Mapping[str, Columns]) -> dict[str, Columns]:
    """Columns that count the answers to those documents alone to which every model that answers any has one.

    A model whose context has no room for an answer behind the longest prompts would else be held against others on
    the shorter, easier ones. ``no_room`` of a model tells to how many that others have answered it has none.

    Args:
        columns: by label.
    """
    answered = [of["answered"] != 0 for of in columns.values() if of["answered"].any()]
    if not answered:
        return dict(columns)
    by_all, by_any = numpy.logical_and.reduce(answered), numpy.logical_or.reduce(answered)
    return {
        label: {
            **of,
            **{name: of[name] * by_all for name in _OF_ANSWERS},
            "no_room": (by_any & (of["answered"] == 0)).astype(numpy.float64),
        }
        for label, of in columns.items()
    }


def results(
    documents: Documents,
    models: Mapping[str, Measured],
    teacher: str | None = None,
    base: str | None = None,
    columns: Mapping[str, Columns] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        models: by label, in their order.
        teacher: the label of the one that the others are held against.
        base: that of the student before it was trained.
        columns: of each model, where they are known.
    """
    columns = columns or {label: columns_of(measured, documents) for label, measured in models.items()}
    columns = on_common_answers(columns)
    found_intervals = intervals(columns)
    students = [label for label in models if label != teacher]
    found = {
        label: {
            **measured.about,
            **_figures(columns[label], measured.tokens),
            "calibration": _calibration(measured.tokens),
            "categories": _categories(documents, columns[label], measured.tokens),
            "intervals": found_intervals[label],
        }
        for label, measured in models.items()
    }
    reading = next(iter(models.values())).reading
    return {
        "version": VERSION,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "teacher": teacher,
        "base": base,
        "data": {
            "name": documents.name,
            "documents": len(documents),
            "bytes": sum(written.num_bytes for written in documents.written[reading]),
            "supervised_bytes": sum(written.supervised_bytes for written in documents.written[reading]),
            "fingerprint": documents.fingerprint,
            "scored": documents.scored,
        },
        "models": found,
        "pairs": pairs({label: columns[label] for label in students})
        + task_pairs({label: models[label].tasks for label in students}),
        "tasks": task_figures({label: measured.tasks for label, measured in models.items()}),
    }


def _figures(columns: Columns, tokens: Sequence[PerToken]) -> dict[str, Any]:
    sums = {name: float(column.sum()) for name, column in columns.items()}
    return {
        "supervised": _likelihood(sums, ""),
        "all": _likelihood(sums, "all_"),
        "to_teacher": _to_teacher(sums, tokens),
        "answers": _answers(sums),
    }


def _likelihood(sums: Mapping[str, float], part: str) -> dict[str, float | int | None]:
    num_tokens, num_bytes = sums[f"{part}tokens"], sums[f"{part}bytes"]
    nll, text_nll = sums[f"{part}nll"], sums[f"{part}text_nll"]
    return {
        "tokens": int(num_tokens),
        "bytes": int(num_bytes),
        "nll": nll,
        "text_nll": text_nll,
        "perplexity": _exp(nll / num_tokens),
        "bits_per_byte": text_nll / math.log(2) / num_bytes if num_bytes else None,
    }


def _exp(value: float) -> float | None:
    """None where it is too large to be written."""
    try:
        return math.exp(value)
    except OverflowError:
        return None


def _to_teacher(sums: Mapping[str, float], tokens: Sequence[PerToken]) -> dict[str, Any] | None:
    if not (compared := sums.get("compared")):
        return None
    return {
        "tokens": int(compared),
        "forward_kl": _spread(tokens, "forward_kl"),
        "reverse_kl": _spread(tokens, "reverse_kl"),
        "agreement": sums["agreed"] / compared,
        "agreement_top5": sums["agreed_top5"] / compared,
        "total_variation": sums["total_variation"] / compared,
    }


def _spread(tokens: Sequence[PerToken], name: str) -> dict[str, float]:
    values = numpy.concatenate([getattr(of.to_teacher, name) for of in tokens if of.to_teacher is not None])
    median, p99, p999, most = numpy.quantile(values, [0.5, 0.99, 0.999, 1.0]).tolist()
    return {"mean": math.fsum(values) / len(values), "median": median, "p99": p99, "p999": p999, "max": most}


def _answers(sums: Mapping[str, float]) -> dict[str, float | int] | None:
    if not (answered := sums["answered"]):
        return None
    return {
        "documents": int(answered),
        "no_room": int(sums["no_room"]),
        "exact_match": sums["exact_match"] / answered,
        "rouge_l": sums["rouge_l"] / answered,
        "mean_tokens": sums["answer_tokens"] / answered,
        "finished": sums["finished"] / answered,
    }


def _calibration(tokens: Sequence[PerToken]) -> dict[str, Any]:
    sums = [calibration_sums(of.confidence, of.correct) for of in tokens]
    return calibration(numpy.sum(sums, axis=0))


def _categories(documents: Documents, columns: Columns, tokens: Sequence[PerToken]) -> dict[str, Any]:
    """The figures of the documents of each category, where rows have one."""
    names = numpy.array([document.category or "" for document in documents.documents])
    found = {}
    for name in sorted(set(names.tolist()) - {""}):
        here = names == name
        of_category = [of for of, is_here in zip(tokens, here, strict=True) if is_here]
        figures = _figures({column: values[here] for column, values in columns.items()}, of_category)
        found[name] = {"documents": int(here.sum()), **figures}
    return found


def samples(
    documents: Documents,
    models: Mapping[str, Measured],
    columns: Mapping[str, Columns],
    token_texts: Sequence[Sequence[str]] = (),
) -> list[dict[str, Any]]:
    """The lines of samples.jsonl, one a document.

    Args:
        token_texts: of the supervised tokens of the first documents, of which also is told how far models are from
            the teacher at each of them.
    """
    lines = []
    for number, document in enumerate(documents.documents):
        line: dict[str, Any] = {
            "document": number,
            "id": document.identity,
            "category": document.category,
            "prompt": document.prompt,
            "reference": document.reference,
            "models": {label: _sample(measured, columns[label], number) for label, measured in models.items()},
        }
        if number < len(token_texts):
            line["tokens"] = _shown_tokens(models, number, token_texts[number])
        lines.append(line)
    return lines


def _sample(measured: Measured, columns: Columns, number: int) -> dict[str, Any]:
    found = {name: float(columns[name][number]) if name in columns else None for name in _SAMPLES}
    plain: dict[str, Any] = {
        name: int(value) if name in _WHOLE and value is not None else value for name, value in found.items()
    }
    answer = measured.answers[number]
    return plain | {
        "answer": answer.text if answer else None,
        "exact_match": float(columns["exact_match"][number]) if answer else None,
        "rouge_l": float(columns["rouge_l"][number]) if answer else None,
    }


def _shown_tokens(models: Mapping[str, Measured], number: int, texts: Sequence[str]) -> list[dict[str, Any]]:
    compared = {
        label: to_teacher.forward_kl.tolist()
        for label, measured in models.items()
        if (to_teacher := measured.tokens[number].to_teacher) is not None
    }
    return [
        {"text": text, "forward_kl": {label: values[place] for label, values in compared.items()}}
        for place, text in enumerate(texts)
    ]


def write_results(folder: Path, found: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], table: str) -> None:
    """results.json, samples.jsonl and table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_text(folder / "table.md", table)
    write_text(folder / "results.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
