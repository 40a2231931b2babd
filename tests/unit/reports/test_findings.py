"""Each rule speaks of a run that is made so, and of that run alone; of a healthy run none does."""

import math

import pytest
from made_runs import line, write_run

from distill_tune.reports.findings import RULES, findings_of
from distill_tune.reports.run_files import RunFiles


def steps(change, number=200):
    """A healthy run's steps, each with what ``change`` makes of it."""
    return [line(step, **change(step)) for step in range(1, number + 1)]


def every(number, figures):
    """Figures of validations, every so many steps."""
    return lambda step: {name: figure(step) for name, figure in figures.items()} if step % number == 0 else {}


def wave(step):
    """What differs from step to step, without chance."""
    return 0.1 * math.sin(7 * step)


# By rule the steps of a run, and its config and run.json where they differ.
MADE = {
    "steps_not_applied": (steps(lambda step: {"applied": step != 7, "loss": None if step == 7 else 2.0}), {}, {}),
    "gradient_norm_spikes": (steps(lambda step: {"grad_norm": 50.0} if step in (60, 90, 120) else {}), {}, {}),
    "divergence_does_not_fall": (steps(lambda step: {"kd_loss": 2.0 + wave(step)}), {}, {}),
    "cross_entropy_rises_while_the_divergence_falls": (steps(lambda step: {"ce_loss": 3 + step / 200}), {}, {}),
    "overfits": (
        steps(every(20, {"val_loss": lambda step: 2 + abs(step - 80) / 100, "val_seconds": lambda step: 0.1})),
        {"epochs": 3},
        {},
    ),
    "time_goes_to_answers": (steps(lambda step: {"rollout_seconds": 0.4}), {}, {}),
    "time_goes_to_validation": (
        steps(every(10, {"val_loss": lambda step: 9 / step, "val_seconds": lambda step: 30.0})),
        {"run_val_every_n_steps": 10},
        {},
    ),
    "memory_is_nearly_full": (steps(lambda step: {}), {}, {"device": "H100", "device_memory_bytes": 1.05 * 2**30}),
    "learning_rate_still_rises": (
        steps(lambda step: {"lr": 1e-5 * step}),
        {"lr_scheduler": {"num_warmup_steps": 500}},
        {},
    ),
}
SHOWN = {  # figures and keys that have to be named
    "steps_not_applied": ("1 step of 200", ": 7.", "optimizer.lr (now 0.002)"),
    "gradient_norm_spikes": ("3 steps", "60, 90, 120", "clip_grad_norm=0.5 (now 1)"),
    "divergence_does_not_fall": ("2.00", "kd_ratio nearer to 1 (now 0.9)"),
    "cross_entropy_rises_while_the_divergence_falls": ("3.1", "3.9", "kd_ratio (now 0.9)"),
    "overfits": ("from step 80 on: val_loss is 2 there and 3.2 in step 200", "keep_best=val_loss"),
    "time_goes_to_answers": ("80 %", "0:01:20", "max_new_tokens"),
    "time_goes_to_validation": ("86 %", "0:10:00", "20 times", "run_val_every_n_steps=20 (now 10)"),
    "memory_is_nearly_full": ("1.0 GiB of the 1.1 GiB that H100 has", "batch_size"),
    "learning_rate_still_rises": ("0.002 in step 200", "num_warmup_steps (now 500)"),
}


@pytest.mark.parametrize("rule", MADE)
def test_a_rule_speaks_of_the_run_that_is_made_so_and_no_other_does(tmp_path, rule):
    lines, config, facts = MADE[rule]
    found = findings_of(RunFiles.open(write_run(tmp_path / "run", lines, config=config, facts=facts)))
    assert [finding.rule for finding in found] == [rule]
    text = f"{found[0].told} {found[0].to_try}"
    assert [part for part in SHOWN[rule] if part not in text] == []


def test_nothing_is_said_of_a_healthy_run(tmp_path):
    validated = every(20, {"val_loss": lambda step: 2 + 10 / step, "val_seconds": lambda step: 1.0})
    lines = steps(lambda step: {"kd_loss": line(step)["kd_loss"] + wave(step)} | validated(step))
    facts = {"device": "H100", "device_memory_bytes": 2 * 2**30}
    assert findings_of(RunFiles.open(write_run(tmp_path / "run", lines, facts=facts))) == []


@pytest.mark.parametrize("lines", [[], [line(1)], [line(1, loss=None, kd_loss=None, ce_loss=None)], [{"step": 1}]])
def test_nothing_is_said_of_a_run_that_has_hardly_begun(tmp_path, lines):
    assert findings_of(RunFiles.open(write_run(tmp_path / "run", lines, facts={}, finished=False))) == []


def sample(number, **models):
    told = {label: {"nll": nll, "bytes": 100, "tokens": 20} for label, nll in models.items()}
    return {"document": number, "category": "x" if number % 3 else "y", "models": told}


@pytest.mark.parametrize(("worse", "speaks"), [(4, False), (20, True)])
def test_a_teacher_that_is_worse_than_the_student_on_some_rows_is_told_of(tmp_path, evaluated, worse, speaks):
    samples = [sample(number, teacher=90 if number >= worse else 200 + number, before=120) for number in range(100)]
    run = evaluated(write_run(tmp_path / "run"), samples=samples)
    found = findings_of(RunFiles.open(run))
    assert [finding.rule for finding in found] == ["teacher_is_worse"] * speaks
    if speaks:
        assert "20 of 100 held-out documents (20 %)" in found[0].told
        assert "most of them x; by the largest margin document 19, 18, 17, 16, 15" in found[0].told


def test_every_rule_has_its_run():
    assert {rule.__name__.strip("_") for rule in RULES} == {*MADE, "teacher_is_worse"}
