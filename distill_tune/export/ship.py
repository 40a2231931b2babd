"""One export from its first check to the folder under its name."""

import dataclasses
import datetime
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import distill_tune
from distill_tune.config.files import model_at
from distill_tune.data.ends import exported_stops
from distill_tune.disk import put_in_place
from distill_tune.errors import UserError, one_line
from distill_tune.export.before import remarks
from distill_tune.export.card import model_card
from distill_tune.export.check import Check
from distill_tune.export.compared import NONE, Agreement, compare
from distill_tune.export.formats import Format, find_format
from distill_tune.export.record import FAILED, RECORD, write_record
from distill_tune.export.settings import Settings, require_size
from distill_tune.export.source import Source, name_of, open_source
from distill_tune.export.texts import rows_for
from distill_tune.qat.note import trained_for
from distill_tune.training.device import dtype_name, find_device

_AS_TRAINED = 0.05  # nats a token from the student as it was trained: its embeddings may be rounded all the same
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Result:
    """
    Attributes:
        folder: where it lies: under a name that ends in ``.failed`` where a check has not passed.
        remarks: what was told before it was written.
        checks: what was found when it was opened again.
        tool: by which.
        agreement: with the source.
        files: sizes in bytes, by name.
        bits_per_weight: of the files of weights; None of an adapter, which has but some, and of GGUF, which says so.
    """

    folder: Path
    remarks: Sequence[str]
    checks: Sequence[Check]
    tool: str
    agreement: Agreement
    files: Mapping[str, int]
    bits_per_weight: float | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def export(
    path: Path,
    to: str,
    output: Path | None = None,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    base_model: str | None = None,
    llama_cpp: Path | None = None,
    max_kl: float | None = None,
) -> Result:
    """Write a model in a format, open it by the tool that it is for, compare both, and give it its name.

    Args:
        path: a run's output_dir, a Hugging Face folder, an adapter's, or a checkpoint of a run.
        to: ``hf``, ``torchao:int8``, ...; see :data:`~distill_tune.export.formats.FORMATS`.
        output: by default exports/ and the names of source and format. An earlier export there is replaced.
        dtype: of the weights, bf16, fp32 or fp16; by default the source's own, of torchao's formats bf16.
        max_kl: of the exported model from its source, nats a token; by default the format's.

    Raises:
        UserError: before anything is written: there is no such format or model, or the format cannot hold it.
    """
    require_size(max_shard_size)
    form, kind = find_format(to, any_gguf=llama_cpp is not None)
    output = output or Path("exports") / f"{name_of(path)}-{to.replace(':', '-')}"
    _require_place(output, path)
    beside = output.with_name(f"{output.name}.partial")  # also has what is written on the way there
    shutil.rmtree(beside, ignore_errors=True)
    try:
        source = open_source(path, form.holds_factors, room=beside / f"{output.name}.source")
        settings = Settings(kind, _dtype(form, source, to, dtype), max_shard_size, base_model, llama_cpp)
        result = _shipped(source, to, form, settings, output, beside / output.name, max_kl)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files = [file for file in sorted(result.folder.rglob("*")) if file.is_file()]
    sizes = {file.relative_to(result.folder).as_posix(): file.stat().st_size for file in files}
    of_weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    bits = None if form.holds_factors or not of_weights else 8 * of_weights / source.num_parameters
    return dataclasses.replace(result, files=sizes, bits_per_weight=bits)


def _shipped(
    source: Source, to: str, form: Format, settings: Settings, output: Path, partial: Path, max_kl: float | None
) -> Result:
    """
    Args:
        partial: where it is written.
    """
    told = [*remarks(source, to, form.holds_factors), *form.check(source, settings)]
    for line in told:
        print(line)
    rows, device, scheme = rows_for(source), find_device("auto"), source.scheme_for(to)
    if scheme is not None:
        rows = dataclasses.replace(rows, told=f"{rows.told}, from the student rounded as it was trained")
    if max_kl is None:
        max_kl = _AS_TRAINED if scheme else form.max_kl(source, settings)
    logits = source.logits(rows.tokens, device, scheme)
    partial.parent.mkdir(parents=True, exist_ok=True)
    for line in form.write(source, partial, settings):
        print(line)
    stops = exported_stops(source.tokenizer, source.checkpoint.folder, source.vocab_size)
    try:
        opened = form.open(source, partial, settings, device)
        checks, agreement = compare(source, stops, logits, rows, opened, max_kl)
        tool = opened.tool
        del opened
    except Exception as error:  # of whatever tool it is
        checks, agreement, tool = [Check("opened", f"{type(error).__name__}: {one_line(error)}", False)], NONE, to
    failed = output.with_name(f"{output.name}{FAILED}")
    result = Result(output, told, checks, tool, agreement, {})
    if not result.passed:
        result = dataclasses.replace(result, folder=failed)
    write_record(partial, _record(source, to, settings, result))
    card = model_card(source, to, settings, tool, agreement)
    (partial / "README.md").write_text(card, encoding="utf-8")
    put_in_place(partial, result.folder)
    if result.passed and (failed / RECORD).is_file():
        shutil.rmtree(failed)
    return result


def _dtype(form: Format, source: Source, to: str, name: str | None) -> torch.dtype:
    """That which the user names, or the format's; weights that were trained for a rounding keep theirs until it.

    Raises:
        UserError: the format keeps its weights' own.
    """
    if name is not None and form.holds_factors:
        raise UserError(f"--dtype {name}: {to} keeps its weights as they are; leave it out")
    if name is not None:
        return DTYPES[name]
    chosen = source.dtype if trained_for(source.folder) else form.dtype or source.dtype
    return chosen if chosen in DTYPES.values() else torch.float32


def _require_place(output: Path, path: Path) -> None:
    """
    Raises:
        UserError: something else lies there than an earlier export.
    """
    is_source = output.resolve() in (path.resolve(), model_at(path).resolve())
    if output.exists() and (is_source or not (output / RECORD).is_file()):
        raise UserError(f"--output {output}: is there already, and no earlier export; name another folder")


def _record(source: Source, to: str, settings: Settings, result: Result) -> dict[str, Any]:
    """What the folder says of itself, for `upload` and for whoever finds it."""
    return {
        "version": 1,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "made_by": f"distill-tune {distill_tune.__version__}",
        "source": source.name,
        "format": to,
        "dtype": dtype_name(settings.dtype),
        "opened_by": result.tool,
        "passed": result.passed,
        "checks": [dataclasses.asdict(check) for check in result.checks],
        "agreement": {name: value if math.isfinite(value) else None for name, value in vars(result.agreement).items()},
    }
