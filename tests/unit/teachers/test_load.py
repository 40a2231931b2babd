"""A teacher in lower precision, quantised, or streamed from host memory, against itself as it is."""

import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf

from distill_tune import models, teachers
from distill_tune.data.batch import joined
from distill_tune.errors import UserError
from distill_tune.teachers.offload import StreamedLayers

CPU = torch.device("cpu")
INT8 = OmegaConf.create({"_component_": "torchao.quantization.Int8WeightOnlyConfig"})
BATCH = joined([(torch.arange(3, 3 + n), torch.arange(3, 3 + n)) for n in (4, 11, 7)])


@pytest.fixture(scope="module", params=[2, 3], ids=["even", "odd"])
def checkpoint(request, tmp_path_factory):
    """Of models with an even and an odd number of layers, which share two halves of the device's memory."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return str(write_architecture(folder, "qwen3", num_hidden_layers=request.param))


def load(path, dtype=torch.float32, **options):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": path})
    checkpoint = models.open_checkpoint("teacher_model", component, None)
    model = models.checked_on_meta("teacher_model", component, checkpoint, dtype)
    teacher = teachers.LiveTeacher(model, checkpoint, **options)
    teacher.load(None, CPU)
    return teacher


def hidden(teacher):
    return teacher(BATCH).hidden


def test_streamed_layers_give_the_same_again_and_again(checkpoint):
    wanted = hidden(load(checkpoint))
    streamed = load(checkpoint, offload=True)
    for _ in range(3):
        assert torch.equal(hidden(streamed), wanted)


def test_the_device_holds_two_layers_and_the_host_the_rest(checkpoint, monkeypatch):
    model = load(checkpoint).model
    streams = StreamedLayers(model.layers, CPU)
    halves = [half.data_ptr() for half in streams._halves]
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(next(module.parameters()).data_ptr()))
    model(BATCH.tokens, **BATCH.attention())
    assert seen == [halves[at % 2] for at in range(len(model.layers))]
    assert not {next(layer.parameters()).data_ptr() for layer in model.layers} & set(halves)
    assert {half.numel() for half in streams._halves} == {sum(p.numel() for p in model.layers[0].parameters())}


@pytest.mark.torchao
def test_int8_is_near_and_holds_less(checkpoint):
    whole, quantised = load(checkpoint), load(checkpoint, quantizer=INT8)
    difference = (hidden(quantised) - hidden(whole)).norm() / hidden(whole).norm()
    assert 0 < difference < 0.02
    assert type(quantised.model.layers[0].mlp.w1.weight.data) is not torch.Tensor
    assert type(quantised.head.weight.data) is torch.Tensor


def test_bf16_is_near_float32(checkpoint):
    half = hidden(load(checkpoint, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    whole = hidden(load(checkpoint))
    assert (half.float() - whole).norm() / whole.norm() < 0.05


def test_what_cannot_be_is_told(checkpoint, monkeypatch):
    wrong = OmegaConf.create({"_component_": "torch.nn.ReLU"})
    with (
        monkeypatch.context() as before,
        pytest.raises(UserError, match=r"teacher_quantizer: torch\.nn\.ReLU on cpu"),
    ):
        before.setattr("distill_tune.teachers.load.load_weights", lambda *given: pytest.fail("weights were read"))
        load(checkpoint, quantizer=wrong)
    with pytest.raises(UserError, match="teacher_offload=True: streams plain weights alone"):
        load(checkpoint, quantizer=INT8, offload=True)
