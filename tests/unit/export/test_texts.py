"""The rows that an export is compared with its source on."""

import json
import shutil

import pytest
from omegaconf import OmegaConf
from tiny import ROWS

from distill_tune.export import texts
from distill_tune.export.source import open_source


@pytest.fixture
def run_with(run, tmp_path):
    """A copy of the run with a dataset_val."""

    def make(**dataset_val):
        shutil.copytree(run, tmp_path / "mine")
        (tmp_path / "rows.json").write_text(json.dumps(ROWS))
        cfg = OmegaConf.load(run / "config.yaml")
        cfg.dataset_val = {"source": str(tmp_path / "rows.json")} | dataset_val
        OmegaConf.save(cfg, tmp_path / "mine" / "config.yaml")
        return open_source(tmp_path / "mine")

    return make


def test_of_a_run_they_are_its_validation_rows(run_with):
    source = run_with(_component_="distill_tune.data.instruct")
    rows = texts.rows_for(source)
    assert rows.told == "16 rows of the run's dataset_val"
    assert ROWS[0]["output"] in source.tokenizer.decode(rows.tokens[0])


def test_a_dataset_of_others_is_not_run_and_one_that_cannot_be_read_is_no_fault(run_with, tmp_path):
    rows = texts.rows_for(run_with(_component_="someone.else.rows"))
    assert rows.told == "8 built-in texts"
    shutil.rmtree(tmp_path / "mine")
    rows = texts.rows_for(run_with(_component_="distill_tune.data.instruct", source="/nowhere/rows.json"))
    assert rows.told == "8 built-in texts"


def test_they_are_cut_where_the_model_ends_and_by_a_budget_of_logits(base, monkeypatch):
    source = open_source(base)
    assert max(map(len, texts.rows_for(source).tokens)) <= source.decoder.max_seq_len
    monkeypatch.setattr(texts, "_MOST_BYTES", 4 * source.vocab_size * 100)
    rows = texts.rows_for(source)
    assert sum(map(len, rows.tokens)) <= 100
    assert rows.told.endswith(" built-in texts")


def test_tokens_without_a_row_in_the_model_are_left_out(base, monkeypatch):
    source = open_source(base)
    monkeypatch.setattr(type(source), "vocab_size", property(lambda self: 100))
    assert max(token for row in texts.rows_for(source).tokens for token in row) < 100
