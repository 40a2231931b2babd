"""What the student writes, in the tokens of a teacher with another tokenizer, as its chat template would have them."""

import json

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from tiny import ROWS
from tiny_tokenizer import write_tokenizer

from distill_tune import config, data
from distill_tune.alignment.token_bytes import token_bytes
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.rollouts.other_tokens import OtherTokens
from distill_tune.rollouts.prompts import answered

EOS = 2


@pytest.fixture
def prepared(tmp_path, student_folder, teacher_folder):
    """Rows by the student's tokenizer, and by a byte-level one or that of a folder; the tokenizers."""

    def prepare(other=None):
        if other is None:
            (other := tmp_path / "other").mkdir()
            write_tokenizer(other, texts=[row["output"] for row in ROWS])
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
