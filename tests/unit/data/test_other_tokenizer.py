"""Rows as teachers of other tokenizers read them: aligned once, kept, cut alike, and joined into batches."""

import dataclasses
import json

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from tiny import ROWS
from tiny_tokenizer import write_tokenizer

from distill_tune import config, data, training
from distill_tune.alignment.columns import AT, INTO, LAST, OFFSET, TOKEN_AT
from distill_tune.alignment.token_bytes import token_bytes
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.training import tokenizer_check

ALPACA = {"_component_": "torchtune.datasets.alpaca_dataset", "source": "json", "split": "train"}


class Prepared:
    """Rows by the student's tokenizer and by some others."""

    def __init__(self, folder, student_folder):
        self.folder = folder
        self.config = OmegaConf.create(
            {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(student_folder / "tokenizer.model")}
        )
        self.tokenizer = config.instantiate(self.config)

    def other(self, vocab_size=400):
        folder = self.folder / str(vocab_size)
        if not folder.exists():
            folder.mkdir()
            write_tokenizer(folder, vocab_size, [row["output"] for row in ROWS])
        of = OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": str(folder)})
        tokenizer = config.instantiate(of)
        return OtherTokenizer(tokenizer, of, token_bytes(tokenizer), token_bytes(self.tokenizer))

    def __call__(self, rows=ROWS, others=None, max_seq_len=None, shares_tokenizer=False, dataset=None, **reading):
        file = self.folder / "rows.json"
        file.write_text(json.dumps(rows))
        dataset = dataset or {"_component_": "distill_tune.data.instruct", "source": str(file)}
        self.tokenizer.max_seq_len = self.config.max_seq_len = max_seq_len
        (found,), _ = data.prepare_rows(
            OmegaConf.create(dataset),
            self.tokenizer,
            self.config,
            reading=data.Reading(shares_tokenizer=shares_tokenizer, **reading),
            others=[self.other()] if others is None else others,
        )
        return found


@pytest.fixture
def prepared(tmp_path, student_folder, monkeypatch):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "cache"))
    return Prepared(tmp_path, student_folder)


def learned(labels):
    return labels[1:][labels[1:] != -100]


def require_aligned(prepared, tokens, its_tokens, alignment, other):
    """Each of the student's tokens is spelled by the teacher's from AT and OFFSET to LAST and INTO."""
    mine, its = other.rows_bytes.of, other.its_bytes.of
    found = 0
    for token, position in zip(tokens.tolist(), alignment.tolist(), strict=True):
        if position[AT] < 0:
            continue
        assert its_tokens[position[AT]] == position[TOKEN_AT]
        text = b"".join(its[it] or b"" for it in its_tokens[position[AT] : position[LAST] + 1].tolist())
        left_out = len(its[int(its_tokens[position[LAST]])] or b"") - position[INTO]
        before = b" " if position[OFFSET] == -1 else b""
        assert before + text[max(0, position[OFFSET]) : len(text) - left_out] == (mine[token] or b"")
        found += 1
    assert found > 0.7 * len(tokens)


def test_a_row_is_written_by_both_tokenizers_and_aligned(prepared):
    other = prepared.other()
    rows = prepared()
    for number in (0, 7, 63):
        row, its = rows[number], rows[number].others[0]
        assert "What is" in other.tokenizer.decode(its.tokens.tolist())
        require_aligned(prepared, learned(row.labels), learned(its.labels), its.alignment, other)
    assert rows.teacher is None
    aligned = rows.others[0].alignment
    assert len(aligned.positions) == rows.supervised.sum()
    assert aligned.num_masked_bytes == 0 < aligned.num_bytes  # the space that the student begins with is none
    assert "bytes of the answers" not in data.describe_rows([rows])
    masked = dataclasses.replace(aligned, num_bytes=200, num_masked_bytes=3)
    rows = dataclasses.replace(rows, others=(dataclasses.replace(rows.others[0], alignment=masked),))
    assert "; 3 bytes of the answers (1.50%) not found in the teacher's" in data.describe_rows([rows])


def test_what_is_told_of_the_first_rows_alone_says_so(prepared, monkeypatch):
    other, rows = prepared.other(), prepared()

    def told(*datasets):
        return list(training.describe_others(prepared.tokenizer, [other], datasets))

    whole = told(rows)
    monkeypatch.setattr(tokenizer_check, "_REPORTED_ROWS", 3)
    assert told(rows)[0] == "of the first 3 rows:"
    assert told(rows)[1:] == told(rows.first(3)) != whole
    assert told(rows, rows.first(3))[0] == "of the first 3 rows of each dataset:"


def test_the_alignment_is_kept_and_known_by_both_tokenizers(prepared, capsys):
    first, again = prepared(), prepared()
    assert capsys.readouterr().out.count("was tokenised before") == 1
    assert again.fingerprint == first.fingerprint
    for name in ("positions", "offsets"):
        assert torch.equal(*(getattr(rows.others[0].alignment, name) for rows in (first, again)))
    assert again.others[0].alignment.num_masked_bytes == first.others[0].alignment.num_masked_bytes
    smaller = prepared(others=[prepared.other(264)])
    assert "was tokenised before" not in capsys.readouterr().out
    assert smaller.fingerprint != first.fingerprint
    assert smaller.tokens.tolist() == first.tokens.tolist()


