"""Commands in processes of their own, forked from one that has imported everything heavy: no second start of Python.

The process computes nothing itself, so a child is what a fresh `python -m distill_tune` is after its imports. Tests of
import times and of threads take the real thing; see ``cli`` and ``fresh_cli`` in conftest.py.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path


class CommandServer:
    """Started by conftest.py, once a session."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The tests' own folder is not on a user's path.
            env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )

    def run(self, arguments: list[str], folder: Path, output: Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """``distill-tune`` with these arguments in ``folder``; its output goes through files in ``output``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        output.mkdir(exist_ok=True)
        streams = [str(output / name) for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "folder": str(folder), "streams": streams, "environment": dict(os.environ)}
        request["timeout"] = timeout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = json.loads(self._process.stdout.readline())
        told = [Path(stream).read_text(encoding="utf-8", errors="replace") for stream in streams]
        if status is None:
            raise subprocess.TimeoutExpired(arguments, timeout, *told)
        return subprocess.CompletedProcess(arguments, status, *told)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    import datasets  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.run  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama  # noqa: F401

    from distill_tune import data, evaluation, losses, models, teachers, training  # noqa: F401

    import torchtune.datasets
    import torchtune.training  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            return _command(request)
        print(json.dumps(_status_of(child, request["timeout"])), flush=True)


def _forbidden(*arguments: object, **options: object) -> None:
    print("came to what is forbidden", file=sys.stderr)
    sys.exit(99)


def _status_of(child: int, timeout: float) -> int | None:
    """As subprocess tells it; None where the time ran out."""
    import signal
    import time

    until, wait = time.monotonic() + timeout, 0.002
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(wait)
        wait = min(wait * 1.5, 0.05)


def _command(request: dict) -> None:
    """In the child: ends it with the command's status, the way Python ends."""
    from distill_tune.cli.main import main

    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in enumerate(request["streams"], 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    if forbidden := os.environ.get("FORBIDDEN"):  # a function that this command must not come to
        module, _, name = forbidden.rpartition(".")
        setattr(sys.modules[module], name, _forbidden)
    sys.argv = ["distill-tune", *request["arguments"]]
    sys.path.insert(0, "")
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    # The way Python ends, but for taking every module apart, which is slow here.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve()
