"""What to change in a config whose run does not fit in memory, the cheapest first."""

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
    batch_size, tokens, model = config.get("batch_size") or 1, config.get("max_tokens_per_batch") or 0, config["model"]
    half = f"batch_size={-(-batch_size // 2)}"
    twice = f"gradient_accumulation_steps={config.get('gradient_accumulation_steps', 1) * 2}"
    has_adapters, has_teacher = "lora" in str(model.get("_component_", "")), config.get("teacher_model") is not None
    teacher_dtype, is_offloaded = config.get("teacher_dtype", config.get("dtype")), config.get("teacher_offload")
    keeps_all = not config.get("enable_activation_checkpointing")
    is_whole = config.get("teacher_quantizer") is None and not is_offloaded
    helps = {
        f"{half} {twice} (the same steps, a little slower)": batch_size > 1,
        f"max_tokens_per_batch={tokens // 2}": tokens > 0,
        "dtype=bf16 (half of activations and of what does not train)": config.get("dtype") == "fp32",
        "enable_activation_checkpointing=True (about a third slower)": keeps_all,
        "+teacher_dtype=bf16": has_teacher and teacher_dtype == "fp32",
        "+teacher_quantizer._component_=torchao.quantization.Int8WeightOnlyConfig": has_teacher and is_whole,
        "fsdp_cpu_offload=True (slower)": is_distributed and not config.get("fsdp_cpu_offload"),
        "a lower tokenizer.max_seq_len (longer rows are cut)": True,
        "LoRA: model=distill_tune.models.lora_from_hf": not has_adapters,
        "+model.quantize_base=True (QLoRA)": has_adapters and not model.get("quantize_base"),
        "+teacher_offload=True (streams the teacher's layers; slower)": not is_offloaded and not is_distributed,
    }
    settings = [setting for setting in helps if helps[setting]][:3]
    return "; ".join(f"{number}. {setting}" for number, setting in enumerate(settings, 1))
