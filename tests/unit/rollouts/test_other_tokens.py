"""What the student writes, in the tokens of a teacher with another tokenizer, as its chat template would have them."""

import json

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from tiny import ROWS
from tiny_tokenizer import TEMPLATE, write_tokenizer

from distill_tune import config, data
from distill_tune.alignment.token_bytes import token_bytes
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.rollouts.other_tokens import OtherTokens
from distill_tune.rollouts.prompts import answered

EOS = 2


@pytest.fixture
def prepared(tmp_path, student_folder, teacher_folder):
    """Rows by the student's tokenizer, and by a byte-level one or that of a folder; the tokenizers."""

    def prepare(other=None, template=TEMPLATE):
        if other is None:
            (other := tmp_path / "other").mkdir()
            write_tokenizer(other, texts=[row["output"] for row in ROWS], template=template)
        (tmp_path / "rows.json").write_text(json.dumps(ROWS[:8]))
        dataset = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json")})
        configs = [
            OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": str(folder)})
            for folder in (student_folder, other)
        ]
        mine, its = map(config.instantiate, configs)
        others = [OtherTokenizer(its, configs[1], token_bytes(its), token_bytes(mine))]
        (rows,), _ = data.prepare_rows(
            dataset, mine, configs[0], others=others, reading=data.Reading(shares_tokenizer=False)
        )
        return rows, mine, others

    return prepare


@pytest.mark.parametrize("is_sentencepiece", [False, True])
def test_the_datas_own_answer_is_written_as_in_the_data(prepared, teacher_folder, is_sentencepiece):
    rows, mine, others = prepared(teacher_folder if is_sentencepiece else None)
    write = OtherTokens(mine, {EOS}, others, most=None)
    for row in (rows[number] for number in range(len(rows))):
        answer = row.labels[row.labels != -100].tolist()
        assert answer[-1] == EOS
        its, wanted = write(answered(row, answer), answer).others[0], row.others[0]
        learned = (wanted.labels != -100).nonzero()[:, 0]
        end = int(learned[-1]) + 1
        assert its.tokens.tolist() == wanted.tokens[:end].tolist()
        assert its.labels.tolist() == wanted.labels[:end].tolist()
        assert torch.equal(its.alignment, wanted.alignment)


# As Qwen3's: where an answer has no thought, an empty one is written before it, and learned with it.
_EMPTY_THOUGHT = TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and '<think>' not in message['content'] %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}",
)


def test_an_empty_thought_of_the_teachers_template_stands_before_it_as_in_the_data(prepared):
    rows, mine, others = prepared(template=_EMPTY_THOUGHT)
    write = OtherTokens(mine, {EOS}, others, most=None)
    row = rows[0]
    answer = row.labels[row.labels != -100].tolist()
    its, wanted = write(answered(row, answer), answer).others[0], row.others[0]
    end = int((wanted.labels != -100).nonzero()[-1]) + 1
    assert "<think>\n\n</think>" in others[0].tokenizer.decode(its.tokens.tolist(), False)
    assert its.tokens.tolist() == wanted.tokens[:end].tolist()
    assert torch.equal(its.alignment, wanted.alignment)
    thought = mine.encode("<think>\n1\n</think>\n\n2", add_bos=False, add_eos=False)
    its = write(answered(row, thought), thought).others[0]
    assert others[0].tokenizer.decode(its.tokens.tolist(), False).count("<think>") == 1


def test_an_empty_thought_of_the_students_template_is_not_handed_on(tmp_path, prepared):
    (tmp_path / "thinking").mkdir()
    write_tokenizer(tmp_path / "thinking", texts=[row["output"] for row in ROWS], template=_EMPTY_THOUGHT)
    mine = data.hf_tokenizer(str(tmp_path / "thinking"))
    rows, _, others = prepared()
    answer = mine.encode("<think>\n\n</think>\n\n1 plus")
    its = OtherTokens(mine, {1}, others, most=None)(answered(rows[0], answer), answer).others[0]
    assert others[0].tokenizer.decode(its.tokens[its.labels != -100].tolist(), False) == "1 plus"


def test_an_answer_that_is_cut_has_no_end(prepared):
    rows, mine, others = prepared()
    answer = mine.encode("1 plus", add_bos=False, add_eos=False)
    its = OtherTokens(mine, {EOS}, others, most=None)(answered(rows[0], answer), answer).others[0]
    assert others[0].tokenizer.decode(its.tokens[its.labels != -100].tolist(), False) == "1 plus"
    nothing = OtherTokens(mine, {EOS}, others, most=None)(answered(rows[0], []), []).others[0]
    assert (nothing.labels == -100).all()
    assert nothing.alignment.shape == (0, 6)


def test_what_a_teacher_cannot_read_has_no_divergence(prepared):
    rows, mine, others = prepared()
    answer = mine.encode("1 plus 2 is 3", add_bos=False, add_eos=False)
    whole = OtherTokens(mine, {EOS}, others, most=None)(answered(rows[0], answer), answer).others[0]
    most = len(whole.tokens) - 2
    its = OtherTokens(mine, {EOS}, others, most=most)(answered(rows[0], answer), answer).others[0]
    assert len(its.tokens) == most
    known = (its.alignment[:, 0] >= 0).numpy()
    assert numpy.array_equal(its.alignment[known], whole.alignment[known])
    assert 0 < known.sum() < (whole.alignment[:, 0] >= 0).sum()
    assert its.alignment[:, 2].max() < (its.labels != -100).sum()
