"""A streamed teacher's copies beside its computation; streams and events are a stand-in's (stand_in_streams.py)."""

import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf
from stand_in_streams import Device, Stream

from distill_tune import models
from distill_tune.data.batch import joined
from distill_tune.teachers.offload import StreamedLayers

BATCH = joined([(torch.arange(3, 3 + n), torch.arange(3, 3 + n)) for n in (4, 11, 7)])
CUDA = torch.device("cuda")


@pytest.fixture(scope="module", params=[2, 3, 4], ids="{} layers".format)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return str(write_architecture(folder, "qwen3", num_hidden_layers=request.param))


@pytest.fixture
def model(folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": folder})
    checkpoint = models.open_checkpoint("teacher_model", component, None)
    model = models.checked_on_meta("teacher_model", component, checkpoint, torch.bfloat16).requires_grad_(False)
    models.load_weights(model, checkpoint, torch.device("cpu"))
    return model


def logits(model):
    with torch.inference_mode():
        return model(BATCH.tokens, **BATCH.attention())


def streamed(model, patch):
    """Three passes, as teachers make them; gives the device and what came out."""
    with Device().running(patch) as device:
        StreamedLayers(model.layers, CUDA)
        return device, [logits(model) for _ in range(3)]


def test_copies_beside_the_computation_give_the_same_numbers_and_wait_where_they_must(model, monkeypatch):
    wanted = logits(model)
    device, found = streamed(model, monkeypatch)
    assert all(torch.equal(of_pass, wanted) for of_pass in found)
    assert device.copied >= len(model.layers)
    assert device.unpinned == 0


@pytest.mark.parametrize("who", ["the layer", "the copy"])
def test_a_wait_that_is_left_out_is_found(model, monkeypatch, who):
    """Of the layer for its copy, or of a copy for the layer that used its memory."""

    def wait(self, event, wait=Stream.wait_event):
        return None if self.is_main == (who == "the layer") else wait(self, event)

    monkeypatch.setattr(Stream, "wait_event", wait)
    with pytest.raises(AssertionError, match="another stream uses this memory, and was not waited for"):
        streamed(model, monkeypatch)


def test_a_layer_that_does_not_wait_for_its_copy_computes_with_the_old_numbers(model, monkeypatch):
    wanted = logits(model)
    monkeypatch.setattr(Device, "access", lambda self, tensor, writes: None)
    _, found = streamed(model, monkeypatch)
    assert torch.equal(found[-1], wanted)
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    _, found = streamed(model, monkeypatch)
    assert not torch.equal(found[-1], wanted)
