"""The keys of the shipped recipes: what each may be, is by default, and means.

Checks, `distill-tune run --help`, docs/keys.md and what `distill-tune validate` answers come from here.
"""

from typing import Any, NamedTuple

from distill_tune.config.kinds import (
    ABOVE_0,
    COMPONENT,
    COMPONENTS,
    DATASETS,
    DAY,
    DEVICE,
    DTYPE,
    FLAG,
    FOLDER_TO_WRITE,
    LIST_OF_COMPONENTS,
    RESUME,
    SETTINGS,
    TEACHERS,
    TEMPLATE,
    TEXT,
    Kind,
    list_of,
    number,
    one_of,
    whole,
)


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
        distributed: whether recipes of several devices alone read it.
        recipe: of the shipped ones the only one that needs it; the others read it beside those of ``beside`` alone.
            None for all.
    """

    kind: Kind
    default: Any
    meaning: str
    beside: tuple[str, ...] = ()
    distributed: bool = False
    recipe: str | None = None

    @property
    def values(self) -> Kind:
        return self.kind.or_null() if self.default is None else self.kind


_VALIDATION, _TEACHER, _LOGGER = ("dataset_val",), ("teacher_model",), ("metric_logger",)
_LAYERS = list_of("tok_embeddings", "output")
_MEASURES = one_of("val_loss", "val_ce_loss", "val_kd_loss")

SECTIONS: dict[str, dict[str, Key]] = {
    "Models": {
        "model": Key(COMPONENT, Needed("build_models"), "the student"),
        "checkpointer": Key(COMPONENT, None, "the student's folder, where `model` does not name one"),
        "tokenizer": Key(COMPONENT, Needed("build_models"), "of both models; its max_seq_len cuts rows"),
        "teacher_model": Key(TEACHERS, None, "one teacher or several, each with weight and name"),
        "teacher_checkpointer": Key(COMPONENTS, None, "the teacher's folder, where `teacher_model` does not name one"),
        "teacher_combination": Key(
            one_of("mixture", "sum", "by_row"), "mixture", "of several: one distribution, one loss each, one by row"
        ),
        "teacher_dtype": Key(DTYPE, None, "what a teacher's weights are held in; default `dtype`", _TEACHER),
        "teacher_quantizer": Key(COMPONENT, None, "torchao's config, or NF4, for a teacher's weights", _TEACHER),
        "teacher_offload": Key(FLAG, False, "keep a teacher's layers in host memory and copy each in time", _TEACHER),
        "teacher_cache": Key(
            FOLDER_TO_WRITE,
            None,
            "a cache before the teacher, which is asked about the rows that are missing there, each once",
            _TEACHER,
        ),
        "cache": Key(
            SETTINGS,
            None,
            "what is stored: kind (sampled, top_k, hidden), draws (50), proposal_temperature, k (50), temperature",
            ("teacher_cache",),
            recipe="teacher_cache",
        ),
    },
    "Data": {
        "dataset": Key(DATASETS, Needed("plan_steps"), "one dataset or several, each with a weight"),
        "dataset_val": Key(DATASETS, None, "rows for validation"),
        "dataset_temperature": Key(ABOVE_0, None, "evens the shares of several datasets: size to the power of 1/T"),
        "on_bad_row": Key(one_of("stop", "skip"), "stop", "what to do with a row that cannot be used"),
        "shuffle": Key(FLAG, True, "another order of the rows in each epoch"),
        "augmentations": Key(LIST_OF_COMPONENTS, None, "changes of prompts, made anew in each epoch"),
        "student_prompt_template": Key(
            TEMPLATE, None, "the prompt that the student reads; {input} is the row's, {column} another field"
        ),
        "teacher_prompt_template": Key(TEMPLATE, None, "the prompt that the teacher reads, likewise", _TEACHER),
        "teacher_system_prompt": Key(TEXT, None, "before the teacher's prompt alone", _TEACHER),
        "teacher_max_seq_len": Key(whole(1), None, "cuts what the teacher reads", _TEACHER),
        "date": Key(DAY, None, "the day that a chat template writes; default the day when the run began"),
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
        "batch_size": Key(
            whole(1).or_null(),
            Needed("plan_steps"),
            "rows in a micro-batch of the longest rows, on each process; short ones go together",
        ),
        "max_tokens_per_batch": Key(whole(1), None, "in place of batch_size: so many tokens in a micro-batch"),
        "gradient_accumulation_steps": Key(whole(1), 1, "micro-batches in a step, or fewer of short rows"),
        "epochs": Key(whole(1), Needed("plan_steps"), "times that the rows are gone through"),
        "max_steps_per_epoch": Key(whole(1), None, "ends an epoch early"),
        "optimizer": Key(COMPONENT, Needed("build_models"), "its parameters are passed by the recipe"),
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
        "enable_activation_offloading": Key(
            FLAG, False, "keep what is kept in host memory; CUDA", ("enable_activation_checkpointing",)
        ),
        "fsdp_cpu_offload": Key(FLAG, False, "weights, gradients and optimizer on the CPU", distributed=True),
        "fsdp_reshard_after_forward": Key(FLAG, True, "free a layer's whole weights until backward", distributed=True),
        "custom_sharded_layers": Key(_LAYERS, None, "gathered only while they are used", distributed=True),
        "data_parallel_replicate_dim": Key(whole(1), 1, "copies of the models, each sharded", distributed=True),
        "collective_timeout_seconds": Key(number(1), 600, "after which a rank gives up on another", distributed=True),
    },
    "What is written": {
        "output_dir": Key(FOLDER_TO_WRITE, Needed("open_run"), "the run's folder"),
        "save_every_n_steps": Key(whole(1), None, "a checkpoint so often, beside one at each epoch's end"),
        "keep_last_n": Key(whole(1), None, "so many checkpoints are kept; default all"),
        "keep_best": Key(_MEASURES, None, "keep the best checkpoint and export it", _VALIDATION),
        "resume": Key(RESUME, None, "a checkpoint to go on from; auto: the newest, if there is one"),
        "resume_from_checkpoint": Key(RESUME, False, "torchtune's name for resume"),
        "resume_with_changes": Key(
            FLAG, False, "go on though rows, model or batches are others", ("resume", "resume_from_checkpoint")
        ),
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


def is_set(name: str, value: Any) -> bool:
    """Whether a value says something else than the key's absence."""
    default = KEYS[name].default
    if value is None or (value is False and default is None):
        return False
    return type(value) is not type(default) or bool(value != default)
