"""Settings with which a run takes less memory: for `distill-tune plan`, and for a run whose memory ran out."""

from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

_QUANTIZER = "teacher_quantizer._component_=torchao.quantization"
_ADAMW_8BIT = "optimizer._component_=torchao.optim.AdamW8bit"


class Change(NamedTuple):
    """Overrides, and what they cost."""

    overrides: tuple[str, ...]
    cost: str

    @property
    def halves_batch(self) -> bool:
        return self._key in ("batch_size", "max_tokens_per_batch")

    @property
    def is_for_bf16(self) -> bool:
        return any("bf16" in override for override in self.overrides)

    @property
    def _key(self) -> str:
        return self.overrides[0].partition("=")[0]

    def replaces(self, earlier: "Change") -> bool:
        """Whether it sets what an earlier one does; of a teacher only plain weights can be streamed."""
        first = "teacher_quantizer" if self._key == "teacher_offload" else self._key
        return earlier._key.startswith(first)


def memory_ran_out(error: BaseException) -> str | None:
    """What to say of an error where it means that memory ran out; None for any other."""
    first = (str(error).splitlines() or [""])[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory ran out: {first}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"this machine's memory ran out: {first}"
    return None


def memory_advice(config: DictConfig, is_distributed: bool) -> str:
    """The three changes that cost least."""
    settings = [f"{' '.join(one.overrides)} ({one.cost})" for one in changes_of(config, is_distributed)]
    settings += ["a lower tokenizer.max_seq_len (longer rows are cut)", "LoRA, as in config tiny_lora"]
    return "; ".join(f"{number}. {setting}" for number, setting in enumerate(settings[:3], 1))


def changes_of(config: DictConfig, is_distributed: bool, longest: int = 1) -> list[Change]:
    """Those that a config does not have yet, the cheapest first.

    Args:
        longest: tokens of the longest row, which a micro-batch has to take.
    """
    rows, tokens = config.get("batch_size") or 1, config.get("max_tokens_per_batch") or 0
    twice = f"gradient_accumulation_steps={config.get('gradient_accumulation_steps', 1) * 2}"
    has_teacher, is_streamed = config.get("teacher_model") is not None, bool(config.get("teacher_offload"))
    teacher_dtype = config.get("teacher_dtype") or config.get("dtype")
    may_quantise = has_teacher and not is_streamed and not is_distributed
    model = config["model"]
    has_plain_lora = "lora" in str(model.get("_component_", "")) and not model.get("quantize_base")
    helps = {
        Change((f"batch_size={-(-rows // 2)}", twice), "the same steps, a little slower"): rows > 1,
        Change((f"max_tokens_per_batch={tokens // 2}", twice), "the same steps, a little slower"): tokens // 2
        >= longest,
        Change(("dtype=bf16",), "half of activations and of what does not train"): config.get("dtype") == "fp32",
        Change(("enable_activation_checkpointing=True",), "about a third slower"): True,
        Change(("teacher_dtype=bf16",), "half of the teacher"): has_teacher and teacher_dtype == "fp32",
        Change((f"{_QUANTIZER}.Int8WeightOnlyConfig",), "a rounded teacher"): may_quantise,
        Change((_ADAMW_8BIT,), "rounded moments"): True,
        Change((_ADAMW_8BIT, "optimizer.bf16_stochastic_round=True"), "weights rounded by chance, too"): True,
        Change(("model.quantize_base=True",), "QLoRA"): has_plain_lora,
        Change(("fsdp_cpu_offload=True",), "slower"): is_distributed,
        Change((f"{_QUANTIZER}.Int4WeightOnlyConfig",), "a teacher rounded more"): may_quantise,
        Change(("teacher_offload=True",), "its layers are streamed; slower"): has_teacher and not is_distributed,
    }
    return [change for change, does in helps.items() if does and not _is_set(config, change)]


def _is_set(config: DictConfig, change: Change) -> bool:
    """Whether the config has all of it already."""
    values = (override.partition("=")[::2] for override in change.overrides)
    return all(str(OmegaConf.select(config, key)) == value for key, value in values)
