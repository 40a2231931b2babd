"""Files that must survive: flushed, put in place whole, checked by their sums, read again where a disk fails."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from distill_tune.errors import UserError
from distill_tune.sizes import binary

Value = TypeVar("Value")

CHECKSUMS = "SHA256SUMS"  # as sha256sum writes and checks it
SHOWN_DIGITS = 16  # of a digest, which are enough to tell the models of a run from others
_locks: dict[Path, int] = {}  # descriptors
_SAMPLES, _LEAST_SAMPLES, _SAMPLE = 1024, 64, 4096  # blocks, of each file at least, bytes of each
_WAITS = (1.0, 5.0, 20.0)  # seconds, between attempts
_LOOKS, _LOOK = 5, 0.02  # attempts, and seconds: one who asks whether a folder is locked has it for an instant himself
# What a network file system answers while its server is away.
_PASSING = {errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT}


def retried(what: str, function: Callable[[], Value]) -> Value:
    """The function's value; called again, some seconds later, where a file system fails in a way that passes.

    Args:
        what: is being done, for the line that says so.

    Raises:
        OSError: it failed for good.
    """
    for wait in _WAITS:
        try:
            return function()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            print(f"{what}: {error.strerror}; once more in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    return function()


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    sums = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            sums.update(block)
    return sums.hexdigest()


def sampled_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of files' sizes and of some 1,024 blocks of them all, of each at least 64, evenly spread, with both ends.

    Tells models that were trained differently from each other without reading each of their hundred GB.
    """
    paths, sums = list(paths), hashlib.sha256()
    samples = max(_SAMPLES // max(len(paths), 1), _LEAST_SAMPLES)
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            sums.update(f"{size};".encode())
            last = max(size - _SAMPLE, 0)
            for start in sorted({last * number // (samples - 1) for number in range(samples)}):
                stream.seek(start)
                sums.update(stream.read(_SAMPLE))
    return sums.hexdigest()


def short_digest(paths: Iterable[Path]) -> str:
    """Of :func:`sampled_digest`, as many digits as are noted of a run's models."""
    return sampled_digest(paths)[:SHOWN_DIGITS]


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checksums(folder: Path, sums: Iterable[tuple[str, str]]) -> None:
    """
    Args:
        sums: name and digest of each file.
    """
    text = "".join(f"{value}  {name}\n" for name, value in sorted(sums))
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Where to write what then takes the place of a file: whole or not at all, also after a loss of power. Nothing is
    left of a failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """A small file, by :func:`replaced_whole`."""
    with replaced_whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """In UTF-8, by :func:`write_whole`."""
    write_whole(path, text.encode())


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a folder whose files :func:`write_checksums` has listed; None where nothing is.

    Args:
        part, parts: look at every so manieth file alone, the others being looked at by others.
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        listed = {name: value for value, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} cannot be read ({type(error).__name__})"
    if not listed or not all(name == Path(name).name for name in listed):
        return f"{CHECKSUMS} is damaged"
    for name in sorted(listed)[part::parts]:
        if not os.path.isfile(folder / name):
            return f"{name} is missing"
        if digest(folder / name) != listed[name]:
            return f"{name} is damaged: its checksum differs"
    return None


def put_in_place(partial: Path, folder: Path) -> None:
    """Give a folder of files that was written beside its name; what had the name before goes last.

    A kill leaves one of both, and a loss of power the whole of it. Who may read the folder may read its files, which
    safetensors writes for their owner alone, whatever the umask.
    """
    may_read = partial.stat().st_mode & 0o666
    for path in [*partial.iterdir(), partial]:
        if path.is_file():
            with contextlib.suppress(OSError):  # a file system without modes
                path.chmod(path.stat().st_mode | may_read)
        flush(path)
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        os.replace(folder, before)
    os.replace(partial, folder)
    flush(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def keep_to_oneself(folder: Path) -> bool:
    """Lock a folder until :func:`release_lock`, or this process' end, however it ends; False where another has it.

    A file system without locks is trusted.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    for _ in range(_LOOKS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                return True
            time.sleep(_LOOK)
        else:
            _locks[folder] = descriptor
            return True
    os.close(descriptor)
    return False


def is_kept_by_another(folder: Path) -> bool:
    """Whether another process has locked a folder, which need not be there."""
    if folder in _locks:
        return False
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which others that ask so may have as well
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def release_lock(folder: Path) -> None:
    """Of a folder that this process keeps to itself, if it does; another run may write there from now on."""
    if (descriptor := _locks.pop(folder, None)) is not None:
        os.close(descriptor)


def release_locks() -> None:
    """Of all folders that this process keeps to itself; another run of it may write there."""
    for folder in list(_locks):
        release_lock(folder)


def lacking_space(folder: Path, num_bytes: int) -> str | None:
    """What the disk of a folder, which need not be there yet, lacks for so much; None where it has it."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free >= num_bytes:
        return None
    return f"{binary(num_bytes)} are needed, {there} has {binary(free)} left"


def require_space(key: str, folder: Path, num_bytes: int) -> None:
    """
    Raises:
        UserError: the disk has not so much left.
    """
    if lacking := lacking_space(folder, num_bytes):
        raise UserError(f"{key}: {lacking}; free some")
