"""What a run will need, told from shapes alone: memory by part, products a step, bytes on disk."""

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import losses, models
from distill_tune.models.output_head import output_head
from distill_tune.models.packed_rows import PackedRows
from distill_tune.models.parameters import NF4_BYTES
from distill_tune.training.flops import flops_of_models
from distill_tune.training.optimizer import build_optimizer

from torchtune.modules import TransformerDecoder

# Of both moments of a parameter, where torchao's and bitsandbytes' optimizers quantise them in blocks.
_STATE_BYTES = {"8bit": 2.04, "Fp8": 2.04, "4bit": 1.07}
# Of torchao's weight-only kinds: the number, and a scale (and zero point) a row or a group of 128, in bf16.
_QUANTISED_BYTES = {"Int8": 1.0 + 0.01, "Int4": 0.5 + 4 / 128, "Float8": 1.0 + 0.01, "NF4": NF4_BYTES}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, by part. Not all are there at one time: see :attr:`peak`.

    Attributes:
        activations: what the student's forward pass keeps for its backward pass.
        recomputed: what checkpointing makes anew, of one layer at a time.
        teacher_activations: the workings of one of its layers.
        head: the chunk of logits, the gradients for hidden states and output layer, and that layer's weight in the
            dtype of products.
        gradients_stay: they are there in the forward pass, from the micro-batches before.
    """

    teacher: float
    student: float
    optimizer: float
    gradients: float
    activations: float
    recomputed: float
    teacher_activations: float
    head: float
    gradients_stay: bool = False

    @property
    def peak(self) -> float:
        """The most of: the teacher's turn, the loss after the forward pass, the backward pass, and its end."""
        held = self.teacher + self.student + self.optimizer + (self.gradients if self.gradients_stay else 0)
        backward = self.activations + self.head + self.recomputed  # the chunk's memory stays for the next step
        return held + max(self.teacher_activations, backward, self.gradients)


@dataclasses.dataclass(frozen=True)
class Batch:
    """A micro-batch as memory sees it.

    Attributes:
        lengths: of its rows.
        num_supervised: its tokens that meet the output layer.
    """

    lengths: tuple[int, ...]
    num_supervised: int


def memory_of(
    cfg: DictConfig, student: TransformerDecoder, teachers: Sequence[TransformerDecoder], batch: Batch, shards: int = 1
) -> Memory:
    """
    Args:
        cfg: for the keys that decide on memory.
        student: on the meta device, with its final ``requires_grad`` and dtypes.
        teachers: the same; one that is the student itself takes no memory of its own.
        batch: the largest one.
        shards: processes that share the weights.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    offloaded = bool(cfg.get("fsdp_cpu_offload")) and shards > 1
    held = 0.0 if offloaded else 1 / shards
    activations, recomputed = _activation_bytes(
        student, batch, bool(cfg.get("enable_activation_checkpointing")), bool(cfg.get("enable_activation_offloading"))
    )
    others = [teacher for teacher in teachers if teacher is not student]
    return Memory(
        teacher=sum(_teacher_bytes(cfg, teacher, held, shards) for teacher in others),
        student=_weights(student) * held + (_gathered(student) if shards > 1 else 0),
        optimizer=_optimizer_bytes(cfg.optimizer, trained) * held,
        gradients=sum(map(models.num_bytes, trained)) * held,
        activations=activations,
        recomputed=recomputed,
        teacher_activations=max((_forward_bytes(teacher, batch) for teacher in teachers), default=0.0),
        head=_head_bytes(student, teachers, batch, torch.device("cpu" if cfg.get("device") == "cpu" else "cuda")),
        gradients_stay=cfg.get("gradient_accumulation_steps", 1) > 1,
    )


def checkpoint_bytes(cfg: DictConfig, student: TransformerDecoder) -> float:
    """Of a checkpoint to resume from: what trains, and the optimizer's state."""
    trained = [p for p in student.parameters() if p.requires_grad]
    return sum(map(models.num_bytes, trained)) + _optimizer_bytes(cfg.optimizer, trained)


def flops_of(student: TransformerDecoder, teachers: Sequence[TransformerDecoder], batches: Sequence[Batch]) -> float:
    """Of some micro-batches, forward and backward."""
    counts = flops_of_models(student, teachers)
    return sum(count.of_step(batch.lengths, batch.num_supervised) for count in counts for batch in batches)


def _weights(model: nn.Module) -> float:
    return sum(models.num_bytes(p) for p in model.parameters())


def _gathered(model: TransformerDecoder) -> float:
    """What FSDP holds whole at one time: two layers, and for all of a step what is outside the layers."""
    outside = [p for name, p in model.named_parameters() if not name.startswith("layers.")]
    most = models.computed_in(model).itemsize  # it is cast as it is gathered
    return sum(min(models.num_bytes(p), p.numel() * most) for p in (*outside, *2 * [*model.layers[0].parameters()]))


