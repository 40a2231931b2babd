"""checkpoints/step_N/ of a run: written in the background, put in place whole, checked before they are taken."""

import concurrent.futures
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distill_tune.disk import damage, digest, flush, lacking_space, put_in_place, retried, write_checksums
from distill_tune.errors import UserError
from distill_tune.launch import is_restarted
from distill_tune.models.loading import some_names
from distill_tune.models.tensor_files import shapes_of, write_tensors
from distill_tune.training.checkpoint_contents import Stateful, copied, lacking_part, own_part_of_rank, tensors_of
from distill_tune.training.distributed import from_main_process, is_main_process, num_ranks, on_all_ranks, rank
from distill_tune.training.run_folder import RunFolder
from distill_tune.training.state import TrainingState

_METRICS, _SUPERSEDED = "metrics.jsonl", ".superseded"


class Checkpoints:
    """Saves and finds a run's checkpoints. Every rank has one and makes the same calls.

    A folder step_N is complete: it is written beside as .step_N.partial, flushed, listed in SHA256SUMS and renamed.

    Args:
        keep_last_n: older ones, and those set aside, are deleted once a newer one is in place; None keeps all.
        keep_best: of the validation metric of this name the lowest, besides; it is saved when it is reached.
    """

    def __init__(
        self,
        run: RunFolder,
        keep_last_n: int | None = None,
        keep_best: str | None = None,
    ) -> None:
        self._run, self._keep_last_n, self._keep_best = run, keep_last_n, keep_best
        self._folder = run.checkpoints
        self._best = float("inf")
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[str | None] | None = None
        # Training's own collectives must not meet those of the thread.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    # ---- Finding

    def to_resume(self, resume: bool | str) -> Path | None:
        """The checkpoint that ``resume`` means, all its checksums right; None for a fresh start.

        Args:
            resume: ``auto`` takes the newest good one, or starts afresh where there is none; True wants one; a folder
                is taken itself; False starts afresh. A run that torchrun or Slurm has restarted takes up its own.

        Raises:
            UserError: a fresh start in a folder that holds a run; a resume in one that has no good checkpoint, and
                a model that a fresh start would replace.
        """
        there = from_main_process(self._steps())
        if is_restarted(os.environ) and there:
            resume = "auto"
        if isinstance(resume, str) and resume != "auto":
            folder = Path(os.path.expanduser(resume))
            if found := _damage(folder):
                raise UserError(f"resume={resume}: {found}; name another checkpoint, or resume=auto takes the newest")
            return folder
        if not resume:
            self._require_empty(bool(there))
            return None
        for step in sorted(there, reverse=True):
            found = _damage(self._at(step))
            if found is None:
                return self._at(step)
            print(f"checkpoint {self._at(step)}: {found}; taking the one before it")
        if there:
            raise UserError(f"resume={resume}: no checkpoint in {self._folder} is whole; start in another output_dir")
        if resume == "auto":
            self._require_nothing_exported()
            return None
        raise UserError(
            f"resume={resume}: {self._folder} has none; they are written every save_every_n_steps and after each "
            "epoch (resume=auto starts afresh where there is none)"
        )

    def _require_empty(self, has_checkpoints: bool) -> None:
        if has_checkpoints or self._run.model.exists() or self._run.adapter.exists():
            raise UserError(
                f"output_dir={self._run.path}: holds a run already; go on with it (resume=auto), "
                "name another folder, or delete this one"
            )

    def _require_nothing_exported(self) -> None:
        for exported in (self._run.model, self._run.adapter):
            if exported.exists():
                raise UserError(
                    f"resume=auto: {self._folder} has no checkpoint to go on from, and a fresh start would replace "
                    f"{exported}; name another output_dir, or delete this one"
                )

    def _steps(self) -> list[int]:
        """Of the folders that are in place."""
        names = [folder.name for folder in self._folder.glob("step_*")]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def _at(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    # ---- Saving

    def begin(self, step: int) -> None:
        """Before the first save: what was interrupted is cleared away, and what lies after ``step`` set aside.

        Those steps will be taken again; a later start must not take up the former ones.
        """
        if is_main_process():
            for left in [*self._folder.glob(".step_*.partial"), *self._folder.glob(".step_*.before")]:
                shutil.rmtree(left, ignore_errors=True)
            for later in (other for other in self._steps() if other > step):
                aside = self._folder / f"step_{later}{_SUPERSEDED}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self._at(later), aside)
                until = "" if self._keep_last_n is None else " until the next is written (keep_last_n)"
                print(
                    f"checkpoint {self._at(later)}: set aside as {aside.name}{until}; the run goes on from step {step}"
                )
            self._best = min(self._values().values(), default=self._best)
        self._best = from_main_process(self._best)

    def is_best(self, line: Mapping[str, Any]) -> bool:
        """Whether a step's metrics have the lowest value of ``keep_best`` so far."""
        value = line.get(self._keep_best) if self._keep_best else None
        return value is not None and value < self._best

    def best(self) -> Path | None:
        """The checkpoint with the lowest value of ``keep_best``; None without such, or where it is the newest."""
        values = from_main_process(self._values())
        if not values or (step := min(values, key=lambda step: values[step])) == max(self._steps()):
            return None
        print(f"exporting the best checkpoint: step {step}, {self._keep_best} {values[step]:.4f}")
        return self._at(step)

    def save(
        self,
        state: TrainingState,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        teacher: Stateful,
        say: Callable[[str], None] = print,
    ) -> None:
        """Copy what the next step depends on to the CPU, and write it while training goes on.

        Only trained parameters are kept; frozen ones come from the base checkpoint again. A write that fails is told by
        ``say`` at the next call, and leaves the checkpoints before it as they are; so does one that would lack a part.
        """
        self.wait(say)
        if lacking := lacking_part(model, optimizer):
            say(self._not_written(state.step, lacking))
            return
        if self._keep_best:
            self._best = min(self._best, state.validation.get(self._keep_best, self._best))
        tensors = {name: copied(value) for name, value in tensors_of(model, optimizer, teacher)}
        part = own_part_of_rank(model, optimizer)
        num_bytes = len(part) + sum(value.numel() * value.element_size() for value in tensors.values())
        metrics = self._run.metrics
        history = metrics.stat().st_size if is_main_process() and metrics.is_file() else 0
        job = _Job(self._at(state.step), dataclasses.replace(state, num_ranks=num_ranks()), tensors, history, num_bytes)
        self._writing = self._pool.submit(self._write, job, part)

    def wait(self, say: Callable[[str], None] = print) -> None:
        """Until what is being written is in place."""
        if self._writing is not None and (failure := self._writing.result()):
            say(failure)
        self._writing = None

    def close(self, say: Callable[[str], None] = print) -> None:
        """:meth:`wait`, for the last time."""
        self.wait(say)
        self._pool.shutdown()

    def _write(self, job: "_Job", part: bytes) -> str | None:
        """In the thread of each rank; what failed, where something did."""
        try:
            retried(f"checkpoint {job.folder}", lambda: self._write_once(job, part))
        except Exception as error:  # whatever it is, training goes on
            shutil.rmtree(job.partial, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            return self._not_written(job.state.step, reason)
        return None

    def _not_written(self, step: int, reason: str) -> str:
        kept = self._steps()
        return f"step {step}: its checkpoint could not be written ({reason}); " + (
            f"{self._at(kept[-1])} stays the newest" if kept else "there is none before it"
        )

    def _write_once(self, job: "_Job", part: bytes) -> None:
        def first() -> None:
            shutil.rmtree(job.partial, ignore_errors=True)
            job.partial.mkdir(parents=True)
            if lacking := lacking_space(job.partial, job.num_bytes):
                raise OSError(lacking)

        def own() -> list[tuple[str, str]]:
            (job.partial / f"rank_{rank()}.pt").write_bytes(part)
            names = [f"rank_{rank()}.pt", *(file.name for file in job.partial.glob(f"shard-{rank() + 1:05d}-*"))]
            return [_summed(job.partial / name) for name in names]

        self._together(first if is_main_process() else None)
        write_tensors(job.partial, job.tensors, self._group)
        sums = [pair for of_rank in self._together(own) for pair in of_rank]

        def last() -> None:
            written = {name: value.shape for name, value in shapes_of(job.partial).items()}
            if lacking := [name for name, value in job.tensors.items() if written.get(name) != value.shape]:
                raise OSError(f"its files lack {some_names(lacking)}")
            job.state.write(job.partial)
            _copy_start(self._run.metrics, job.partial / _METRICS, job.history)
            write_checksums(job.partial, [*sums, *(_summed(job.partial / name) for name in ("state.json", _METRICS))])
            put_in_place(job.partial, job.folder)
            self._prune(newest=job.state.step)

        self._together(last if is_main_process() else None)

    def _together(self, function: Callable[[], Any] | None) -> list[Any]:
        """A function on each rank that has one; where it fails on any, it fails on all."""
        value, failure = None, None
        try:
            value = function() if function else None
        except Exception as error:
            failure = error if isinstance(error, OSError) else OSError(str(error))
        if self._group is None:
            found = [(value, failure)]
        else:
            found = [(None, None)] * num_ranks()
            dist.all_gather_object(found, (value, failure), group=self._group)
        for _, failed in found:
            if failed is not None:
                raise failed
        return [one for one, _ in found]

    def _prune(self, newest: int) -> None:
        if self._keep_last_n is None:
            return
        values = self._values()
        kept = {newest, *self._steps()[-self._keep_last_n :]}
        kept |= {min(values, key=lambda step: values[step])} if values else set()
        old = [self._at(step) for step in set(self._steps()) - kept]
        for folder in [*old, *self._folder.glob(f"step_*{_SUPERSEDED}")]:
            gone = folder.with_name(f".{folder.name}.before")  # so that a kill leaves no half of one
            os.replace(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _values(self) -> dict[int, float]:
        """``keep_best`` of each checkpoint that has it."""
        found = {}
        for step in self._steps() if self._keep_best else ():
            try:
                value = TrainingState.read(self._at(step)).validation.get(str(self._keep_best))
            except UserError:
                continue
            if value is not None:
                found[step] = float(value)
        return found


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is written: the tensors are copies; ``history`` is the length of metrics.jsonl at this step, in bytes."""

    folder: Path
    state: TrainingState
    tensors: Mapping[str, torch.Tensor]
    history: int
    num_bytes: int

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.partial")


def metrics_of_checkpoint(folder: Path) -> Path:
    """The metrics of all steps up to a checkpoint's."""
    return folder / _METRICS


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, found together: each rank reads a part of the files."""
    try:
        found = retried(f"checkpoint {folder}", lambda: damage(folder, rank(), num_ranks()))
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
    return next((one for one in on_all_ranks(found) if one), None)


def _summed(path: Path) -> tuple[str, str]:
    flush(path)  # by the machine that wrote it
    return path.name, digest(path)


def _copy_start(source: Path, target: Path, length: int) -> None:
    """The first ``length`` bytes of a file that grows."""
    with target.open("wb") as out:
        if length:
            with source.open("rb") as stream:
                while length and (block := stream.read(min(length, 2**20))):
                    out.write(block)
                    length -= len(block)
