"""Students that train for a format: what they leave, and what of a run is rounded when."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny import metrics_of
from transformers import AutoModelForCausalLM

from distill_tune import data, models, qat
from distill_tune.config import instantiate
from distill_tune.export.gguf import write_gguf

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 32}


def student_of(path):
    """Of a folder, or a GGUF file."""
    cfg = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(path)})
    return models.load_model(cfg, models.open_checkpoint("model", cfg, None), torch.float32, torch.device("cpu"))


def validation_of(folder, rows_file, scheme):
    """The cross-entropy of a folder's weights as a format gives them back, on the rows of the runs' validation."""
    model = student_of(folder)
    qat.prepare(model, scheme)
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


@torch.no_grad()
def require_shipped_as_trained(folder, file):
    """A Q4_0 file has the very weights that the student computed with; its embeddings it has in Q8_0."""
    shipped, trained = student_of(write_gguf(folder, file, "q4_0").file), student_of(folder)
    qat.prepare(trained, qat.Q4_0())
    trained.tok_embeddings.weight.copy_(qat.Q8_0().weights(trained.tok_embeddings.weight))
    assert torch.equal(shipped.tok_embeddings.weight, trained.tok_embeddings.weight)
    modules = dict(shipped.named_modules())
    rounded = [name for name, module in trained.named_modules() if isinstance(module, qat.FakeQuantized)]
    assert len(rounded) == 7 * len(trained.layers)
    assert all(torch.equal(modules[name].weight, trained.get_submodule(name).quantized_weight()) for name in rounded)
    for layer, its in zip(shipped.layers, trained.layers, strict=True):
        layer.attn.rope = its.attn.rope  # of which a file has its factors' digits of float32
    tokens = torch.arange(3, 103).view(2, 50)
    assert torch.equal(shipped.eval()(tokens), trained.eval()(tokens))


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
    require_shipped_as_trained(model, tmp_path / "student.gguf")
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
