"""The keys of the shipped recipes: what each may be, is by default, and means.

Checks, `distill-tune run --help`, docs/keys.md and what `distill-tune validate` answers come from here.
"""

import dataclasses
import os
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig

from distill_tune.config.kinds import ABOVE_0, COMPONENT, COMPONENTS, Kind, fault_of_list, like, number, one_of, whole


class Needed(NamedTuple):
    """In place of a default: the key must be there. ``by``: the function of training/preparation.py that reads it."""

    by: str | None = None


class Key(NamedTuple):
    """
    Attributes:
        kind: what its value may be; null, too, where that is the default.
        default: what holds where a config does not have it.
        meaning: in a line.
        beside: keys of which one has to be set as well for this one to be heeded.
        recipes: the shipped ones that read it, where not all do; the others read it beside those of ``beside`` alone.
    """

    kind: Kind
    default: Any
    meaning: str
    beside: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()

    @property
    def values(self) -> Kind:
        return self.kind.or_null() if self.default is None else self.kind


def _is_day(value: Any) -> bool:
    try:
        return bool(date.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _no_folder_for(value: str) -> str | None:
    files = (folder for folder in (Path(value), *Path(value).parents) if os.path.exists(folder) and not folder.is_dir())
    return next((f"cannot be made: {file} is a file" for file in files), None)


def _no_checkpoint(value: Any) -> str | None:
    is_named = isinstance(value, str) and value != "auto"
    return "no such folder" if is_named and not os.path.isdir(value) else None


def _of_teachers(entries: ListConfig) -> str | None:
    names = {str(entry.get("name", number)) for number, entry in enumerate(entries)}
    return "two teachers have one name" if len(names) < len(entries) else None


def _no_named_model(label: str, value: Any) -> str | None:
    if value is None and label in OWN_MODELS:
        return None
    path = value.get("path") if isinstance(value, DictConfig) else value
    others = set(value) - {"path", "tokenizer"} if isinstance(value, DictConfig) else ()
    return None if isinstance(path, str) and path and not others else "must be a path, or {path: ..., tokenizer: ...}"


def _of_datasets(entries: ListConfig) -> str | None:
    weighted = sum("weight" in entry for entry in entries)
    return "give every dataset in the list a weight, or none" if 0 < weighted < len(entries) else None


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = like("text", ".+")
DAY = Kind("a day, as 2026-03-01", _is_day)
DEVICE = like("cpu, cuda, cuda:N, mps or auto (the fastest that is there)", r"(cpu|cuda|mps|auto)(:\d+)?")
DTYPE = dataclasses.replace(one_of("bf16", "fp32"), hint="; gradients underflow in fp16 without loss scaling")
FOLDER_TO_WRITE = Kind("a folder's path", TEXT.fits, _no_folder_for)
OWN_MODELS = ("teacher", "before", "after")  # of a config, which `evaluate` measures unless they are null
_CHECKPOINTS = "auto, True, False or a folder checkpoints/step_N"
RESUME = Kind(_CHECKPOINTS, lambda value: isinstance(value, bool | str), _no_checkpoint)
_IN_BRACES = " where the row's own prompt goes, or the name of another column in braces"
TEMPLATE = like("text with {input}", r".*\{.*\}.*", _IN_BRACES)
TEACHERS = dataclasses.replace(COMPONENTS, further=lambda value: fault_of_list(value, _of_teachers))
TOKENIZERS = dataclasses.replace(
    COMPONENTS,
    further=lambda value: fault_of_list(value, takes_null=True),
    hint=", as '{_component_: distill_tune.data.hf_tokenizer, path: FOLDER}'",
)
DATASETS = dataclasses.replace(COMPONENTS, further=lambda value: fault_of_list(value, _of_datasets))
LIST_OF_COMPONENTS = Kind("a list of components", lambda value: isinstance(value, ListConfig), fault_of_list)
SETTINGS = Kind("a mapping", lambda value: isinstance(value, DictConfig))
TASKS = Kind(
    "a name, or a list of names",
    lambda value: all(map(TEXT.fits, value)) if isinstance(value, ListConfig) else TEXT.fits(value),
)
NAMED_MODELS = Kind(
    "a mapping of labels to paths",
    lambda value: isinstance(value, DictConfig),
    lambda value: next(
        (f"{name}: {fault}" for name, one in value.items() if (fault := _no_named_model(name, one))), None
    ),
    ", as {distilled: outputs/mine, shipped: student.gguf}",
)
LAYERS = Kind(
    "a list of tok_embeddings, output",
    lambda value: isinstance(value, ListConfig) and all(item in ("tok_embeddings", "output") for item in value),
)
COMBINATIONS = one_of("mixture", "sum", "by_row")
WRITERS = one_of("model", "teacher_model")
THINKING = one_of("keep", "drop", "field")
NUMBER = Kind("a number", lambda value: type(value) in (int, float))
MEASURES = one_of("val_loss", "val_ce_loss", "val_kd_loss")
_STORED = (
    "what is stored: cache.kind=sampled, top_k, hidden or likelihood; draws (50), proposal_temperature, k (50), "
    "temperature"
)
# Beside which keys others are heeded, and which recipe alone reads them.
_VALIDATION, _TEACHER, _LOGGER = ("dataset_val",), ("teacher_model",), ("metric_logger",)
_SEVERAL, _GEN, _EVAL = ("kd_distributed",), ("generate",), ("evaluate",)
_ANSWERS = (*_GEN, *_EVAL)
_CHECKPOINTING, _RESUMED = ("enable_activation_checkpointing",), ("resume", "resume_from_checkpoint")

SECTIONS: dict[str, dict[str, Key]] = {
    "Models": {
        "model": Key(COMPONENT, Needed("build_models"), "the student"),
        "checkpointer": Key(COMPONENT, None, "the student's folder, where `model` does not name one"),
        "quantizer": Key(COMPONENT, None, "the format that the student trains for, rounded so: distill_tune.qat"),
        "fake_quant_after_n_steps": Key(whole(0), None, "steps before it is; default from the start", ("quantizer",)),
        "tokenizer": Key(
            COMPONENT, Needed("build_models"), "writes the rows, the student's; its max_seq_len cuts them"
        ),
        "teacher_model": Key(TEACHERS, None, "one teacher or several, each with weight and name"),
        "teacher_checkpointer": Key(COMPONENTS, None, "the teacher's folder, where `teacher_model` does not name one"),
        "teacher_tokenizer": Key(
            TOKENIZERS, None, "the teacher's, where it is another; default its folder's", _TEACHER
        ),
        "teacher_combination": Key(COMBINATIONS, "mixture", "of several: one distribution, one loss each, one by row"),
        "teacher_dtype": Key(DTYPE, None, "what a teacher's weights are held in; default `dtype`", _TEACHER),
        "teacher_quantizer": Key(COMPONENT, None, "torchao's config, or NF4, for a teacher's weights", _TEACHER),
        "teacher_offload": Key(FLAG, False, "keep a teacher's layers in host memory and copy each in time", _TEACHER),
        "teacher_cache": Key(FOLDER_TO_WRITE, None, "a cache; the teacher is asked only for rows it lacks", _TEACHER),
        "cache": Key(SETTINGS, Needed(), _STORED, ("teacher_cache",), recipes=("teacher_cache",)),
    },
    "Data": {
        "dataset": Key(DATASETS, Needed("plan_steps"), "one dataset or several, each with a weight"),
        "dataset_val": Key(DATASETS, None, "rows for validation"),
        "dataset_temperature": Key(ABOVE_0, None, "evens the shares of several datasets: size to the power of 1/T"),
        "on_bad_row": Key(one_of("stop", "skip"), "stop", "what to do with a row that cannot be used"),
        "shuffle": Key(FLAG, True, "another order of the rows in each epoch"),
        "rollouts": Key(COMPONENT, None, "has the student write answers that it learns from: on-policy", _TEACHER),
        "augmentations": Key(LIST_OF_COMPONENTS, None, "changes of prompts, made anew in each epoch"),
        "student_prompt_template": Key(TEMPLATE, None, "the student's prompt; {input} is the row's, {column} a field"),
        "teacher_prompt_template": Key(TEMPLATE, None, "the teacher's prompt, likewise", _TEACHER),
        "teacher_system_prompt": Key(TEXT, None, "before the teacher's prompt alone", _TEACHER),
        "teacher_max_seq_len": Key(whole(1), None, "cuts what the teacher reads", _TEACHER),
        "date": Key(DAY, None, "the day that a chat template writes; default teacher_cache's, else when the run began"),
    },
    "Answers": {
        "generate_with": Key(WRITERS, None, "who answers; default teacher_model, or model", recipes=_GEN),
        "prompt": Key(TEXT, None, "what is asked, in place of dataset", recipes=_GEN),
        "sampling": Key(COMPONENT, None, "how tokens are chosen, and how many", recipes=_ANSWERS),
        "samples_per_prompt": Key(whole(1), 1, "answers to each prompt, of each model", recipes=_GEN),
        "score": Key(COMPONENT, None, "a function of an answer, the more the better", recipes=_GEN),
        "best_per_prompt": Key(whole(1), 1, "with score: so many answers of each prompt are kept", recipes=_GEN),
        "min_score": Key(NUMBER, None, "with score: an answer below is wrong, and left out", recipes=_GEN),
        "max_samples_per_prompt": Key(whole(1), None, "with min_score: ask again until one is right", recipes=_GEN),
        "filters": Key(LIST_OF_COMPONENTS, None, "functions that say of an answer whether it is kept", recipes=_GEN),
        "thinking": Key(THINKING, "keep", "<think>: in the answer, left out, or as reasoning_content", recipes=_GEN),
        "answers_at_once": Key(whole(1), 64, "rows that are decoded together at most", recipes=_ANSWERS),
        "cache_bytes": Key(
            whole(1), None, "of keys and values; default 1 GiB, on a GPU half the rest", recipes=_ANSWERS
        ),
    },
    "Evaluation": {
        "models": Key(NAMED_MODELS, None, "paths by label, measured beside teacher, before and after", recipes=_EVAL),
        "dataset_test": Key(DATASETS, None, "documents to measure on; default dataset_val", recipes=_EVAL),
        "category_column": Key(TEXT, "category", "of rows: figures are also told by it", recipes=_EVAL),
        "window": Key(whole(2), None, "tokens of a longer document read at once; default max_seq_len", recipes=_EVAL),
        "stride": Key(whole(1), None, "by which windows move on; default half of one", recipes=_EVAL),
        "num_answers": Key(whole(0), 100, "so many documents' prompts are answered", recipes=_EVAL),
        "measure_speed": Key(FLAG, True, "time reading and writing, and measure memory", recipes=_EVAL),
        "tasks": Key(TASKS, None, "of lm-eval, by name or as YAML files; docstring_choice is ours", recipes=_EVAL),
        "task_folder": Key(TEXT, None, "YAML files of tasks that may be named", ("tasks",), recipes=_EVAL),
        "tasks_in_chat": Key(FLAG, False, "ask tasks as the chat template writes a user", ("tasks",), recipes=_EVAL),
        "shown_documents": Key(whole(0), 5, "of so many, samples.jsonl has each token", recipes=_EVAL),
        "evaluation_folder": Key(FOLDER_TO_WRITE, None, "default output_dir/evaluation", recipes=_EVAL),
    },
    "Loss": {
        "kd_ratio": Key(number(0, 1).or_schedule(), 0.5, "the teacher's part of the loss; 0 trains without a teacher"),
        "temperature": Key(ABOVE_0.or_schedule(), 1.0, "softens teacher and student"),
        "temperature_squared": Key(FLAG, True, "multiply the divergence by T^2, which keeps its gradient's size"),
        "kd_loss": Key(COMPONENT, None, "the divergence from the teacher; default forward KL"),
        "kd_token_weight": Key(COMPONENT, None, "weighs each token's divergence"),
        "hidden_loss": Key(COMPONENT, None, "compares hidden states of pairs of layers"),
        "loss": Key(COMPONENT, None, "of the rows' own tokens; default cross-entropy"),
    },
    "Steps": {
        "batch_size": Key(whole(1).or_null(), Needed("plan_steps"), "longest rows in a micro-batch, on each process"),
        "max_tokens_per_batch": Key(whole(1), None, "in place of batch_size: so many tokens in a micro-batch"),
        "gradient_accumulation_steps": Key(whole(1), 1, "micro-batches in a step; short rows go together in fewer"),
        "epochs": Key(whole(1), Needed("plan_steps"), "times that the rows are gone through"),
        "max_steps_per_epoch": Key(whole(1), None, "ends an epoch early"),
        "optimizer": Key(COMPONENT, Needed("build_models"), "takes the steps; its parameters are passed by the recipe"),
        "lr_scheduler": Key(COMPONENT, None, "the learning rate's course, stepped once a step; default none"),
        "clip_grad_norm": Key(ABOVE_0, None, "the largest norm of a step's gradient"),
        "max_bad_steps": Key(whole(1), 10, "so many steps in a row without a finite loss end the run"),
        "seed": Key(whole(0), None, "of order, dropout and new weights; default one drawn and written to config.yaml"),
    },
    "Device and memory": {
        "device": Key(DEVICE, Needed(), "where models are"),
        "dtype": Key(DTYPE, Needed("build_models"), "what models compute in"),
        "compile": Key(FLAG, False, "torch.compile for the layers of both models"),
        "enable_activation_checkpointing": Key(FLAG, False, "keep a layer's input alone and compute the rest again"),
        "enable_activation_offloading": Key(FLAG, False, "keep what is kept in host memory; CUDA", _CHECKPOINTING),
        "fsdp_cpu_offload": Key(FLAG, False, "weights, gradients and optimizer on the CPU", recipes=_SEVERAL),
        "fsdp_reshard_after_forward": Key(FLAG, True, "free a layer's whole weights until backward", recipes=_SEVERAL),
        "custom_sharded_layers": Key(LAYERS, None, "gathered only while they are used", recipes=_SEVERAL),
        "data_parallel_replicate_dim": Key(whole(1), 1, "copies of the models, each sharded", recipes=_SEVERAL),
        "collective_timeout_seconds": Key(number(1), 600, "after which a rank gives up on another", recipes=_SEVERAL),
    },
    "What is written": {
        "output_dir": Key(FOLDER_TO_WRITE, Needed("open_run"), "the run's folder"),
        "save_every_n_steps": Key(whole(1), None, "a checkpoint so often, beside one at each epoch's end"),
        "keep_last_n": Key(whole(1), None, "so many checkpoints are kept; default all"),
        "keep_best": Key(MEASURES, None, "keep the best checkpoint and export it", _VALIDATION),
        "resume": Key(RESUME, None, "a checkpoint to go on from; auto: the newest, if there is one"),
        "resume_from_checkpoint": Key(RESUME, False, "torchtune's name for resume"),
        "resume_with_changes": Key(FLAG, False, "go on though rows, model or batches are others", _RESUMED),
        "save_adapter_weights_only": Key(FLAG, False, "with LoRA: leave out the merged model"),
        "run_val_every_n_steps": Key(whole(1), None, "validate so often, beside once at the end", _VALIDATION),
        "batch_size_val": Key(whole(1), None, "rows in a batch of validation; default batch_size", _VALIDATION),
        "metric_logger": Key(COMPONENT, None, "hears of metrics, beside metrics.jsonl"),
        "log_every_n_steps": Key(whole(1).or_null(), 1, "how often metric_logger hears", _LOGGER),
        "log_peak_memory_stats": Key(FLAG, True, "whether metric_logger hears of memory", _LOGGER),
        "profiler": Key(SETTINGS, None, "torchtune's profiler: enabled, output_dir, active_steps, ..."),
    },
}
KEYS = {name: key for section in SECTIONS.values() for name, key in section.items()}
# What recipes that train nothing read.
_ALL_READ = (
    *("model", "checkpointer", "tokenizer", "teacher_model", "teacher_checkpointer", "teacher_combination"),
    *("teacher_tokenizer", "teacher_dtype", "teacher_quantizer", "teacher_offload"),
    *("date", "seed", "student_prompt_template", "teacher_prompt_template", "teacher_system_prompt"),
    *("device", "dtype", "output_dir", "collective_timeout_seconds"),
)
_ALSO_READ = {"generate": ("dataset", "on_bad_row"), "evaluate": ("dataset_val",)}
READ_BY = {
    recipe: frozenset((*_ALL_READ, *others, *(name for name, key in KEYS.items() if recipe in key.recipes)))
    for recipe, others in _ALSO_READ.items()
}
