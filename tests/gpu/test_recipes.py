"""Both recipes on CUDA in bf16, by the command."""

import math

import pytest
from tiny import metrics_of

pytestmark = pytest.mark.gpu

ON_CUDA = ("device=cuda", "dtype=bf16", "epochs=1", "max_steps_per_epoch=3")


@pytest.mark.parametrize("config", ["tiny", "tiny_lora"])
@pytest.mark.parametrize("recipe", ["kd_single_device", "kd_distributed"])
def test_it_trains_in_bf16(recipe, config, fresh_cli, tmp_path):
    done = fresh_cli("run", recipe, "--config", config, *ON_CUDA, "output_dir=out")
    assert done.returncode == 0, done.stderr
    lines = metrics_of(tmp_path / "out")
    assert len(lines) == 3
    assert all(math.isfinite(line["loss"]) and line["applied"] and line["grad_norm"] > 0 for line in lines)


def test_compiled_and_streamed_it_is_the_same_run(fresh_cli, tmp_path):
    losses = {}
    for name, settings in {"plain": [], "compiled": ["compile=True"], "streamed": ["teacher_offload=True"]}.items():
        done = fresh_cli("run", "kd_single_device", "--config", "tiny", *ON_CUDA, *settings, f"output_dir={name}")
        assert done.returncode == 0, done.stderr
        losses[name] = [line["loss"] for line in metrics_of(tmp_path / name)]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-2)
    assert losses["streamed"] == pytest.approx(losses["plain"], rel=1e-3)
