"""What teacher and student read of a row, and that they read the same answer."""

import dataclasses
import json

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import config, data
from distill_tune.data.conversation import Conversation
from distill_tune.data.prompts import Prompt
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError


@pytest.fixture
def prepared(tmp_path, student_folder):
    """Rows as prepare_rows gives them, and the tokenizer."""
    tokenizer_config = OmegaConf.create(
        {
            "_component_": "torchtune.models.llama2.llama2_tokenizer",
            "path": str(student_folder / "tokenizer.model"),
            "max_seq_len": 128,
        }
    )
    tokenizer = config.instantiate(tokenizer_config)

    def prepare(rows, component="distill_tune.data.instruct", on_bad_row="stop", max_seq_len=128, **reading):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        dataset = OmegaConf.create({"_component_": component, "source": str(tmp_path / "rows.json")})
        tokenizer.max_seq_len = tokenizer_config.max_seq_len = max_seq_len
        (found,), _ = data.prepare_rows(
            dataset, tokenizer, tokenizer_config, on_bad_row=on_bad_row, reading=data.Reading(**reading)
        )
        return found, tokenizer

    return prepare


ROWS = [{"instruction": "What is 1 plus 2?", "output": "1 plus 2 is 3, done.", "hint": "three"}]


def test_teacher_and_student_read_their_own_prompts_and_one_answer(prepared):
    rows, tokenizer = prepared(
        ROWS,
        student_prompt_template="{input}!",
        teacher_prompt_template="Use {hint}. {input}",
        teacher_system_prompt="You add.",
    )
    row = rows[0]
    mine, its = (
        tokenizer.decode(
            [token for token, label in zip(tokens.tolist(), labels.tolist(), strict=True) if label == -100]
        )
        for tokens, labels in ((row.tokens, row.labels), (row.teacher_tokens, row.teacher_labels))
    )
    assert "What is 1 plus 2?!" in mine
    assert "You add." in its
    assert "Use three. What is 1 plus 2?" in its
    assert row.labels[row.labels != -100].tolist() == row.teacher_labels[row.teacher_labels != -100].tolist()


def test_batches_have_as_many_supervised_positions_for_both(prepared):
    rows, _ = prepared(ROWS * 4, teacher_system_prompt="You add.")
    (batch,) = data.StepPlan([rows], batch_size=4).micro_batches(0, 0)
    assert batch.for_teacher is batch.teacher
    likeliest = torch.zeros(len(batch.supervised_positions), 2, dtype=torch.long)
    of_teacher = dataclasses.replace(batch, likeliest=likeliest).for_teacher
    assert of_teacher.likeliest is likeliest and torch.equal(of_teacher.tokens, batch.teacher.tokens)
    assert sum(batch.teacher.lengths) > sum(batch.lengths)
    assert (
        batch.targets[0, batch.supervised_positions].tolist()
        == batch.teacher.targets[0, batch.teacher.supervised_positions].tolist()
    )


def test_a_shorter_bound_of_one_side_cuts_the_answer_of_both(prepared):
    whole, _ = prepared(ROWS)
    longer, _ = prepared(ROWS, teacher_max_seq_len=len(whole[0].tokens) - 3)
    row = longer[0]
    learned = row.labels[row.labels != -100].tolist()
    assert learned == row.teacher_labels[row.teacher_labels != -100].tolist()
    assert learned == whole[0].labels[whole[0].labels != -100].tolist()[:-3]
    longer, _ = prepared(ROWS, max_seq_len=len(whole[0].tokens) - 3, teacher_max_seq_len=500)
    assert longer[0].teacher_labels[longer[0].teacher_labels != -100].tolist() == learned


def test_they_come_back_from_the_cache_as_they_were(prepared):
    reading = {"teacher_system_prompt": "You add.", "teacher_names": ("0", "1")}
    rows = [row | {"teacher_id": number} for number, row in enumerate(ROWS * 2)]
    first, second = prepared(rows, **reading)[0], prepared(rows, **reading)[0]
    assert first is not second
    assert first.fingerprint == second.fingerprint
    assert [second[number].teacher_id for number in (0, 1)] == [0, 1]
    assert second[1].teacher_tokens.tolist() == first[1].teacher_tokens.tolist()
    assert prepared(rows)[0].fingerprint != first.fingerprint


def test_a_column_that_a_row_lacks_is_named_with_the_row(prepared):
    with pytest.raises(UserError, match=r"rows\.json, row 2: teacher_prompt_template: \{hint\}: the row has no such"):
        prepared([*ROWS, {"instruction": "a", "output": "b"}], teacher_prompt_template="{hint} {input}")


def test_plain_text_has_no_turns_to_write_around(prepared):
    with pytest.raises(
        UserError, match=r"teacher_system_prompt need rows with turns; take distill_tune\.data\.instruct"
    ):
        prepared([{"text": "a b c"}], component="distill_tune.data.text", teacher_system_prompt="You add.")


def test_every_user_turn_goes_through_the_template_and_a_system_turn_is_kept():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    conversation = Conversation(tuple(turns), (False, False, True, False))
    applied = Prompt("<{input}>", "You are kind.").applied(conversation, {})
    assert [turn["content"] for turn in applied.turns] == ["You are kind.\n\nBe brief.", "<One?>", "Two.", "<Three?>"]
    assert applied.learned == (False, False, True, False)
    with pytest.raises(RowError, match=r"\{other\}: the row has no such text; it has a, b"):
        Prompt("{other}").applied(conversation, {"a": "x", "b": "y"})
    question = conversation.with_turns(turns[1:2], [False])
    assert Prompt("{input} {{json}} {}").applied(question, {"json": 1}).turns[0]["content"] == "One? {1} {}"
