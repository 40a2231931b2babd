"""Layers with fake quantisation: their gradients beside float64, what they refuse, and when they round."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import qat
from distill_tune.errors import UserError
from distill_tune.generation import Decoder, Request, Sampling, stream_of
from distill_tune.generation.prepacked import quantized_once

from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.modules.peft import LoRALinear, disable_adapter, get_merged_lora_ckpt

SCHEMES = [qat.Q4_0(), qat.Q8_0(), qat.Int8DynActInt4Weight(32), qat.Int4WeightOnly(32)]
SHAPE = {"vocab_size": 60, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 32}
LORA = {"lora_attn_modules": ["q_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 12}
TOKENS = torch.arange(3, 15).view(2, 6)


def model_of(width: int = 64, lora: bool = False, **more) -> nn.Module:
    torch.manual_seed(0)
    sizes = SHAPE | {"embed_dim": width, "intermediate_dim": 2 * width}
    model = lora_llama3_2(**sizes, **LORA, **more) if lora else llama3_2(**sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounded value, with the gradient of what was rounded."""
    return value + (rounded.detach().double() - value.detach())


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_autograd_through_the_rounding(scheme, lora):
    model = model_of(lora=lora)
    qat.prepare(model, scheme)
    layer = model.layers[0].attn.q_proj
    layer.bias = nn.Parameter(torch.randn(64))
    x, outer = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 64)
    learned = dict(layer.named_parameters())
    found = layer(x)
    gradients = torch.autograd.grad((found * outer).sum(), [x, *learned.values()])

    exact = {name: value.detach().double().requires_grad_() for name, value in learned.items()}
    exact_x = x.detach().double().requires_grad_()
    weight = exact["weight"]
    if lora:
        weight = weight + 3.0 * exact["lora_b.weight"] @ exact["lora_a.weight"]
    rounded = straight_through(exact_x, scheme.activations(x)), straight_through(weight, layer.quantized_weight())
    product = rounded[0] @ rounded[1].mT
    wanted = torch.autograd.grad(((product + exact["bias"]) * outer).sum(), [exact_x, *exact.values()])
    torch.testing.assert_close(found.double(), product + exact["bias"], rtol=1e-5, atol=1e-5)
    for mine, its in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_rounded_under_lora_is_the_weight_that_the_export_merges(dtype):
    model = model_of(lora=True).to(dtype)
    qat.prepare(model, qat.Q4_0())
    layer = model.layers[0].attn.q_proj
    parts = {f"q.{name}": value.detach().float().clone() for name, value in layer.named_parameters()}
    merged = get_merged_lora_ckpt(parts, rank=4, alpha=12)["q.weight"].to(dtype)
    assert torch.equal(layer.quantized_weight(), qat.Q4_0().weights(merged))


@pytest.mark.parametrize("lora", [False, True])
def test_every_linear_layer_between_embeddings_and_output_is_rounded_and_keeps_its_names(lora):
    model = model_of(lora=lora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    qat.prepare(model, qat.Q8_0())
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in before.items()}
    assert len(list(qat.fake_quantized_layers(model))) == 7
    assert isinstance(model.layers[0].attn.q_proj, LoRALinear if lora else nn.Linear)
    model.load_state_dict(before)


def test_nothing_more_is_kept_for_the_backward_pass_than_of_plain_layers():
    plain, prepared = (nn.Sequential(model_of().layers[0].mlp) for _ in range(2))
    model = model_of()
    qat.prepare(model, qat.Q4_0())
    prepared = model.layers[0].mlp
    kept = []
    for module in (plain, prepared):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(torch.randn(1, 6, 64, requires_grad=True))
        kept.append(sum(storages.values()))
    assert kept[0] == kept[1]


def test_activation_checkpointing_gives_the_same_gradients():
    model = model_of()
    qat.prepare(model, qat.Int8DynActInt4Weight(32))
    hidden = torch.randn(2, 6, 64)
    layer, again = model.layers[0], copy.deepcopy(model.layers[0])
    layer(hidden).square().sum().backward()
    checkpoint(again, hidden, use_reentrant=False).square().sum().backward()
    for mine, its in zip(layer.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)


@pytest.mark.parametrize("lora", [False, True])
def test_compiled_layers_compute_as_they_do_eagerly_and_leave_the_rounding_to_nobody(lora):
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    model = model_of(lora=lora)
    qat.prepare(model, qat.Q4_0(), after_n_steps=1)
    hidden = torch.randn(2, 6, 64)
    layer, compiled = model.layers[0].mlp, copy.deepcopy(model).layers[0].mlp
    compiled.compile(backend=compiler)
    for has_begun in (False, True, False):
        for each in (layer, compiled):
            each.w1.quantization.has_begun = has_begun
            each.zero_grad()
            each(hidden).square().sum().backward()
        assert torch.equal(layer(hidden), compiled(hidden))
        for mine, its in zip(layer.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad)
    assert "linear" in "".join(graphs)  # of the steps before
    assert "trunc" not in "".join(graphs)


