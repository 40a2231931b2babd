"""Many runs of kd_distributed in one pair of ranks: each as it is, and again from its checkpoints.

As a script, under torchrun: ``resumed_ranks.py CASES.json``, which lists (folder, config, overrides, steps, stopped). A
run writes to FOLDER/whole, and what goes on from its checkpoints of ``steps`` to FOLDER/from_N. Where ``stopped`` is a
step, one more, FOLDER/stopped, is told to stop while it takes that one, and FOLDER/from_stopped goes on from there.
"""

import contextlib
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import distill_tune.training.stop
from distill_tune import training
from distill_tune.config.check import checked_config
from distill_tune.config.files import recipes_folder

sys.path.insert(0, str(recipes_folder()))
import kd_distributed


def run(config: str, overrides: list[str], output: Path, *more: str) -> None:
    arguments = [*overrides, f"output_dir={output}", *more]
    kd_distributed.main(checked_config(recipes_folder() / "kd_distributed.py", config, arguments))


def stopped_in(step: int) -> Any:
    """The step with this number is taken, on the second rank, while a signal comes."""
    taken, take = 0, training.halved_if_too_large

    def told(*arguments: Any, **named: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == step and training.rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take(*arguments, **named)

    return told


def main(cases: list[list[Any]]) -> None:
    device = training.init_distributed("cpu")
    leave = training.leave
    # torchao compiles its steps; what is traced of them is every compiler's.
    torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]
    # The ranks stay for the next run.
    training.init_distributed = lambda *of: device
    training.leave = distill_tune.training.stop.leave = lambda: None
    for name, config, overrides, steps, stopped in cases:
        folder = Path(name)
        run(config, overrides, folder / "whole")
        for step in steps:
            run(config, overrides, folder / f"from_{step}", f"resume={folder}/whole/checkpoints/step_{step}")
        if stopped:
            take = training.halved_if_too_large
            training.halved_if_too_large = stopped_in(stopped)
            with contextlib.suppress(SystemExit):
                run(config, overrides, folder / "stopped")
            training.halved_if_too_large = take
            run(config, overrides, folder / "from_stopped", f"resume={folder}/stopped/checkpoints/step_{stopped}")
    leave()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
