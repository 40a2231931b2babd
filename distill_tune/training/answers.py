"""What recipes/generate.py does besides asking models: which ones, for what, and what it leaves."""

import dataclasses
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from omegaconf import DictConfig

import distill_tune
from distill_tune import generation
from distill_tune.config.components import build, function_of
from distill_tune.config.files import local_path
from distill_tune.counts import counted
from distill_tune.data.dates import day_of_run
from distill_tune.data.prompts import Prompt
from distill_tune.disk import flush, write_text
from distill_tune.errors import UserError
from distill_tune.generation.answers import FINISHED, Question, Sample, line_of, row_of
from distill_tune.generation.choice import Choice, Filter
from distill_tune.generation.record import Record, sample_key
from distill_tune.generation.requests import require_numbers
from distill_tune.generation.texts import text_of
from distill_tune.training.distributed import from_main_process, is_main_process, num_ranks, rank, wait_for_all
from distill_tune.training.output_check import require_writable
from distill_tune.training.questions import Failed, Reader, read_questions
from distill_tune.training.run_folder import RunFolder
from distill_tune.training.writers import Writer, open_writers

_MADE_BY, _SAMPLES = "generation.json", "samples"
_ANSWERS, _LEFT_OUT, _FAILED = "answers.jsonl", "left_out.jsonl", "failed.jsonl"
_OF_RUNS = ("metrics.jsonl", "checkpoints", "manifest.json", "config.json")  # of folders that are something else


class Prepared(NamedTuple):
    """What is known before a weight is read.

    Attributes:
        by_row: each prompt is for the model that its row names in ``teacher_id``.
    """

    sampling: generation.Sampling
    choice: Choice
    writers: list[Writer]
    questions: list[Question]
    failed: list[Failed]
    by_row: bool


@dataclasses.dataclass(frozen=True)
class MadeBy:
    """generation.json: of what a folder's samples are.

    Attributes:
        models: identity of each, by name.
        date: that the chat template writes.
        package: version that began it.
    """

    models: Mapping[str, Any]
    sampling: Mapping[str, Any]
    seed: int
    date: str | None
    package: str


def find_answers(output_dir: str) -> tuple[Path, MadeBy | None]:
    """The folder of answers, and what those that are there were made by.

    Raises:
        UserError: a folder that cannot be written, or holds something else.
    """
    require_writable("output_dir", output_dir)
    folder = local_path(output_dir)
    return folder, from_main_process(_made_by(folder))