def _teacher_bytes(cfg: DictConfig, teacher: TransformerDecoder, held: float, shards: int) -> float:
    if cfg.get("teacher_offload"):
        return _gathered(teacher)
    quantizer = str((cfg.get("teacher_quantizer") or {}).get("_component_", ""))
    for name, each in _QUANTISED_BYTES.items():
        if name in quantizer:
            matrices = [p for p in teacher.layers.parameters() if p.ndim == 2]
            return _weights(teacher) + sum(p.numel() * each - models.num_bytes(p) for p in matrices)
    return _weights(teacher) * held + _gathered(teacher) if shards > 1 else _weights(teacher)


def _optimizer_bytes(component: DictConfig, trained: Sequence[nn.Parameter]) -> float:
    """Of the state for some parameters: what the optimizer's name says, or what a step on a small matrix makes."""
    count = sum(p.numel() for p in trained)
    for kind, each in _STATE_BYTES.items():
        if kind in component["_component_"]:
            return count * each
    parameter = nn.Parameter(torch.zeros(256, 256, dtype=trained[0].dtype if trained else None))
    optimizer = build_optimizer(component, [parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return count * sum(t.numel() * t.element_size() for t in tensors) / parameter.numel()


def _activation_bytes(
    model: TransformerDecoder, batch: Batch, checkpointed: bool, offloaded: bool
) -> tuple[float, float]:
    """What the student's forward pass keeps, and what is made anew of one layer in its backward pass."""
    hidden = _hidden_bytes(model, batch)
    kept, peak = _of_one_layer(model, batch, keeps=True)
    outside = 3 * hidden  # embeddings, final norm and its input
    if checkpointed:
        return outside + (0 if offloaded else hidden * len(model.layers)), peak
    return outside + kept * (len(model.layers) - 1) + peak, 0


def _forward_bytes(model: TransformerDecoder, batch: Batch) -> float:
    """The most that the forward pass has at one time when nothing is kept: a layer's workings and its input."""
    _, peak = _of_one_layer(model, batch, keeps=False)
    return peak + _hidden_bytes(model, batch)


def _hidden_bytes(model: TransformerDecoder, batch: Batch) -> int:
    """Of one layer's input."""
    return sum(batch.lengths) * _width(model) * models.computed_in(model).itemsize


def _of_one_layer(model: TransformerDecoder, batch: Batch, keeps: bool) -> tuple[float, float]:
    """Bytes that are there after a layer has run, for its backward pass, and at its peak; its input not counted."""
    with _one_layer(model, batch) as (layer, hidden, attention), torch.set_grad_enabled(keeps):
        layer(hidden, **attention)  # fills the rotary tables, which are shared
        hidden.requires_grad_(keeps)
        with _LiveBytes() as live:
            output = layer(hidden, **attention)
        del output
        return live.after, live.peak


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.after = 0
        self._now: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        made = function(*arguments, **(named or {}))
        before = {x.untyped_storage()._cdata for x in tree_leaves((arguments, named)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._now:
                self._now[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._now.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._now.values()))
        return made

    def __exit__(self, *error: Any) -> None:
        self.after = sum(self._now.values())
        super().__exit__(*error)


@contextlib.contextmanager
def _one_layer(model: TransformerDecoder, batch: Batch) -> Iterator[tuple[nn.Module, torch.Tensor, dict]]:
    """A model's first layer without storage, and an input for it, inside FakeTensorMode."""
    layer = copy.deepcopy(model.layers[0])
    models.use_packed_rows(layer)
    models.fill_rotary_tables(layer, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in layer.modules():
            for name, p in module.named_parameters(recurse=False):
                fake = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
                module._parameters[name] = fake
        rows, tokens = PackedRows(batch.lengths, torch.device("cpu")), sum(batch.lengths)
        hidden = torch.empty(1, tokens, _width(model), dtype=models.computed_in(model))
        yield layer, hidden, {"mask": rows, "input_pos": torch.zeros(1, tokens, dtype=torch.int64)}


def _width(model: TransformerDecoder) -> int:
    return output_head(model).weight.shape[1]


def _head_bytes(
    student: TransformerDecoder, teachers: Sequence[TransformerDecoder], batch: Batch, device: torch.device
) -> float:
    """The chunk's logits, the hidden states of the supervised positions and their gradients, that of the weight."""
    heads = [output_head(model).weight for model in (student, *teachers)]
    dtypes = [models.computed_in(model) for model in (student, *teachers)]
    vocabularies = [weight.shape[0] for weight in heads]
    per_row = losses.chunk_bytes_per_row(vocabularies[0], sum(vocabularies[1:]), dtypes[0])
    chunk = losses.chunk_rows(batch.num_supervised, per_row, device) * per_row
    hidden = [batch.num_supervised * head.shape[1] * dtype.itemsize for head, dtype in zip(heads, dtypes, strict=True)]
    trained = 4 * heads[0].numel() if heads[0].requires_grad else 0
    cast = dtypes[0].itemsize * heads[0].numel() if heads[0].dtype != dtypes[0] else 0
    return chunk + sum(hidden) + 2 * hidden[0] + trained + cast
