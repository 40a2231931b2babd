"""Models without weights."""

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import models

LORA = {
    "_component_": "torchtune.models.llama3_2.lora_llama3_2",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": True,
    "vocab_size": 320,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 256,
    "max_seq_len": 128,
    "intermediate_dim": 512,
    "lora_rank": 4,
    "lora_alpha": 8,
    "quantize_base": True,
}


@pytest.mark.torchao
def test_weights_of_a_shape_become_nf4_once_and_are_what_torchao_makes_of_each(monkeypatch):
    from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4

    quantise, shapes = NF4Tensor.from_tensor, []

    def noted(weight, *block_sizes):
        shapes.append((*weight.shape, weight.requires_grad))
        return quantise(weight, *block_sizes)

    monkeypatch.setattr(NF4Tensor, "from_tensor", noted)
    model = models.build_on_meta("model", OmegaConf.create(LORA), torch.bfloat16)
    assert sorted(shapes) == sorted(set(shapes))
    weights = [weight for weight in model.parameters() if isinstance(weight.data, NF4Tensor)]
    assert len(weights) == 3 * 7
    for weight in weights:
        alone = to_nf4(torch.empty(weight.shape, dtype=torch.bfloat16, device="meta"))
        assert weight.dtype == alone.dtype
        assert weight.is_meta
        for name in alone.__tensor_flatten__()[0]:
            assert getattr(weight, name).shape == getattr(alone, name).shape
            assert getattr(weight, name).dtype == getattr(alone, name).dtype
