"""The memory that `plan` tells against what a step really takes."""

import os
import sys
from pathlib import Path

import pytest
from command_server import CommandServer

STEP = Path(__file__).parents[1] / "measured_step.py"
SCENARIOS = ["full", "full_checkpointed", "lora", "lora_checkpointed", "lora_checkpointed_sharded"]


@pytest.fixture(scope="module")
def measured(command_server: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """By scenario the measured peak and the estimate."""
    # The C library gives freed memory back at once, so that what is measured is what is used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(STEP.parent)}
    folder = tmp_path_factory.mktemp("measured")
    done = command_server.start([str(STEP), *SCENARIOS], folder, environment, output=folder).completed()
    assert done.returncode == 0, done.stderr
    return {name: [*map(float, line.split())] for name, line in zip(SCENARIOS, done.stdout.splitlines(), strict=True)}


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_is_within_a_tenth_of_the_measured_peak(scenario, measured):
    peak, estimated = measured[scenario]
    assert estimated == pytest.approx(peak, rel=0.1)
