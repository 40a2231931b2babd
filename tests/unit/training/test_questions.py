"""The prompts of a config, and the rows that cannot be asked."""

import datetime
import json

import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from distill_tune import generation
from distill_tune.data.prompts import Prompt
from distill_tune.errors import UserError
from distill_tune.generation.answers import line_of
from distill_tune.training.questions import Reader, read_questions

from torchtune.models.llama2 import llama2_tokenizer


@pytest.fixture
def questions(student_folder, tmp_path):
    """What rows ask."""

    def of(rows, check=lambda row: None, by_row=False, **settings):
        path = tmp_path / "rows.json"
        if isinstance(rows, list):
            path.write_text(json.dumps(rows))
        else:
            pyarrow.parquet.write_table(rows, path := tmp_path / "rows.parquet")
        dataset = {"_component_": "distill_tune.data.instruct", "source": str(path)}
        tokenizer = llama2_tokenizer(str(student_folder / "tokenizer.model"))
        cfg = OmegaConf.create({"dataset": dataset, **settings})
        readers = {"student": Reader(tokenizer, 99)}
        return read_questions(cfg, tokenizer, Prompt(None, None, "student_prompt_template"), readers, check, by_row)

    return of


def test_a_row_whose_answers_cannot_be_scored_is_a_bad_row(questions):
    rows = [{"instruction": "2 plus 2?", "reference": 4}, {"instruction": "Why?", "reference": "because"}]
    check = generation.Match(by="numeric").check
    with pytest.raises(UserError, match=r"(?s)1 row cannot be asked.*row 2: the column reference has no number"):
        questions(rows, check)
    found, failed = questions(rows, check, on_bad_row="skip")
    assert [question.row["reference"] for question in found] == [4] and len(failed) == 1


def test_columns_that_answers_keep_are_written_as_json_or_told_before_there_is_one(questions):
    rows = {"instruction": ["2 plus 2?"], "made": [datetime.datetime(2024, 5, 6)]}
    found, _ = questions(pyarrow.table(rows))
    assert found[0].kept == ("made",)
    assert json.loads(line_of({"made": found[0].row["made"]})) == {"made": "2024-05-06T00:00:00"}
    with pytest.raises(UserError, match=r"answers cannot keep its column image, which JSON does not know: .*bytes"):
        questions(pyarrow.table(rows | {"image": [b"PNG"]}))
    with pytest.raises(UserError, match="answers cannot keep its column note, which JSON does not know"):
        questions([{"instruction": "2 plus 2?", "note": "half a character: \ud83d"}])


def test_a_prompt_for_another_teacher_is_another_one(questions):
    rows = [{"instruction": "2 plus 2?", "teacher_id": name} for name in ("a", "b", "a")]
    found, _ = questions(rows, by_row=True)
    assert [(question.number, question.row["teacher_id"]) for question in found] == [(0, "a"), (1, "b")]
    assert len(questions(rows)[0]) == 1


def test_an_empty_prompt_is_told(questions):
    with pytest.raises(UserError, match="prompt: is empty"):
        questions([{"instruction": "2 plus 2?"}], prompt=" ")


def test_a_file_without_prompts_is_named(questions):
    with pytest.raises(UserError, match=r"dataset .*rows\.json: is empty"):
        questions([])
    with pytest.raises(UserError, match=r"dataset: .*rows\.json has no prompt\n  .*row 1: "):
        questions([{"instruction": 5}], on_bad_row="skip")
