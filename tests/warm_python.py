"""One Python that has imported everything heavy, from which pytest's processes and their command servers are forked.

    python warm_python.py PATH                   imports, then waits at the socket PATH until its own input ends
    python -S warm_python.py PATH ARGUMENT...    is `python ARGUMENT...`, forked from it

It computes nothing itself, so what is forked is what a fresh Python is after its imports.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

_SECONDS_TO_START = 60  # of Python, not of its imports


def forked(path: str, arguments: list[str]) -> int:
    """Have it fork a Python with this process's input and outputs; its status, once it has ended."""
    asked = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            asked.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(asked, [b"-"], [0, 1, 2])
    asked.sendall(json.dumps(told).encode())
    asked.shutdown(socket.SHUT_WR)
    return int(asked.makefile().read() or 1)


def serve(path: str) -> None:
    import gc

    gc.disable()  # a collection would look at all modules again and again
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{path}.made")
    listening.listen()
    os.rename(f"{path}.made", path)  # whoever asks already waits in its queue
    from command_server import import_heavy

    import_heavy()
    gc.collect()
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while listening in select.select([listening, 0], [], [])[0]:
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _wait_for_one(asked)
        asked.close()
    os._exit(0)  # taking every module apart is slow


def _wait_for_one(asked: socket.socket) -> NoReturn:
    """In a process that tells how its child ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, *_ = socket.recv_fds(asked, 1, 3)
    told = json.loads(asked.makefile().read())
    pid = os.fork()
    if pid == 0:
        from command_server import run_and_exit, set_environment

        asked.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(told["folder"])
        set_environment(told["environment"])
        sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
        run_and_exit([argument for argument in told["arguments"] if argument != "-u"])
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    asked.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


if __name__ == "__main__":
    try:
        if sys.argv[2:]:
            sys.exit(forked(sys.argv[1], sys.argv[2:]))
        serve(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