@pytest.mark.parametrize("component", [ALPACA, {"_component_": "distill_tune.data.text"}], ids=str)
def test_rows_without_turns_are_written_by_both_tokenizers(prepared, component):
    rows = [row | {"text": row["output"]} for row in ROWS]
    file = {"data_files" if "split" in component else "source": str(prepared.folder / "rows.json")}
    found = prepared(rows, dataset=component | file)
    row, its = found[5], found[5].others[0]
    require_aligned(prepared, learned(row.labels), learned(its.labels), its.alignment, prepared.other())


@pytest.mark.parametrize("most", [{"max_seq_len": 30}, {"teacher_max_seq_len": 32}], ids=str)
def test_rows_are_cut_where_tokens_of_both_end(prepared, most):
    whole, cut = prepared(), prepared(**most)
    of_whole = {whole.origin(number): whole[number] for number in range(len(whole))}
    num_cut = 0
    for number in range(len(cut)):
        row, its, before = cut[number], cut[number].others[0], of_whole[cut.origin(number)]
        kept, of_teacher = len(learned(row.labels)), len(learned(its.labels))
        assert torch.equal(its.alignment, before.others[0].alignment[:kept])
        if kept < len(learned(before.labels)):
            num_cut += 1
            assert before.others[0].alignment[kept, [AT, OFFSET]].tolist() == [of_teacher, 0]
        assert len(row.tokens) <= most.get("max_seq_len", 1000)
        assert len(its.tokens) <= most.get("teacher_max_seq_len", 1000)
    assert num_cut


def test_teachers_of_several_tokenizers_read_the_same_of_an_answer(prepared):
    others = [prepared.other(), prepared.other(264)]
    behind = {"teacher_system_prompt": "You add.", "teacher_max_seq_len": 80}
    rows = prepared(others=others, max_seq_len=30, shares_tokenizer=True, **behind)
    for number in range(len(rows)):
        row = rows[number]
        assert learned(row.teacher_labels).tolist() == learned(row.labels).tolist()
        for its, other in zip(row.others, others, strict=True):
            texts = [
                b"".join(of[token] or b"" for token in learned(labels).tolist())
                for of, labels in ((other.rows_bytes.of, row.labels), (other.its_bytes.of, its.labels))
            ]
            assert texts[0].strip() == texts[1].strip()
            assert "You add." in other.tokenizer.decode(its.tokens.tolist())


def test_a_batch_numbers_the_tokens_of_the_teacher_through(prepared):
    rows = prepared()
    plan = data.StepPlan([rows], batch_size=5, shuffle=False)
    batch = plan.micro_batches(0, 0)[0]
    for part in (batch, *batch.halves(), batch.of_rows([3, 1])):
        its = part.others[0]
        tokens, of_teacher = (of.targets[0, of.supervised_positions] for of in (part, its))
        assert torch.equal(part.learned, tokens)
        require_aligned(prepared, tokens, of_teacher, its.alignment, prepared.other())
        assert its.alignment[-1, LAST] == len(of_teacher) - 1
    assert batch.alignment.shape == (0, 6)


def test_rows_of_one_of_several_teachers_keep_what_they_are_aligned_with(prepared):
    rows = [row | {"teacher_id": "ab"[number % 2]} for number, row in enumerate(ROWS)]
    found = prepared(rows, teacher_names=("a", "b"))
    batch = data.StepPlan([found], batch_size=6, shuffle=False).micro_batches(0, 0)[0]
    own = batch.rows_of_teacher(1)
    assert own.teacher_ids == (0, 0, 0)
    assert torch.equal(own.others[0].alignment, batch.of_rows([1, 3, 5]).others[0].alignment)
    assert batch.rows_of_teacher(2).read_by(0).alignment.shape == (0, 6)


def test_micro_batches_are_bounded_by_what_the_teacher_reads(prepared):
    rows = prepared()
    assert numpy.array_equal(rows.teacher_lengths, rows.others[0].lengths)
    plan = data.StepPlan([rows], batch_size=4, gradient_accumulation_steps=4)
    most = max(shape.num_teacher_tokens for shape in plan.largest_shapes)
    for step in range(plan.steps_per_epoch):
        for batch, shape in zip(plan.micro_batches(0, step), plan.shapes(0, step), strict=True):
            assert shape.others[0].lengths == batch.others[0].lengths
            assert shape.others[0].supervised == batch.others[0].num_supervised
            assert sum(batch.teacher_lengths) == shape.num_teacher_tokens <= most
    assert [half.others[0].lengths for half in shape.halves()] == [
        tuple(shape.others[0].lengths[shape.lengths.index(length)] for length in half.lengths)
        for half in shape.halves()
    ]
