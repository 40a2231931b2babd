"""The memory that `plan` tells against what a step really takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEP = Path(__file__).parents[1] / "measured_step.py"


SCENARIOS = ["full", "full_checkpointed", "lora", "lora_checkpointed", "lora_checkpointed_sharded"]


@pytest.fixture(scope="module")
def measured() -> dict[str, list[float]]:
    """By scenario the measured peak and the estimate."""
    # The C library gives freed memory back at once, so that what is measured is what is used.
    path = os.pathsep.join(filter(None, [str(STEP.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(STEP), *SCENARIOS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: [*map(float, line.split())] for name, line in zip(SCENARIOS, done.stdout.splitlines(), strict=True)}


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_is_within_a_tenth_of_the_measured_peak(scenario, measured):
    peak, estimated = measured[scenario]
    assert estimated == pytest.approx(peak, rel=0.1)
