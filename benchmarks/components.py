"""Components that a config names, for our recipe and torchtune's: the prepared rows, and a clock as the logger."""

import json
import os
import resource
import time


class rows:
    """The tokens and labels of rows.json."""

    def __init__(self, tokenizer, path):
        with open(path) as file:
            self._rows = json.load(file)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]


class clock:
    """A metric logger that writes when each step was over, its losses, and the process's peak memory so far."""

    def __init__(self, path):
        self._file = open(path, "w")  # noqa: SIM115

    def log_config(self, config):
        return None

    def log(self, name, value, step):
        return None

    def log_dict(self, values, step):
        losses = {name: float(value) for name, value in values.items() if name.endswith("loss")}
        write_line(self._file, step, losses)

    def close(self):
        self._file.close()


def write_line(file, step, losses):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    file.write(json.dumps({"step": step, "at": time.perf_counter(), "peak_bytes": peak, **losses}) + "\n")
    file.flush()


class turns:
    """A metric logger that lets its run take a step only when it is told to, and tells what each has taken.

    Args:
        asked: a pipe's end to read from: a byte, and the run goes on to its next step.
        told: a pipe's end to write to: a line with the step's seconds by the clock and of the CPU.
    """

    def __init__(self, asked, told):
        self._asked, self._told, self._began = asked, os.fdopen(told, "w"), None

    def log_config(self, config):
        return None

    def log(self, name, value, step):
        return None

    def log_dict(self, values, step):
        if self._began is not None:
            seconds = [now - began for now, began in zip(_now(), self._began, strict=True)]
            self._told.write(json.dumps(seconds) + "\n")
            self._told.flush()
        os.read(self._asked, 1)
        self._began = _now()

    def close(self):
        self._told.close()


def _now():
    return time.perf_counter(), time.process_time()
