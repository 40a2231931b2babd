"""Checkpoints of runs, exported: the student that the run would leave if it ended there."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from tiny import write_model_of_another_tokenizer

from distill_tune.errors import UserError
from distill_tune.export.ship import export

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 32}


@pytest.fixture
def finished(config, run, tmp_path, tokenizer_file):
    """A run's folder, with the checkpoints of its two epochs."""

    def go(lora: bool = False, **changes):
        base = write_model_of_another_tokenizer(tmp_path / "base", tokenizer_file, seed=0)
        builder = {"_component_": f"distill_tune.models.{'lora_from_hf' if lora else 'from_hf'}", "path": str(base)}
        config(
            model=builder | (LORA if lora else {}),
            tokenizer={"_component_": "distill_tune.data.hf_tokenizer", "path": str(base)},
            kd_ratio=0,
            teacher_model=None,
            optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-2},
            max_steps_per_epoch=2,
            epochs=2,
            **changes,
        )
        run("kd_single_device")
        return tmp_path / "out"

    return go


def same(one, other):
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_without_a_model_is_exported_as_its_newest_checkpoint_has_it(finished, tmp_path, capsys, lora):
    folder = finished(lora, quantizer={"_component_": "distill_tune.qat.Q8_0"})
    kept = {kind: shutil.move(folder / kind, tmp_path / kind) for kind in (["model", "adapter"] if lora else ["model"])}
    result = export(folder, "hf")
    assert result.passed, result.checks
    assert result.folder.as_posix() == "exports/out-hf"
    assert "out: has left no model yet; what is exported is the student of " in capsys.readouterr().out
    assert same(result.folder / "model.safetensors", kept["model"] / "model.safetensors")
    assert json.loads((result.folder / "quantization_aware_training.json").read_text())["fits"] == "gguf:q8_0"
    if lora:
        result = export(folder, "adapter")
        assert result.passed, result.checks
        assert same(result.folder / "adapter_model.safetensors", kept["adapter"] / "adapter_model.safetensors")
    else:
        with pytest.raises(UserError, match="its run trains every parameter: there is no adapter; take --to hf"):
            export(folder, "adapter")
    assert sorted(path.name for path in (tmp_path / "exports").iterdir()) == ["out-adapter"] * lora + ["out-hf"]


def test_a_checkpoint_may_be_named_and_a_damaged_one_is_told(finished, tmp_path):
    folder = finished()
    first, last = (folder / "checkpoints" / f"step_{step}" for step in (2, 4))
    result = export(first, "hf")
    assert result.folder.as_posix() == "exports/out-step_2-hf"
    assert not same(result.folder / "model.safetensors", folder / "model" / "model.safetensors")
    shutil.rmtree(folder / "model")
    (last / "metrics.jsonl").write_text("")
    again = export(folder, "hf")  # of the one before
    assert same(again.folder / "model.safetensors", result.folder / "model.safetensors")
    with pytest.raises(UserError, match=r"step_4: metrics\.jsonl is damaged: its checksum differs"):
        export(last, "hf")
