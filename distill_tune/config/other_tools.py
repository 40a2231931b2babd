"""Keys of configs for TRL, the Hugging Face Trainer, axolotl and LLaMA-Factory, and ours: docs/migrate.md has them."""

from distill_tune.config.files import config_names

# Theirs, and the key here that means it.
OURS = {
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adapter": "model.lora_rank",
    "base_model": "model.path",
    "bf16": "dtype",
    "beta": "kd_loss.beta",
    "cutoff_len": "tokenizer.max_seq_len",
    "dataset_name": "dataset.source",
    "datasets": "dataset",
    "distill_alpha": "kd_ratio",
    "distill_max_teacher_length": "teacher_max_seq_len",
    "distill_temperature": "temperature",
    "eval_steps": "run_val_every_n_steps",
    "eval_strategy": "run_val_every_n_steps",
    "evals_per_epoch": "run_val_every_n_steps",
    "finetuning_type": "model.lora_rank",
    "fp16": "dtype",
    "gradient_checkpointing": "enable_activation_checkpointing",
    "learning_rate": "optimizer.lr",
    "load_best_model_at_end": "keep_best",
    "logging_steps": "log_every_n_steps",
    "lora_alpha": "model.lora_alpha",
    "lora_dropout": "model.lora_dropout",
    "lora_r": "model.lora_rank",
    "lora_rank": "model.lora_rank",
    "lora_target": "model.lora_attn_modules",
    "lora_target_modules": "model.lora_attn_modules",
    "lr_scheduler_type": "lr_scheduler",
    "max_grad_norm": "clip_grad_norm",
    "max_length": "tokenizer.max_seq_len",
    "max_seq_length": "tokenizer.max_seq_len",
    "max_steps": "max_steps_per_epoch",
    "micro_batch_size": "batch_size",
    "model_name_or_path": "model.path",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "packing": "dataset.packed",
    "per_device_eval_batch_size": "batch_size_val",
    "per_device_train_batch_size": "batch_size",
    "report_to": "metric_logger",
    "sample_packing": "dataset.packed",
    "save_steps": "save_every_n_steps",
    "save_strategy": "save_every_n_steps",
    "save_total_limit": "keep_last_n",
    "saves_per_epoch": "save_every_n_steps",
    "sequence_len": "tokenizer.max_seq_len",
    "teacher_model_name_or_path": "teacher_model.path",
    "torch_compile": "compile",
    "torch_dtype": "dtype",
    "use_distillation": "kd_ratio",
    "val_set_size": "dataset_val",
    "warmup_ratio": "lr_scheduler.num_warmup_steps",
    "warmup_steps": "lr_scheduler.num_warmup_steps",
    "weight_decay": "optimizer.weight_decay",
}
# Those for which there is no key: the rows' own answers are what is learned.
WITHOUT_A_KEY = {
    "lmbda": "answers are the rows' own here, as with lmbda: 0",
    "seq_kd": "the teacher's answers are generated beforehand, and are rows then",
}


def where_to_read() -> str:
    """Where theirs and ours stand side by side."""
    configs = [name for name in config_names() if name.startswith("migrate/")]
    return f"these are keys of another tool: docs/migrate.md has ours beside them; configs: {', '.join(configs)}"
