"""Checkpoints without a recipe: what a kill, a failing disk, damage and pruning leave."""

import dataclasses
import json
import os
import re
import threading
from pathlib import Path

import interrupted_writes
import pytest
import torch
from interrupted_writes import Run, Still
from omegaconf import OmegaConf

from distill_tune import training
from distill_tune.errors import UserError
from distill_tune.training import TrainingState, build_optimizer, checkpoints


@pytest.fixture
def run(tmp_path):
    """With checkpoints of steps 1 and 2 out of three, each with its own weights."""
    run = Run(tmp_path)
    run.checkpoints = training.Checkpoints(run.run)
    for number in (1, 2, 3):
        run.step(number)
        run.save(number)
    return run


@pytest.mark.parametrize("how", ["kill", "ENOSPC", "EIO"])
def test_a_kill_or_a_failing_disk_at_any_call_leaves_a_good_checkpoint(tmp_path, how, command_server):
    arguments = [interrupted_writes.__file__, str(tmp_path / "runs"), how]
    done = command_server.start(arguments, tmp_path, os.environ, output=tmp_path).completed()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["survived"] == told["calls"] > 20


def files_of(run) -> list[Path]:
    return sorted((run.run.path / "checkpoints" / "step_3").iterdir())


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("damage", ["a flipped bit", "cut in half", "emptied", "deleted"])
def test_a_damaged_file_is_found_and_the_checkpoint_before_is_taken(run, capsys, number, damage):
    file = files_of(run)[number]
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 3] ^= 4
        file.write_bytes(content)
    elif damage == "cut in half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
    assert run.load() == 2
    told = capsys.readouterr().out
    assert "step_3: " in told and "taking the one before it" in told
    assert file.name in told or file.name == "SHA256SUMS"  # which lists other files
    assert "resuming from" in told and "step_2" in told
    with pytest.raises(UserError, match=r"resume=.*step_3: .*(is damaged|is missing|cannot be read)"):
        run.checkpoints.to_resume(str(run.run.path / "checkpoints" / "step_3"))


def test_where_no_checkpoint_is_good_nothing_is_begun_anew(run):
    for number in (1, 2, 3):
        (run.run.path / "checkpoints" / f"step_{number}" / "state.json").write_text("{")
    for resume in ("auto", True):
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
            run.checkpoints.to_resume(resume)


def test_what_lies_after_the_step_that_a_run_goes_on_from_is_set_aside(run, capsys):
    run.checkpoints.begin(2)
    assert "set aside as step_3.superseded; the run goes on from step 2" in capsys.readouterr().out
    assert run.load() == 2
    run.step(3)
    run.save(3)
    assert run.load() == 3


def test_what_was_set_aside_is_deleted_with_what_is_old(run, capsys):
    folder = run.run.path / "checkpoints"
    run.checkpoints = training.Checkpoints(run.run, keep_last_n=2)
    run.checkpoints.begin(1)
    assert "set aside as step_3.superseded until the next is written (keep_last_n)" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 3
    run.step(2)
    run.save(2)
    assert sorted(path.name for path in folder.iterdir()) == ["step_1", "step_2"]


def test_of_old_checkpoints_the_last_and_the_best_are_kept(tmp_path):
    run = Run(tmp_path)
    run.checkpoints = training.Checkpoints(run.run, keep_last_n=2, keep_best="val_loss")
    kept = []
    for number, loss in enumerate([3.0, 1.0, 2.0, 1.5, None, None], 1):
        validation = {} if loss is None else {"val_loss": loss}
        assert run.checkpoints.is_best(validation) == (number in (1, 2))
        state = TrainingState(number, 0, {}, {}, validation=validation)
        run.checkpoints.save(state, run.model, run.optimizer, Still())
        run.checkpoints.wait()
        kept.append(sorted(int(folder.name[5:]) for folder in tmp_path.glob("checkpoints/step_*")))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    again = training.Checkpoints(run.run, keep_best="val_loss")
    again.begin(6)
    assert not again.is_best({"val_loss": 1.2})
    assert again.is_best({"val_loss": 0.9})


def test_a_full_disk_is_told_before_anything_is_written(run, monkeypatch):
    told = []
    usage = shutil_usage(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    run.step(4)
    run.save(4, say=told.append)
    assert "step 4: its checkpoint could not be written" in told[0]
    assert "has 10 bytes left" in told[0]
    assert "step_3 stays the newest" in told[0]
    assert run.load() == 3


def test_a_checkpoint_that_would_lack_a_part_is_refused_when_it_is_written(run, monkeypatch):
    told, write = [], checkpoints.write_tensors
    run.step(4)
    with monkeypatch.context() as patch:
        without = "optimizer.exp_avg:weight"
        patch.setattr(
            checkpoints,
            "write_tensors",
            lambda folder, tensors, group: write(folder, {k: v for k, v in tensors.items() if k != without}, group),
        )
        run.save(4, say=told.append)
    assert f"step 4: its checkpoint could not be written (its files lack {without}); " in told[-1]
    # As after a forward that gathers: the model's parameters are others than those that the optimizer has.
    weight, run.model.weight = run.model.weight, torch.nn.Parameter(run.model.weight.detach().clone())
    run.save(4, say=told.append)
    run.model.weight = weight
    assert "(the optimizer has 1 parameters that are none of the model's trained ones); " in told[-1]
    assert len(told) == 2 and all(one.endswith("step_3 stays the newest") for one in told)
    assert run.load() == 3


def shutil_usage(free: int):
    import shutil

    return shutil._ntuple_diskusage(100, 90, free)


@pytest.fixture
def may_write(monkeypatch):
    """An event for which the writing of checkpoints waits."""
    write, event = checkpoints.write_tensors, threading.Event()

    def waiting(*arguments):
        assert event.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoints, "write_tensors", waiting)
    return event


