"""Models built from a Hugging Face folder: config.json says all that is needed."""

import os
from pathlib import Path

from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.models.attention import Attention
from distill_tune.models.checkpoint import model_config
from distill_tune.models.decoder_config import decoder_config
from distill_tune.models.gguf_config import gguf_config
from distill_tune.models.norm import RMSNorm
from distill_tune.models.output_head import SoftCappedLinear, SoftCappedTiedLinear
from distill_tune.models.rope import RopeConfig, RotaryEmbedding

from torchtune.models.gemma.gemma_norm_embedding import GemmaNormEmbeddings
from torchtune.models.gemma.rms_norm import GemmaRMSNorm
from torchtune.modules import (
    FeedForward,
    FrozenNF4Linear,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.common_utils import _register_reparametrize_state_dict_hooks
from torchtune.modules.peft import DoRALinear, LoRALinear

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")


def from_hf(path: str, max_seq_len: int | None = None) -> TransformerDecoder:
    """A model from its Hugging Face folder, without weights: Llama, (Mi)nistral, Qwen2, Qwen3, Gemma 2, Gemma 3, Phi-3.

    Args:
        path: the folder; its weights are loaded by the recipe, which needs no ``checkpointer`` then. For a teacher also
            a GGUF file of a Llama, Mistral, Qwen2, Qwen3, Gemma 2 or Gemma 3.
        max_seq_len: the longest sequence; default config.json's.

    Raises:
        UserError: no folder with a config.json there, or an architecture that is not supported.
    """
    return _Builder(path).build(max_seq_len)


def lora_from_hf(
    path: str,
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    quantize_base: bool = False,
    max_seq_len: int | None = None,
) -> TransformerDecoder:
    """:func:`from_hf` with LoRA (arXiv 2106.09685) on chosen modules; the arguments are torchtune's.

    Args:
        lora_attn_modules: of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: on gate, up and down projection.
        apply_lora_to_output: on the output layer, where it is not tied to the embeddings.
        use_dora: DoRA (arXiv 2402.09353).
        quantize_base: QLoRA (arXiv 2305.14314): the frozen projections in NF4.

    Raises:
        UserError: as :func:`from_hf`; a module that is not there; arguments that exclude each other.
    """
    unknown = [name for name in lora_attn_modules if name not in ATTENTION_MODULES]
    if unknown:
        raise UserError(f"lora_attn_modules: there is no {unknown[0]}; there are {', '.join(ATTENTION_MODULES)}")
    builder = _Builder(path, lora_rank, lora_alpha, lora_dropout, use_dora, quantize_base)
    builder.adapted = {*lora_attn_modules, *(("w1", "w2", "w3") if apply_lora_to_mlp else ())}
    if apply_lora_to_output:
        if builder.config.tied_embeddings:
            raise UserError("apply_lora_to_output=True: this model's output layer is tied to its embeddings; leave it")
        builder.adapted.add("output")
    if not builder.adapted:
        raise UserError("lora_attn_modules=[]: LoRA needs a module, or apply_lora_to_mlp=True")
    if use_dora and builder.config.fused:
        raise UserError("use_dora=True: this architecture fuses its projections, which peft's DoRA cannot express")
    if use_dora and (builder.config.qkv_bias or builder.config.mlp_bias):
        raise UserError("use_dora=True: this architecture's projections have biases, which torchtune's DoRA scales too")
    return builder.build(max_seq_len)


class _Builder:
    """Puts torchtune's modules together; knows which of the linear layers have adapters."""

    def __init__(
        self,
        path: str,
        rank: int = 0,
        alpha: float = 0.0,
        dropout: float = 0.0,
        use_dora: bool = False,
        quantize_base: bool = False,
    ) -> None:
        file = Path(os.path.expanduser(path))
        config_json = gguf_config(file) if file.suffix == ".gguf" else model_config(file, "path")
        try:
            self.config = decoder_config(config_json)
        except UserError as error:
            raise UserError(f"path={path}: {error}") from error
        self.adapted: set[str] = set()
        self._lora = {"rank": rank, "alpha": alpha, "dropout": dropout, "quantize_base": quantize_base}
        self._adapter = DoRALinear if use_dora else LoRALinear
        self._quantized = quantize_base
        self._ropes: dict[RopeConfig, RotaryEmbedding] = {}

    def build(self, max_seq_len: int | None) -> TransformerDecoder:
        config = self.config
        if max_seq_len is not None and max_seq_len > config.max_seq_len:
            raise UserError(f"max_seq_len={max_seq_len}: config.json says {config.max_seq_len} at most")
        max_seq_len = max_seq_len or config.max_seq_len
        self._ropes = {rope: RotaryEmbedding(rope, max_seq_len) for rope in set(config.ropes)}
        embeddings = (GemmaNormEmbeddings if config.gemma else nn.Embedding)(config.vocab_size, config.embed_dim)
        model = TransformerDecoder(
            tok_embeddings=embeddings,
            layers=[self._layer(layer) for layer in range(config.num_layers)],
            max_seq_len=max_seq_len,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            norm=self._norm(config.embed_dim),
            output=self._output(embeddings),
        )
        model.decoder_config = config  # by which its weights are named in a checkpoint
        if self._quantized:
            _register_reparametrize_state_dict_hooks(model, dtype=embeddings.weight.dtype, offload_to_cpu=False)
        return model

    def _layer(self, layer: int) -> TransformerSelfAttentionLayer:
        config = self.config
        return TransformerSelfAttentionLayer(
            attn=self._attention(layer),
            mlp=FeedForward(
                gate_proj=self._linear("w1", config.embed_dim, config.intermediate_dim, config.mlp_bias),
                down_proj=self._linear("w2", config.intermediate_dim, config.embed_dim, config.mlp_bias),
                up_proj=self._linear("w3", config.embed_dim, config.intermediate_dim, config.mlp_bias),
                activation=nn.SiLU() if config.activation == "silu" else nn.GELU(approximate="tanh"),
            ),
            sa_norm=self._norm(config.embed_dim),
            mlp_norm=self._norm(config.embed_dim),
            sa_scale=self._norm(config.embed_dim) if config.gemma else None,
            mlp_scale=self._norm(config.embed_dim) if config.gemma else None,
        )

    def _attention(self, layer: int) -> Attention:
        config = self.config
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        return Attention(
            q_proj=self._linear("q_proj", config.embed_dim, queries, config.qkv_bias),
            k_proj=self._linear("k_proj", config.embed_dim, keys, config.qkv_bias),
            v_proj=self._linear("v_proj", config.embed_dim, keys, config.qkv_bias),
            output_proj=self._linear("output_proj", queries, config.embed_dim, config.output_bias),
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope=self._ropes[config.ropes[layer]],
            scale=config.attention_scale,
            q_norm=self._norm(config.head_dim) if config.qk_norm else None,
            k_norm=self._norm(config.head_dim) if config.qk_norm else None,
            window=config.windows[layer],
            softcap=config.attention_softcap,
        )

    def _output(self, embeddings: nn.Embedding) -> nn.Module | TiedLinear:
        config = self.config
        if config.tied_embeddings:
            if config.logit_softcap:
                return SoftCappedTiedLinear(embeddings, config.logit_softcap)
            return TiedLinear(embeddings)
        if config.logit_softcap:
            return SoftCappedLinear(config.embed_dim, config.vocab_size, config.logit_softcap)
        if "output" in self.adapted:
            return self._adapter(config.embed_dim, config.vocab_size, **(self._lora | {"quantize_base": False}))
        return nn.Linear(config.embed_dim, config.vocab_size, bias=False)

    def _linear(self, name: str, in_dim: int, out_dim: int, bias: bool) -> nn.Module:
        if name in self.adapted:
            return self._adapter(in_dim, out_dim, use_bias=bias, **self._lora)
        if self._quantized and not bias:
            return FrozenNF4Linear(in_dim, out_dim, bias=False)
        return nn.Linear(in_dim, out_dim, bias=bias)

    def _norm(self, dim: int) -> nn.Module:
        return (GemmaRMSNorm if self.config.gemma else RMSNorm)(dim, eps=self.config.norm_eps)
