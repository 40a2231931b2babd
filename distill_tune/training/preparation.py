"""What comes before the first weight is read: the run's folder, models on the meta device, rows as a plan of steps.

Recipes begin with these functions, and `distill-tune validate` and `plan` call no others, so that each tells what is
wrong as the others do. A key that they read is valid in each recipe that calls them (:mod:`distill_tune.config.keys`).
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import data, losses, models, qat, teachers
from distill_tune.config.components import build
from distill_tune.config.values import needs_teacher
from distill_tune.disk import SHOWN_DIGITS, short_digest
from distill_tune.errors import CollectedFaults, FinishedRun, UserError
from distill_tune.launch import is_restarted
from distill_tune.training.cache_of_run import behind_cache, prepare_cache
from distill_tune.training.checkpoints import Checkpoints
from distill_tune.training.device import find_dtype
from distill_tune.training.distributed import (
    first_of_each_machine_first,
    from_main_process,
    is_main_process,
    leave,
    num_ranks,
    rank,
    require_same_on_all_ranks,
)
from distill_tune.training.loss_check import check_losses, loss_of
from distill_tune.training.optimizer import check_lr_scheduler, check_optimizer
from distill_tune.training.output_check import check_outputs
from distill_tune.training.run_folder import RunFolder
from distill_tune.training.schedules import Schedules
from distill_tune.training.state import TrainingState, content_of
from distill_tune.training.tokenizer_check import check_tokenizer
from distill_tune.training.warm_up import schedule_remarks
from distill_tune.training.write_through import WriteThrough

from torchtune.modules import TransformerDecoder


class Models(NamedTuple):
    """Student and teacher, without weights, and what they share.

    Attributes:
        hidden_loss: a :class:`~distill_tune.losses.HiddenLoss`; both keep the hidden states that it pairs.
        common_vocab_size: how many tokens both know, from the first on; None where that is all.
    """

    student: TransformerDecoder
    student_checkpoint: models.Checkpoint
    tokenizer: Any
    teacher: teachers.Teacher
    hidden_loss: losses.HiddenLoss
    common_vocab_size: int | None


class Steps(NamedTuple):
    """Which rows make which step, how many steps there are, and the loss's weights at each."""

    plan: data.StepPlan
    plan_val: data.StepPlan | None
    steps_per_epoch: int
    total_steps: int
    schedules: Schedules

    def identity_with(self, built: Models) -> dict[str, Any]:
        """What a resumed run must have as it was: rows, their order, the weights that student and teacher start from.

        Weights by what they are, wherever they lie. Every rank calls it; the main process reads them.
        """
        files = {"model": built.student_checkpoint.all_files, "teacher_model": built.teacher.files}
        contents = {
            content_of(model): short_digest(files[model]) if is_main_process() else ""
            for model in files
            if files[model]
        }
        if content := built.teacher.content:
            name = content_of("teacher_model")
            if name in contents:  # of several teachers, some of which have files
                content = hashlib.sha256(f"{contents[name]} {content}".encode()).hexdigest()
            contents[name] = content[:SHOWN_DIGITS]
        if others := built.teacher.other_tokenizers:
            of_tokens = " ".join(other.content for other in others)
            contents[content_of("teacher_tokenizer")] = hashlib.sha256(of_tokens.encode()).hexdigest()[:SHOWN_DIGITS]
        return self.plan.identity | {"steps an epoch": self.steps_per_epoch} | from_main_process(contents)


def open_run(cfg: DictConfig) -> tuple[RunFolder, Checkpoints, Path | None, TrainingState | None]:
    """``output_dir``, its checkpoints, and the one to resume from with its state, where there is one.

    Raises:
        UserError: what is to be written cannot be (:func:`~distill_tune.training.output_check.check_outputs`); the
            folder holds a run and a fresh start is asked for, or it does not hold what is to be resumed.
        FinishedRun: the run that is to go on has come to its end with these settings.
    """
    run = RunFolder.of(cfg.output_dir)
    checkpoints = Checkpoints(run, cfg.get("keep_last_n"), cfg.get("keep_best"))
    resume = cfg.get("resume")
    resume = cfg.get("resume_from_checkpoint", False) if resume is None else resume
    if (resume in ("auto", True) or is_restarted()) and (step := run.last_step(cfg)) is not None:
        leave()
        raise FinishedRun(
            f"output_dir={run.path}: this run came to its end with step {step}; nothing is left to do "
            "(more epochs go on from there, another folder begins anew)"
        )
    faults, checkpoint = CollectedFaults("what is written"), None
    with faults:
        check_outputs(cfg)
    with faults:
        checkpoint = checkpoints.to_resume(resume)
    faults.tell()
    if checkpoint is None:
        return run, checkpoints, None, None
    state = TrainingState.read(checkpoint)
    state.require_same_config(checkpoint, cfg, cfg.get("resume_with_changes", False))
    return run, checkpoints, checkpoint, state


