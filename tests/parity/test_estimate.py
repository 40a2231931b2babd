"""The memory that `plan` tells against what a step really takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEP = Path(__file__).parents[1] / "measured_step.py"


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
@pytest.mark.parametrize("scenario", ["full", "full_checkpointed", "lora", "lora_checkpointed"])
def test_it_is_within_a_tenth_of_the_measured_peak(scenario):
    # The C library gives freed memory back at once, so that what is measured is what is used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(STEP.parent)}
    done = subprocess.run([sys.executable, str(STEP), scenario], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured, estimated = map(float, done.stdout.split())
    assert estimated == pytest.approx(measured, rel=0.1)
