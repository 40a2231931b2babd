"""What benchmarks/gpu.py measures: shapes of models, rows of a step."""

STUDENT = {
    "vocab_size": 128_256,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "embed_dim": 2048,
    "intermediate_dim": 8192,
    "max_seq_len": 8192,
}
TEACHER = {**STUDENT, "num_layers": 32, "embed_dim": 4096, "intermediate_dim": 14336}
# Large enough for a process's memory to be told apart from its noise.
SMALL = {
    "vocab_size": 16_000,
    "num_layers": 2,
    "num_heads": 8,
    "num_kv_heads": 4,
    "embed_dim": 256,
    "intermediate_dim": 704,
    "max_seq_len": 1024,
}
LORA = {"lora_attn_modules": ["q_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True, "lora_rank": 64}

# The kind of int4 that needs no package beside torchao.
_INT4 = {
    "_component_": "torchao.quantization.Int4WeightOnlyConfig",
    "int4_packing_format": "tile_packed_to_4d",
}
# Rows of one length, and rows of alpaca's lengths and share of prompts: how batches are cut, what is checkpointed.
CASES: dict[str, dict] = {
    "long": {"lengths": [2048] * 4, "supervised": 1.0},
    "long_checkpointed": {"lengths": [2048] * 4, "supervised": 1.0, "checkpointed": True},
    "long_full": {"lengths": [2048] * 4, "supervised": 1.0, "checkpointed": True, "full": True},
    "long_int8": {
        "lengths": [2048] * 2,
        "supervised": 1.0,
        "checkpointed": True,
        "quantizer": {"_component_": "torchao.quantization.Int8WeightOnlyConfig"},
    },
    "long_int4": {"lengths": [2048] * 2, "supervised": 1.0, "checkpointed": True, "quantizer": _INT4},
    "long_compiled": {"lengths": [2048] * 4, "supervised": 1.0, "compile": True},
    "alpaca": {"lengths": [55, 380, 120, 260, 90, 510, 33, 201], "supervised": 0.7},
}
