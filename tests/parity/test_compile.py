"""Compiled layers give the losses and gradients of eager ones, with one graph a layer and none for a new length."""

import functools
from pathlib import Path
from typing import Any

import pytest
import stand_in_cuda
import torch
from architectures import write_architecture
from omegaconf import OmegaConf
from stand_in_offloading import offloading_without_cuda
from tiny import VOCAB_SIZE, write_model
from torch._dynamo.utils import counters
from torch._inductor import metrics

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import data, losses, models, teachers
from distill_tune.data.batch import joined
from distill_tune.errors import UserError
from distill_tune.models import packed_rows

from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapters": LORA},
    "qlora": {"student": "wide", "adapters": LORA | {"quantize_base": True}, "dtype": torch.bfloat16},
    "dora": {"adapters": LORA | {"use_dora": True}},
    "int8 teacher": {"adapters": LORA, "quantizer": "torchao.quantization.Int8WeightOnlyConfig"},
    "nf4 teacher": {"adapters": LORA, "teacher": "wide", "quantizer": "distill_tune.teachers.NF4"},
    "streamed teacher": {"adapters": LORA, "offload": True},
    "average of the student": {"teacher": "EMA"},
    "base model": {"adapters": LORA, "teacher": "BaseModel"},
    "hugging face teacher": {"adapters": LORA, "teacher": "HuggingFace"},
    "hidden loss": {"adapters": LORA, "hidden_loss": losses.HiddenLoss([[1, 2], [2, 3]], weight=0.1)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    write_model(folder / "student", tokenizer_file, seed=1)
    write_model(folder / "teacher", tokenizer_file, seed=2, width=64, layers=3)
    write_model(folder / "deep", tokenizer_file, seed=3, width=64, layers=10)
    write_model(folder / "shallow", tokenizer_file, seed=5, layers=1)
    write_model(folder / "wide", tokenizer_file, seed=4, width=256)
    return folder


@pytest.fixture(scope="module", autouse=True)
def graphs_of_every_compiler():
    """Of autograd's graphs without the code that a device gets; those of layers of a kind are kept for all tests."""
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        patch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


@pytest.fixture
def flash(monkeypatch):
    """Attention as on CUDA: one operator for all rows, whose kernel alone stands in for CUDA's."""
    stand_in_cuda.give_operators_cpu_kernels()
    monkeypatch.setattr(packed_rows, "_row_by_row", stand_in_cuda.packed_flash)


class Step:
    """What a recipe does, from a config's models to the gradient of a batch."""

    def __init__(self, folder: Path, *, compile: bool, checkpointed: bool = False, **case: Any) -> None:
        torch.manual_seed(0)
        device, dtype = torch.device("cpu"), case.get("dtype", torch.float32)
        self.hidden_loss = case.get("hidden_loss", losses.HiddenLoss([], weight=0))
        kind, adapters = ("lora_from_hf", case["adapters"]) if "adapters" in case else ("from_hf", {})
        component = _component(f"models.{kind}", path=str(folder / case.get("student", "student")), **adapters)
        checkpoint = models.open_checkpoint("model", component, None)
        self.student = models.checked_on_meta("model", component, checkpoint, dtype)
        self.teacher = self._teacher(folder, case, dtype)
        if not isinstance(self.teacher, teachers.LiveTeacher | teachers.HuggingFace):  # those compare tokenizers
            self.teacher.check(self.student, checkpoint, None)
        models.match_layers(self.student, self.teacher, self.hidden_loss)
        models.freeze_all_but_adapters(self.student)
        models.compute_in(self.student, dtype)
        models.load_weights(self.student, checkpoint, device)
        self._draw_adapters()
        self.head = models.take_output_head(self.student)
        if checkpointed:
            set_activation_checkpointing(self.student, auto_wrap_policy={TransformerSelfAttentionLayer})
        if compile:
            models.compile_layers(self.student)
        self.teacher.load(self.student, device, compile=compile)
        self.student.train()

    def _teacher(self, folder: Path, case: dict[str, Any], dtype: torch.dtype) -> teachers.Teacher:
        name = case.get("teacher", "teacher")
        if name == "HuggingFace":
            component = _component("teachers.HuggingFace", path=str(folder / "shallow"))
        elif name in ("EMA", "BaseModel"):
            component = _component(f"teachers.{name}")
        else:
            component = _component("models.from_hf", path=str(folder / name))
        quantizer = OmegaConf.create({"_component_": case["quantizer"]}) if "quantizer" in case else None
        return teachers.build_teacher(component, dtype=dtype, quantizer=quantizer, offload=case.get("offload", False))

    @torch.no_grad()
    def _draw_adapters(self) -> None:
        """B is zero at first, and A would have no gradient."""
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.student.named_parameters():
            if name.endswith("lora_b.weight"):
                parameter.normal_(std=0.1, generator=generator)

    def gradient(self, batch: data.Batch) -> tuple[float, torch.Tensor]:
        """A batch's loss, and the gradient of all that trains."""
        supervised = batch.supervised_positions
        signal = self.teacher(batch)
        hidden, layers = models.hidden_states(self.student, batch.tokens, batch.attention())
        sums = losses.distillation_loss(
            hidden[0, supervised],
            self.head.projection_for_loss(),
            batch.targets[0, supervised],
            signal,
            kd_ratio=0.5,
        )
        between_layers = self.hidden_loss(layers, signal, supervised, models.projectors(self.student))
        loss = sums.plus_hidden(between_layers, self.hidden_loss.weight).loss / len(supervised)
        loss.backward()
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        gradient = torch.cat([parameter.grad.flatten() for parameter in trained])
        self.student.zero_grad(set_to_none=True)
        return loss.item(), gradient


def _component(name: str, **arguments: Any):
    return OmegaConf.create({"_component_": f"distill_tune.{name}", **arguments})


def batch_of_new_lengths(step: int) -> data.Batch:
    """One to four rows, of 60 + ``step`` tokens together."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(2, 20, (step % 4,), generator=generator).tolist()
    rows = []
    for length in [60 + step - sum(lengths), *lengths]:
        tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=generator, dtype=torch.int32)
        rows.append((tokens, torch.cat([torch.full((length // 3,), -100), tokens[length // 3 :]])))
    return joined(rows)


def assert_same_steps(eager: Step, compiled: Step, steps: int) -> None:
    """The same losses and gradients, and nothing is compiled after the second length."""
    graphs = []
    for step in range(steps):
        wanted, found = (way.gradient(batch_of_new_lengths(step)) for way in (eager, compiled))
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
        assert (found[1] - wanted[1]).norm() / wanted[1].norm() < 1e-5
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1:] == [graphs[1]] * (steps - 1)


OF_TORCHAO = {"qlora", "int8 teacher", "nf4 teacher"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.torchao) if name in OF_TORCHAO else name for name in CASES]
)
def test_losses_and_gradients_are_those_of_eager_layers(folder, flash, name):
    eager, breaks = Step(folder, compile=False, **CASES[name]), dict(counters["graph_break"])
    for checkpointed in (False, True):
        compiled = Step(folder, compile=True, checkpointed=checkpointed, **CASES[name])
        assert_same_steps(eager, compiled, 3)
    assert counters["stats"]["unique_graphs"]
    assert counters["graph_break"] == breaks


def test_layers_of_a_kind_share_what_is_compiled_and_their_hooks_are_left_out(folder, flash):
    """In bf16 hooks cast the student's weights; others bring the teacher's."""
    torch._dynamo.reset()
    counters.clear()
    case = {"dtype": torch.bfloat16, "teacher": "deep", "offload": True}
    assert_same_steps(*(Step(folder, compile=way, **case) for way in (False, True)), steps=3)
    assert counters["frames"]["total"] == 2 * 2  # student and teacher, the first length and all others


@pytest.mark.parametrize("attention", ["flash", "a call a row"])
def test_thirty_steps_of_ever_new_lengths_compile_nothing_after_the_second(folder, request, attention, monkeypatch):
    if attention == "flash":
        request.getfixturevalue("flash")
    else:  # whose many small graphs no other test has: what is traced, without autograd's
        monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")
    counters.clear()
    eager, compiled = (Step(folder, compile=way, student="shallow", teacher="shallow") for way in (False, True))
    assert_same_steps(eager, compiled, 30)
    breaks = [reason for reason in counters["graph_break"] if "_row_by_row" not in reason]
    assert not breaks
    assert bool(counters["graph_break"]) == (attention != "flash")


def eager_and_compiled(folder: Path) -> list[torch.nn.Module]:
    """A model without its output layer, twice."""
    component = _component("models.from_hf", path=str(folder))
    checkpoint = models.open_checkpoint("model", component, None)
    ways = [models.checked_on_meta("model", component, checkpoint) for _ in range(2)]
    for model in ways:
        models.load_weights(model, checkpoint, torch.device("cpu"))
        models.take_output_head(model)
    models.compile_layers(ways[1])
    return ways


def all_pairs(q, k, v, *, score_mod, block_mask, scale, enable_gqa):
    """Flex attention's formula."""
    k, v = (packed_rows.copied_for_queries(x, q.shape[1]) for x in (k, v))
    b, h, i, j = torch.meshgrid(*map(torch.arange, (*q.shape[:3], k.shape[2])), indexing="ij")
    scores = score_mod(q @ k.transpose(2, 3) * scale, b, h, i, j)
    return scores.masked_fill(~block_mask.mask_mod(b, h, i, j), -torch.inf).softmax(-1) @ v


def test_layers_with_windows_and_capped_scores_teach_train_and_validate(tmp_path, monkeypatch):
    """Gemma 2, whose two kinds of layers have more variants than PyTorch compiles; its scores leave the graph."""
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")  # what is traced, and how often, without autograd's graphs
    monkeypatch.setattr(packed_rows, "_compiled_flex_attention", lambda: all_pairs)  # which has tests of its own

    def capped(q, k, v, mask, scale, window, softcap, dropout):
        return packed_rows._flex(packed_rows._compiled_flex_attention(), q, k, v, mask, scale, window, softcap)

    monkeypatch.setattr(packed_rows, "_row_by_row", capped)
    folder = write_architecture(tmp_path / "gemma2", "gemma2", num_hidden_layers=2)
    ways = eager_and_compiled(folder)

    def values(model, batch):
        inputs = batch.tokens % 90, *batch.attention().values()
        call = functools.partial(model, inputs[0], input_pos=inputs[1], mask=inputs[2])
        with torch.inference_mode():
            taught = call().clone()
        call().square().sum().backward()
        with torch.no_grad():
            validated = call()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
        return taught, validated, gradient

    counters.clear()
    for step in range(3):
        for wanted, found in zip(*(values(model, batch_of_new_lengths(step)) for model in ways), strict=True):
            assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert all("_flex" in reason for reason in counters["graph_break"])


def test_what_inductor_makes_of_a_layer_for_a_cpu_has_its_values_and_gradients(folder, flash, monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_BACKEND")
    try:
        models.check_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))
    batch, found = batch_of_new_lengths(0), []
    for model in eager_and_compiled(folder / "shallow"):
        hidden = model(batch.tokens, **batch.attention())
        hidden.backward(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)))
        found.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert metrics.generated_kernel_count
    for ours, theirs in zip(*reversed(found), strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_recomputed_layers_drop_what_they_dropped_before(folder, flash, compile):
    """Of LoRA's inputs; another mask in recomputation would give a gradient of another loss."""
    case = {"student": "shallow", "teacher": "shallow", "adapters": LORA | {"lora_dropout": 0.5}, "compile": compile}
    found = []
    for checkpointed in (False, True):
        step = Step(folder, checkpointed=checkpointed, **case)
        torch.manual_seed(0)
        found.append([step.gradient(batch_of_new_lengths(0)) for _ in range(2)])
    for kept, recomputed in zip(*found, strict=True):
        assert recomputed[0] == pytest.approx(kept[0], rel=1e-6)
        assert (recomputed[1] - kept[1]).norm() < 1e-5 * kept[1].norm()
    first, second = found[0]
    assert (first[1] - second[1]).norm() > 1e-2 * first[1].norm()


def test_layers_whose_inputs_are_offloaded_have_the_losses_and_gradients_of_eager_ones(folder, flash, monkeypatch):
    eager = Step(folder, compile=False)
    wanted = [eager.gradient(batch_of_new_lengths(number)) for number in range(3)]
    compiled = Step(folder, compile=True, checkpointed=True)
    offloading, copies = offloading_without_cuda(monkeypatch)
    forward = models.hidden_states

    def offloaded(*arguments):
        with offloading:
            return forward(*arguments)

    monkeypatch.setattr(models, "hidden_states", offloaded)
    for number, (loss, gradient) in enumerate(wanted):
        found = compiled.gradient(batch_of_new_lengths(number))
        assert found[0] == pytest.approx(loss, rel=1e-5)
        assert (found[1] - gradient).norm() < 1e-5 * gradient.norm()
    assert copies.copied >= 3 * len(compiled.student.layers)
    assert not offloading.tracker  # all came back
