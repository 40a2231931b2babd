"""`distill-tune demo` and the runs that it starts."""

import sys

import pytest
from rich.console import Console

from distill_tune.cli.demo import _run

# In place of a run: a process that is told together with the demo, and takes half a second to write a checkpoint.
RUN = """#!/bin/sh
trap '' INT
sleep 0.2
kill -INT $PPID
sleep 0.5
touch checkpoint
"""


def test_ctrl_c_waits_for_the_checkpoint_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "run").write_text(RUN)
    (tmp_path / "run").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        _run(Console(), ["run"])
    assert (tmp_path / "checkpoint").is_file()
