"""Which cache a run fills, and which rows of it the run will read."""

import dataclasses
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill_tune import cache, teachers
from distill_tune.config.files import local_path
from distill_tune.errors import UserError
from distill_tune.training.distributed import from_main_process
from distill_tune.training.teacher_cache import describe_cache, encoding_for, vocabulary_of
from distill_tune.training.write_through import KEY, WriteThrough


def behind_cache(cfg: DictConfig, built: Any) -> teachers.Teacher:
    """The teacher of a config behind its ``teacher_cache``, whose kind is that of ``cache``, or of what is there.

    Of one of another tokenizer the records are of its own rows.

    Raises:
        UserError: as :func:`encoding_for`; the folder holds something else.
    """
    folder, settings = local_path(cfg.get(KEY)), cfg.get("cache")
    was = from_main_process(cache.cache_there(folder, KEY))
    if settings is None:
        if was is None:
            raise UserError(
                f"{KEY}={folder}: no cache yet; say what it is to hold: cache.kind=sampled, top_k or hidden"
            )
        settings = OmegaConf.create({"kind": was.kind} | dict(was.settings))
    through = WriteThrough(built.teacher.itself, folder, encoding_for(settings, built, cfg))
    return built.teacher.asking(through) if isinstance(built.teacher, teachers.AlignedTeacher) else through


def prepare_cache(teacher: WriteThrough, cfg: DictConfig, built: Any, steps: Any, seed: int) -> str:
    """:meth:`WriteThrough.prepare` with the rows of a run. All ranks call it.

    Raises:
        UserError: the cache is of another teacher, or of other settings.
    """
    was = from_main_process(cache.cache_there(teacher.folder, KEY))
    manifest = describe_cache(cfg, built, steps, teacher.encoding, was.seed if was else seed)
    if was is not None:
        if manifest.teacher["content"] is None:  # `plan` needs no weights
            of_cache = {"content": was.teacher.get("content")}
            manifest = dataclasses.replace(manifest, teacher={**manifest.teacher, **of_cache})
        cache.require_same_teacher(was, manifest, f"{KEY}={teacher.folder}")
    of_steps = _read_in(steps, cfg.epochs)
    return teacher.prepare(manifest, vocabulary_of(built), steps.plan.datasets, of_steps, steps.plan_val)


def _read_in(steps: Any, epochs: int) -> frozenset[bytes]:
    """Digests of all rows that the steps of a run read: an epoch that is cut short, or weighted, leaves some out."""
    every = frozenset(digest for rows in steps.plan.datasets for digest in rows.as_teacher_reads.record_keys)
    read = set[bytes]()
    for epoch in range(epochs):
        for step in range(steps.steps_per_epoch):
            read.update(steps.plan.record_keys(epoch, step))
        if len(read) == len(every):
            return every
    return frozenset(read)