def test_rounding_begins_with_its_step_and_is_always_on_in_validation():
    model = model_of()
    plain = copy.deepcopy(model)
    qat.prepare(model, qat.Q4_0(), after_n_steps=2)
    whole = plain(TOKENS)
    for step, is_rounded in ((0, False), (1, False), (2, True), (0, False)):
        qat.begin_step(model, step)
        assert torch.equal(model.train()(TOKENS), whole) != is_rounded
        assert not torch.equal(model.eval()(TOKENS), whole)
    with qat.unquantized(model):
        assert torch.equal(model(TOKENS), whole)
    qat.begin_step(plain, 0)  # of a model that was not prepared nothing is asked


def test_without_adapters_and_rounding_it_is_the_base_model():
    model = model_of(lora=True)
    with disable_adapter(model):
        base = model(TOKENS)
    qat.prepare(model, qat.Q4_0())
    with qat.unquantized(model), disable_adapter(model):
        assert torch.equal(model(TOKENS), base)
    with disable_adapter(model):
        assert not torch.equal(model(TOKENS), base)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("prepack", [True, False])
def test_while_it_writes_answers_it_multiplies_by_what_was_rounded_once(lora, prepack, monkeypatch):
    model = model_of(width=256, lora=lora).eval()
    qat.prepare(model, qat.Int8DynActInt4Weight(32))
    wanted, rounded = model(TOKENS), []
    weights = qat.Int8DynActInt4Weight.weights
    monkeypatch.setattr(qat.Int8DynActInt4Weight, "weights", lambda self, w: rounded.append(w) or weights(self, w))
    with quantized_once(model.layers, prepack), torch.no_grad():
        torch.testing.assert_close(model(TOKENS), wanted, rtol=1e-4, atol=1e-4)
        model(TOKENS)
    assert len(rounded) == 7
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("rows", [1, 3])
def test_its_answers_are_those_of_the_rounded_weights(rows):
    model = model_of()
    qat.prepare(model, qat.Q4_0())
    requests = [Request([3, 4, 5 + row], stream_of(0, row)) for row in range(rows)]
    for request, answer in zip(requests, Decoder(model, {}, Sampling(6)).generate(requests), strict=True):
        row = torch.tensor([[*request.prompt, *answer.tokens]])
        wanted = model(row)[0, 2:-1].log_softmax(-1)[range(6), answer.tokens]
        torch.testing.assert_close(torch.tensor(answer.log_probs), wanted, rtol=0, atol=1e-4)


def test_rows_that_groups_do_not_divide_are_refused_with_the_modules_and_a_way_out():
    with pytest.raises(
        UserError,
        match=r"quantizer: Int4WeightOnly rounds 128 weights of a row together, which do not divide the rows of "
        r"layers\.0\.attn\.q_proj \(96\), .* and 4 more; set quantizer\.groupsize=32$",
    ):
        qat.prepare(model_of(width=96), qat.Int4WeightOnly(128))
    with pytest.raises(UserError, match=r"layers\.0\.attn\.q_proj \(40\).*; set quantizer\.groupsize=40$"):
        qat.prepare(model_of(width=40), qat.Int8DynActInt4Weight(32))
    with pytest.raises(UserError, match=r"take distill_tune\.qat\.Int8DynActInt4Weight with groupsize=40$"):
        qat.prepare(model_of(width=40), qat.Q4_0())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"lora_dropout": 0.1}, r"attn\.q_proj: lora_dropout=0\.1: what ships is the merged weight, .*lora_dropout=0"),
        ({"use_dora": True}, r"attn\.q_proj: the merged weights of DoRA are not rounded here; take LoRA"),
        (
            {"quantize_base": True},
            r"attn\.q_proj: its weight is in NF4 \(quantize_base=True\)",
        ),
    ],
)
@pytest.mark.torchao
def test_adapters_that_would_not_be_merged_as_they_are_trained_are_refused(more, why):
    with torch.device("meta"):
        model = lora_llama3_2(**SHAPE, **LORA, embed_dim=256, intermediate_dim=256, **more)
    with pytest.raises(UserError, match=rf"quantizer: layers\.0\.{why}"):
        qat.prepare(model, qat.Q4_0())
    assert not any(isinstance(module, qat.FakeQuantized) for module in model.modules())


def test_a_user_writes_a_scheme_of_four_members():
    @dataclasses.dataclass(frozen=True)
    class Signs:
        groupsize: int = 64
        fits: str = "a chip of mine"

        def weights(self, weight):
            return weight.sign()

        def activations(self, x):
            return x

    assert isinstance(Signs(), qat.Scheme)
    model = model_of()
    qat.prepare(model, Signs())
    assert set(model.layers[0].mlp.w1.quantized_weight().unique().tolist()) == {-1.0, 1.0}
