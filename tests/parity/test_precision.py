"""bf16 against float64 and float32: every kind of output layer, a model's gradients, what updates do to weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import model_arguments

from distill_tune import models
from distill_tune.losses import DenseLogits, distillation_loss, head
from distill_tune.models.output_head import OutputHead, SoftCappedLinear, SoftCappedTiedLinear
from distill_tune.models.packed_rows import PackedRows

from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.modules import FrozenNF4Linear, TiedLinear, TransformerSelfAttentionLayer
from torchtune.modules.peft import DoRALinear, LoRALinear
from torchtune.training import set_activation_checkpointing, set_default_dtype

D, V, N = 64, 256, 48
ADAPTER = {"rank": 8, "alpha": 16.0}


def linear(adapter=None, **more):
    if adapter is None:
        return torch.nn.Linear(D, V, bias=False, dtype=torch.bfloat16)
    with set_default_dtype(torch.bfloat16):
        layer = adapter(D, V, **ADAPTER, **more)
    layer.weight.requires_grad_(False)
    for factor in (layer.lora_a, layer.lora_b):
        factor.float()
        torch.nn.init.normal_(factor.weight, std=0.2)
    if adapter is DoRALinear:
        layer.magnitude.data = layer.magnitude.data.float()
        layer.initialize_dora_magnitude()
        layer.magnitude.data *= torch.linspace(0.8, 1.2, V)
    return layer


def tied(layer_of=TiedLinear, *arguments):
    embeddings = torch.nn.Embedding(V, D)  # trains, so in float32
    return OutputHead(layer_of(embeddings, *arguments), embeddings)


def own(layer):
    return OutputHead(layer, layer)


HEADS = {
    "plain": lambda: own(linear()),
    "plain, held in float32": lambda: own(linear().float()),
    "tied": tied,
    "capped": lambda: own(SoftCappedLinear(D, V, 10.0)),
    "tied and capped": lambda: tied(SoftCappedTiedLinear, 10.0),
    "lora": lambda: own(linear(LoRALinear)),
    "lora with dropout": lambda: own(linear(LoRALinear, dropout=0.5)),
    "dora": lambda: own(linear(DoRALinear)),
    "nf4": lambda: own(FrozenNF4Linear(D, V, bias=False, dtype=torch.bfloat16)),
    "lora on nf4": lambda: own(linear(LoRALinear, quantize_base=True)),
    "dora on nf4": lambda: own(linear(DoRALinear, quantize_base=True)),
}


def weight_of(layer):
    weight = layer.weight
    return weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight


def exact_logits(of, hidden):
    """The formula in float64, of the values that the products are given."""
    layer = of.module
    logits = hidden.double() @ weight_of(layer).bfloat16().double().T
    if isinstance(layer, LoRALinear | DoRALinear):
        a, b, scale = layer.lora_a.weight.double(), layer.lora_b.weight.double(), ADAPTER["alpha"] / ADAPTER["rank"]
        logits = logits + scale * layer.dropout(hidden).double() @ a.T @ b.T
        if isinstance(layer, DoRALinear):
            norm = (weight_of(layer).double() + scale * b @ a).norm(dim=1).detach()
            logits = logits * layer.magnitude.double() / norm
    return logits if of.softcap is None else of.softcap * (logits / of.softcap).tanh()


OF_TORCHAO = {"nf4", "lora on nf4", "dora on nf4"}


def marked(kinds):
    return [pytest.param(kind, marks=pytest.mark.torchao) if kind in OF_TORCHAO else kind for kind in kinds]


@pytest.mark.parametrize("kind", marked(HEADS))
def test_the_gradient_of_every_output_layer_is_within_a_hundredth_of_float64(kind, monkeypatch):
    """With logits of a trained model's size, and a teacher near the student; in chunks, and a rest."""
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 10 * V * 20})
    torch.manual_seed(0)
    of = HEADS[kind]()
    if kind not in OF_TORCHAO:
        torch.nn.init.normal_(of.module.weight, std=3 / D**0.5)
    if isinstance(of.module, DoRALinear):
        of.module.initialize_dora_magnitude()
    hidden = (torch.randn(N, D) * (1 if "nf4" not in kind else 8)).bfloat16().requires_grad_()
    targets = torch.randint(V, (N,))
    trained = [p for p in of.module.parameters() if p.requires_grad]
    torch.manual_seed(1)  # of the dropout, which both draw for all rows at once, or in the same chunks
    monkeypatch.setattr(head, "chunk_rows", lambda n, *_: n if "dropout" in kind else 20)
    logits = exact_logits(of, hidden)
    teacher = (logits.detach() + 0.3 * torch.randn(N, V, generator=torch.Generator().manual_seed(2))).float()
    ce = F.cross_entropy(logits, targets, reduction="sum")
    kd = F.kl_div(logits.log_softmax(-1), teacher.double().softmax(-1), reduction="sum")
    wanted = torch.autograd.grad(0.2 * ce + 0.8 * kd, [hidden, *trained])

    torch.manual_seed(1)
    sums = distillation_loss(hidden, of.projection_for_loss(), targets, DenseLogits(teacher), kd_ratio=0.8)
    assert sums.loss.item() == pytest.approx((0.2 * ce + 0.8 * kd).item(), rel=1e-4)
    for found, exact in zip(torch.autograd.grad(sums.loss, [hidden, *trained]), wanted, strict=True):
        assert (found.double() - exact.double()).norm() / exact.double().norm() < 5e-3


