"""By what trials can be compared, and where the figures come from."""

import math

import pytest

from distill_tune.errors import UserError
from distill_tune.sweep.objective import OBJECTIVES, figures_of_metrics, figures_of_results, find_objective


@pytest.mark.parametrize("key", ["kd_ratio", "temperature", "kd_loss", "kd_loss._component_", "temperature_squared"])
def test_the_mixed_loss_is_refused_where_its_parts_are_weighed_otherwise(key):
    with pytest.raises(UserError, match="--objective val_loss: cannot compare trials where") as error:
        OBJECTIVES["val_loss"].require_comparable([key])
    assert "take --objective bits_per_byte, kl, val_ce_loss" in str(error.value)


@pytest.mark.parametrize(
    ("objective", "key", "is_comparable"),
    [
        ("val_loss", "optimizer.lr", True),
        ("val_kd_loss", "kd_ratio", True),
        ("val_kd_loss", "temperature", False),
        ("val_ce_loss", "temperature", True),
        ("val_ce_loss", "loss", False),
        ("val_ce_loss", "tokenizer.max_seq_len", False),
        ("bits_per_byte", "tokenizer.path", True),
        ("bits_per_byte", "dataset_val.source", False),
        ("bits_per_byte", "dataset_test", False),
        ("bits_per_byte", "teacher_model", True),
        ("bits_per_byte", "tokenizer.max_seq_len", False),
        ("bits_per_byte", "window", False),
        ("bits_per_byte", "stride", False),
        ("bits_per_byte", "dtype", True),
        ("bits_per_byte", "teacher_quantizer", True),
        ("kl", "teacher_model.path", False),
        ("kl", "teacher_quantizer.groupsize", False),
        ("kl", "teacher_dtype", False),
        ("kl", "dtype", False),
        ("kl", "teacher_tokenizer", False),
        ("kl", "teacher_combination", False),
        ("kl", "models.teacher", False),
        ("kl", "student_prompt_template", True),  # the teacher reads the rows' own prompt, as in training
        ("kl", "tokenizer.path", False),
        ("kl", "tokenizer.max_seq_len", False),
        ("kl", "window", False),
        ("kl", "stride", False),
        ("kl", "teacher_cache", True),
        ("kl", "kd_loss", True),
        ("val_kd_loss", "teacher_quantizer", False),
        ("val_kd_loss", "teacher_dtype", False),
        ("val_kd_loss", "dtype", False),
        ("val_kd_loss", "teacher_combination", False),
        ("val_kd_loss", "teacher_cache", False),
        ("val_kd_loss", "cache.top_k", False),
        ("val_kd_loss", "cache_bytes", True),
        ("val_kd_loss", "teacher_max_seq_len", False),
        ("val_kd_loss", "student_prompt_template", True),
        ("val_loss", "teacher_quantizer", False),
        ("val_ce_loss", "teacher_quantizer", True),
        ("piqa", "window", False),
        ("piqa", "tasks_in_chat", False),
        ("piqa", "tokenizer.path", True),
    ],
)
def test_figures_are_comparable_where_they_mean_the_same(objective, key, is_comparable):
    assert (find_objective(objective, ["piqa"]).unlike(key) is None) is is_comparable


@pytest.mark.parametrize(
    ("objective", "key", "instead"),
    [
        ("bits_per_byte", "tokenizer.max_seq_len", {"window": 64}),
        ("kl", "tokenizer.max_seq_len", {"window": 64}),
        ("kl", "dtype", {"teacher_dtype": "fp32"}),
    ],
)
def test_a_key_may_vary_where_another_one_keeps_its_figure_the_same(objective, key, instead):
    with pytest.raises(UserError, match=f"; set {next(iter(instead))}"):
        OBJECTIVES[objective].require_comparable([key], {"kd_ratio": 0.5})
    OBJECTIVES[objective].require_comparable([key], instead)
    assert OBJECTIVES["val_ce_loss"].unlike("tokenizer.max_seq_len", {"window": 64})  # which cuts its rows


@pytest.mark.parametrize(
    ("objective", "keys", "ways"),
    [
        ("val_ce_loss", ["tokenizer.max_seq_len"], "set window and take --objective bits_per_byte, kl"),
        ("val_loss", ["kd_ratio", "dtype"], "take --objective bits_per_byte, val_ce_loss, or set teacher_dtype and "),
        ("piqa", ["tokenizer.max_seq_len"], "set window"),
        ("kl", ["dataset_val.source"], "keep it as it is"),
    ],
)
def test_where_trials_cannot_be_compared_the_ways_out_are_told(objective, keys, ways):
    with pytest.raises(UserError) as error:
        find_objective(objective, ["piqa"]).require_comparable(keys)
    assert f"; {ways}" in str(error.value)


def test_an_unknown_objective_is_told_with_those_that_there_are():
    with pytest.raises(UserError, match="did you mean bits_per_byte"):
        find_objective("bit_per_byte", [])
    with pytest.raises(UserError, match="of the rows that a trial learns"):
        find_objective("loss", [])
    assert find_objective("piqa", ["piqa"]).larger_is_better


def test_figures_of_validation_are_those_of_the_model_that_the_run_leaves():
    lines = [
        {"step": 1, "val_ce_loss": 2.0, "val_kd_loss": 0.1, "val_loss": 1.0},
        {"step": 2, "val_ce_loss": 1.0, "val_kd_loss": 0.2, "val_loss": 0.5},
        {"step": 3, "val_ce_loss": 3.0, "val_kd_loss": 0.3, "val_loss": 2.0},
        {"step": 4, "ce_loss": 1.0},
    ]
    assert figures_of_metrics(lines, None) == {"val_ce_loss": 3.0, "val_kd_loss": 0.3, "val_loss": 2.0}
    assert figures_of_metrics(lines, "val_ce_loss")["val_kd_loss"] == 0.2
    assert figures_of_metrics(lines[3:], None) == {}


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_a_last_validation_that_is_not_finite_is_not_made_up_for_by_an_earlier_one(lost):
    lines = [{"step": 1, "val_ce_loss": 2.0, "val_kd_loss": 0.1}, {"step": 2, "val_ce_loss": lost, "val_kd_loss": lost}]
    assert figures_of_metrics(lines, None) == {}
    if lost is None:  # as a run writes it; the best checkpoint is what such a run leaves
        assert figures_of_metrics(lines, "val_ce_loss") == {"val_ce_loss": 2.0, "val_kd_loss": 0.1}


def test_figures_of_an_evaluation_are_read_from_its_results():
    results = {
        "models": {
            "after": {
                "supervised": {"bits_per_byte": 1.5, "perplexity": 20.0},
                "to_teacher": {"forward_kl": {"mean": 0.4}, "agreement": 0.6},
            },
            "before": {"supervised": {"bits_per_byte": 2.0, "perplexity": 30.0}, "to_teacher": None},
        },
        "tasks": {"piqa": {"after": {"acc": 0.7}}, "gsm8k": {"after": {"exact_match": 0.2}}, "other": {}},
    }
    assert figures_of_results(results, "after") == {
        "bits_per_byte": 1.5,
        "perplexity": 20.0,
        "kl": 0.4,
        "agreement": 0.6,
        "piqa": 0.7,
        "gsm8k": 0.2,
    }
    assert figures_of_results(results, "elsewhere") == figures_of_results({}, "after") == {}
    results["models"]["after"]["supervised"] = {"bits_per_byte": math.nan, "perplexity": None}
    assert "bits_per_byte" not in figures_of_results(results, "after")
    assert figures_of_results(results, "before") == {"bits_per_byte": 2.0, "perplexity": 30.0}
