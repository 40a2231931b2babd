"""Teachers of other tokenizers: found, refused where they cannot teach, and the same gradient however rows are cut."""

import shutil

import pytest
import torch
from tiny import write_model_of_another_tokenizer

from distill_tune import losses, models, training
from distill_tune.config.load import load_config
from distill_tune.errors import UserError
from distill_tune.teachers import AlignedTeacher, LiveTeacher

CPU = torch.device("cpu")
HF = "distill_tune.models.from_hf"
TOKENIZER = "distill_tune.data.hf_tokenizer"


@pytest.fixture(scope="module")
def others(tmp_path_factory, tokenizer_file):
    """Folders of teachers of two other tokenizers."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"a": 288, "b": 264}
    return {
        name: write_model_of_another_tokenizer(folder / name, tokenizer_file, size, vocab_size=size)
        for name, size in sizes.items()
    }


@pytest.fixture
def configured(write_config, others):
    """A config whose teacher has another tokenizer, or whose teachers have, by the names of their folders."""

    def configure(*names, **changes):
        entries = [{"_component_": HF, "path": str(others.get(name, name)), "name": str(name)} for name in names]
        teacher = entries if len(entries) > 1 else {"_component_": HF, "path": str(others.get(names[0], names[0]))}
        return load_config(write_config(**{"teacher_model": teacher, "teacher_checkpointer": None} | changes))

    return configure


def loaded(cfg):
    """What is built, with weights, and the plan."""
    built = training.build_models(cfg, CPU)
    steps = training.plan_steps(cfg, built, 0)
    models.load_weights(built.student, built.student_checkpoint, CPU)
    built.teacher.load(built.student, CPU)
    return built, steps.plan


def gradient(built, batches):
    """Of the summed divergence of some micro-batches, and the sum."""
    head, total = models.take_output_head(built.student) if not hasattr(built.student, "taken") else None, 0.0
    raise NotImplementedError


def test_a_teacher_of_another_tokenizer_is_found_by_its_folder(configured, capsys):
    teacher = training.build_models(configured("a"), CPU).teacher
    assert isinstance(teacher, AlignedTeacher)
    assert "the answers are aligned byte by byte" in capsys.readouterr().out


def test_the_same_tokenizer_in_another_folder_goes_the_plain_way(configured, teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "copied")
    built = training.build_models(configured(tmp_path / "copied"), CPU)
    assert type(built.teacher) is LiveTeacher
    assert not training.plan_steps(configured(tmp_path / "copied"), built, 0).plan.datasets[0].others


def test_one_that_has_the_tokens_of_the_rows_is_not_needed(configured, teacher_folder, capsys):
    named = {"_component_": TOKENIZER, "path": str(teacher_folder)}
    built = training.build_models(configured(teacher_folder, teacher_tokenizer=named), CPU)
    assert type(built.teacher) is LiveTeacher
    assert (
        "teacher_tokenizer: has the tokens of the rows, which the teacher reads as they are" in capsys.readouterr().out
    )
