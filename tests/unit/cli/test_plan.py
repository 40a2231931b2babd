"""`plan` on tiny models, and on GPUs that are too small for them."""

import pytest

from distill_tune.cli.main import main
from distill_tune.training import flops
from distill_tune.training.flops import Gpu


def plan(capsys, *arguments):
    main(["plan", *map(str, arguments)])
    return capsys.readouterr().out


def test_it_tells_data_memory_disk_and_work(write_config, capsys):
    told = plan(capsys, "--config", write_config(), "--gpu", "A100")
    assert "64 rows" in told
    assert "steps: 4 (1 x 4)" in told
    for part in ("teacher", "student", "optimizer", "gradients", "activations", "head", "peak"):
        assert f"\n  {part} " in told
    assert "PFLOP in all" in told
    assert "A100: fits its 85.9 GB" in told


def test_where_it_does_not_fit_changes_that_do_are_named(write_config, capsys, monkeypatch):
    monkeypatch.setattr("distill_tune.cli.plan._CONTEXT", 0)
    config = write_config()
    peak = peak_of(plan(capsys, "--config", config, "--gpu", "A10"))
    monkeypatch.setitem(flops.GPUS, "A10", Gpu(125e12, 0.97 * peak))
    told = plan(capsys, "--config", config, "--gpu", "A10")
    assert "A10: does not fit" in told
    changes = [line.split("   (")[0].split() for line in told.splitlines() if line.startswith("  ") and "=" in line]
    assert ["batch_size=2", "+gradient_accumulation_steps=2"] in changes
    for change in changes:  # what it says is so
        assert peak_of(plan(capsys, "--config", config, "--gpu", "A10", *change)) <= 0.97 * peak + 1000


def test_where_no_change_is_enough_alone_several_are_named(write_config, capsys, monkeypatch):
    monkeypatch.setattr("distill_tune.cli.plan._CONTEXT", 0)
    monkeypatch.setattr(
        "distill_tune.cli.plan._CHANGES", (["enable_activation_checkpointing=True"], ["half the batch"])
    )
    config = write_config()
    first, second = "+enable_activation_checkpointing=True", ["batch_size=2", "+gradient_accumulation_steps=2"]
    alone = [peak_of(plan(capsys, "--config", config, *change)) for change in ([first], second)]
    together = peak_of(plan(capsys, "--config", config, first, *second))
    assert together < min(alone)
    monkeypatch.setitem(flops.GPUS, "A10", Gpu(125e12, (together + min(alone)) / 2))
    told = plan(capsys, "--config", config, "--gpu", "A10")
    assert f"it would with\n  {first} {' '.join(second)}   (" in told


def test_when_nothing_is_enough_it_says_so(write_config, capsys, monkeypatch):
    monkeypatch.setitem(flops.GPUS, "A10", Gpu(125e12, 1000))
    assert "no change of settings is enough" in plan(capsys, "--config", write_config(), "--gpu=A10")


def test_several_processes_share_the_weights(write_config, capsys):
    config = write_config()
    alone = plan(capsys, "kd_distributed", "--config", config, "--gpu", "H100")
    shared = plan(capsys, "--nproc_per_node", 4, "kd_distributed", "--config", config, "--gpu", "H100")
    assert "memory of each process:" in shared
    assert "H100 x 4: fits" in shared
    assert part(shared, "optimizer") == pytest.approx(part(alone, "optimizer") / 4, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "V100"], "--gpu V100: not known; there are 3090, 4090, A10"),
        (["kd_raito=1"], "kd_raito: no such key, did you mean kd_ratio?"),
        (["tokenizer.path=nowhere"], "tokenizer.path=nowhere: no such file"),
    ],
)
def test_mistakes_are_told(write_config, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        plan(capsys, "--config", write_config(), *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def part(told, name):
    number, unit = next(line for line in told.splitlines() if line.startswith(f"  {name} ")).split()[1:3]
    return float(number) * UNITS[unit]


def peak_of(told):
    return part(told, "peak")
