import runpy
import sys

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from distill_tune.errors import UserError
from distill_tune.evaluation import tasks
from distill_tune.evaluation.tasks import SHIPPED, Reached, open_tasks, task_figures, task_pairs

# What needs lm-eval itself is in tests/real/test_lm_eval.py.


def reached(right, metric="acc"):
    right = np.array(right, dtype=float)
    return Reached({metric: right.mean(), "documents": len(right)}, {metric: right})


def test_without_lm_eval_its_extra_is_named(monkeypatch):
    for module in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"^tasks: .*; pip install 'distill-tune\[lm-eval\]'$"):
        open_tasks(["docstring_choice"])


def test_a_tokenizer_without_a_chat_template_cannot_ask_in_chat():
    cfg = OmegaConf.create({"tasks": "docstring_choice", "tasks_in_chat": True})
    with pytest.raises(UserError, match=r"^tasks_in_chat=True: tokenizer has no chat template; take "):
        tasks.tasks_of(cfg, object())


def test_figures_keep_their_names_and_what_is_no_number_is_left_out():
    found = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": "N/A",
        "bits_per_byte,none": float("nan"),
    }
    assert tasks._figures(found, {"original": 40, "effective": 20}) == {
        "acc": 0.5,
        "acc_stderr": 0.1,
        "strict-match exact_match": 0.25,
        "documents": 20,
    }


def test_rows_are_right_or_wrong_in_their_own_order_and_other_measures_are_no_matter_of_it():
    samples = [
        {"doc_id": 2, "filter": "none", "metrics": ["acc", "bleu"], "acc": 1.0, "bleu": 0.5},
        {"doc_id": 0, "filter": "none", "metrics": ["acc", "bleu"], "acc": 0.0, "bleu": 1.0},
        {"doc_id": 1, "filter": "none", "metrics": ["acc", "bleu"], "acc": 0.0, "bleu": 0.0},
    ]
    right = tasks._right(samples)
    assert list(right) == ["acc"] and right["acc"].tolist() == [0, 0, 1]


def test_two_models_are_compared_in_the_same_rows_of_a_task():
    models = {"before": {"choice": reached([1] * 3 + [0] * 17)}, "after": {"choice": reached([0] + [1] * 19)}}
    [pair] = task_pairs(models)
    assert pair["measure"] == "tasks.choice.acc" and pair["test"] == "exact McNemar"
    assert pair["p"] == 2 * (1 + 18) / 2**18  # 17 rows against 1
    assert pair["words"].startswith("after is better than before by 80 points of acc in choice (95%: ")


def test_models_are_told_beside_one_another():
    figures = task_figures({"a": {"choice": reached([1, 0])}, "b": {"choice": reached([1, 1])}})
    assert figures == {"choice": {"a": {"acc": 0.5, "documents": 2}, "b": {"acc": 1.0, "documents": 2}}}
    assert task_figures({"a": {}, "b": {}}) is None


def test_the_shipped_task_has_one_right_answer_among_four():
    made = runpy.run_path(str(SHIPPED / "docstring_choice.py"))["rows"](version=1.0)["test"]
    assert len(made) == 200
    assert all(len(set(row["choices"])) == 4 for row in made)
    assert {row["answer"] for row in made} == {0, 1, 2, 3}


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_task_is_named_as_its_file(file):
    assert yaml.load(file.read_text(encoding="utf-8"), _Loader)["task"] == file.stem
