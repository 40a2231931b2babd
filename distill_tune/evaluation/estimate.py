"""What a run will need, told from shapes alone: memory by part, products a step, bytes on disk."""

import collections
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
from distill_tune.data.shape import Shape
from distill_tune.models.hidden_states import is_projector
from distill_tune.models.output_head import output_head
from distill_tune.models.packed_rows import PackedRows
from distill_tune.models.parameters import NF4_BYTES
from distill_tune.teachers import HuggingFace, Teacher
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
        teacher_activations: the workings of one of its layers, and the hidden states that it keeps for the loss.
        head: the chunk of logits, the gradients for hidden states and output layer, and that layer's weight in the
            dtype of products.
        hidden_loss: what the loss between layers keeps for its backward pass, and the gradients that it begins with.
        key_value_cache: of rollouts, which stays.
        host: of the machine, pinned: what is streamed from there. No part of the peak.
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
    hidden_loss: float = 0.0
    key_value_cache: float = 0.0
    host: float = 0.0
    gradients_stay: bool = False

    @property
    def peak(self) -> float:
        """The most of: the teacher's turn, the loss after the forward pass, the backward pass, and its end."""
        held = self.teacher + self.student + self.optimizer + self.key_value_cache
        held += self.gradients if self.gradients_stay else 0
        # The chunk's memory stays for the next step.
        backward = self.activations + self.head + self.hidden_loss + self.recomputed
        return held + max(self.teacher_activations, backward, self.gradients)


def memory_of(
    cfg: DictConfig, student: TransformerDecoder, teacher: Teacher, shape: Shape, shards: int | None = None
) -> Memory:
    """
    Args:
        cfg: for the keys that decide on memory.
        student: on the meta device, with its final ``requires_grad`` and dtypes.
        teacher: of the same; checked, where it is not given a model.
        shape: of the largest micro-batch.
        shards: processes that share the weights, which FSDP gathers even where it is one; None without FSDP.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    is_sharded = shards is not None
    offloaded = bool(cfg.get("fsdp_cpu_offload")) and is_sharded
    share = 1 / (shards or 1)
    held = 0.0 if offloaded else share
    activations, recomputed = _activation_bytes(cfg, student, shape, is_sharded)
    accumulates = cfg.get("gradient_accumulation_steps", 1) > 1
    gradients, states = sum(map(models.num_bytes, trained)), _optimizer_bytes(cfg.optimizer, trained)
    # FSDP sums them over the processes once a step: until then each has its own sum, whole and in float32.
    own_sums = 4 * sum(p.numel() for p in trained) if accumulates and is_sharded else 0
    read = [(model, its) for one, its in teacher.each(shape) for model in one.models if its.lengths]
    workings = [_forward_bytes(model, its) for model, its in read]
    kept = [_kept_for_hidden_loss(model, its) for model, its in read]
    streamed = sum(_layer_bytes(model) for model in teacher.models) if cfg.get("teacher_offload") else 0
    on_host = (_weights(student) + gradients + states) * share if offloaded else 0
    if offloaded and not streamed and not cfg.get("teacher_quantizer"):
        on_host += sum(_weights(model) for model in teacher.models if model is not student) * share
    return Memory(
        teacher=sum(_teacher_bytes(cfg, one, student, held, is_sharded) for one, _ in teacher.each(shape)),
        student=_weights(student) * held + (_gathered(cfg, student, trains=True) if is_sharded else 0),
        optimizer=states * held,
        gradients=max(gradients * held, own_sums),  # a layer's shard takes the place of its sum
        activations=activations,
        recomputed=recomputed,
        teacher_activations=max(workings, default=0.0) + sum(kept),
        head=_head_bytes(cfg, student, teacher, shape, is_sharded),
        hidden_loss=sum(kept) + _hidden_loss_bytes(cfg, student, teacher, shape),
        host=streamed + on_host,
        gradients_stay=accumulates,
    )


def checkpoint_bytes(cfg: DictConfig, student: TransformerDecoder) -> float:
    """Of a checkpoint to resume from: what trains, and the optimizer's state."""
    trained = [p for p in student.parameters() if p.requires_grad]
    return sum(map(models.num_bytes, trained)) + _optimizer_bytes(cfg.optimizer, trained)


