"""A real model with real weights: SmolLM2-135M-Instruct, in the folder that `make test-real` makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill_tune import data, evaluation
from distill_tune.cli.compare import load_folder

MODELS = Path(__file__).parents[2] / ".smollm2"
TEACHER = MODELS / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def model():
    return load_folder(TEACHER, torch.device("cpu"), torch.float32).eval()


def test_its_logits_are_those_of_transformers(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    text = "def mean(values):\n    return sum(values) / len(values)\n\nThe Loire is the longest river of France. 你好"
    tokens = AutoTokenizer.from_pretrained(TEACHER)(text, return_tensors="pt")["input_ids"]
    assert tokens[0].tolist() == data.hf_tokenizer(str(TEACHER)).encode(text, add_bos=False, add_eos=False)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-3)  # logits of 20 and more


def test_it_knows_the_capital_of_france(model):
    tokenizer = data.hf_tokenizer(str(TEACHER))
    assert "Paris" in evaluation.answer(model, tokenizer, "What is the capital of France?", max_tokens=20)


def test_a_pruned_student_comes_nearer_to_it(tmp_path):
    def run(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "distill_tune", *map(str, arguments)], cwd=tmp_path, check=True)

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / TEACHER.name).symlink_to(TEACHER)
    student = tmp_path / "models" / f"{TEACHER.name}-pruned"
    kept = ",".join(str(layer) for layer in range(30) if layer not in (14, 15, 16, 17))
    run("init-student", TEACHER, student, "--layers", kept, "--rows", 4)
    settings = ["dataset.num_rows=48", "batch_size=4", "lr_scheduler.num_warmup_steps=1", "optimizer.lr=1e-4"]
    run("run", "kd_single_device", "--config", "smollm2/135M_pruned", "output_dir=out", *settings)
    losses = [json.loads(line)["kd_loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
