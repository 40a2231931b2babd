"""Both recipes on a device that is not the CPU's: every tensor where it belongs, and one wait a step."""

import json
import math
import os
from pathlib import Path

import pytest
import second_device
from architectures import ARCHITECTURES, write_architecture
from on_demo_models import FEW_ROWS, needed, write_needed
from tiny import ROWS, metrics_of

from distill_tune.config.files import config_names

ONCE = "tolist, recipes/kd_single_device.py: *totals, grad_norm = torch.stack(["
ONCE_OF_RANKS = "tolist, training/distributed.py: columns = "
# What else a step may wait for, and how often.
ALLOWED = {
    "signals/adaptive_kl": [("aten::nonzero, losses/divergences.py: larger = ", 1)],
    # transformers makes its masks so.
    "signals/hugging_face_teacher": [
        ("aten::_local_scalar_dense, teachers/hf.py: out = self._decoder(", 2),
        ("a copy from the CPU that blocks, teachers/hf.py: out = self._decoder(", 12),
    ],
}
# Every token of an answer but the first takes the same lines.
FEW_TOKENS = ["rollouts.sampling.max_new_tokens=8"]
FEW = ["batch_size=4", "max_steps_per_epoch=2", "epochs=1", "device=cpu", "optimizer.lr=1e-4"]
ANSWERING = {"signals/on_policy", "migrate/trl_gkd"}
NAMES = [name for name in config_names() if name.startswith(("signals/", "migrate/"))]


def command(config: str, output: str, *overrides: str) -> list[str]:
    return ["kd_single_device", "--config", config, *overrides, *FEW, f"output_dir={output}"]


def forked(command_server, folder, script, *arguments):
    """A script in a process of its own, to its end: what PyTorch knows of a device it knows for good."""
    environment = os.environ | {"PYTHONPATH": str(Path(second_device.__file__).parent)}
    return command_server.start([str(script), *arguments], folder, environment, output=folder).completed(timeout=600)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer_file, demo_teacher_url, command_server):
    """Every run in one process: what each of its steps waited for, or a traceback; the folder with their metrics."""
    folder = tmp_path_factory.mktemp("second")
    write_needed(folder, ROWS, tokenizer_file)
    commands = {"tiny": command("tiny", "tiny", *FEW_ROWS, "save_every_n_steps=1")}
    commands |= {
        name: command(
            name,
            name,
            *needed(name, "tiny/checkpoints/step_1", demo_teacher_url),
            *(FEW_TOKENS if name in ANSWERING else []),
        )
        for name in NAMES
    }
    for name in ARCHITECTURES:
        write_architecture(folder / f"models/{name}", name, vocab_size=4096, max_position_embeddings=256)
        models = [f"{key}.path=models/{name}" for key in ("model", "teacher_model")]
        commands[name] = command("signals/gguf_teacher", f"of/{name}", *FEW_ROWS, *models)
    commands["sharded"] = ["kd_distributed", *command("tiny", "sharded", *FEW_ROWS)[1:]]
    (folder / "commands.json").write_text(json.dumps([*commands.values()]))
    done = forked(command_server, folder, second_device.__file__, "commands.json")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