def _weights(model: nn.Module) -> float:
    return sum(models.num_bytes(p) for p in model.parameters())


def _gathered(cfg: DictConfig, model: TransformerDecoder, trains: bool = False) -> float:
    """What FSDP, or streaming, holds whole at one time: two layers, and for all of a step what is outside the layers
    but for ``custom_sharded_layers``, of which one is."""
    most = models.computed_in(model).itemsize  # it is cast as it is gathered
    by_module = collections.defaultdict[str, float](float)
    for name, p in model.named_parameters():
        top, _, rest = name.partition(".")
        by_module[f"layers.{rest.partition('.')[0]}" if top == "layers" else top] += min(
            models.num_bytes(p), p.numel() * most
        )
    layers = [by_module.pop(f"layers.{number}") for number in range(len(model.layers))]
    in_turn = [by_module.pop(name) for name in cfg.get("custom_sharded_layers") or () if name in by_module]
    keeps_all = trains and cfg.get("fsdp_reshard_after_forward") is False
    return sum(layers if keeps_all else layers[:2]) + max(in_turn, default=0.0) + sum(by_module.values())


def _layer_bytes(model: TransformerDecoder) -> float:
    return sum(map(models.num_bytes, model.layers.parameters()))


def _teacher_bytes(
    cfg: DictConfig, teacher: Teacher, student: TransformerDecoder, held: float, is_sharded: bool
) -> float:
    if (own := teacher.own_bytes(is_sharded)) is not None:
        return own
    return sum(_model_bytes(cfg, model, held, is_sharded) for model in teacher.models if model is not student)


def _model_bytes(cfg: DictConfig, model: TransformerDecoder, held: float, is_sharded: bool) -> float:
    if cfg.get("teacher_offload"):
        return _gathered(cfg, model)
    quantizer = str((cfg.get("teacher_quantizer") or {}).get("_component_", ""))
    for name, each in _QUANTISED_BYTES.items():
        if name in quantizer:
            matrices = [p for p in model.layers.parameters() if p.ndim == 2]
            return _weights(model) + sum(p.numel() * each - models.num_bytes(p) for p in matrices)
    return _weights(model) * held + _gathered(cfg, model) if is_sharded else _weights(model)


def _kept_for_hidden_loss(model: TransformerDecoder, shape: Shape) -> float:
    """Of a teacher: the hidden states of the layers that are kept; the last one is there anyway."""
    return sum(_hidden_bytes(model, shape) for layer in getattr(model, "kept_layers", ()) if layer < len(model.layers))


def _hidden_loss_bytes(cfg: DictConfig, student: TransformerDecoder, teacher: Teacher, shape: Shape) -> float:
    pairs = len(getattr(student, "kept_layers", ()))
    if not pairs:
        return 0.0
    settings, itemsize = cfg.get("hidden_loss") or {}, models.computed_in(student).itemsize
    positions = sum(shape.lengths) if settings.get("positions") == "all" else shape.num_supervised
    # In float32 what mse or cosine needs backward: the difference, or both; of a projector also what it reads.
    compared = positions * teacher.width * 4 * (2 if settings.get("measure") == "cosine" else 1)
    projects = any(is_projector(name) for name, _ in student.named_parameters())
    projected = positions * _width(student) * itemsize if projects else 0
    return pairs * (compared + projected + _hidden_bytes(student, shape))


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
    cfg: DictConfig, model: TransformerDecoder, shape: Shape, is_sharded: bool
) -> tuple[float, float]:
    """What the student's forward pass keeps, and what is made anew of one layer in its backward pass."""
    hidden = _hidden_bytes(model, shape)
    kept, peak = _of_one_layer(model, shape, keeps=True, is_cast=is_sharded)
    outside = 3 * hidden  # embeddings, final norm and its input
    if cfg.get("enable_activation_checkpointing"):
        return outside + (0 if cfg.get("enable_activation_offloading") else hidden * len(model.layers)), peak
    return outside + kept * (len(model.layers) - 1) + peak, 0


