"""The configs of configs/migrate optimise what the other tools do; test_second_device.py takes a few steps of all."""

import sys

import pytest
from on_demo_models import FEW_ROWS
from tiny import metrics_of

from distill_tune.cli.main import main
from distill_tune.config.files import config_names, demo_model_folder

NAMES = [name for name in config_names() if name.startswith(("signals/", "migrate/"))]
FEW = ["batch_size=4", "max_steps_per_epoch=1", "epochs=2", "device=cpu", "optimizer.lr=1e-4"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["distill-tune"])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def go(name, *overrides, output="out"):
        main(["run", "kd_single_device", "--config", name, *overrides, *FEW, f"output_dir={output}"])
        return metrics_of(tmp_path / output)

    return go


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("autotrain", {"kd_ratio": 0.7, "temperature": 3.0}),
        ("hf_trainer", {"kd_ratio": 0.5, "temperature": 2.0}),
        ("trl_gkd", {"kd_ratio": 1.0, "temperature": 1.0}),
        ("torchtune_kd", {"kd_ratio": 0.5, "temperature": 1.0}),
    ],
)
def test_a_mapping_optimises_what_the_other_tool_optimises(name, keys, run):
    """loss = (1 - kd_ratio) * CE + kd_ratio * T^2 * KL of each."""
    line = run(name, *FEW_ROWS)[0]
    assert {key: line[key] for key in keys} == keys
    wanted = (1 - keys["kd_ratio"]) * line["ce_loss"] + keys["kd_ratio"] * keys["temperature"] ** 2 * line["kd_loss"]
    assert line["loss"] == pytest.approx(wanted, rel=1e-6)


def test_every_config_has_the_demos_models():
    assert demo_model_folder("teacher").is_dir()
    assert len(NAMES) >= 30