def build_models(cfg: DictConfig, device: torch.device, needs_weights: bool = True, with_cache: bool = True) -> Models:
    """Student, teacher and tokenizer, compared with their checkpoints and with each other.

    Args:
        device: on which they will be, which decides on their dtypes.
        needs_weights: False where shapes are all that is asked for.
        with_cache: False where the teacher itself is asked, whatever ``teacher_cache`` has of it.

    Raises:
        UserError: one of them cannot be built, does not fit its checkpoint, or not the other; the optimizer refuses
            its arguments. What is wrong with each is told together.
    """
    faults = CollectedFaults("models, tokenizer, losses and optimizer")
    with faults:
        check_optimizer(cfg.optimizer)
    with faults:
        check_losses(cfg)
    with faults:
        hidden_loss = build("hidden_loss", cfg.get("hidden_loss"), losses.HiddenLoss([], weight=0))
    with faults:
        scheme = _build_scheme(cfg)
    with faults:
        student_checkpoint = models.open_checkpoint("model", cfg.model, cfg.get("checkpointer"), needs_weights)
        student = models.checked_on_meta("model", cfg.model, student_checkpoint, find_dtype(cfg.dtype, device))
    with faults:
        tokenizer = build("tokenizer", cfg.tokenizer)
    with faults:
        teacher = teachers.build_teacher(
            cfg.get("teacher_model") if needs_teacher(cfg) else None,
            cfg.get("teacher_checkpointer"),
            dtype=find_dtype(cfg.get("teacher_dtype") or cfg.dtype, device),
            combination=cfg.get("teacher_combination", "mixture"),
            quantizer=cfg.get("teacher_quantizer"),
            offload=cfg.get("teacher_offload", False),
            needs_weights=needs_weights,
        )
    faults.tell()
    teacher = teachers.with_own_tokenizers(
        teacher,
        cfg.get("teacher_tokenizer"),
        tokenizer,
        cfg.tokenizer,
        models.output_head(student).vocab_size,
        student_checkpoint.folder,
    )
    if teacher.other_tokenizers and cfg.get("hidden_loss") is not None:
        raise UserError(
            "hidden_loss: it compares hidden states token by token, and the tokenizer of teacher_model is not that of "
            "the rows; leave it out"
        )
    _require_loss(cfg, teacher)
    vocab_size = teacher.check(student, student_checkpoint, tokenizer)
    common_vocab_size = None if vocab_size is None else models.common_vocabulary(student, vocab_size)
    built = Models(student, student_checkpoint, tokenizer, teacher, hidden_loss, common_vocab_size)
    if with_cache and cfg.get("teacher_cache") is not None and needs_teacher(cfg):
        built = built._replace(teacher=behind_cache(cfg, built))
        _require_loss(cfg, built.teacher)
    models.match_layers(student, built.teacher, hidden_loss)
    if scheme is not None:  # last: a teacher that is a copy of the student is to be as it is
        qat.prepare(student, scheme, cfg.get("fake_quant_after_n_steps") or 0)
    return built


def _build_scheme(cfg: DictConfig) -> qat.Scheme | None:
    """How the student's weights are rounded while it trains.

    Raises:
        UserError: the component refuses its arguments, or is none that does that.
    """
    component = cfg.get("quantizer")
    scheme = build("quantizer", component)
    if scheme is None or isinstance(scheme, qat.Scheme):
        return scheme
    raise UserError(
        f"quantizer={component['_component_']}: none that a student trains with; there are Q4_0, Q8_0, "
        "Int8DynActInt4Weight and Int4WeightOnly of distill_tune.qat (for a teacher's weights set teacher_quantizer)"
    )


def _require_loss(cfg: DictConfig, teacher: teachers.Teacher) -> None:
    """
    Raises:
        UserError: the teacher's signal cannot serve the config's losses; of code from elsewhere the loss itself tells.
    """
    if loss := loss_of(cfg):
        if teacher.shares_tokenizer and needs_teacher(cfg) and (reason := losses.unserved("logits", loss[0])):
            raise UserError(f"kd_loss: {reason}; leave it out")
        teacher.require_loss(*loss)


def reading_of(cfg: DictConfig, teacher_names: Sequence[str], shares_tokenizer: bool = True) -> data.Reading:
    """What student and teachers read of each row.

    Args:
        teacher_names: by which rows choose; empty where they do not.
        shares_tokenizer: whether a teacher reads the tokens of the rows.
    """
    return data.Reading(
        cfg.get("student_prompt_template"),
        cfg.get("teacher_prompt_template"),
        cfg.get("teacher_system_prompt"),
        cfg.get("teacher_max_seq_len"),
        tuple(teacher_names),
        augmented=bool(cfg.get("augmentations")),
        prompts_alone=_writes_all_answers(cfg),
        shares_tokenizer=shares_tokenizer,
    )


