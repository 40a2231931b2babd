"""Students that train for a format: what they leave, and what of a run is rounded when."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny import metrics_of
from transformers import AutoModelForCausalLM

from distill_tune import data, models, qat
from distill_tune.config import instantiate

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 32}


def validation_of(folder, rows_file, scheme):
    """The cross-entropy of a folder's weights as a format gives them back, on the rows of the runs' validation."""
    cfg = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})
    model = models.build_on_meta("model", cfg)
    qat.prepare(model, scheme)
    models.load_weights(model, models.open_checkpoint("model", cfg, None), torch.device("cpu"))
    head = models.take_output_head(model.eval())
    tokenizer = OmegaConf.create({"_component_": "torchtune.models.llama2.llama2_tokenizer"})
    tokenizer |= {"path": str(folder / "tokenizer.model"), "max_seq_len": 128}
    dataset = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(rows_file)})
    rows, _ = data.prepare_rows(dataset, instantiate(tokenizer), tokenizer)
    total = count = 0
    for batch in data.StepPlan(rows, batch_size=4, shuffle=False).epoch():
        targets = batch.targets[0, batch.supervised_positions]
        hidden = model(batch.tokens, **batch.attention())[0, batch.supervised_positions]
        total += torch.nn.functional.cross_entropy(head.project(hidden), targets, reduction="sum").item()
        count += len(targets)
    return total / count


@pytest.mark.parametrize("lora", [False, True])
def test_validation_is_of_the_exported_weights_as_the_format_gives_them_back(
    lora, config, run, tmp_path, rows_file, student_folder
):
    builder = {"_component_": f"distill_tune.models.{'lora_from_hf' if lora else 'from_hf'}"}
    config(
        model=builder | {"path": str(student_folder)} | (LORA if lora else {}),
        quantizer={"_component_": "distill_tune.qat.Q4_0"},
        dataset_val={"_component_": "distill_tune.data.instruct", "source": str(rows_file)},
        optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-2},
    )
    run("kd_single_device")
    model = tmp_path / "out" / "model"
    wanted = validation_of(model, rows_file, qat.Q4_0())
    assert metrics_of(tmp_path / "out")[-1]["val_ce_loss"] == pytest.approx(wanted, rel=1e-6)
    folders = [model, tmp_path / "out" / "adapter"] if lora else [model]
    assert all(qat.trained_for(folder) == {"fits": "gguf:q4_0", "groupsize": 32} for folder in folders)
    assert qat.trained_for(student_folder) is None
    plain = AutoModelForCausalLM.from_pretrained(model)
    assert plain.dtype == torch.float32
    assert not hasattr(plain.config, "quantization_config")


def test_a_delayed_start_leaves_the_steps_before_as_they_would_be(config, run, tmp_path):
    quantizer = {"quantizer": {"_component_": "distill_tune.qat.Q4_0"}}
    for name, changes in (("plain", {}), ("after", quantizer | {"fake_quant_after_n_steps": 2}), ("all", quantizer)):
        config(**changes)
        run("kd_single_device", f"output_dir={name}")
    plain, after, whole = ([line["loss"] for line in metrics_of(tmp_path / name)] for name in ("plain", "after", "all"))
    assert after[:2] == plain[:2]
    assert after[2] != plain[2]
    assert whole[0] != plain[0]


def test_its_teacher_that_is_a_copy_of_it_is_not_rounded_and_answers_of_its_own_are_learned(config, run, tmp_path):
    config(
        teacher_model={"_component_": "distill_tune.teachers.EMA", "decay": 0.0},
        quantizer={"_component_": "distill_tune.qat.Q4_0"},
        rollouts={"_component_": "distill_tune.rollouts.OnPolicy", "sampling": {"max_new_tokens": 8}},
        kd_ratio=1.0,
        max_steps_per_epoch=2,
    )
    run("kd_single_device")
    lines = metrics_of(tmp_path / "out")
    assert all(line["rollouts"] > 0 and line["kd_loss"] > 1e-3 for line in lines)
