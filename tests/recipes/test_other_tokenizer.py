"""Runs whose teacher has another tokenizer than the student, through the real CLI."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from stand_in_engines import StandInVLLM
from tiny import MEASURED, metrics_of, write_model_of_another_tokenizer

from distill_tune import teachers
from distill_tune.models.tokenizer_files import open_tokenizer

HF = "distill_tune.models.from_hf"


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory, tokenizer_file):
    return write_model_of_another_tokenizer(tmp_path_factory.mktemp("models") / "other", tokenizer_file, seed=3)


@pytest.fixture
def write(write_config, other_folder):
    """A config whose teacher is a byte-level model."""

    def written(**changes):
        teacher = {"teacher_model": {"_component_": HF, "path": str(other_folder)}, "teacher_checkpointer": None}
        return write_config(**(teacher | changes))

    return written


def run_ok(cli, *arguments, recipe="kd_single_device"):
    done = cli("run", recipe, "--config", "config.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def test_a_teacher_of_another_tokenizer_teaches(write, cli, tmp_path, other_folder, rows_file):
    write(kd_ratio=1.0, max_steps_per_epoch=8, epochs=2, optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-2})
    done = run_ok(cli)
    told = f"teacher_model: its tokenizer, that of {other_folder}, is not that of the rows; "
    assert f"{told}the answers are aligned byte by byte" in done.stdout
    assert "bytes of the answers" not in done.stdout  # nothing is masked
    losses = [line["kd_loss"] for line in metrics_of(tmp_path / "out")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    compared = cli("compare", "--config", "config.yaml", "--source", rows_file)
    assert compared.returncode == 0, compared.stderr
    assert "since the tokenizers differ: before, out. Bits per byte" in " ".join(compared.stdout.split())


@pytest.mark.torchao
def test_two_processes_train_as_one_which_goes_on_with_the_same_bits(write, cli, tmp_path, rows_file):
    rows = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:25]"}
    write(dataset=rows, dataset_val=rows | {"split": "train[:9]"}, teacher_system_prompt="Add.", save_every_n_steps=2)
    run_ok(cli, "batch_size=8", "output_dir=one")
    two = cli("run", "--nproc_per_node", "2", "kd_distributed", "--config", "config.yaml", "output_dir=two")
    assert two.returncode == 0, two.stderr
    of_one, of_two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "kd_loss", "grad_norm", "val_kd_loss"):
        found = [[line[name] for line in lines if name in line] for lines in (of_one, of_two)]
        assert found[1] == pytest.approx(found[0], rel=1e-5)

    shutil.copytree(tmp_path / "one", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_4")
    (tmp_path / "again" / "finished.json").unlink()
    run_ok(cli, "batch_size=8", "output_dir=again", "resume=auto")
    again = metrics_of(tmp_path / "again")
    assert [plain(line) for line in again] == [plain(line) for line in of_one]
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "again")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def plain(line):
    return {name: value for name, value in line.items() if name not in MEASURED}


def test_validate_and_plan_tell_what_both_tokenizers_have_in_common(write, cli, tmp_path):
    write()
    for command, more in (("validate", "config.yaml: valid"), ("plan", "teacher activations")):
        done = cli(command, "--config", "config.yaml")
        assert done.returncode == 0, done.stderr
        assert "common boundaries" in done.stdout
        assert "method to take: " in done.stdout
        assert more in done.stdout


def test_a_cache_of_its_hidden_states_teaches_as_it_does(write, cli, tmp_path, other_folder):
    write(kd_ratio=1.0)
    run_ok(cli)
    sampled = cli("run", "teacher_cache", "--config", "config.yaml", "cache.kind=sampled", "output_dir=cache")
    assert "cache.kind=sampled: the teacher's tokenizer is not that of the rows; keep one alone" in sampled.stderr
    run_ok(cli, "cache.kind=hidden", "output_dir=cache", recipe="teacher_cache")
    cached = {"_component_": "distill_tune.teachers.Cached", "path": str(tmp_path / "cache")}
    write(kd_ratio=1.0, teacher_model=cached)
    unnamed = cli("run", "kd_single_device", "--config", "config.yaml", "output_dir=cached")
    assert "teacher_tokenizer: teacher_model has other tokens than the rows; name what writes them" in unnamed.stderr
    named = {"_component_": "distill_tune.data.hf_tokenizer", "path": str(other_folder)}
    write(kd_ratio=1.0, teacher_model=cached, teacher_tokenizer=named)
    run_ok(cli, "output_dir=cached")
    live, stored = ([line["kd_loss"] for line in metrics_of(tmp_path / name)] for name in ("out", "cached"))
    assert stored == pytest.approx(live, rel=2e-3)


def test_it_judges_what_the_student_writes(write, cli, tmp_path):
    rollouts = {"_component_": "distill_tune.rollouts.OnPolicy", "lmbda": 0.5, "log_every_n_steps": 2}
    rollouts["sampling"] = {"max_new_tokens": 12, "temperature": 0.9}
    write(kd_ratio=1.0, rollouts=rollouts, optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-2})
    run_ok(cli)
    lines = metrics_of(tmp_path / "out")
    assert all(line["kd_loss"] > 0 and line["rollouts"] == 2 for line in lines)
    assert "rollout_student_entropy" in lines[0]
    assert "rollout_teacher_entropy" not in lines[0]
    assert list(
        {mark for _, mark in json.loads((tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()[0])["marks"]}
    ) == [None]
    refused = cli("run", "kd_single_device", "--config", "config.yaml", "rollouts.seq_kd=True", "output_dir=other")
    assert "rollouts.seq_kd=True: the tokenizer of teacher_model is not that of the rows" in refused.stderr


def test_a_server_judges_it_by_how_likely_its_own_tokens_are(write, cli, tmp_path, other_folder):
    rollouts = {"_component_": "distill_tune.rollouts.OnPolicy", "lmbda": 0.5, "sampling": {"max_new_tokens": 12}}
    chunks = {"_component_": "distill_tune.losses.ChunkLikelihood"}
    settings = {"kd_ratio": 1.0, "kd_loss": chunks, "rollouts": rollouts, "max_steps_per_epoch": 4, "epochs": 1}
    write(**settings)
    run_ok(cli)
    live = teachers.build_teacher(OmegaConf.create({"_component_": HF, "path": str(other_folder)}))
    live.load(None, torch.device("cpu"))
    server = StandInVLLM(live, open_tokenizer(other_folder), longest=512)
    try:
        served = {"_component_": "distill_tune.teachers.Served", "url": server.url, "kind": "likelihood"}
        named = {"_component_": "distill_tune.data.hf_tokenizer", "path": str(other_folder)}
        write(**settings, teacher_model=served, teacher_tokenizer=named)
        run_ok(cli, "output_dir=served")
    finally:
        server.close()
    of_both = [[line["kd_loss"] for line in metrics_of(tmp_path / name)] for name in ("out", "served")]
    assert of_both[1] == pytest.approx(of_both[0], rel=1e-4)