def assert_waits_once(waits, allowed=(), once=ONCE):
    assert isinstance(waits, list), waits[-3000:]
    _, second = waits  # the first has all that comes before it, and the last what follows training
    second = [wait for wait in second if ", generation/" not in wait]  # whoever writes answers looks where they end
    for start, times in allowed:
        assert sum(wait.startswith(start) for wait in second) == times
    others = [wait for wait in second if not any(wait.startswith(start) for start, _ in allowed)]
    assert len(others) == 1 and others[0].startswith(once), others


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_in_the_wrong_place_and_a_step_waits_once(name, runs):
    folder, waits = runs
    assert_waits_once(waits[name], ALLOWED.get(name, ()))
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in metrics_of(folder / name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_runs_where_it_is(name, runs):
    assert_waits_once(runs[1][name])


def test_a_sharded_step_runs_where_it_is_and_waits_once(runs):
    """One rank, whose weights FSDP gathers and whose gradients it sums as of many."""
    folder, waits = runs
    assert_waits_once(waits["sharded"], once=ONCE_OF_RANKS)
    for mine, theirs in zip(metrics_of(folder / "sharded"), metrics_of(folder / "tiny"), strict=True):
        assert [mine[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [theirs[key] for key in ("loss", "grad_norm")], rel=1e-5
        )


def test_the_numbers_are_those_of_the_cpu(runs, cli, tmp_path):
    folder, _ = runs
    assert cli("run", *command("signals/jensen_shannon", "cpu", *FEW_ROWS)).returncode == 0
    for mine, theirs in zip(metrics_of(folder / "signals/jensen_shannon"), metrics_of(tmp_path / "cpu"), strict=True):
        assert [mine[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [theirs[key] for key in ("loss", "grad_norm")], rel=1e-5
        )


@pytest.fixture
def run_lines(command_server, tmp_path):
    def run(lines):
        (tmp_path / "lines.py").write_text(lines)
        done = forked(command_server, tmp_path, tmp_path / "lines.py")
        assert done.returncode == 0, done.stderr

    return run


def test_what_is_reduced_over_ranks_waits_once(run_lines):
    run_lines("""
import torch, second_device
from distill_tune import training
with second_device.second_device():
    sums = [torch.full((), value, device="second") for value in (1.5, 2.5)]
    norm = torch.full((), float("nan"), device="second")
    second_device.waits.clear()
    (first, second, count), (largest, peak) = training.reduced_over_ranks([*sums, 7], most=(norm, 2**40 + 1))
    assert len(second_device.waits) == 1, second_device.waits
    assert (first, second, count, peak) == (1.5, 2.5, 7, 2**40 + 1) and largest != largest
""")


def test_infinite_values_are_left_out_without_a_look(run_lines):
    run_lines("""
import torch, second_device
from distill_tune import losses
torch.manual_seed(0)
student, teacher = torch.randn(2, 5, 11)
student[0, :3] = teacher[0, 2:5] = teacher[1, 0] = -torch.inf
def step(device):
    logits = student.to(device).requires_grad_()
    output = losses.AutogradProjection(lambda hidden: hidden, 11)
    signal = losses.DenseLogits(teacher.to(device))
    targets = torch.zeros(5, dtype=torch.long, device=device)
    second_device.waits.clear()
    sums = losses.distillation_loss(logits, output, targets, signal, kd_ratio=1.0, divergence=losses.ReverseKL())
    sums.loss.backward()
    assert not second_device.waits, second_device.waits
    return sums.kd.cpu(), logits.grad.cpu()
with second_device.second_device():
    for found, wanted in zip(step("second"), step("cpu")):
        assert wanted.isfinite().all()
        torch.testing.assert_close(found, wanted)
""")


def test_adaptive_kl_waits_once_for_each_size_of_head_that_a_part_has(run_lines):
    """Of 64 tokens, 2,048, all."""
    run_lines("""
import torch, second_device
from distill_tune import losses
from distill_tune.losses.divergences import distribution
flat, steep = torch.zeros(5000), torch.arange(5000) * -1.0
some = torch.cat([torch.zeros(200), torch.full((4800,), -20.0)])
def values(rows, device):
    both = [torch.stack(rows), torch.stack(rows).flip(1)]
    both = [distribution(logits.to(device), torch.empty_like(logits, device=device)) for logits in both]
    second_device.waits.clear()
    return losses.AdaptiveKL()(*both)[0]
with second_device.second_device():
    for rows, times in (([steep] * 3, 1), ([steep, some], 2), ([steep, some, flat], 2), ([flat], 2)):
        found = values(rows, "second")
        assert len(second_device.waits) == times, (times, second_device.waits)
        torch.testing.assert_close(found.cpu(), values(rows, "cpu"))
""")


def test_a_tensor_in_the_wrong_place_and_a_wait_are_found(run_lines):
    """That the device is no CPU by another name."""
    run_lines("""
import torch, second_device
with second_device.second_device():
    here, there = torch.ones(3, device="second"), torch.ones(3)
    number, of_cpu = here.sum(), torch.tensor(3.0)
    for wrong in (
        lambda: here + there,
        lambda: there[here.long()],
        lambda: torch.cat([here, there]),
        lambda: torch.stack([number, of_cpu]),
        lambda: torch.cat([here, of_cpu[None]]),
        lambda: torch.where(here > 0, here, there),
        lambda: of_cpu.add_(number),
        lambda: torch._foreach_mul_([here], of_cpu),
    ):
        try:
            wrong()
        except RuntimeError as error:
            assert "tensors of second and of the CPU" in str(error), error
        else:
            raise AssertionError("taken")
    asked = {
        "item": number.item,
        "bool": lambda: bool(number),
        "tolist": here.tolist,
        "nonzero": here.nonzero,
        "mask": lambda: here[here > 0],
        "masked_select": lambda: here.masked_select(here > 0),
        "put by mask": lambda: here.index_put_((here > 3,), number),
        "put a number": lambda: here.__setitem__(here.long() - 1, 1.0),
        "fill by a number of here": lambda: here.masked_fill(here > 3, number),
        "choose a number of the CPU": lambda: torch.where(here > 0, here, of_cpu),
        "bincount": lambda: here.long().bincount(),
        "unique": here.unique,
        "unique_consecutive": here.unique_consecutive,
        "repeat": lambda: here.repeat_interleave(here.long()),
        "to the CPU": here.cpu,
        "from it": lambda: there.to("second"),
        "numbers": lambda: torch.tensor([1], device="second"),
        "nothing": lambda: (
            there.to("second", non_blocking=True),
            here + 1,
            here * of_cpu,
            here[here.long() - 1],
            torch.where(here > 0, here, 0.5),
            here.masked_fill(here > 3, 0.0),
            here.__setitem__(here > 3, 0.0),
            here.__setitem__(slice(1), 1.0),
            here.repeat_interleave(here.long(), output_size=3),
        ),
    }
    for name, ask in asked.items():
        second_device.waits.clear()
        ask()
        assert len(second_device.waits) == (name != "nothing"), (name, second_device.waits)
""")


def test_methods_between_tokenizers_wait_for_nothing(run_lines):
    run_lines("""
import dataclasses, torch, second_device
from aligned_rows import example
from distill_tune import losses
student, teacher, targets, word, _ = example(masked=[4])
def step(device, method):
    of = word.classes
    tensors = {name: value.to(device) for name, value in vars(of).items() if isinstance(value, torch.Tensor)}
    classes = dataclasses.replace(of, **tensors)
    classes.unshared_student, classes.unshared_teacher  # once in a run
    own, rows = word.targets.to(device), targets.to(device)
    signal = losses.Aligned(losses.DenseLogits(teacher.to(device)), own, word.on_cpu, classes)
    logits = student.clone().to(device).requires_grad_()
    output = losses.AutogradProjection(lambda hidden: hidden, student.shape[1])
    second_device.waits.clear()
    sums = losses.distillation_loss(logits, output, rows, signal, kd_ratio=0.5, temperature=2.0, divergence=method)
    sums.loss.backward()
    assert not second_device.waits, second_device.waits
    return sums.kd.cpu(), logits.grad.cpu()
with second_device.second_device():
    for method in (losses.ChunkLikelihood(), losses.UniversalLogit(), losses.Gold()):
        for found, wanted in zip(step("second", method), step("cpu", method)):
            torch.testing.assert_close(found, wanted)
""")


def test_byte_prefix_mass_waits_for_nothing(run_lines):
    run_lines("""
import dataclasses, torch, second_device
from toy_tokenizers import written
from distill_tune import losses
toy = dataclasses.replace(written(9, length=40), masked=(5,))
generator = torch.Generator().manual_seed(0)
student = torch.randn(len(toy.student_row), len(toy.student), generator=generator)
teacher = torch.randn(len(toy.teacher_row), len(toy.teacher), generator=generator)
def step(device, divergence):
    signal = toy.signal(teacher.to(device))
    classes = signal.classes.to(torch.device(device))
    classes.of_student, classes.of_teacher, classes.of_teacher_alone  # once in a run
    signal = dataclasses.replace(signal, classes=classes, targets=signal.targets.to(device))
    logits, rows = student.to(device).detach().requires_grad_(), torch.tensor(toy.student_row).to(device)
    output = losses.AutogradProjection(lambda hidden: hidden, student.shape[1])
    second_device.waits.clear()
    sums = losses.distillation_loss(logits, output, rows, signal, kd_ratio=0.5, temperature=2.0, divergence=divergence)
    sums.loss.backward()
    assert not second_device.waits, second_device.waits
    return sums.kd.cpu(), logits.grad.cpu()
with second_device.second_device():
    for divergence in (losses.ForwardKL(), losses.ReverseKL(), losses.JensenShannon(), losses.TopK(4)):
        for found, wanted in zip(step("second", divergence), step("cpu", divergence)):
            torch.testing.assert_close(found, wanted)
""")
