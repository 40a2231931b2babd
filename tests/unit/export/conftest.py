"""Folders of tiny models: a whole one, an adapter of it as peft writes it, and a run that left both."""

import json
import sys
from pathlib import Path

import pytest
import torch
from export_folders import VOCAB_SIZE, write_base
from tiny_tokenizer import write_tokenizer


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch):
    """Whether or not its Python package is installed here."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("export") / "base")


@pytest.fixture(scope="session")
def run(tmp_path_factory, base) -> Path:
    """Its student began as ``base``; adapter/ is peft's, model/ what peft merges of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("export") / "mine"
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    model.save_pretrained(folder / "adapter")
    write_tokenizer(folder / "adapter", VOCAB_SIZE)
    merged = model.merge_and_unload()
    merged.save_pretrained(folder / "model")
    write_tokenizer(folder / "model", VOCAB_SIZE)
    (folder / "config.yaml").write_text(json.dumps({
        "model": {"_component_": "distill_tune.models.lora_from_hf", "path": str(base)},
        "teacher_model": {"_component_": "distill_tune.models.from_hf", "path": str(base)},
        "dataset": {"_component_": "distill_tune.data.instruct", "source": "/home/someone/rows.json"},
        "kd_ratio": 0.5,
    }))  # fmt: skip
    return folder
