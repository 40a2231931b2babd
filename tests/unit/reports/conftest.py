"""Runs with what an evaluation leaves."""

import json

import pytest

MODELS = ("teacher", "before", "after")


def results(**changes):
    """results.json of three models, with the least that a table needs."""
    figures = {"tokens": 100, "bytes": 400, "nll": 200.0, "perplexity": 7.4, "bits_per_byte": 0.72}
    spread = {"mean": 0.5, "median": 0.4, "p99": 2.0, "p999": 3.0, "max": 4.0}
    to_teacher = {
        "tokens": 100,
        "forward_kl": spread,
        "reverse_kl": spread,
        "agreement": 0.6,
        "agreement_top5": 0.9,
        "total_variation": 0.3,
    }
    models = {
        label: {
            "path": label,
            "kind": "run",
            "parameters": 10**6,
            "file_bytes": 4 * 10**6,
            "supervised": figures,
            "all": figures | {"tokens": 150},
            "to_teacher": None if label == "teacher" else to_teacher,
            "calibration": {"ece": 0.02, "bins": []},
            "answers": None,
            "speed": None,
            "peak_memory_bytes": None,
            "categories": {},
            "intervals": {"supervised.perplexity": [7.1, 7.7]},
        }
        for label in MODELS
    }
    return {
        "version": 1,
        "teacher": "teacher",
        "base": "before",
        "data": {"name": "held out", "documents": 3, "scored": "Supervised tokens are scored."},
        "models": models,
        "pairs": [{"words": "no difference between before and after in bits per byte is significant"}],
        "tasks": None,
    } | changes


def document(number, text="an answer", **changes):
    """A line of samples.jsonl that was answered, with its tokens."""
    models = {label: {"nll": 90.0, "bytes": 100, "answer": f"{text} by {label}"} for label in MODELS}
    tokens = [
        {"text": token, "forward_kl": {"before": kl, "after": kl / 2}}
        for token, kl in (("The", 0.05), (" answer", 0.5), (" is", 1.5), (f" {text}", 5.0))
    ]
    told = {"document": number, "prompt": f"What is {text}?", "reference": f"{text}, as it was", "category": None}
    return told | {"models": models, "tokens": tokens} | changes


@pytest.fixture
def evaluated():
    """Gives a run an evaluation."""

    def write(run, samples=(), **changes):
        (run / "evaluation").mkdir()
        (run / "evaluation" / "results.json").write_text(json.dumps(results(**changes)))
        (run / "evaluation" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
        return run

    return write


@pytest.fixture
def documents():
    return lambda number, **changes: [document(at, **changes) for at in range(number)]
