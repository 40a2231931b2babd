"""Tensors in files of a bounded size."""

import pytest
import torch

from distill_tune.errors import UserError
from distill_tune.models import tensor_files


def test_tensors_of_several_files_are_read_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_FILE_BYTES", 100)
    shapes = [(7, 9), (), (3,), (40, 2), (0, 4), (2, 2)]
    tensors = {f"layer.{number}": torch.randn(shape).to(torch.bfloat16) for number, shape in enumerate(shapes)}
    tensors["step"] = torch.tensor(3)
    tensor_files.write_tensors(tmp_path, tensors, None)
    assert len(list(tmp_path.glob("shard-00001-*"))) > 2
    found = tensor_files.shapes_of(tmp_path)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
    }
    into = {name: torch.full_like(tensor, 5) for name, tensor in tensors.items()}
    tensor_files.read_tensors(tmp_path, into)
    assert all(into[name].equal(tensors[name]) for name in tensors)
    next(tmp_path.glob("shard-00001-model-00002-*")).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        tensor_files.read_tensors(tmp_path, into)