def test_training_goes_on_while_a_checkpoint_is_written(run, may_write):
    """The copy is that of the step: what training changes meanwhile is not in it."""
    run.step(4)
    wanted = run.values()
    run.checkpoints.save(TrainingState(4, 0, {}, {}), run.model, run.optimizer, Still())
    run.step(5)
    assert not (run.run.path / "checkpoints" / "step_4").exists()
    may_write.set()
    run.checkpoints.wait()
    assert run.load() == 4
    assert all(torch.equal(a, b) for a, b in zip(run.values(), wanted, strict=True))
    lines = (run.run.path / "checkpoints" / "step_4" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4


OPTIMIZERS = [
    {"_component_": "torch.optim.AdamW", "lr": 0.1, "amsgrad": True},
    {"_component_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
    {"_component_": "torch.optim.Adagrad", "lr": 0.1},
    {"_component_": "torch.optim.RMSprop", "lr": 0.1, "momentum": 0.5, "centered": True},
    {"_component_": "torch.optim.Adafactor", "lr": 0.1},
    pytest.param(
        {"_component_": "torchao.optim.AdamW8bit", "lr": 0.1, "block_size": 64},
        marks=pytest.mark.torchao,
        id="torchao.optim.AdamW8bit",
    ),
]


@pytest.mark.parametrize("component", OPTIMIZERS, ids=lambda component: component["_component_"])
def test_every_optimizer_goes_on_with_the_same_bits(tmp_path, may_write, component):
    component = OmegaConf.create(component)

    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 8))
        return model, build_optimizer(component, model.parameters())

    def step(model, optimizer, number):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    model, optimizer = make()
    for number in range(3):
        step(model, optimizer, number)
    saved = training.Checkpoints(training.RunFolder(tmp_path))
    saved.save(TrainingState(3, 0, {}, {}), model, optimizer, Still())
    step(model, optimizer, 3)  # which changes the state in place
    may_write.set()
    saved.wait()

    other, other_optimizer = make()
    training.load_training_state(saved.to_resume(True), other, other_optimizer, component, Still())
    step(other, other_optimizer, 3)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_the_config_says_of_the_optimizer_holds_on_resume(run):
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.5, weight_decay=0.3)
    component = {"_component_": "torch.optim.AdamW", "lr": 0.5}
    run.optimizer.param_groups[0]["betas"] = (0.5, 0.6)
    training.load_training_state(run.checkpoints.to_resume(True), run.model, run.optimizer, component, Still())
    (group,) = run.optimizer.param_groups
    assert group["lr"] == 0.5
    assert group["weight_decay"] == 0.01  # as the checkpoint has it: the config does not say
    assert group["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(("was", "now"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_parameters_of_another_dtype_are_not_taken_up(tmp_path, was, now):
    run, of_name = Run(tmp_path), {"bf16": torch.bfloat16, "fp32": torch.float32}
    run.model.to(of_name[was])
    run.step(1)
    run.save(1)
    before = run.model.to(of_name[now]).weight.clone()
    folder = tmp_path / "checkpoints" / "step_1"
    told = (
        f"checkpoint {folder}: weight was trained in {was}, this run trains it in {now}; resume with the optimizer and"
    )
    with pytest.raises(UserError, match=re.escape(told)):
        run.load()
    assert torch.equal(run.model.weight, before)


@pytest.mark.parametrize(
    "component",
    [
        None,
        {"_component_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 10},
        {"_component_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": 20},
        {"_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup", "num_warmup_steps": 3},
    ],
)
def test_a_schedule_is_replayed_to_the_same_rates(component):
    component = component and OmegaConf.create(component)

    def optimizer():
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    first = optimizer()
    scheduler = training.build_lr_scheduler(component, first, 20)
    rates = []
    for _ in range(8):
        rates.append(first.param_groups[0]["lr"])
        first.step()
        scheduler.step()
    for done in range(8):
        second = optimizer()
        training.build_lr_scheduler(component, second, 20, done=done)
        assert second.param_groups[0]["lr"] == rates[done]


def test_a_state_is_read_as_it_was_written(tmp_path):
    state = TrainingState(7, 3, {"rows": 4}, {"kd_ratio": 0.5}, 99, 2, {"val_loss": 1.5})
    state.write(tmp_path)
    assert TrainingState.read(tmp_path) == state
    assert dataclasses.asdict(state)["tokens"] == 99
