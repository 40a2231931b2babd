"""Figures of models on rows that none has seen, by the demo's tokenizer, as the recipe evaluate measures them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from distill_tune import config, evaluation, teachers
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config

CPU = torch.device("cpu")


class Figures(NamedTuple):
    """Of answers; divergence from the teacher and agreement with it are means over their tokens."""

    perplexity: float
    bits_per_byte: float
    kl: float
    agreement: float


def figures(folders: Mapping[str, Path], dataset: Mapping[str, Any], device: torch.device = CPU) -> dict[str, Figures]:
    """Of each model, in fp32, so that no difference is rounding; the first is the teacher."""
    cfg = load_config(find_config("tiny"))
    tokenizer, label = config.instantiate(cfg.tokenizer), next(iter(folders))
    named = [evaluation.open_named(name, str(path), tokenizer, torch.float32) for name, path in folders.items()]
    window = cfg.tokenizer.max_seq_len
    prepared = evaluation.prepare(named, OmegaConf.create(dict(dataset)), tokenizer, teacher=label, context=window)
    found = evaluation.measure(prepared, device, with_speed=False)
    return {name: _figures(of) for name, of in evaluation.results(prepared.documents, found, label)["models"].items()}


def _figures(found: Mapping[str, Any]) -> Figures:
    likelihood, to_teacher = found["supervised"], found["to_teacher"]
    distance = (to_teacher["forward_kl"]["mean"], to_teacher["agreement"]) if to_teacher else (0.0, 1.0)
    return Figures(likelihood["perplexity"], likelihood["bits_per_byte"], *distance)


def loaded(folder: Path, device: torch.device = CPU) -> Any:
    """A model of torchtune's modules, as a teacher."""
    teacher = teachers.open_model("model", folder, torch.float32)
    teacher.load(teacher.model, device)
    return teacher
