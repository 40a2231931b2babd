"""Keys of configs for TRL, the Hugging Face Trainer, axolotl and LLaMA-Factory, and ours: docs/migrate.md has them."""

# Keys here, and theirs that mean them.
_THEIRS = {
    "batch_size": "micro_batch_size per_device_train_batch_size",
    "batch_size_val": "per_device_eval_batch_size",
    "clip_grad_norm": "max_grad_norm",
    "compile": "torch_compile",
    "dataset": "datasets",
    "dataset.packed": "packing sample_packing",
    "dataset.source": "dataset_name",
    "dataset_val": "val_set_size",
    "dtype": "bf16 fp16 torch_dtype",
    "enable_activation_checkpointing": "gradient_checkpointing",
    "epochs": "num_epochs num_train_epochs",
    "kd_ratio": "distill_alpha use_distillation",
    "keep_best": "load_best_model_at_end",
    "keep_last_n": "save_total_limit",
    "log_every_n_steps": "logging_steps",
    "lr_scheduler": "lr_scheduler_type",
    "lr_scheduler.num_warmup_steps": "warmup_ratio warmup_steps",
    "max_steps_per_epoch": "max_steps",
    "metric_logger": "report_to",
    "model.lora_alpha": "lora_alpha",
    "model.lora_attn_modules": "lora_target lora_target_modules",
    "model.lora_dropout": "lora_dropout",
    "model.lora_rank": "lora_r lora_rank",
    "model.path": "base_model model_name_or_path",
    "optimizer": "optim",
    "optimizer.betas": "adam_beta1 adam_beta2",
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "weight_decay",
    "rollouts.lmbda": "lmbda",
    "rollouts.sampling.max_new_tokens": "max_completion_length max_new_tokens",
    "rollouts.seq_kd": "seq_kd",
    "run_val_every_n_steps": "eval_steps eval_strategy evals_per_epoch",
    "save_every_n_steps": "save_steps save_strategy saves_per_epoch",
    "teacher_max_seq_len": "distill_max_teacher_length",
    "teacher_model.path": "teacher_model_name_or_path",
    "temperature": "distill_temperature",
    "tokenizer.max_seq_len": "cutoff_len max_length max_seq_length sequence_len",
}
OURS = {theirs: ours for ours, names in _THEIRS.items() for theirs in names.split()}
# Those that no key alone means.
_LORA = "LoRA is the model's: it is in config tiny_lora, and in all others whose names end so"
WITHOUT_A_KEY = {
    "adapter": _LORA,
    "beta": "one loss has it: kd_loss=distill_tune.losses.JensenShannon kd_loss.beta=0.5",
    "finetuning_type": _LORA,
}
