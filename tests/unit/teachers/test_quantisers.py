"""Kinds of quantised teachers, on the device that is there: near where they run, a message where they do not."""

import importlib.util
import sys

import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf

from distill_tune import models, teachers
from distill_tune.data.batch import joined
from distill_tune.errors import UserError
from distill_tune.models.gguf_config import gguf_reader

BATCH = joined([(torch.arange(3, 3 + n), torch.arange(3, 3 + n)) for n in (4, 11, 7)])
TORCHAO = "torchao.quantization."

pytestmark = pytest.mark.torchao


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Matrices of 16,384 weights and more, which all kinds take."""
    shape = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 4}
    return str(write_architecture(tmp_path_factory.mktemp("t") / "model", "qwen3", num_hidden_layers=2, **shape))


def hidden(folder, quantizer=None):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": folder})
    checkpoint = models.open_checkpoint("teacher_model", component, None)
    model = models.checked_on_meta("teacher_model", component, checkpoint, torch.bfloat16)
    kind = None if quantizer is None else OmegaConf.create({"_component_": quantizer})
    teacher = teachers.LiveTeacher(model, checkpoint, quantizer=kind)
    teacher.load(None, torch.device("cpu"))
    return teacher(BATCH).hidden.float()


@pytest.mark.parametrize(
    ("quantizer", "most"),
    [
        (TORCHAO + "Int8WeightOnlyConfig", 0.03),
        (TORCHAO + "Float8WeightOnlyConfig", 0.1),
        ("distill_tune.teachers.NF4", 0.25),
    ],
)
def test_kinds_that_run_anywhere_are_near(folder, quantizer, most):
    whole = hidden(folder)
    assert 0 < (hidden(folder, quantizer) - whole).norm() / whole.norm() < most


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they may run")
@pytest.mark.parametrize("kind", ["Int4WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig"])
def test_kinds_that_need_a_gpu_or_a_package_are_told(folder, kind):
    if kind.startswith("Int4") and importlib.util.find_spec("mslk"):
        pytest.skip("its package is there")
    with pytest.raises(UserError, match=rf"teacher_quantizer: torchao\.quantization\.{kind} on cpu: .*(mslk|CUDA)"):
        hidden(folder, TORCHAO + kind)


def test_a_gguf_file_without_its_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"GGUF files are read by gguf; pip install 'distill-tune\[gguf\]'"):
        gguf_reader(tmp_path / "model.gguf")
