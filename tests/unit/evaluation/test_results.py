"""Figures of what was measured."""

import numpy as np

from distill_tune.evaluation.results import on_common_answers


def answered(right):
    """Columns of a model that is right (1), wrong (0), or has no answer (None)."""
    return {
        "tokens": np.full(len(right), 7.0),
        "answered": np.array([float(of is not None) for of in right]),
        "exact_match": np.array([float(of or 0) for of in right]),
        "rouge_l": np.array([0.5 * (of is not None) for of in right]),
        "answer_tokens": np.array([3.0 * (of is not None) for of in right]),
        "finished": np.array([float(of is not None) for of in right]),
    }


def test_answers_count_on_the_documents_to_which_all_models_have_one():
    models = {
        "long": answered([1, 1, 0, 0, None]),  # of the last row there is no prompt
        "short": answered([1, 1, None, None, None]),
        "teacher": answered([None] * 5),  # which answers nothing
    }
    found = on_common_answers(models)
    for label in ("long", "short"):
        assert found[label]["answered"].tolist() == [1, 1, 0, 0, 0]
        assert found[label]["exact_match"].sum() / found[label]["answered"].sum() == 1.0
        assert found[label]["answer_tokens"].sum() == 6 and found[label]["tokens"].sum() == 35
    assert found["long"]["no_room"].sum() == 0 and found["short"]["no_room"].sum() == 2
    assert models["long"]["answered"].sum() == 4  # as samples.jsonl has it


def test_without_answers_columns_are_as_they_were():
    models = {"a": answered([None, None])}
    assert on_common_answers(models)["a"] is models["a"]
