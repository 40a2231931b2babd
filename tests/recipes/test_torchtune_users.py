"""What users of torchtune bring along: its KD configs, its names, a command line of theirs."""

import json
import sysconfig
from pathlib import Path

import pytest
from published import write_published
from tiny import metrics_of, model_arguments

from distill_tune.cli.main import main

THEIRS = Path(sysconfig.get_paths()["purelib"]) / "recipes" / "configs"
CONFIGS = [
    "llama3_2/8B_to_1B_KD_lora_single_device",
    "llama3_2/8B_to_1B_KD_lora_distributed",
    "qwen2/1.5_to_0.5B_KD_lora_single_device",
    "qwen2/1.5_to_0.5B_KD_lora_distributed",
]
FOLDERS = {  # where their configs look for the models
    "llama3_2": ["Llama-3.2-1B-Instruct", "Meta-Llama-3.1-8B-Instruct"],
    "qwen2": ["Qwen2-0.5B-Instruct", "Qwen2-1.5B-Instruct"],
}


def recipe_for(config: str) -> str:
    return "kd_distributed" if config.endswith("distributed") else "kd_single_device"


@pytest.mark.parametrize("config", CONFIGS)
def test_their_configs_are_valid_unchanged(config, tmp_path, capsys):
    """With the folders moved: theirs are in /tmp, where nothing can be put for a test."""
    family = config.partition("/")[0]
    student, teacher = FOLDERS[family]
    for name in (student, teacher):
        folder = write_published(tmp_path / name, name.removeprefix("Meta-"))
        # The file names that their configs list.
        if name == "Meta-Llama-3.1-8B-Instruct":
            index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
            assert sorted(set(index.values()))[-1] == "model-00004-of-00004.safetensors"
    text = (THEIRS / f"{config}.yaml").read_text()
    moved = tmp_path / "theirs.yaml"
    moved.write_text(text.replace("/tmp/", f"{tmp_path}/"))
    main(["validate", recipe_for(config), "--config", str(moved), "device=cpu"])
    assert f"valid for {recipe_for(config)}" in capsys.readouterr().out


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_their_configs_run_with_sizes_and_paths_overridden(
    config, cli, tmp_path, student_folder, teacher_folder, rows_file
):
    overrides = [
        "model=torchtune.models.llama3_2.lora_llama3_2",
        "teacher_model=torchtune.models.llama3_2.llama3_2",
        *(f"model.{key}={value}" for key, value in model_arguments().items()),
        *(f"teacher_model.{key}={value}" for key, value in model_arguments(width=64, layers=3).items()),
        f"checkpointer.checkpoint_dir={student_folder}",
        f"teacher_checkpointer.checkpoint_dir={teacher_folder}",
        "teacher_checkpointer.checkpoint_files=[model.safetensors]",
        "tokenizer=torchtune.models.llama2.llama2_tokenizer",
        f"tokenizer.path={student_folder}/tokenizer.model",
        "tokenizer.max_seq_len=128",
        f"dataset.source={rows_file}",
        f"output_dir={tmp_path}/out",
        "device=cpu",
        "gradient_accumulation_steps=2",
        "max_steps_per_epoch=2",
    ]
    done = cli("run", recipe_for(config), "--config", THEIRS / f"{config}.yaml", *overrides)
    assert done.returncode == 0, done.stderr
    assert len(metrics_of(tmp_path / "out")) == 2


def test_their_names_are_answered_with_ours(cli):
    for arguments, answer in [
        (["run", "knowledge_distillation_distributed", "--config", "tiny"], "here it is kd_distributed"),
        (["run", "kd_distributed", "--config", "llama3_2/8B_to_1B_KD_lora_distributed"], "llama3_2/8B_to_1B_lora"),
        (["run", "kd_single_device", "--config", "1.5_to_0.5B_KD_lora_single_device"], "qwen2/1.5B_to_0.5B_lora"),
    ]:
        done = cli(*arguments)
        assert done.returncode == 2
        assert answer in done.stderr


def test_a_later_name_of_their_loss_is_understood(write_config, cli, tmp_path):
    loss = {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss", "mask_ignored_tokens": True}
    write_config(loss=loss, max_steps_per_epoch=1)
    done = cli("run", "kd_single_device", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr


def test_a_command_of_theirs_is_told_both_its_mistakes_at_once(cli, tmp_path):
    """From a guide whose two settings torchtune ignored; the rest of the line is right."""
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    write_published(student, "Llama-3.2-1B-Instruct")
    write_published(teacher, "Llama-3.1-8B-Instruct")
    files = sorted(file.name for file in teacher.glob("*.safetensors"))
    rows = [{"instruction": "你好", "input": "", "output": "你好！"}] * 2
    (tmp_path / "alpaca_zh_demo.json").write_text(json.dumps(rows))
    line = [
        *("run", "--nnodes", "1", "--nproc_per_node", "2", "kd_distributed", "--config", "llama3_2/8B_to_1B_lora"),
        f"teacher_checkpointer.checkpoint_files={json.dumps(files)}",
        "optimizer.lr=10e-5",
        "kd_ratio=0.1",
        "dataset=torchtune.datasets.alpaca_dataset",
        "dataset.source=json",
        "dataset.data_files=alpaca_zh_demo.json",
        "batch_size=2",
        "output_dir=out",
        f"tokenizer.path={student / 'original' / 'tokenizer.model'}",
        f"checkpointer.checkpoint_dir={student}",
        f"teacher_checkpointer.checkpoint_dir={teacher}",
        "teacher_checkpointer.output_dir=out",
        "model.lora_rank=8",
        "model.lora_alpha=16",
        "model.lora_attn_modules=['q_proj','v_proj','output_proj','k_proj']",
        "epochs=3",
        "device=cpu",
    ]
    done = cli(*line, "mode.apply_lora_to_output=True", "warmup_steps=0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "  mode: no such key, did you mean model?",
        "  warmup_steps: no such key, did you mean lr_scheduler.num_warmup_steps?",
    ]
    done = cli("validate", *line[1:])
    assert done.returncode == 0, done.stderr
    assert (
        "teacher_model: 8,030,261,248 parameters, 0 trainable, 15.0 GiB for weights, 7.5 GiB on each of 2"
        in done.stdout
    )
