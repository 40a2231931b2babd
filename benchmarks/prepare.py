"""The same models and rows for all: random weights in Hugging Face folders, and rows of tokens in one JSON file."""

import json
import sys
from pathlib import Path

import torch
from cases import Case, Shape
from omegaconf import OmegaConf
from safetensors.torch import save_file

from distill_tune import config, data
from distill_tune.config.files import demo_model_folder

TOKENIZER = {
    "_component_": "torchtune.models.llama2.llama2_tokenizer",
    "path": str(demo_model_folder("student") / "tokenizer.model"),
}


def prepare(case: Case, folder: Path, alpaca: str | None, num_rows: int) -> None:
    """Write ``student/``, ``teacher/`` and ``rows.json`` (a list of tokens and labels, prompts masked)."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, shape) in enumerate([("student", case.student), ("teacher", case.teacher)]):
        write_model(folder / name, shape, case.vocab_size, seed)
    (folder / "rows.json").write_text(json.dumps(rows_of(case, alpaca, num_rows)))


def write_model(folder: Path, shape: Shape, vocab_size: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    width, inner, keys = shape.width, shape.intermediate, shape.width // 2
    sizes = {"model.embed_tokens": (vocab_size, width), "lm_head": (vocab_size, width)}
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        sizes |= {f"{at}.self_attn.{name}_proj": (width, width) for name in "qo"}
        sizes |= {f"{at}.self_attn.{name}_proj": (keys, width) for name in "kv"}
        sizes |= {f"{at}.mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        sizes[f"{at}.mlp.down_proj"] = (width, inner)
    weights = {f"{name}.weight": torch.randn(size, generator=generator) * 0.02 for name, size in sizes.items()}
    norms = [f"model.layers.{n}.{kind}_layernorm" for n in range(shape.layers) for kind in ("input", "post_attention")]
    weights |= {f"{name}.weight": torch.ones(width) for name in [*norms, "model.norm"]}
    save_file({name: w.to(dtype) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": vocab_size,
                "hidden_size": width,
                "intermediate_size": inner,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.heads // 2,
                "head_dim": 64,
                "max_position_embeddings": 4096,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "tie_word_embeddings": False,
                "torch_dtype": "float32",
                "attention_bias": False,
                "mlp_bias": False,
                "bos_token_id": 1,
                "eos_token_id": 2,
            }
        )
    )


def rows_of(case: Case, alpaca: str | None, num_rows: int) -> list[dict[str, list[int]]]:
    if case.rows == "alpaca":
        dataset = {"_component_": "distill_tune.data.instruct", "source": alpaca}
    else:
        # The demo's rows; rows of one length are cut from them, one after another.
        dataset = {"_component_": "distill_tune.data.docstrings", "min_characters": 250}
    tokenizer_config = OmegaConf.create({**TOKENIZER, "max_seq_len": case.max_seq_len})
    tokenizer = config.instantiate(tokenizer_config)
    (rows,), _ = data.prepare_rows(OmegaConf.create(dataset), tokenizer, tokenizer_config, on_bad_row="skip")
    if case.rows == "long":
        tokens = rows.tokens[: case.max_seq_len * num_rows].view(-1, case.max_seq_len)
        return [{"tokens": row.tolist(), "labels": row.tolist()} for row in tokens]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:num_rows].tolist()
    return [{"tokens": rows[row][0].tolist(), "labels": rows[row][1].tolist()} for row in order]


if __name__ == "__main__":
    name, folder, alpaca, num_rows = sys.argv[1:]
    from cases import CASES, SCALING

    prepare((CASES | SCALING)[name], Path(folder), alpaca or None, int(num_rows))
