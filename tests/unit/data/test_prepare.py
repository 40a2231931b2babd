import json
import os

import numpy
import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import config, data
from distill_tune.data import prepare
from distill_tune.errors import UserError


def prepared(rows_file, student_folder):
    tokenizer = OmegaConf.create(
        {
            "_component_": "torchtune.models.llama2.llama2_tokenizer",
            "path": str(student_folder / "tokenizer.model"),
            "max_seq_len": 40,
        }
    )
    dataset = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(rows_file)})
    (rows,), _ = data.prepare_rows(dataset, config.instantiate(tokenizer), tokenizer, on_bad_row="skip")
    return rows


def test_many_rows_are_tokenised_in_several_processes_as_in_one(tmp_path, student_folder, monkeypatch):
    file = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"count to {n}", "output": "1 " * (n % 30)} for n in range(5000)]  # some empty, some cut
    file.write_text("\n".join(json.dumps(line) for line in lines))
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "a"))
    monkeypatch.setattr(prepare, "usable_cpus", lambda: 3)
    several = prepared(file, student_folder)
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "b"))
    monkeypatch.setattr(prepare, "usable_cpus", lambda: 1)
    alone = prepared(file, student_folder)
    assert several.fingerprint == alone.fingerprint
    assert (several.num_bad, several.num_cut) == (alone.num_bad, alone.num_cut)
    assert several.num_bad == 167
    assert len(several) + several.num_bad + several.num_cut == 5000


def test_the_cache_is_mapped_not_read(tmp_path, student_folder, rows_file, monkeypatch):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path))
    prepared(rows_file, student_folder)
    rows = prepared(rows_file, student_folder)
    with open("/proc/self/maps") as maps:
        assert any(str(tmp_path) in line for line in maps)
    assert isinstance(rows.tokens, torch.Tensor)
    assert numpy.array_equal(rows.supervised, [int((rows[i][1][1:] != -100).sum()) for i in range(len(rows))])


def test_no_more_processes_tokenise_than_the_run_may_use_cpus(tmp_path, student_folder, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": "count", "output": "1"}) for _ in range(3000)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(prepare.concurrent.futures, "ProcessPoolExecutor", None)  # would be called for two
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert len(prepared(file, student_folder)) == 3000
    finally:
        os.sched_setaffinity(0, before)


def test_what_a_users_own_dataset_raises_is_told_in_a_line(tmp_path, student_folder, monkeypatch):
    (tmp_path / "rows_that_raise.py").write_text("def rows(tokenizer):\n    raise ValueError('no such\\nsplit')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    component = OmegaConf.create({"_component_": "rows_that_raise.rows"})
    with pytest.raises(UserError, match=r"^dataset rows_that_raise\.rows: no such split$"):
        prepare.prepare_rows(component, None, OmegaConf.create())
