"""A stored teacher beside the live one, on some of its rows."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill_tune import cache, data, training
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe
from distill_tune.counts import counted
from distill_tune.errors import UserError

_ANOTHER = 0.1  # nats, or share of a hidden state's length, on average: far beyond any rounding
_ERRORS = 4  # standard ones: so far from 0 the mean of a few draws may be
_NOT_ITS = "what is stored is not what this teacher says"


@torch.no_grad()
def verify(folder: Path, config_name: str, overrides: Sequence[str], num_rows: int) -> None:
    """Ask a config's teacher again about some rows, evenly spread, and print how far its word is from what is stored.

    Raises:
        UserError: the cache has none of the rows, or its word is another teacher's.
    """
    kind = f"cache.kind={cache.Manifest.read(folder).kind}"
    cfg = checked_config(find_recipe("teacher_cache"), config_name, [*overrides, kind], "all")
    reader = cache.CacheReader(folder)
    device = training.find_device(cfg.device)
    training.use_day(cfg.get("date") or reader.manifest.date)
    built = training.build_models(cfg, device, with_cache=False)
    wanted = training.encoding_for(cfg.cache, built, cfg)
    steps = training.plan_steps(cfg, built, reader.manifest.seed)
    plans = [steps.plan] + ([steps.plan_val] if steps.plan_val else [])
    plan = data.StepPlan.of_teacher(plans, training.tokens_of_a_batch(cfg, plans))
    made = training.describe_cache(cfg, built, steps, reader.encoding, reader.manifest.seed)
    for difference in reader.manifest.differences(made):
        print(f"another teacher than it was made with: {difference}")
    if isinstance(reader.encoding, cache.HiddenEncoding) and wanted != reader.encoding:
        raise UserError(
            f"{folder}: {_NOT_ITS}: its hidden states are {wanted}, those that are stored {reader.encoding}"
        )
    if isinstance(reader.encoding, cache.LikelihoodEncoding) and wanted.vocab_size != reader.encoding.vocab_size:
        sizes = f"{wanted.vocab_size} tokens, what is stored is of {reader.encoding.vocab_size}"
        raise UserError(f"{folder}: {_NOT_ITS}: it knows {sizes}")
    stored, again, scores = _both(reader, plan, built, device, num_rows)
    rows = len(stored)
    if not rows:
        raise UserError(f"{folder}: has none of the rows of {config_name}")
    agreement = cache.Agreement.of(reader.encoding.decode(stored), reader.encoding.decode(again))
    print(f"{counted(rows, 'row')} again: {agreement}")
    is_another = not agreement.mean < _ANOTHER
    if len(scores) > 1:
        mean, error = scores.mean().item(), (scores.std() / len(scores) ** 0.5).item()
        print(f"  what was drawn, by its distribution now: {mean:.2g} nats a token from it, give or take {error:.2g}")
        is_another |= not abs(mean) < max(_ANOTHER, _ERRORS * error)
    if is_another:
        raise UserError(f"{folder}: {_NOT_ITS}")


def _both(
    reader: cache.CacheReader, plan: data.StepPlan, built: Any, device: torch.device, num_rows: int
) -> tuple[list[memoryview], list[bytes], torch.Tensor]:
    """Of some rows what is stored, what the teacher says, and of draws how far they are from its distribution, where
    it tells that: one that is served as draws does not."""
    teacher = built.teacher.itself
    teacher.load(built.student, device)
    stored: list[memoryview] = []
    again: list[bytes] = []
    scores = [torch.zeros(0)]
    missing = 0
    for step in _spread(plan.steps_per_epoch):
        (batch,) = plan.micro_batches(0, step)
        batch = batch.to(device)
        signal = None if teacher.record_kind else teacher(batch)
        said, _ = training.recorded(teacher, reader.encoding, batch, reader.manifest.seed, signal)
        there = (reader.find(batch.record_keys) >= 0).tolist()
        missing += there.count(False)
        of_rows = reader.rows([digest for digest, is_there in zip(batch.record_keys, there, strict=True) if is_there])
        stored += of_rows
        if signal is not None and isinstance(reader.encoding, cache.SampledEncoding):
            starts = itertools.compress(itertools.accumulate(batch.num_supervised, initial=0), there)
            scores += [
                cache.scores_of(reader.encoding.decode([row]), signal, start)
                for row, start in zip(of_rows, starts, strict=True)
            ]
        again += [row for row, is_there in zip(said, there, strict=True) if is_there]
        if len(stored) >= num_rows:
            break
    if missing:
        print(f"{counted(missing, 'row')} of those looked at are not there")
    return stored, again, torch.cat(scores)


def _spread(count: int) -> list[int]:
    """All numbers below ``count``, so that the first few of them are far from one another."""
    bits = max(1, (count - 1).bit_length())
    turned = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [number for number in turned if number < count]
