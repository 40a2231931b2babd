"""What recipes/teacher_cache.py does besides asking the teacher: which cache, of what, and what it leaves."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

import distill_tune
from distill_tune import cache, data, models, teachers
from distill_tune.cache.shard import shard_files
from distill_tune.config.files import local_path
from distill_tune.counts import counted
from distill_tune.data.dates import day_of_run
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.errors import UserError, one_line
from distill_tune.losses import LinearProjection
from distill_tune.models.vocabulary import Vocabulary, written_by
from distill_tune.secrets import plain_config
from distill_tune.training.distributed import from_main_process, is_main_process, wait_for_all
from distill_tune.training.loss_check import loss_of
from distill_tune.training.output_check import require_writable
from distill_tune.training.state import PATHS, content_of

_PATHS = PATHS | {"output_dir", "name"}  # mean nothing where content is known
_FIELDS = {
    "sampled": ("draws", "temperature", "proposal_temperature"),
    "top_k": ("k", "temperature"),
    "hidden": (),
    "likelihood": ("temperature",),
}
_BETWEEN_TOKENIZERS = (cache.HiddenEncoding.kind, cache.LikelihoodEncoding.kind)
_FOLLOWS_STUDENT = (teachers.EMA, teachers.BaseModel, teachers.EarlierCheckpoint)


def find_cache(output_dir: str) -> tuple[Path, cache.Manifest | None]:
    """The folder of a cache, and the manifest of what is there already.

    Raises:
        UserError: a folder that cannot be written, or that another run writes to, or holds something else, or a
            manifest that cannot be read.
    """
    require_writable("output_dir", output_dir)
    folder = local_path(output_dir)
    if is_main_process():
        cache.require_free(folder)
    return folder, from_main_process(cache.cache_there(folder))


def encoding_for(settings: DictConfig, built: Any, cfg: DictConfig) -> cache.AnyEncoding:
    """How records of the ``cache`` section's kind are kept.

    Raises:
        UserError: no teacher, one that follows the student, or one of which nothing of this kind can be kept.
    """
    teacher = built.teacher.itself
    if cfg.get("teacher_model") is None or type(teacher) is teachers.Teacher:
        raise UserError("teacher_model: missing, or kd_ratio=0 trains without it: there is nothing to store")
    for one, _ in teacher.each(data.Shape((), ())):
        if isinstance(one, teachers.Cached):
            raise UserError("teacher_model: distill_tune.teachers.Cached is a cache already; name the teacher itself")
        if isinstance(one, teachers.Served):
            _require_as_served(one, settings, teacher, cfg.get("temperature", 1.0))
        if isinstance(one, _FOLLOWS_STUDENT):
            raise UserError(f"teacher_model: {type(one).__name__} follows the student; it cannot be stored before")
    is_several = isinstance(teacher, teachers.SeveralTeachers)
    combination = cfg.get("teacher_combination", "mixture") if is_several else None
    if combination == "sum":
        raise UserError("teacher_combination=sum: each teacher has a word of its own; make a cache of each one alone")
    kind, size = settings["kind"], built.common_vocab_size or models.output_head(built.student).vocab_size
    if built.teacher.other_tokenizers and (is_several or kind not in _BETWEEN_TOKENIZERS):
        what = f"combination={combination}" if is_several else f"cache.kind={kind}"
        raise UserError(
            f"{what}: the teacher's tokenizer is not that of the rows; keep one alone, with cache.kind=hidden, "
            "or likelihood for ChunkLikelihood"
        )
    if kind == cache.LikelihoodEncoding.kind:
        if not built.teacher.other_tokenizers:
            raise UserError(
                f"cache.kind={kind}: is for a teacher of another tokenizer, and this one has the student's; take "
                "sampled, top_k or hidden"
            )
        size = teacher.vocab_size  # type: ignore[attr-defined]
    if kind == cache.HiddenEncoding.kind:
        if is_several:
            raise UserError(
                f"cache.kind=hidden: of several teachers ({combination}) take sampled or top_k, or one each"
            )
        return cache.HiddenEncoding(teacher.vocab_size, teacher.width)  # type: ignore[attr-defined]
    chosen = {name: settings[name] for name in _FIELDS[kind] if settings.get(name) is not None}
    if teacher.record_kind:
        chosen |= teacher.settings
    if "temperature" not in chosen:
        chosen["temperature"] = cfg.get("temperature", 1.0)
        if not isinstance(chosen["temperature"], int | float):
            raise UserError(
                f"temperature: a schedule, and a {kind} record serves one temperature; take cache.kind=hidden, or "
                "cache.temperature"
            )
    for name in ("temperature", "proposal_temperature"):
        if name in chosen:
            chosen[name] = float(chosen[name])
    if chosen.get("k", 0) >= size:
        raise UserError(
            f"cache.k={chosen['k']}: must be below the {size:,} tokens of the vocabulary; cache.kind=hidden keeps all "
            "that the teacher says"
        )
    try:
        return cache.encoding_of(kind, {"vocab_size": size} | chosen)
    except ValueError as error:
        raise UserError(f"cache.{one_line(error)}") from error


def remark_on_size(encoding: cache.Encoding, teacher: teachers.Teacher) -> str | None:
    """What to tell where hidden states, which serve more, would take less of the disk."""
    width, most = getattr(teacher, "width", 0), encoding.bytes_of_position()[1]
    if not isinstance(encoding, cache.TopEncoding) or not 0 < 2 * width < most:
        return None
    return (
        f"cache.k={encoding.k}: takes {most:.0f} bytes a token; cache.kind=hidden would take {2 * width} bytes, and "
        "serve every divergence and temperature"
    )


def _require_as_served(
    one: teachers.Served, settings: DictConfig, teacher: teachers.Teacher, temperature: float
) -> None:
    """
    Args:
        temperature: of the loss, at which it is served.

    Raises:
        UserError: a record that is served is to be stored as another.
    """
    if one.kind == cache.HiddenEncoding.kind:
        return
    told, otherwise = f"teacher_model.kind={one.kind}: what is served is a record already", "take teacher_model.kind="
    if teacher is not one or settings["kind"] != one.kind:
        raise UserError(
            f"{told}, and cache.kind={settings['kind']} another; {otherwise}hidden, of which any kind can be stored"
        )
    its = one.settings | {"temperature": temperature}
    for name in _FIELDS[one.kind]:
        if settings.get(name) not in (None, its.get(name)):
            raise UserError(f"{told}, with {name}={its.get(name)}; leave cache.{name}={settings[name]} out")


@torch.no_grad()
def recorded(
    teacher: teachers.Teacher, encoding: cache.AnyEncoding, batch: data.Batch, seed: int, signal: Any = None
) -> tuple[list[bytes], LinearProjection | None]:
    """Ask a teacher about a batch.

    Args:
        signal: what it has said already.

    Returns:
        The record of each row, and the output layer of hidden states.
    """
    if teacher.record_kind:
        assert isinstance(teacher, teachers.Served) and teacher.encoding == encoding
        return teacher.records(batch), None
    signal = teacher(batch) if signal is None else signal
    num_positions = batch.num_supervised if batch.digests else ()
    rows = cache.encoded(encoding, signal, batch.digests, num_positions, seed, targets=batch.learned)
    return rows, signal.projection if encoding.kind == cache.HiddenEncoding.kind else None


def tokens_of_a_batch(cfg: DictConfig, plans: Sequence[data.StepPlan]) -> int:
    """As many as training has in a micro-batch of the longest rows: what the device is known to hold."""
    if cfg.get("max_tokens_per_batch") is not None:
        return int(cfg.max_tokens_per_batch)
    read = [rows.as_teacher_reads.lengths for plan in plans for rows in plan.datasets]
    return int(cfg.batch_size) * max(int(lengths.max()) for lengths in read)


def begin_cache(
    folder: Path, cfg: DictConfig, built: Any, steps: Any, encoding: cache.AnyEncoding, seed: int
) -> cache.Manifest:
    """:func:`distill_tune.cache.begin` by the main process; all ranks call it.

    Raises:
        UserError: see there; a loss that this kind does not serve; prompts that change each time.
    """
    require_serving(encoding, cfg)
    teachers.require_lasting_prompts("augmentations", steps.plan.datasets, bool(cfg.get("augmentations")))
    if is_main_process() and (remark := remark_on_size(encoding, built.teacher)):
        print(remark)
    manifest = describe_cache(cfg, built, steps, encoding, seed)
    return begin_described(folder, manifest, vocabulary_of(built))


def require_serving(encoding: cache.AnyEncoding, cfg: DictConfig) -> None:
    """
    Raises:
        UserError: a run with this config could not train from what is to be stored.
    """
    if loss := loss_of(cfg):
        teachers.require_served_by(encoding, f"cache.kind={encoding.kind}", *loss)


def begin_described(
    folder: Path, manifest: cache.Manifest, vocabulary: Vocabulary | None, key: str = "output_dir"
) -> cache.Manifest:
    """
    Args:
        vocabulary: to be kept beside the records.
    """
    if is_main_process():
        manifest = cache.begin(folder, manifest, key)
        if vocabulary is not None:
            cache.write_vocabulary(folder, vocabulary)
    return from_main_process(manifest)


def describe_cache(cfg: DictConfig, built: Any, steps: Any, encoding: cache.AnyEncoding, seed: int) -> cache.Manifest:
    """The manifest of a cache that this config would make. All ranks call it."""
    vocabulary, tokenizer = vocabulary_of(built), _tokenizer_of_rows(built)
    template = getattr(getattr(tokenizer, "transformers_tokenizer", None), "chat_template", None)
    return cache.Manifest(
        kind=encoding.kind,
        settings=cache.settings_of(encoding),
        seed=seed,
        teacher=describe_teacher(cfg, built.teacher.names, steps.identity_with(built).get(content_of("teacher_model"))),
        tokenizer=None if vocabulary is None else cache.fingerprint_of(vocabulary),
        template=None if template is None else cache.fingerprint_of(str(template)),
        date=day_of_run(),
        package=distill_tune.__version__,
    )


def describe_teacher(cfg: DictConfig, names: Sequence[str], content: str | None) -> dict[str, Any]:
    """What decides on a teacher's word: weights by content, and every setting but where they lie."""
    plain = plain_config(cfg)
    return {
        "content": content,
        "model": _without_paths(plain["teacher_model"]),
        "dtype": cfg.get("teacher_dtype") or cfg.dtype,
        "quantizer": plain.get("teacher_quantizer"),
        "combination": plain.get("teacher_combination"),
        "names": list(names) or None,  # by which rows choose, in the order of their keys
    }


