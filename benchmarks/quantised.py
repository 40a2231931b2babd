"""How far a teacher's distribution moves when its weights are quantised: KL(as it is || quantised) on held-out rows.

    python benchmarks/quantised.py [--model FOLDER] [--gguf FILE ...]

The demo's teacher where no folder is named. Beside it, the memory that the weights of Llama 3.1 8B and Llama 3.3 70B
would take in each format, computed: layers quantised, embeddings and output layer in bf16.
"""

import argparse
from pathlib import Path

import torch
from omegaconf import OmegaConf

from distill_tune import config, data, teachers
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config

HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 100, "held_out": True, "min_characters": 250}
# Bytes of a layer's weight.
FORMATS = {
    "bf16": (None, 2.0),
    "int8": ("torchao.quantization.Int8WeightOnlyConfig", 1 + 4 / 4096),
    "fp8": ("torchao.quantization.Float8WeightOnlyConfig", 1 + 4 / 4096),
    "int4": ("torchao.quantization.Int4WeightOnlyConfig", 0.5 + 4 / 128),
    "NF4": ("distill_tune.teachers.NF4", 0.516),
}
GGUF = {"Q8_0": 34 / 32, "Q4_1": 20 / 32, "Q4_0": 18 / 32}
# Weights of the layers, and of embeddings and output layer.
SIZES = {"8B": (6.980e9, 1.051e9), "70B": (68.452e9, 2.101e9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo_model_folder("teacher")))
    parser.add_argument("--gguf", nargs="*", default=[], help="the same model as GGUF files, FORMAT=FILE")
    options = parser.parse_args()
    cfg = load_config(find_config("tiny"))
    if options.model != str(demo_model_folder("teacher")):
        cfg.tokenizer = OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": options.model})
    rows, _ = data.prepare_rows(OmegaConf.create(HELD_OUT), config.instantiate(cfg.tokenizer), cfg.tokenizer)
    batches = list(data.StepPlan(rows, batch_size=8, shuffle=False).epoch())
    wanted = log_probs(options.model, torch.float32, None, batches)
    print("| format | KL from fp32 | same likeliest token | weights of 8B | of 70B |\n" + "|" + " --- |" * 5)
    for name, (quantizer, each) in FORMATS.items():
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        line(name, each, wanted, lambda dtype=dtype, q=quantizer: log_probs(options.model, dtype, q, batches))
    for name, file in (entry.split("=", 1) for entry in options.gguf):
        line(f"GGUF {name}", GGUF[name], wanted, lambda file=file: log_probs(file, torch.float32, None, batches))


def line(name, each, wanted, measure):
    try:
        found = measure()
        kl = sum((p.exp() * (p - q)).sum().item() for p, q in zip(wanted, found, strict=True)) / sum(map(len, wanted))
        same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(wanted, found, strict=True)]).float().mean()
        measured = f"{kl:.2e} | {same:.1%}"
    except Exception as error:  # what this device cannot do is part of the answer
        measured = f"not on this device: {' '.join(str(error).split())[:60]} | "
    memory = " | ".join(f"{(layers * each + 2 * outside) / 1e9:.1f} GB" for layers, outside in SIZES.values())
    print(f"| {name} | {measured} | {memory} |", flush=True)


def log_probs(path: str, dtype: torch.dtype, quantizer: str | None, batches: list) -> list[torch.Tensor]:
    """``[n, v]`` for each batch, float32."""
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(Path(path))})
    chosen = OmegaConf.create({"_component_": quantizer}) if quantizer else None
    teacher = teachers.build_teacher(component, dtype=dtype, quantizer=chosen)
    teacher.load(None, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = []
    for batch in batches:
        signal = teacher(batch)
        n = len(signal.hidden)
        found.append(signal.logits(0, n, signal.memory(n)).float().log_softmax(-1).cpu())
    return found


if __name__ == "__main__":
    main()
