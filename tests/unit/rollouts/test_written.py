"""rollouts.jsonl."""

import json
import math

import pytest

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.rollouts.written import WrittenRollouts, marked

from torchtune.models.llama2 import llama2_tokenizer


@pytest.mark.parametrize("text", ["3 plus 4 is 7, and so on done.", "是 3 é"])
def test_marks_have_the_text_of_each_token(tokenizer_file, text):
    tokenizer = llama2_tokenizer(str(tokenizer_file))
    tokens = tokenizer.encode(text, add_bos=False, add_eos=True)
    marks = marked(tokenizer, tokens, [-0.12345] * (len(tokens) - 1) + [math.nan])
    assert [mark for _, mark in marks] == [-0.123] * (len(tokens) - 1) + [None]
    if text.isascii():
        assert "".join(part for part, _ in marks) == text


def test_a_run_that_goes_on_from_a_step_writes_the_later_ones_anew(tmp_path):
    first = WrittenRollouts(tmp_path, 0)
    first.write([{"step": step, "answer": "是"} for step in (1, 3, 5)])
    WrittenRollouts(tmp_path, 3).write([{"step": 5, "answer": "no"}])
    lines = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8")
    assert "是" in lines
    assert [(line["step"], line["answer"]) for line in map(json.loads, lines.splitlines())] == [
        (1, "是"),
        (3, "是"),
        (5, "no"),
    ]
    WrittenRollouts(tmp_path, 0)
    assert (tmp_path / "rollouts.jsonl").read_text() == ""


def test_a_disk_that_refuses_is_told_of_once_and_the_run_goes_on(tmp_path, capsys):
    written = WrittenRollouts(tmp_path / "not_there", 0)
    written.write([{"step": 1}])
    assert capsys.readouterr().err.count("rollouts are left out") == 1