def lora_student(dtype, **more):
    with set_default_dtype(dtype):
        return lora_llama3_2(
            **model_arguments(), lora_attn_modules=["q_proj", "v_proj"], lora_rank=4, lora_alpha=8, **more
        )


def full_student(dtype):
    with set_default_dtype(dtype):
        return llama3_2(**model_arguments())


STUDENTS = {
    "full": full_student,
    "lora": lora_student,
    "dora": lambda dtype: lora_student(dtype, use_dora=True),
}


def gradients(model, checkpointed=False):
    """Of a loss, by the name of each trained parameter."""
    output = models.take_output_head(model)
    if checkpointed:
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    generator = torch.Generator().manual_seed(5)
    tokens, targets = (torch.randint(3, 320, (1, 40), generator=generator) for _ in range(2))
    rows = PackedRows([15, 25], torch.device("cpu"))
    hidden = model(tokens, mask=rows, input_pos=rows.positions)[0]
    sums = distillation_loss(hidden, output.projection_for_loss(), targets[0])
    (sums.loss / 40).backward()
    return {name: p.grad for name, p in models.parameters.named_parameters(model) if p.requires_grad}


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_trains_is_float32_and_its_gradient_that_of_float32_to_bf16s_precision(kind, checkpointed):
    torch.manual_seed(0)
    model = STUDENTS[kind](torch.bfloat16)
    models.freeze_all_but_adapters(model)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, DoRALinear):
            module.initialize_dora_magnitude()
    exact = gradients(copy.deepcopy(model).float())
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    models.compute_in(model, torch.bfloat16)
    found = gradients(model, checkpointed)
    assert found.keys() == exact.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(isinstance(p, torch.nn.Parameter) for p in model.parameters())  # as they were, after their use
    assert all(p.dtype == torch.bfloat16 for p in frozen.values())
    norm = torch.stack([gradient.norm() for gradient in exact.values()]).norm()
    off = torch.stack([(found[name] - exact[name]).norm() for name in exact]).norm()
    assert 0 < off / norm < 1e-2


def test_parameters_are_put_back_when_a_layer_runs_out_of_memory():
    model = full_student(torch.bfloat16)
    models.freeze_all_but_adapters(model)
    models.compute_in(model, torch.bfloat16)

    def fails(*arguments, **named):
        raise torch.OutOfMemoryError("out of memory")

    model.layers[1].mlp.forward = fails
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.ones(1, 4, dtype=torch.int64))
    assert all(isinstance(p, torch.nn.Parameter) and p.dtype == torch.float32 for p in model.parameters())
