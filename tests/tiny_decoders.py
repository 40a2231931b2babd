"""Models of torchtune's own builders that answer, and prompts for them."""

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.generation import Completion, Request, Sampling, stream_of

from torchtune.models.gemma2 import gemma2, lora_gemma2
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.models.qwen2 import qwen2

V = 50
SHAPE = {
    "vocab_size": V,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 48,
    "max_seq_len": 64,
}
LORA = {
    "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.5,
}
GEMMA2 = {**SHAPE, "head_dim": 8, "sliding_window_size": 6, "query_pre_attn_scalar": 8}
BUILT = {
    "llama": lambda: llama3_2(**SHAPE),
    "llama_with_lora": lambda: lora_llama3_2(**SHAPE, **LORA),
    "qwen2": lambda: qwen2(**SHAPE, tie_word_embeddings=True),
    "gemma2": lambda: gemma2(**GEMMA2),
    "gemma2_with_lora": lambda: lora_gemma2(**GEMMA2, **LORA),
}
PROMPTS = [
    torch.randint(3, V, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in (9, 2, 5)
]
REQUESTS = [Request(prompt, stream_of(1, row)) for row, prompt in enumerate(PROMPTS)]
FREE = Sampling(20, temperature=1.5)


def built(name: str):
    torch.manual_seed(0)
    model = BUILT[name]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def tokens_of(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in completions]
