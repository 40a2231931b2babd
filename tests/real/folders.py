"""Hugging Face folders as the hub has them, but small: published config.json, tokenizer and template, random weights.

A model keeps its vocabulary, token ids, ties, rope and norms, and how its numbers of heads are to each other; width and
layers are cut down. Its output layer's weights are ten times as large as a new model's, so that a narrow model can be
sure of a token.
"""

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from published import PUBLISHED

PARTS = Path(__file__).parents[2] / ".real"
_HEAD_DIM = 16
_LEAST_WIDTH = 48
_WIDE = {"Llama-3.2-1B-Instruct": 64}  # NF4 quantises blocks of 16,384 weights
_LAYERS = {"gemma3": 6, "pruned": 1}  # Gemma 3's sixth layer is the first that sees all

# The template of each model's tokenizer_config.json, where trl does not have it.
_TEMPLATES = {
    "Llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "TinyLlama": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "Qwen2-": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}

_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}
_LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
_QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
_GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
_GEMMA |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
_SMOLLM2 = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
_SMOLLM2 |= {"unk_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"}
_SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
# By the beginning of the model's name: its tokenizer, its template, and of its files what is not in config.json.
_MODELS: tuple[tuple[str, str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("Llama-3.1", "llama3", "llama3_1", _LLAMA3, _SAMPLED),
    ("Llama-3.2", "llama3", "llama3_2", _LLAMA3, _SAMPLED),
    ("Llama-2", "llama2", "", _LLAMA2, _SAMPLED | {"pad_token_id": 0, "max_length": 4096}),
    ("TinyLlama", "llama2", "", _LLAMA2 | {"pad_token": "</s>"}, {"pad_token_id": 0, "max_length": 2048}),
    ("Qwen2-", "qwen2", "", _QWEN, _SAMPLED | {"eos_token_id": [151_645, 151_643], "pad_token_id": 151_643}),
    ("Qwen2.5", "qwen2_5", "qwen2_5", _QWEN, _SAMPLED | {"eos_token_id": [151_645, 151_643], "pad_token_id": 151_643}),
    ("Qwen3", "qwen3", "qwen3", _QWEN, _SAMPLED | {"eos_token_id": [151_645, 151_643], "pad_token_id": 151_643}),
    ("gemma-2", "gemma2", "gemma", _GEMMA, {"cache_implementation": "hybrid", "pad_token_id": 0}),
    ("gemma-3", "gemma3", "gemma3", _GEMMA, _SAMPLED | {"bos_token_id": 2, "eos_token_id": [1, 106]}),
    ("SmolLM2", "smollm2", "smollm2", _SMOLLM2, {"pad_token_id": 2}),
)  # fmt: skip


def write_folder(folder: Path, name: str) -> Path:
    """A small model by the name of a published one, with all files that its folder on the hub has."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    folder.mkdir(parents=True)
    config = small_config(name)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(sum(name.encode()))
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model = kind.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    # One file below some 5 GB on the hub.
    is_large = PUBLISHED[name].get("hidden_size", 0) > 3000
    model.save_pretrained(folder, max_shard_size="10MB" if is_large else "5GB")
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}, indent=2))
    write_tokenizer(folder, name)
    return folder


def write_tokenizer(folder: Path, name: str) -> None:
    """Tokenizer files, template and generation_config.json of the model of that name."""
    kind, _, config, generation = next(entry[1:] for entry in _MODELS if name.startswith(entry[0]))
    parts = PARTS / "tokenizers" / kind
    shutil.copyfile(parts / "tokenizer.json", folder / "tokenizer.json")
    if kind == "llama3":
        (folder / "original").mkdir()
        shutil.copyfile(parts / "tokenizer.model", folder / "original" / "tokenizer.model")
    elif (parts / "tokenizer.model").is_file():
        shutil.copyfile(parts / "tokenizer.model", folder / "tokenizer.model")
    added = json.loads((parts / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    config = config | {"added_tokens_decoder": {token.pop("id"): token for token in added}}
    text = template_of(name)
    if name == "gemma-3-270m-it":  # of the day when templates had got a file of their own
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    else:
        config = config | {"chat_template": text}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    special = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ids = {key: PUBLISHED[name][key] for key in ("bos_token_id", "eos_token_id") if key in PUBLISHED[name]}
    (folder / "generation_config.json").write_text(json.dumps(ids | generation))


def template_of(name: str) -> str:
    """The published chat template of a model."""
    for beginning, text in _TEMPLATES.items():
        if name.startswith(beginning):
            return text
    kind, template = next(entry[1:3] for entry in _MODELS if name.startswith(entry[0]))
    if kind == "smollm2":
        return (PARTS / "tokenizers" / kind / "chat_template.jinja").read_text(encoding="utf-8")
    return (resources.files("trl") / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")


def small_config(name: str) -> dict[str, Any]:
    """The published config.json with fewer layers, heads and dimensions."""
    config = json.loads(json.dumps(PUBLISHED[name]))
    if "vision_config" in config:
        # What it leaves out are Gemma 3's defaults: 8 heads, 4 of them key-value, of 256.
        published = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256} | config["text_config"]
        config["text_config"] = _cut(published, _LAYERS["gemma3"], _HEAD_DIM)
        size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
        config["vision_config"] |= size
        return config
    layers = next((layers for part, layers in _LAYERS.items() if part in config["model_type"] + name), 2)
    return _cut(config, layers, _WIDE.get(name, _HEAD_DIM))


def _cut(config: dict[str, Any], layers: int, head_dim: int) -> dict[str, Any]:
    heads, key_value = config["num_attention_heads"], config["num_key_value_heads"]
    published = config.get("head_dim", config["hidden_size"] // heads)
    for few in range(heads // key_value, heads + 1, heads // key_value):
        width = config["hidden_size"] * few * head_dim // (heads * published)
        if width >= _LEAST_WIDTH:
            break
    cut = config | {
        "num_hidden_layers": layers,
        "num_attention_heads": few,
        "num_key_value_heads": few * key_value // heads,
        "hidden_size": width,
        "intermediate_size": 8 * round(config["intermediate_size"] * width / config["hidden_size"] / 8),
    }
    return cut | ({"head_dim": head_dim} if "head_dim" in config else {})