@contextlib.contextmanager
def _telling_of_prompts(cfg: DictConfig, reading: data.Reading) -> Iterator[None]:
    """Rows that are refused for want of an answer would not be with other rollouts: which, is told below them."""
    try:
        yield
    except UserError as error:
        if cfg.get("rollouts") is None or reading.prompts_alone or "answer" not in str(error):
            raise
        raise UserError(
            f"{error}\n  with rollouts.lmbda below 1 some rows are learned as they are: those without an answer need "
            "rollouts.lmbda=1, or rollouts.seq_kd=True, which has the teacher write it"
        ) from error


def _writes_all_answers(cfg: DictConfig) -> bool:
    """Whether no answer of the data's is learned, since student or teacher write all of them anew."""
    rollouts = cfg.get("rollouts")
    return rollouts is not None and (rollouts.get("lmbda", 1.0) == 1 or bool(rollouts.get("seq_kd", False)))


def plan_steps(cfg: DictConfig, built: Models, seed: int, processes: int | None = None) -> Steps:
    """Read, check and tokenise the rows; what is told of them is printed, a line or some for each dataset.

    Args:
        processes: that would share each step; default those that are there.

    Raises:
        UserError: rows that cannot be used, are too long for a model, or fill no step; a schedule that leaves its
            range, or one of the learning rate that cannot be taken through the run.
    """
    reading = reading_of(cfg, built.teacher.names, built.teacher.shares_tokenizer)
    augmentations = data.Augmentations(
        [build("augmentations", entry) for entry in cfg.get("augmentations") or []],
        built.tokenizer,
        seed,
        built.common_vocab_size or models.output_head(built.student).vocab_size,
    )

    def plan_of(
        dataset: DictConfig | ListConfig, batch_size: int | None, accumulation: int, training_rows: bool
    ) -> data.StepPlan:
        with first_of_each_machine_first() as is_first, _telling_of_prompts(cfg, reading):
            rows, shares = data.prepare_rows(
                dataset,
                built.tokenizer,
                cfg.tokenizer,
                key="dataset" if training_rows else "dataset_val",
                on_bad_row=cfg.get("on_bad_row", "stop"),
                reading=reading if training_rows else reading.with_answers,
                others=built.teacher.other_tokenizers,
                check_kept=is_first,
            )
        plan = data.StepPlan(
            rows,
            weights=shares,
            batch_size=batch_size,
            max_tokens_per_batch=cfg.get("max_tokens_per_batch") if batch_size is None else None,
            gradient_accumulation_steps=accumulation,
            seed=seed,
            shuffle=training_rows and cfg.get("shuffle", True),
            augmentations=augmentations if training_rows else None,
            dataset_temperature=cfg.get("dataset_temperature") if training_rows else None,
            rank=rank(),
            num_ranks=processes or num_ranks(),
        )
        print(data.describe_rows(rows, are_prompts=training_rows and reading.prompts_alone))
        require_same_on_all_ranks("dataset", plan.identity)
        models.require_rows("model", built.student, plan.longest, plan.largest_token)
        built.teacher.require_rows(plan.longest_of_teacher, plan.used_tokens)
        built.teacher.require_signals(rows, training_rows and bool(augmentations))
        return plan

    plan = plan_of(cfg.dataset, cfg.batch_size, cfg.get("gradient_accumulation_steps", 1), True)
    check_tokenizer(built.tokenizer, built.student, built.student_checkpoint, built.teacher.folders, plan.used_tokens)
    plan_val = None
    if cfg.get("dataset_val") is not None:
        plan_val = plan_of(cfg.get("dataset_val"), cfg.get("batch_size_val") or cfg.batch_size, 1, False)
    steps_per_epoch = min(plan.steps_per_epoch, cfg.get("max_steps_per_epoch") or plan.steps_per_epoch)
    total_steps = cfg.epochs * steps_per_epoch
    check_lr_scheduler(cfg.get("lr_scheduler"), cfg.optimizer, total_steps)
    for remark in (*plan.remarks, *schedule_remarks(cfg, total_steps)):
        print(remark)
    schedules = Schedules(
        steps_per_epoch,
        total_steps,
        {
            "kd_ratio": cfg.get("kd_ratio", 0.5),
            "temperature": cfg.get("temperature", 1.0),
            "hidden_loss_weight": built.hidden_loss.weight,
        },
    )
    steps = Steps(plan, plan_val, steps_per_epoch, total_steps, schedules)
    if isinstance(through := built.teacher.itself, WriteThrough):
        print(prepare_cache(through, cfg, built, steps, seed))
    return steps