def _forward_bytes(model: TransformerDecoder, shape: Shape) -> float:
    """The most that the forward pass has at one time when nothing is kept: a layer's workings and its input."""
    _, peak = _of_one_layer(model, shape, keeps=False)
    return peak + _hidden_bytes(model, shape)


def _hidden_bytes(model: TransformerDecoder, shape: Shape) -> int:
    """Of one layer's input."""
    return sum(shape.lengths) * _width(model) * models.computed_in(model).itemsize


def _of_one_layer(model: TransformerDecoder, shape: Shape, keeps: bool, is_cast: bool = False) -> tuple[float, float]:
    """Bytes that are there after a layer has run, for its backward pass, and at its peak; its input not counted."""
    with _one_layer(model, shape, is_cast) as (layer, hidden, attention), torch.set_grad_enabled(keeps):
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
def _one_layer(
    model: TransformerDecoder, shape: Shape, is_cast: bool
) -> Iterator[tuple[nn.Module, torch.Tensor, dict]]:
    """A model's first layer without storage, and an input for it, inside FakeTensorMode.

    Args:
        is_cast: its weights come in the dtype of products, as FSDP gathers them.
    """
    layer = copy.deepcopy(model.layers[0])
    models.use_packed_rows(layer)
    models.fill_rotary_tables(layer, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in layer.modules():
            for name, p in module.named_parameters(recurse=False):
                dtype = models.computed_in(model) if is_cast else p.dtype
                fake = nn.Parameter(torch.empty(p.shape, dtype=dtype), requires_grad=p.requires_grad)
                module._parameters[name] = fake
        rows, tokens = PackedRows(shape.lengths, torch.device("cpu")), sum(shape.lengths)
        hidden = torch.empty(1, tokens, _width(model), dtype=models.computed_in(model))
        yield layer, hidden, {"mask": rows, "input_pos": torch.zeros(1, tokens, dtype=torch.int64)}


def _width(model: TransformerDecoder) -> int:
    return output_head(model).weight.shape[1]


def _head_bytes(
    cfg: DictConfig, student: TransformerDecoder, teacher: Teacher, shape: Shape, is_sharded: bool
) -> float:
    """The chunk's logits, the hidden states of the supervised positions and their gradients, that of the weight."""
    weight, dtype = output_head(student).weight, models.computed_in(student)
    device = torch.device("cpu" if cfg.get("device") == "cpu" else "cuda")
    own = shape.num_supervised * weight.shape[1] * dtype.itemsize
    of_teachers, vocabularies = 0, 0
    for one, its in teacher.each(shape):
        if isinstance(one, HuggingFace):
            sizes = [(one.vocab_size, one.width, one.dtype)]
        else:
            heads = [(output_head(model).weight.shape, models.computed_in(model)) for model in one.models]
            sizes = [(*shape_of_head, of_head) for shape_of_head, of_head in heads]
        # Of another tokenizer: its rows for each of the student's.
        share = its.num_supervised / max(1, shape.num_supervised) if shape.others else 1
        vocabularies += round(share * sum(vocabulary for vocabulary, _, _ in sizes))
        of_teachers += sum(its.num_supervised * width * of_head.itemsize for _, width, of_head in sizes)
    per_row = losses.chunk_bytes_per_row(weight.shape[0], vocabularies, dtype)
    chunk = losses.chunk_rows(shape.num_supervised, per_row, device) * per_row
    trained = 4 * weight.numel() if weight.requires_grad else 0
    cast = dtype.itemsize * weight.numel() if weight.dtype != dtype and not is_sharded else 0
    return chunk + 3 * own + of_teachers + trained + cast
