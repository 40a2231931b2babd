"""Runs that are started from Python, one after the other in one process, as in a notebook."""

import contextlib
import os
import signal
import sys

import pytest
from tiny import metrics_of

from distill_tune.cli.main import main

RUN = ["run", "kd_single_device", "--config", "config.yaml", "max_steps_per_epoch=1"]


@pytest.fixture(autouse=True)
def _config(write_config, tmp_path, monkeypatch):
    write_config()
    monkeypatch.chdir(tmp_path)


def state() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]
    return sys.argv, [*sys.argv], [*sys.path], handlers, sys.stdout, sys.stderr, os.environ.get("OMP_NUM_THREADS")


def test_two_runs_follow_one_another_in_one_process_which_stays_as_it_was(tmp_path, capsys):
    before = state()
    main(RUN)
    assert state() == before
    main([*RUN, "resume=auto", "epochs=2"])  # the folder is free again
    assert [line["step"] for line in metrics_of(tmp_path / "out")] == [1, 2]
    main([*RUN, "resume=auto", "epochs=2"])  # returns: there is nothing left to do
    assert "came to its end with step 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*RUN, "resume=auto", "epochs=2", "batch_size=no"])
    assert state() == before


def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(tmp_path, monkeypatch, capsys):
    reads, writes = os.pipe()
    os.close(reads)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writes, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        main(RUN)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert capsys.readouterr().err.count("stdout: Broken pipe; the run goes on without it") == 1
