"""Tiny models and rows that tests are made of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import tiny_tokenizer
import torch
from safetensors.torch import save_file

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.conversion import TorchtuneConversion

from torchtune.models.llama3_2 import llama3_2

VOCAB_SIZE = 320
# Of a step's metrics what depends on the clock and the machine, not on the run.
MEASURED = {"tokens_per_second", "supervised_tokens_per_second", "peak_memory_bytes", "seconds", "val_seconds"}
MEASURED |= {"rollout_tokens_per_second", "rollout_seconds"}
ROWS = [
    {
        "instruction": f"What is {a} plus {b}?",
        "input": "",
        "output": f"{a} plus {b} is {a + b}, " + "and so on " * (a % 4) + "done.",
    }
    for a in range(8)
    for b in range(8)
]


def model_arguments(vocab_size: int = VOCAB_SIZE, width: int = 32, layers: int = 2) -> dict:
    """Arguments of torchtune.models.llama3_2.llama3_2."""
    return {
        "vocab_size": vocab_size,
        "num_layers": layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": width,
        "intermediate_dim": 2 * width,
        "max_seq_len": 128,
    }


def write_model(folder: Path, tokenizer_file: Path, seed: int, **shape: int) -> Path:
    """A Hugging Face folder with random weights."""
    arguments = model_arguments(**shape)
    torch.manual_seed(seed)
    model = llama3_2(**arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else None
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arguments["vocab_size"],
        "hidden_size": arguments["embed_dim"],
        "intermediate_size": arguments["intermediate_dim"],
        "num_hidden_layers": arguments["num_layers"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": arguments["embed_dim"] // 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    weights = TorchtuneConversion("LLAMA3_2", config).to_hf(model.state_dict())
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_model_of_another_tokenizer(folder: Path, tokenizer_file: Path, seed: int, vocab_size: int = 288) -> Path:
    """A Hugging Face folder whose byte-level tokenizer has a chat template of its own, and fewer tokens than logits."""
    write_model(folder, tokenizer_file, seed, vocab_size=vocab_size)
    (folder / "tokenizer.model").unlink()
    tiny_tokenizer.write_tokenizer(folder, vocab_size, [row["output"] for row in ROWS])
    return folder


def write_tokenizer(path: Path) -> Path:
    """A SentencePiece model of VOCAB_SIZE pieces."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([row["instruction"] + " " + row["output"] for row in ROWS]),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return path


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def edit_recipe(cli: Callable[..., Any], folder: Path, recipe: str, lines: str) -> str:
    """mine.py in ``folder``: a shipped recipe with lines put before its call of loss_of."""
    assert cli("cp", recipe, "mine.py", "--force").returncode == 0
    put_before(folder / "mine.py", "import time\n", "import os")
    put_before(folder / "mine.py", "            of_batch = loss_of(batch, weights)\n", lines)
    return "mine.py"


def put_before(script: Path, place: str, lines: str) -> None:
    """Lines before the only line of a script that is ``place``, as far in as that."""
    source, indent = script.read_text(), place[: -len(place.lstrip())]
    assert source.count(place) == 1
    script.write_text(source.replace(place, "".join(f"{indent}{line}\n" for line in lines.splitlines()) + place))
