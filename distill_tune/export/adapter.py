"""LoRA factors in PEFT's layout, which go onto the base that they were trained on."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from distill_tune.data.ends import exported_stops, named, stops_of
from distill_tune.disk import require_space
from distill_tune.errors import UserError
from distill_tune.export.beside import write_beside
from distill_tune.export.hf_folder import SAME
from distill_tune.export.opened import Opened, logits_of, quiet_transformers, tool
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source
from distill_tune.models.adapter_folder import adapter_file
from distill_tune.models.vocabulary import written_by
from distill_tune.models.weight_files import WeightFiles

CONFIG, BASE = "adapter_config.json", "base_model_name_or_path"
_WEIGHTS = "adapter_model.safetensors"


def check(source: Source, settings: Settings) -> list[str]:
    """
    Raises:
        UserError: the source is a whole model, or peft is not installed.
    """
    if source.checkpoint.adapter is None:
        raise UserError(
            f"--to adapter: {source.folder} is a whole model, without factors; a run that trains with LoRA leaves "
            "adapter/ beside model/; take --to hf"
        )
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("--to adapter: what is written is opened with peft; pip install peft") from error
    told, base = [], source.checkpoint.folder
    if settings.base_model is None:
        told.append(
            f"{CONFIG} names the base by its folder on this machine, {base}; for others, give the name that a hub has "
            "for it (--base-model OWNER/NAME)"
        )
    wanted = exported_stops(source.tokenizer, base, source.vocab_size)
    stops = next(iter(stops_of(base).values()), ())
    if lacking := [token for token in wanted if token not in stops]:
        written = named(lacking, written_by(source.tokenizer))
        told.append(
            f"the base does not stop at {written}, which end answers here; name them to generate (eos_token_id)"
        )
    return told


def write(source: Source, folder: Path, settings: Settings) -> list[str]:
    adapter = source.checkpoint.adapter
    assert adapter is not None
    file = adapter_file("SOURCE", adapter.folder)
    require_space("--output", folder, file.stat().st_size)
    folder.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in WeightFiles("SOURCE", [file]).weights()}
    save_file(weights, folder / _WEIGHTS, {"format": "pt"})
    config = {**adapter.config, BASE: settings.base_model or str(source.checkpoint.folder.resolve())}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_beside(source, folder)
    return []


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        base = AutoModelForCausalLM.from_pretrained(
            source.checkpoint.folder, local_files_only=True, dtype=torch.float32
        )
        model = PeftModel.from_pretrained(base, str(folder)).to(device).eval()
    return Opened(tool("peft", "transformers"), logits_of(model, device), tokenizer)


def max_kl(source: Source, settings: Settings) -> float:
    return SAME
