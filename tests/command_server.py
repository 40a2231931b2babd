"""Commands in processes of their own, forked from one that has imported everything heavy: no second start of Python.

The process computes nothing itself, so a child is what a fresh `python -m distill_tune` is after its imports; so are
the ranks that torchrun starts in one. Tests of import times, of threads and of how Python ends take the real thing;
see ``cli`` and ``fresh_cli`` in conftest.py.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import inspect
import itertools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import types
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import warm_python

_M_MMAP_THRESHOLD = -3  # of malloc.h


class Child:
    """A process that was forked here, as ``subprocess.Popen`` would tell of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until, pause = time.monotonic() + (float("inf") if timeout is None else timeout), 0.002
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        assert self.returncode is not None
        return self.returncode


class Command:
    """One that runs: as much of ``subprocess.Popen`` as tests need."""

    def __init__(self, server: "CommandServer", arguments: list[str], pid: int, streams: list[Path]) -> None:
        self._server, self._arguments, self._streams = server, arguments, streams
        self.pid = pid
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        if self.returncode is None:
            self.returncode = self._server.ask(wait_for=self.pid, timeout=timeout)
            if self.returncode is None:
                self.returncode = -signal.SIGKILL
                raise subprocess.TimeoutExpired(self._arguments, timeout, *self.told())
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.told()

    def completed(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Raises: as ``wait``."""
        status = self.wait(timeout)
        return subprocess.CompletedProcess(self._arguments, status, *self.told())

    def told(self) -> tuple[str, str]:
        output, errors = (stream.read_text(encoding="utf-8", errors="replace") for stream in self._streams)
        return output, errors


class CommandServer:
    """Started by conftest.py, once a session.

    Args:
        heavy: have PyTorch and what comes with it imported, not just what every command imports.
    """

    def __init__(self, heavy: bool = True) -> None:
        warm = ["-S", warm_python.__file__, os.environ["WARM_PYTHON"]] if heavy and "WARM_PYTHON" in os.environ else []
        self._process = subprocess.Popen(
            [sys.executable, *warm, __file__, *(["heavy"] if heavy else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The tests' own folder is not on a user's path.
            env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )

    def start(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path, starting: int = 0
    ) -> Command:
        """What Python would do with these arguments in ``folder``.

        Args:
            environment: all of it.
            output: a folder; what the command prints goes through files in a new one there.
            starting: so many of the Pythons that it starts are forked, too, and of those that each of them starts.
        """
        folder_of_streams = Path(tempfile.mkdtemp(dir=output))
        streams = [folder_of_streams / name for name in ("stdout", "stderr")]
        named = {"arguments": arguments, "folder": str(folder), "streams": [*map(str, streams)], "starting": starting}
        return Command(self, arguments, self.ask(**named, environment=dict(environment)), streams)

    def open_tokenizers(self, of_models: list[Path], others: list[Path]) -> None:
        """Commands that come after this find them read, the last few, as a process does that has read them before."""
        self.ask(of_models=[*map(str, of_models)], others=[*map(str, others)])

    def ask(self, **request: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def look_at_installed_code_once() -> None:
    """No test changes a source file of the installed packages: a run on their docstrings need not ask 13,000 files.

    Tests of just that have a folder of their own in place of the packages.
    """
    from distill_tune.data import docstring_rows

    installed, look = sysconfig.get_paths(), docstring_rows.sources_fingerprint
    look_once = functools.cache(look)

    def fingerprint(folders: Sequence[Path] = ()) -> str:
        is_installed_alone = not folders and sysconfig.get_paths() == installed
        return look_once() if is_installed_alone else look(folders)

    docstring_rows.sources_fingerprint = fingerprint


def import_heavy() -> None:
    import torch

    probe = os.fork()  # a process that has looked for CUDA cannot be forked to use it
    if probe == 0:
        os._exit(torch.cuda.is_available())
    if os.waitpid(probe, 0)[1] == 0:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run on the CPU
    importlib.import_module("distill_tune._torchtune_compat")  # first, since it keeps torchao quiet
    import datasets  # noqa: F401
    import torch.distributed.checkpoint
    import torch.distributed.elastic.rendezvous.c10d_rendezvous_backend
    import torch.distributed.run
    import transformers.models.auto.tokenization_auto
    import transformers.models.encoder_decoder
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama
    import transformers.tokenization_utils_sentencepiece  # noqa: F401
    from sentencepiece import sentencepiece_model_pb2  # noqa: F401

    from distill_tune import data, evaluation, losses, models, teachers, training  # noqa: F401
    from distill_tune.cli import main, planned_run  # noqa: F401
    from distill_tune.data import docstring_rows
    from distill_tune.evaluation import estimate  # noqa: F401

    import torchtune.datasets
    import torchtune.models.llama2
    import torchtune.models.llama3_2
    import torchtune.training  # noqa: F401

    look_at_installed_code_once()
    docstring_rows.sources_fingerprint()


def _serve(heavy: bool) -> None:
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    gc.disable()  # a collection would look at all modules again and again
    if heavy and "transformers" not in sys.modules:  # the warm Python has done it
        import_heavy()
    elif not heavy:
        from distill_tune.cli import main  # noqa: F401
    gc.collect()
    gc.freeze()  # so that no collection in a command looks at the modules
    gc.enable()
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False  # imports' own, of torch.library above all: what they undo ends with the process
    running: dict[int, Child] = {}
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        if "wait_for" in request:
            print(json.dumps(_status_of(running.pop(request["wait_for"]), request["timeout"])), flush=True)
            continue
        if "of_models" in request:
            from distill_tune import models

            for folder in request["others"]:
                models.tokenizer_files.open_tokenizer(Path(folder))
            for folder in request["of_models"]:
                models.vocabulary.Vocabulary.of(Path(folder))
            print("null", flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            return _command(request)
        running[pid] = Child(pid)
        print(pid, flush=True)
    for child in running.values():  # of a test that failed before it waited
        _status_of(child, timeout=0)
    os._exit(0)  # taking every module apart is slow


def _status_of(child: Child, timeout: float) -> int | None:
    """As subprocess tells it; None where the time ran out."""
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        return None


def _forbidden(*arguments: object, **options: object) -> None:
    print("came to what is forbidden", file=sys.stderr)
    sys.exit(99)


def _command(request: dict) -> None:
    """In the child: what is asked for, and its end."""
    os.chdir(request["folder"])
    set_environment(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in enumerate(request["streams"], 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    if forbidden := os.environ.get("FORBIDDEN"):  # a function that this command must not come to
        module, _, name = forbidden.rpartition(".")
        setattr(sys.modules[module], name, _forbidden)
    if {"--nproc_per_node", "kd_distributed", "teacher_cache"} & set(request["arguments"]):  # the recipes of ranks
        _fork_ranks_of_torchrun(request["arguments"])
    if request["starting"]:
        _fork_pythons(request["starting"])
    run_and_exit(request["arguments"])


def set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and (torch := sys.modules.get("torch")):  # which has read it already
        torch.set_num_threads(int(threads))
    if (compiler := os.environ.get("CXX")) and (config := sys.modules.get("torch._inductor.config")):
        config.cpp.cxx = (None, compiler)  # so has its compiler
    if threshold := os.environ.get("MALLOC_MMAP_THRESHOLD_"):  # the C library, too; and what is free goes back
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, int(threshold))
        library.malloc_trim(0)


def _fork_pythons(count: int) -> None:
    """Fork ``count`` processes that take, before this one does anything, the Pythons that it will start."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    spare: list[tuple[int, socket.socket]] = []
    for _ in range(count):
        mine, its = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for other in [mine, *(other for _, other in spare)]:
                other.close()
            _python(its, count)
        its.close()
        spare.append((pid, mine))

    names = list(inspect.signature(subprocess.Popen._execute_child).parameters)[1:]  # type: ignore[attr-defined]

    class Forked(subprocess.Popen):
        def _execute_child(self, *given: Any) -> None:  # type: ignore[override]
            of = dict(zip(names, given, strict=True))
            if not spare or of["args"][0] != sys.executable:
                return super()._execute_child(*given)  # type: ignore[misc]
            self.pid, asked = spare.pop(0)
            self._child_created = True
            arguments = [argument for argument in map(str, of["args"][1:]) if argument != "-u"]
            environment = dict(os.environ if of["env"] is None else of["env"])
            told = {"arguments": arguments, "environment": environment, "session": of["start_new_session"]}
            told["folder"] = os.fspath(of["cwd"] or os.getcwd())
            ends = [of[name] for name in ("p2cread", "c2pwrite", "errwrite")]
            descriptors = [number if end == -1 else end for number, end in enumerate(ends)]
            socket.send_fds(asked, [b"-"], descriptors)
            asked.sendall(json.dumps(told).encode())
            asked.close()
            self._close_pipe_fds(*given[names.index("p2cread") : names.index("errwrite") + 1])  # type: ignore[attr-defined]

    subprocess.Popen = subprocess_handler.Popen = Forked  # type: ignore[misc, assignment]


def _python(asked: socket.socket, count: int) -> None:
    """In a process that waits to be one."""
    _, descriptors, *_ = socket.recv_fds(asked, 1, 3)
    if not descriptors:  # whoever might have started it has ended
        os._exit(0)
    with asked, asked.makefile() as told:
        request = json.load(told)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    set_environment(request["environment"])
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    _fork_pythons(count)
    run_and_exit(request["arguments"])


def _fork_ranks_of_torchrun(arguments: list[str]) -> None:
    """Fork a process for each that torchrun will start, before it does anything: it takes them in place of Popen."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    given = dict(itertools.pairwise(arguments))
    spare: list[tuple[Child, int]] = []
    for _ in range(int(given.get("--nproc_per_node", 1)) * (1 + int(given.get("--max_restarts", 0)))):
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            for other in [writes, *(other for _, other in spare)]:
                os.close(other)
            _rank(reads)
        os.close(reads)
        spare.append((Child(pid), writes))

    def started(args: tuple[str, ...], env: dict[str, str], stdout: None, stderr: None, **session: object) -> Child:
        assert stdout is stderr is None and session == {"start_new_session": True}
        child, writes = spare.pop(0)
        with open(writes, "w") as told:
            json.dump({"arguments": args, "environment": env}, told)
        return child

    subprocess_handler.Popen = started  # type: ignore[misc, assignment]
    # Its records' names; through inspect, which looks for the source of every frame, half a second a start.
    dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name


def _rank(reads: int) -> None:
    """In a process that waits to be one."""
    os.setsid()
    with open(reads) as asked:
        told = asked.read()
    if not told:  # torchrun has ended and did not need it
        os._exit(0)
    request = json.loads(told)
    python, unbuffered, *arguments = request["arguments"]
    assert (python, unbuffered) == (sys.executable, "-u")
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    set_environment(request["environment"])
    run_and_exit(arguments)


def run_and_exit(arguments: list[str]) -> None:
    """``-m module ...``, ``-c code`` or ``script.py ...``, with an end as Python's."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [entry for entry in given if entry and entry not in sys.path]
    status = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, "")
            runpy.run_module(arguments[1], run_name="__main__")
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(arguments[1], vars(sys.modules["__main__"]))
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    if (module := os.environ.get("NOT_TO_BE_IMPORTED")) in sys.modules:
        print(f"has imported {module}", file=sys.stderr)
        status = 99
    if os.environ.get("TAKE_MODULES_APART"):
        sys.exit(status)
    # The way Python ends, but for taking every module apart, which is slow here.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve(heavy=sys.argv[1:] == ["heavy"])
