"""Recipes in the test's own process, on models of which the teacher's folder is the test's own."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from stored_teacher import ALONE

from distill_tune.config.files import recipes_folder
from distill_tune.disk import release_locks


@pytest.fixture
def config(write_config, student_folder, teacher_folder, tmp_path, monkeypatch):
    """config.yaml of models from their folders, of which the teacher's is the test's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_folder, tmp_path / "teacher")

    def write(**changes):
        models = {
            "model": {"_component_": "distill_tune.models.from_hf", "path": str(student_folder)},
            "teacher_model": {"_component_": "distill_tune.models.from_hf", "path": "teacher"},
        }
        return write_config(**models | {"checkpointer": None, "teacher_checkpointer": None} | changes)

    write()
    return write


@pytest.fixture
def run(config, monkeypatch):
    """A recipe in this process, as one rank alone."""

    def go(recipe: str | Path, *overrides: str) -> None:
        path = recipes_folder() / f"{recipe}.py" if isinstance(recipe, str) else recipe
        with monkeypatch.context() as patched:
            for name, value in ({} if recipe == "kd_single_device" else ALONE).items():
                patched.setenv(name, value)
            patched.setattr(sys, "argv", [str(path), "--config", "config.yaml", *overrides])
            patched.setattr(sys, "path", [str(path.parent), *sys.path])
            try:
                runpy.run_path(str(path), run_name="__main__")
            finally:
                release_locks()
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()

    return go
