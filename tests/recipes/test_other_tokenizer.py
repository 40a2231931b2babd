"""Runs whose teacher has another tokenizer than the student, through the real CLI."""

import pytest
from tiny import metrics_of, write_model_of_another_tokenizer

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


def test_a_teacher_of_another_tokenizer_teaches(write, cli, tmp_path, other_folder):
    write(kd_ratio=1.0, max_steps_per_epoch=8, epochs=2, optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-2})
    done = run_ok(cli)
    told = f"teacher_model: its tokenizer, that of {other_folder}, is not that of the rows; "
    assert f"{told}the answers are aligned byte by byte" in done.stdout
    assert "bytes of the answers" in done.stdout
    losses = [line["kd_loss"] for line in metrics_of(tmp_path / "out")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