def _without_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_paths(value) for key, value in node.items() if key not in _PATHS}
    return [_without_paths(value) for value in node] if isinstance(node, list) else node


def vocabulary_of(built: Any) -> Vocabulary | None:
    """Of the teacher, or of what writes the rows; None where neither can be read."""
    for folder in built.teacher.itself.folders:
        if (found := Vocabulary.of(folder)) is not None:
            return found
    return written_by(_tokenizer_of_rows(built)) or Vocabulary.of(built.student_checkpoint.folder)


def _tokenizer_of_rows(built: Any) -> Any:
    """That writes the rows which the teacher is asked about."""
    own = [other.tokenizer for other in built.teacher.other_tokenizers]
    return own[0] if own else built.tokenizer


def write_output_layer(folder: Path, projection: LinearProjection | None) -> None:
    """The teacher's, where it has one to be kept, by the main process, where it is not there yet. It must be gathered.

    Raises:
        UserError: it is no plain matrix.
    """
    if projection is not None and is_main_process() and not (folder / cache.OUTPUT_LAYER).exists():
        cache.write_output_layer(folder, projection)


def _record_keys(plan: data.StepPlan) -> Iterator[bytes]:
    for rows in plan.datasets:
        yield from rows.as_teacher_reads.record_keys


def finish_cache(
    folder: Path, manifest: cache.Manifest, plans: Sequence[data.StepPlan], others: Sequence[OtherTokenizer] = ()
) -> str:
    """Wait for all ranks' shards and list them; what to tell of the cache, and how to train from it.

    Args:
        others: the teacher's own tokenizer, where that of the rows is another: a cache has none.

    Raises:
        UserError: rows that other processes were to write are not there.
    """
    wait_for_all()
    if is_main_process():
        written = cache.CacheWriter(folder)
        if lacking := sum(written.lacks([row]) for plan in plans for row in _record_keys(plan)):
            raise UserError(
                f"output_dir={folder}: lacks {lacking:,} rows that other processes have written; name a folder that "
                "all machines share"
            )
        fingerprints = [rows.fingerprint for plan in plans for rows in plan.datasets]
        manifest = cache.finish(folder, manifest, fingerprints)
    manifest = from_main_process(manifest)
    each = manifest.num_bytes / max(1, manifest.num_positions)
    keys = [f"teacher_model={{_component_: distill_tune.teachers.Cached, path: {folder}}}"]
    for other in others:
        component = OmegaConf.to_container(other.config, resolve=True)
        keys.append(
            f"+teacher_tokenizer={yaml.safe_dump(component, default_flow_style=True, width=sys.maxsize).strip()}"
        )
    return (
        f"done: {manifest.num_rows:,} rows, {manifest.num_positions:,} supervised tokens, {each:.1f} bytes each\n"
        f"  {folder}  {counted(len(shard_files(folder)), 'shard')} of kind {manifest.kind}\n"
        f"train from it: {shlex.join(keys)}"
    )