def _made_by(folder: Path) -> MadeBy | None:
    file = folder / _MADE_BY
    if not file.exists():
        if there := [name for name in _OF_RUNS if (folder / name).exists()]:
            raise UserError(f"output_dir={folder}: holds something else, {there[0]}; name another folder for answers")
        return None
    try:
        return MadeBy(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def prepare_answers(cfg: DictConfig, device: torch.device, tokenizer: Any, runs: bool = True) -> Prepared:
    """Models without weights, prompts, and which answers are to be kept: all that can be wrong is told.

    Args:
        device: on which models will be, which decides on their dtypes.
        runs: False leaves out scores and filters of other packages, whose code would be run.
    """
    sampling = build("sampling", cfg.get("sampling"), generation.Sampling())
    choice = _choice(cfg, runs)
    key = cfg.get("generate_with") or ("model" if cfg.get("teacher_model") is None else "teacher_model")
    writers = open_writers(cfg, key, device, tokenizer)
    for writer in writers:
        writer.ends |= frozenset(sampling.stop_token_ids)
    check = getattr(choice.score, "check", None) or (lambda row: None)
    by_row = cfg.get("teacher_combination") == "by_row" and key == "teacher_model"
    readers = {writer.name: Reader(writer.tokenizer, writer.max_seq_len) for writer in writers}
    questions, failed = read_questions(cfg, tokenizer, _prompt_for(cfg, key), readers, check, by_row)
    for writer in writers:
        tokens = [numpy.asarray(question.prompts[writer.name].tokens) for question in questions]
        writer.require_tokens(key, numpy.unique(numpy.concatenate(tokens)))
    if by_row:
        _require_names(questions, writers)
    return Prepared(sampling, choice, writers, questions, failed, by_row)


def _prompt_for(cfg: DictConfig, key: str) -> Prompt:
    """What is written around each user turn."""
    if key == "model":
        return Prompt(cfg.get("student_prompt_template"), None, "student_prompt_template")
    return Prompt(cfg.get("teacher_prompt_template"), cfg.get("teacher_system_prompt"), "teacher_prompt_template")


def _require_names(questions: Sequence[Question], writers: Sequence[Writer]) -> None:
    """
    Raises:
        UserError: a row names no teacher that there is.
    """
    names = [writer.name for writer in writers]
    for question in questions:
        if (found := str(question.row.get("teacher_id"))) not in names:
            raise UserError(f"{question.origin}: teacher_id is {found}; teacher_model has {', '.join(names)}")


def _choice(cfg: DictConfig, runs: bool) -> Choice:
    from distill_tune.config.trust import may_be_called

    filters: dict[str, Filter] = {}
    for number, component in enumerate(cfg.get("filters") or []):
        name = component["_component_"].rpartition(".")[2]
        name = name if name not in filters else f"{name} {number + 1}"
        if runs or may_be_called(component):
            filters[name] = function_of(f"filters.{number}", component)
    score = cfg.get("score")
    of_score = function_of("score", score) if score is not None and (runs or may_be_called(score)) else None
    return Choice(filters, of_score, cfg.get("best_per_prompt", 1), cfg.get("min_score"), cfg.get("thinking", "keep"))


def begin_answers(folder: Path, cfg: DictConfig, prepared: Prepared, seed: int, made: MadeBy | None) -> None:
    """Make the folder, or go on with the one that is there, and keep it from other runs. All ranks call it.

    Args:
        made: of :func:`find_answers`.

    Raises:
        UserError: its samples are of other models, another sampling or seed; it cannot be written, or another run
            writes there.
    """
    identities = {writer.name: dict(writer.identity) for writer in prepared.writers}
    sampling = json.loads(json.dumps(dataclasses.asdict(prepared.sampling)))
    now = MadeBy(identities, sampling, seed, day_of_run(), distill_tune.__version__)
    if made is not None:
        _require_same(folder, made, now)
        now = dataclasses.replace(now, models={**made.models, **identities}, package=made.package)
    RunFolder.of(cfg.output_dir).write_config(cfg, seed)
    if is_main_process():
        write_text(folder / _MADE_BY, json.dumps(dataclasses.asdict(now), indent=2) + "\n")


def _require_same(folder: Path, was: MadeBy, now: MadeBy) -> None:
    """
    Raises:
        UserError: the samples that are there are of other models, another sampling, seed or date.
    """
    others = ", ".join(was.models.keys() - now.models.keys())
    if others and not was.models.keys() & now.models.keys():
        raise UserError(
            f"output_dir={folder}: holds answers of {others}, this config's are of {', '.join(now.models)}; "
            "name another folder"
        )
    if others and is_main_process():
        print(f"output_dir={folder}: has answers of {others}, too, which this config leaves out")
    pairs = {"seed": (was.seed, now.seed), "date": (was.date, now.date)}
    pairs |= {f"sampling.{name}": (was.sampling.get(name), value) for name, value in now.sampling.items()}
    for name in was.models.keys() & now.models.keys():
        of_model = {f"{what} of {name}": (was.models[name].get(what), it) for what, it in now.models[name].items()}
        pairs |= of_model
    for what, (before, value) in pairs.items():
        if before != value:
            raise UserError(
                f"output_dir={folder}: holds answers with {what}={before}, this config has {value}; name another folder"
            )


class Wanted(NamedTuple):
    """A sample that is not there yet."""

    question: Question
    number: int
    key: str
    prompt: tuple[int, ...]

    def request(self, seed: int) -> generation.Request:
        """With a random stream that the prompt and the sample's number decide on, wherever the row stands."""
        of_prompt = int(sample_key({}, 0, self.prompt, 0)[:15], 16)
        return generation.Request(self.prompt, generation.stream_of(seed, 0, of_prompt, self.number))

    def sample(self, completion: generation.Completion, writer: Writer, seed: int) -> Sample:
        """The answer, as it is recorded.

        Raises:
            UserError: the model's logits are no numbers.
        """
        require_numbers(completion, writer.name)
        tokens = list(completion.tokens)
        has_end = completion.finish_reason == FINISHED and tokens[-1:] and tokens[-1] in writer.ends
        text = text_of(writer.tokenizer, tokens[:-1] if has_end else tokens)
        if completion.finish_reason != FINISHED:
            text = text.rstrip("\ufffd")  # of a character that was cut
        log_prob = round(sum(completion.log_probs), 4) if completion.log_probs else None
        return Sample(self.key, writer.name, self.number, seed, completion.finish_reason, tokens, log_prob, text)


class Todo:
    """Which samples of a model are still to be made.

    Args:
        record: of all that are there, whoever made them.
        most: samples of a prompt of which none is right; default ``each``.
    """

    def __init__(
        self, writer: Writer, prepared: Prepared, record: Record, seed: int, each: int, most: int | None = None
    ) -> None:
        self._name, self._is_by_row = writer.name, prepared.by_row
        self._identity = {**writer.identity, "sampling": dataclasses.asdict(prepared.sampling)}
        self._choice, self._record, self._seed = prepared.choice, record, seed
        self._each, self._most = each, most or each
        self._made: dict[str, Sample | None] = {}

    def key(self, question: Question, number: int) -> str:
        return sample_key(self._identity, self._seed, self._tokens(question), number)

    def add(self, sample: Sample) -> None:
        """One that is there from now on."""
        self._made[sample.key] = sample if self._most > self._each else None  # which is not asked for again

    def of(self, question: Question) -> list[Wanted]:
        """Those that the prompt lacks."""
        keys = ((number, self.key(question, number)) for number in range(self._upto(question)))
        tokens = self._tokens(question)
        return [Wanted(question, number, key, tokens) for number, key in keys if not self._is_there(key)]

    def more(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """What is lacking of the same prompts by now."""
        questions = {one.question.number: one.question for one in wanted}
        return [one for question in questions.values() for one in self.of(question)]

    def samples(self, question: Question) -> list[Sample]:
        """Those that are there."""
        keys = (self.key(question, number) for number in range(self._upto(question)))
        return [self._sample(key) for key in keys if self._is_there(key)]

    def _upto(self, question: Question) -> int:
        """So many samples, and more as long as all of those are there and none is right."""
        if self._is_by_row and self._name != str(question.row.get("teacher_id")):
            return 0
        count = self._each
        while count < self._most:
            keys = [self.key(question, number) for number in range(count)]
            if not all(map(self._is_there, keys)) or any(self._is_right(question, key) for key in keys):
                break
            count = min(count + self._each, self._most)
        return count

    def _tokens(self, question: Question) -> tuple[int, ...]:
        """Of the prompt, as the model reads it."""
        return question.prompts[self._name].tokens

    def _is_right(self, question: Question, key: str) -> bool:
        return self._choice.is_right(question, self._sample(key))

    def _is_there(self, key: str) -> bool:
        return key in self._made or key in self._record

    def _sample(self, key: str) -> Sample:
        """By the model's present name."""
        return dataclasses.replace(self._made.get(key) or self._record[key], model=self._name)


def of_this_rank(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Every so manieth prompt's, of what all ranks have found alike."""
    numbers = {number: place for place, number in enumerate(dict.fromkeys(one.question.number for one in wanted))}
    return [one for one in wanted if numbers[one.question.number] % num_ranks() == rank()]


def finish_answers(folder: Path, cfg: DictConfig, prepared: Prepared, seed: int) -> str:
    """Wait for all ranks, choose among all samples, and write what is kept; what to tell of it. All ranks call it."""
    wait_for_all()
    told = _finish(folder, cfg, prepared, seed) if is_main_process() else ""
    wait_for_all()
    return told


def _finish(folder: Path, cfg: DictConfig, prepared: Prepared, seed: int) -> str:
    record, lacking, shown = Record(folder / _SAMPLES), 0, list[str]()
    each, most = cfg.get("samples_per_prompt", 1), cfg.get("max_samples_per_prompt")
    todos = [Todo(writer, prepared, record, seed, each, most) for writer in prepared.writers]
    kept, left_out = folder / f".{_ANSWERS}.partial", folder / f".{_LEFT_OUT}.partial"
    try:
        with kept.open("w", encoding="utf-8") as answers, left_out.open("w", encoding="utf-8") as others:
            for question in prepared.questions:
                lacking += sum(len(todo.of(question)) for todo in todos)
                samples = [sample for todo in todos for sample in todo.samples(question)]
                for chosen in prepared.choice.of(question, samples):
                    row = row_of(question, chosen.sample, chosen.answer, chosen.score)
                    row = {**row, "left_out_by": chosen.taken_by} if chosen.taken_by else row
                    if cfg.get("prompt") is not None and not chosen.taken_by:
                        shown.append(f"{chosen.answer.text}\n")
                    (others if chosen.taken_by else answers).write(line_of(row))
        for path, name in ((kept, _ANSWERS), (left_out, _LEFT_OUT)):
            flush(path)
            os.replace(path, folder / name)
        lines = "".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in prepared.failed)
        write_text(folder / _FAILED, lines)
    except OSError as error:
        kept.unlink(missing_ok=True)
        raise UserError(
            f"output_dir={folder}: {error.strerror}; what was answered is kept: free some, and the same command goes on"
        ) from error
    return "\n".join([*shown, *_told(folder, prepared, lacking)])


def _told(folder: Path, prepared: Prepared, lacking: int) -> Iterator[str]:
    yield prepared.choice.told()
    yield f"  {folder / _ANSWERS}  rows for distill_tune.data.chat"
    if prepared.choice.taken.total() > prepared.choice.taken[""]:
        yield f"  {folder / _LEFT_OUT}  what is left out, and by what"
    if prepared.failed:
        num_failed = counted(len(prepared.failed), "row")
        yield f"  {folder / _FAILED}  {num_failed} that could not be asked; the same command tries again"
    if lacking:
        yield f"  {lacking:,} samples are not there yet; the same command goes on"
    source = f"dataset={{_component_: distill_tune.data.chat, source: {folder / _ANSWERS}}}"
    yield f"train from it: distill-tune run kd_single_device --config {_config_given()} \\\n    {shlex.quote(source)}"


def _config_given() -> str:
    """The config of this run, as a command names it."""
    after = itertools.dropwhile(lambda argument: argument != "--config", sys.argv)
    return shlex.quote(next(itertools.islice(after, 1, None), "CONFIG"))
