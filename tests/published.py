"""Folders of the models that shipped configs name: headers without data.

tests/real makes small ones with weights and real tokenizers.
"""

import base64
import json
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tiny_tokenizer import write_tokenizer
from tokenizers import Tokenizer

from distill_tune.models.published import PUBLISHED


def write_published(folder: Path, name: str) -> Path:
    """A folder whose safetensors files have headers as the real checkpoint has, and a hole where its data would be.

    The names and shapes are those of transformers' own model of that config. The tokenizer is a tiny one, in each form
    that a config may name: tokenizer.json, vocab.json with merges.txt, tiktoken's ranks.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    tied = model.config.get_text_config().tie_word_embeddings
    weights = {name: w for name, w in model.state_dict().items() if not (tied and name.endswith("lm_head.weight"))}
    plan = split_torch_state_dict_into_shards(weights, max_shard_size="5GB")
    for file, names in plan.filename_to_tensors.items():
        _write_header(folder / file, {name: weights[name] for name in names})
    if plan.is_sharded:
        index = {"weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(folder))
    (folder / "original").mkdir()
    ranks = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "original" / "tokenizer.model").write_text("".join(ranks))
    return folder


def _write_header(path: Path, weights: dict[str, torch.Tensor]) -> None:
    header, end = {}, 0
    for name, weight in weights.items():
        begin, end = end, end + weight.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
