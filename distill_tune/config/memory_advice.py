"""What to change in a config whose run does not fit in memory, the cheapest first."""

from collections.abc import Iterator

from omegaconf import DictConfig


def memory_ran_out(error: BaseException) -> str | None:
    """What to say of an error where it means that memory ran out; None for any other."""
    first = (str(error).splitlines() or [""])[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory ran out: {first}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"this machine's memory ran out: {first}"
    return None


def memory_advice(config: DictConfig, is_distributed: bool) -> str:
    """The three settings that cost least of those that the config does not have yet."""
    settings = list(_settings(config, is_distributed))[:3]
    return "; ".join(f"{number}. {text}" for number, text in enumerate(settings, 1))


def _settings(config: DictConfig, is_distributed: bool) -> Iterator[str]:
    batch_size, accumulation = config.get("batch_size"), config.get("gradient_accumulation_steps", 1)
    if isinstance(batch_size, int) and batch_size > 1:
        yield (
            f"batch_size={-(-batch_size // 2)} gradient_accumulation_steps={accumulation * 2} (the same steps, "
            "a little slower)"
        )
    if config.get("max_tokens_per_batch"):
        yield f"max_tokens_per_batch={config['max_tokens_per_batch'] // 2}"
    if config.get("dtype") == "fp32":
        yield "dtype=bf16 (half of activations and of what does not train)"
    if not config.get("enable_activation_checkpointing"):
        yield "enable_activation_checkpointing=True (about a third slower)"
    if config.get("teacher_model") is not None:
        if config.get("teacher_dtype", config.get("dtype")) == "fp32":
            yield "+teacher_dtype=bf16"
        if config.get("teacher_quantizer") is None and not config.get("teacher_offload"):
            yield "+teacher_quantizer._component_=torchao.quantization.Int8WeightOnlyConfig"
    if is_distributed and not config.get("fsdp_cpu_offload"):
        yield "fsdp_cpu_offload=True (slower)"
    yield "a lower tokenizer.max_seq_len (longer rows are cut)"
    if "lora" not in str(config["model"].get("_component_", "")):
        yield "LoRA: model=distill_tune.models.lora_from_hf"
    elif not config["model"].get("quantize_base"):
        yield "+model.quantize_base=True (QLoRA)"
    if not config.get("teacher_offload") and not is_distributed:
        yield "+teacher_offload=True (streams the teacher's layers; slower)"
