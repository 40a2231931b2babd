"""A checkpoint is written again and again, and each time the next call that changes the disk is the last one, or fails.

As a script: ``interrupted_writes.py FOLDER kill`` ends each child at one more call than the one before; ``ENOSPC`` and
``EIO`` have the call raise that instead. Prints a line of JSON: how many calls were met.
"""

import builtins
import errno
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill_tune import disk, training

CHANGING = ("replace", "rename", "mkdir", "rmdir", "unlink", "fsync", "remove")


class Run:
    """A model, an optimizer and checkpoints of steps, without a recipe."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.run = training.RunFolder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = training.Checkpoints(self.run, keep_last_n=2)

    def step(self, number: int) -> None:
        """Weights that belong to this step and no other."""
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 + number)
        self.optimizer.step()
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({"step": number}) + "\n")

    def save(self, number: int, say: Callable[[str], None] = print) -> None:
        state = training.TrainingState(number, 0, {}, {})
        self.checkpoints.save(state, self.model, self.optimizer, Still(), say=say)
        self.checkpoints.wait(say)

    def values(self) -> list[torch.Tensor]:
        tensors = [*self.model.parameters()]
        for values in self.optimizer.state.values():
            tensors += [values["exp_avg"], values["exp_avg_sq"], values["step"]]
        return [tensor.detach().clone() for tensor in tensors]

    def load(self) -> int:
        """The newest good checkpoint's step; its content is in model and optimizer."""
        folder = self.checkpoints.to_resume("auto")
        if folder is None:
            return 0
        component = {"_component_": "torch.optim.AdamW", "lr": 0.1}
        training.load_training_state(folder, self.model, self.optimizer, component, Still())  # type: ignore[arg-type]
        return training.TrainingState.read(folder).step


class Still:
    """A teacher that does not change."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restored(self) -> None:
        return None


class Interruption:
    """Counts the calls that change the disk; the ``at``-th is the last one or fails."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.count = at, how, 0

    def meet(self, before: Callable[[], None] = lambda: None) -> None:
        self.count += 1
        if self.count != self.at:
            return
        before()
        if self.how == "kill":
            os._exit(137)
        number = getattr(errno, self.how)
        raise OSError(number, os.strerror(number))

    def install(self) -> None:
        for name in CHANGING:
            setattr(os, name, self._met(getattr(os, name)))
        opened = io.open

        def opening(*arguments: Any, **options: Any) -> Any:
            mode = options.get("mode") or (arguments[1] if len(arguments) > 1 else "r")
            if not set(mode) & set("wax+"):
                return opened(*arguments, **options)
            self.meet()
            file = opened(*arguments, **options)
            write = file.write

            def half(data: Any) -> int:
                # A half of it, as a power cut leaves it.
                self.meet(lambda: (write(data[: len(data) // 2]), file.flush()))
                return write(data)

            file.write = half
            return file

        io.open = builtins.open = opening

    def _met(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.meet()
            return function(*arguments, **options)

        return call


def main(folder: Path, how: str) -> None:
    disk._WAITS = (0.0, 0.0, 0.0)
    at, survived = 0, 0
    while True:
        at += 1
        # In a child each time: what it had in memory goes with it.
        child = os.fork()
        if child == 0:
            interrupted_save(folder / str(at), Interruption(at, how))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if how == "kill" and status == 137:
            survived += check_in_child(folder / str(at))
        elif status == 0:
            survived += 1
        elif status == 3:  # all calls were made
            print(json.dumps({"calls": at - 1, "survived": survived}))
            return
        else:
            raise SystemExit(f"call {at}: status {status}")


def interrupted_save(folder: Path, interruption: Interruption) -> None:
    run = Run(folder)
    for number in (1, 2, 3):
        run.step(number)
        run.save(number)
    run.step(4)
    interruption.install()
    told: list[str] = []
    run.save(4, say=told.append)
    if interruption.count < interruption.at:
        os._exit(3)
    # It failed, and was told or tried again; the checkpoints are whole, and the next one is written.
    interruption.at = -1
    found = Run(folder)
    step = found.load()
    assert step == 4 or (told and step == 3), (step, told)
    if step == 4:
        assert all(torch.equal(a, b) for a, b in zip(found.values(), run.values(), strict=True))
    run.step(5)
    run.save(5)
    assert found.load() == 5
    assert told == [] or "could not be written" in told[0], told
    os._exit(0)


def check_in_child(folder: Path) -> bool:
    """After a kill: step 3 or 4 is taken, its weights are those of that step, and the run goes on from there."""
    child = os.fork()
    if child == 0:
        wanted = Run(folder / "wanted")
        run = Run(folder)
        step = run.load()
        assert step in (3, 4), step
        for number in range(1, step + 1):
            wanted.step(number)
        assert all(torch.equal(a, b) for a, b in zip(run.values(), wanted.values(), strict=True))
        run.checkpoints.begin(step)
        assert not [path.name for path in run.run.path.glob("checkpoints/.*")]
        run.step(step + 1)
        run.save(step + 1)
        assert run.load() == step + 1
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
