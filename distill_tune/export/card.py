"""The model card, README.md: what the model is made from, under which terms, and how it was measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

import distill_tune
from distill_tune.counts import counted
from distill_tune.export.compared import Agreement
from distill_tune.export.lineage import (
    Ancestor,
    ancestor,
    data_of,
    hub_datasets,
    public_name,
    run_config,
    student_folder,
    teacher_folders,
    without_paths,
)
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source, has_factors
from distill_tune.secrets import hide_secrets
from distill_tune.training.device import dtype_name

_RELATIONS = {"adapter": "adapter", "torchao": "quantized", "gguf": "quantized"}
# What of a run's config tells how it learned.
_SETTINGS = ("kd_ratio", "temperature", "epochs", "seed")


def model_card(source: Source, to: str, settings: Settings, tool: str, agreement: Agreement) -> str:
    """README.md with the front matter that hubs read. It names no path of this machine and no secret.

    Args:
        tool: that has opened what was written.
        agreement: of this with the source.
    """
    cfg = run_config(source.run)
    base = _base(source, settings, student_folder(cfg))
    teachers = [ancestor(folder) for folder in teacher_folders(cfg)]
    front = yaml.safe_dump(_front(base, teachers, to, hub_datasets(cfg)), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {source.name}",
        _summary(source, to, settings, base, teachers),
        *_training(source, cfg),
        "## Licences\n\n" + "\n".join(_licences(base, teachers)),
        f"## How to use it\n\n```{_USE[to.partition(':')[0]]}\n```",
        "## Measured\n\n" + _measured(source, tool, agreement),
    ]
    body = without_paths(hide_secrets("\n\n".join(parts)))
    return f"---\n{front}---\n\n{body}\n"


_USE = {
    "hf": """python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "..."  # of this repository, or its folder
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)""",
    "adapter": """python
from peft import AutoPeftModelForCausalLM

name = "..."  # of this repository, or its folder
model = AutoPeftModelForCausalLM.from_pretrained(name)""",
    "torchtune": """
torchtune.yaml has the keys `model` and `checkpointer` of a torchtune config.""",
    "torchao": """python
from transformers import AutoModelForCausalLM, AutoTokenizer  # with torchao installed

name = "..."  # of this repository, or its folder
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")""",
    "gguf": """
ollama create mine -f Modelfile
llama-cli -m *.gguf""",
}


def _base(source: Source, settings: Settings, began_with: Path | None) -> Ancestor | None:
    """The model that the student started from: of the run, of the adapter, or the folder itself where it is a hub's."""
    if began_with is None and has_factors(source):
        began_with = source.checkpoint.folder
    if began_with is not None:
        return ancestor(began_with, settings.base_model)
    own = ancestor(source.folder, settings.base_model)
    return own if own.on_hub or own.licence or own.files else None


def _front(base: Ancestor | None, teachers: list[Ancestor], to: str, datasets: list[str]) -> dict[str, Any]:
    name = to.partition(":")[0]
    front: dict[str, Any] = {
        "library_name": {"adapter": "peft", "torchtune": "torchtune", "gguf": "gguf"}.get(name, "transformers"),
        "pipeline_tag": "text-generation",
    }
    if base and base.on_hub:
        front |= {"base_model": [base.name], "base_model_relation": _RELATIONS.get(name, "finetune")}
    if base:
        front |= base.licence
    if datasets:
        front["datasets"] = datasets
    tags = ["distill-tune", *(["knowledge-distillation"] if teachers else [])]
    return front | {"tags": [*tags, *(["lora"] if name == "adapter" else [])]}


def _summary(source: Source, to: str, settings: Settings, base: Ancestor | None, teachers: list[Ancestor]) -> str:
    made = f"made from {base.name}" if base else "a language model"
    taught = f", distilled from {' and '.join(teacher.name for teacher in teachers)}" if teachers else ""
    size = f"{source.num_parameters / 1e6:,.1f} million parameters"
    dtype = "" if to == "adapter" else f", {dtype_name(settings.dtype)}"
    return (
        f"{source.decoder.architecture} of {size}, {made}{taught}. Format: {to}{dtype}. "
        f"Written by distill-tune {distill_tune.__version__}."
    )


def _training(source: Source, cfg: DictConfig) -> Iterator[str]:
    if source.run is None:
        return
    lines = [f"- data: {line}" for line in data_of(source.run, cfg)]
    lines += [f"- {key}: {cfg[key]}" for key in _SETTINGS if isinstance(cfg.get(key), int | float)]
    if isinstance(loss := cfg.get("kd_loss"), Mapping) and loss.get("_component_"):
        lines.append(f"- divergence: {public_name(str(loss['_component_']))}")
    if lines:
        yield "## Training\n\n" + "\n".join(lines)


def _licences(base: Ancestor | None, teachers: list[Ancestor]) -> Iterator[str]:
    """What was found. What it asks of a model that was taught by another is for whoever publishes it to read."""
    for role, model in [("base", base), *(("teacher", teacher) for teacher in teachers)]:
        if model is None:
            continue
        found = [f"{key} {value}" for key, value in model.licence.items()]
        found += [f"terms in its file {name}" for name in model.files]
        yield f"- {role} {model.name}: {', '.join(found) or 'its folder names none'}"
    if base is None and not teachers:
        yield "- none was found in the folders that this was made from"
    if teachers:
        yield "\nSome licences of teachers also bind models that learn from their answers or distributions."


def _measured(source: Source, tool: str, agreement: Agreement) -> str:
    told = (
        f"Opened with {tool} and compared with its source on {counted(agreement.tokens, 'token')}: mean KL "
        f"{agreement.kl:.2g} nats a token, the same likeliest token at {agreement.top:.1%} of positions."
    )
    table = source.run / "evaluation" / "table.md" if source.run else None
    if table is None or not table.is_file():
        return told
    return f"{told}\n\n{table.read_text(encoding='utf-8').strip()}"
