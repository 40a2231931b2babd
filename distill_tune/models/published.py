"""The published config.json of every model that a shipped config names: what decides names, shapes and token ids."""

import atexit
import functools
import json
import tempfile
from pathlib import Path
from typing import Any


def _llama(hidden: int, wide: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def _llama3(*shape: int, factor: float, **more: Any) -> dict[str, Any]:
    scaling = {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    settings: dict[str, Any] = {"max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rope_scaling": scaling}
    ids: dict[str, Any] = {"vocab_size": 128_256, "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009]}
    return _llama(*shape, **settings | ids | more)


def _qwen(kind: str, vocab: int, *shape: int, tied: bool, **more: Any) -> dict[str, Any]:
    kinds = {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), "rms_norm_eps": 1e-6}
    settings = {"vocab_size": vocab, "max_position_embeddings": 32_768, "rope_theta": 1_000_000.0}
    ids = {"bos_token_id": 151_643, "eos_token_id": 151_645}
    sliding = {"use_sliding_window": False, "sliding_window": 32_768, "max_window_layers": 28}
    return _llama(*shape) | kinds | settings | ids | sliding | {"tie_word_embeddings": tied} | more


def _gemma2(*shape: int) -> dict[str, Any]:
    return _llama(*shape) | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": 256_000,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "bos_token_id": 2,
        "eos_token_id": [1, 107],
        "pad_token_id": 0,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B-Instruct": _llama3(4096, 14336, 32, 32, 8, factor=8.0),
    "Llama-3.2-1B-Instruct": _llama3(2048, 8192, 16, 32, 8, factor=32.0, head_dim=64, tie_word_embeddings=True),
    "Llama-3.2-3B-Instruct": _llama3(3072, 8192, 28, 24, 8, factor=32.0, head_dim=128, tie_word_embeddings=True),
    "Llama-2-7b-chat-hf": _llama(4096, 11008, 32, 32, 32, vocab_size=32_000, max_position_embeddings=4096),
    "TinyLlama-1.1B-Chat-v1.0": _llama(2048, 5632, 22, 32, 4, vocab_size=32_000, max_position_embeddings=2048),
    "Qwen2-0.5B-Instruct": _qwen("Qwen2", 151_936, 896, 4864, 24, 14, 2, tied=True),
    "Qwen2-1.5B-Instruct": _qwen("Qwen2", 151_936, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen2.5-0.5B-Instruct": _qwen("Qwen2", 151_936, 896, 4864, 24, 14, 2, tied=True),
    "Qwen2.5-7B-Instruct": _qwen("Qwen2", 152_064, 3584, 18944, 28, 28, 4, tied=False),
    "Qwen2.5-14B-Instruct": _qwen("Qwen2", 152_064, 5120, 13824, 48, 40, 8, tied=False),
    "Qwen3-0.6B": _qwen("Qwen3", 151_936, 1024, 3072, 28, 16, 8, tied=True, head_dim=128),
    "Qwen3-8B": _qwen("Qwen3", 151_936, 4096, 12288, 36, 32, 8, tied=False, head_dim=128),
    "Qwen3-14B": _qwen("Qwen3", 151_936, 5120, 17408, 40, 40, 8, tied=False, head_dim=128),
    "gemma-2-2b-it": _gemma2(2304, 9216, 26, 8, 4),
    "gemma-2-9b-it": _gemma2(3584, 14336, 42, 16, 8),
    "gemma-3-270m-it": _llama(640, 2048, 18, 4, 1)
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32_768,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    # Sees as well; its text_config leaves most to the defaults.
    "gemma-3-4b-it": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "eos_token_id": [1, 106],
        "image_token_index": 262_144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "SmolLM2-1.7B-Instruct": _llama(
        2048,
        8192,
        24,
        32,
        32,
        vocab_size=49_152,
        max_position_embeddings=8192,
        rope_theta=130_000,
        pad_token_id=2,
        tie_word_embeddings=True,
    ),
    "SmolLM2-135M-Instruct": _llama(
        576,
        1536,
        30,
        9,
        3,
        vocab_size=49_152,
        max_position_embeddings=8192,
        rope_theta=100_000,
        pad_token_id=2,
        tie_word_embeddings=True,
    ),
}
# What init-student makes of it.
PUBLISHED["SmolLM2-135M-Instruct-pruned"] = PUBLISHED["SmolLM2-135M-Instruct"] | {"num_hidden_layers": 22}


def published_folder(name: str) -> Path | None:
    """A folder with nothing but the config.json of a model that is known by its name on the hub; None for others.

    Args:
        name: with its owner or without, or the path of a folder of that name.
    """
    known = name.rstrip("/").rpartition("/")[2]
    if known not in PUBLISHED:
        return None
    folder = _folder_of(known)
    _named[folder] = name
    return folder


def is_published(folder: Path) -> bool:
    """Whether it is one of :func:`published_folder`, of a model that is not here."""
    return folder in _named


def as_named(folder: Path) -> Path:
    """A folder, for messages: one of :func:`published_folder` by the name that was asked for."""
    return Path(_named.get(folder, folder))


_named = dict[Path, str]()


@functools.cache
def _folder_of(name: str) -> Path:
    around = tempfile.TemporaryDirectory()
    atexit.register(around.cleanup)
    folder = Path(around.name) / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
    return folder
