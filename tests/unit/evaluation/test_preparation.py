"""What models read of the documents: that which they read of such rows in training."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import config, data
from distill_tune.errors import UserError
from distill_tune.evaluation import open_models, open_named, prepare

ROWS = [{"instruction": "What is 1 plus 2?", "output": "1 plus 2 is 3, done.", "hint": "three"}]


@pytest.fixture
def dataset(tmp_path):
    def of(rows, component="instruct"):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        component = {"_component_": f"distill_tune.data.{component}", "source": str(tmp_path / "rows.json")}
        return OmegaConf.create(component)

    return of


@pytest.fixture
def prepared(student_folder):
    """A dataset's rows as training has them, and as an evaluation has them for a teacher and a student."""
    component = {"_component_": "torchtune.models.llama2.llama2_tokenizer", "max_seq_len": 128}
    of_tokenizer = OmegaConf.create(component | {"path": str(student_folder / "tokenizer.model")})
    tokenizer = config.instantiate(of_tokenizer)
    models = [open_named(label, str(student_folder), tokenizer, torch.float32) for label in ("teacher", "after")]

    def of(rows, **prompts):
        reading = data.Reading(**prompts)
        found = prepare(models, rows, tokenizer, teacher="teacher", prompts=reading)
        (trained,), _ = data.prepare_rows(rows, tokenizer, of_tokenizer, reading=reading)
        return trained, found

    return of


@pytest.mark.parametrize(
    "prompts",
    [
        {"student_prompt_template": "Answer: {input}"},
        {"teacher_prompt_template": "{input} It is {hint}."},
        {"student_prompt_template": "{input}!", "teacher_system_prompt": "You add."},
        {"student_prompt_template": "{input}!", "teacher_prompt_template": "{input}!"},
        {},
    ],
    ids=str,
)
def test_teacher_and_student_read_the_prompts_that_training_gives_them(prepared, dataset, prompts):
    rows, found = prepared(dataset(ROWS), **prompts)
    of_teacher, of_student = (found.written(model)[0] for model in found.models)
    row = rows[0]
    assert of_student.tokens.tolist() == row.tokens.tolist()
    its = row.tokens if row.teacher_tokens is None else row.teacher_tokens
    assert of_teacher.tokens.tolist() == its.tolist()
    is_same = prompts.get("student_prompt_template") == prompts.get("teacher_prompt_template")
    assert len(found.readings) == (1 if is_same else 2)


def test_prompts_for_rows_without_turns_are_refused_as_in_training(prepared, dataset):
    with pytest.raises(UserError, match=r"student_prompt_template, .* need rows with turns; take"):
        prepared(dataset([{"text": "1 plus 2 is 3."}], "text"), student_prompt_template="{input}!")


@pytest.mark.parametrize("left_out", ["teacher", "before", "after"])
def test_null_leaves_out_one_of_the_configs_own_models(student_folder, tmp_path, left_out):
    component = {"_component_": "distill_tune.models.from_hf", "path": str(student_folder)}
    keys = {"model": component, "teacher_model": component, "dtype": "fp32", "output_dir": str(tmp_path)}
    (tmp_path / "model").symlink_to(student_folder)
    cfg = OmegaConf.create(keys | {"models": {left_out: None}})
    tokenizer = data.hf_tokenizer(str(student_folder))
    found, teacher, base = open_models(cfg, torch.device("cpu"), tokenizer)
    assert [model.label for model in found] == [one for one in ("teacher", "before", "after") if one != left_out]
    assert (teacher, base) == tuple(one if one != left_out else None for one in ("teacher", "before"))
