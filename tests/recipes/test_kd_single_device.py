"""Whole runs of the recipe through the real CLI, on tiny models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import VOCAB_SIZE, metrics_of, model_arguments, write_model

from distill_tune import models
from distill_tune.config.load import load_config

METRICS = {
    "applied",
    "total_tokens",
    "kd_ratio",
    "temperature",
    "hidden_loss_weight",
    "step",
    "epoch",
    "loss",
    "ce_loss",
    "kd_loss",
    "lr",
    "grad_norm",
    "tokens",
    "supervised_tokens",
    "tokens_per_second",
    "supervised_tokens_per_second",
    "peak_memory_bytes",
    "seconds",
}
LORA = {
    "_component_": "torchtune.models.llama3_2.lora_llama3_2",
    **model_arguments(),
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 4,
    "lora_alpha": 8,
}


def run_ok(cli, *arguments, **environment):
    done = cli("run", "kd_single_device", "--config", "config.yaml", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done


def logits_of(config: Path, folder: Path, tokens: torch.Tensor, component: dict | None = None) -> torch.Tensor:
    """Our own model, read back from a folder."""
    cfg = load_config(config, [f"checkpointer.checkpoint_dir={folder}"])
    plain = {"_component_": "torchtune.models.llama3_2.llama3_2", **model_arguments()}
    cfg.model = component or plain
    checkpoint = models.open_checkpoint("model", cfg.model, cfg.checkpointer)
    return models.load_model(cfg.model, checkpoint, torch.float32, torch.device("cpu"))(tokens)


@pytest.mark.torchao
def test_a_run_leaves_what_it_promises(write_config, cli, tmp_path):
    write_config()
    done = run_ok(cli)
    out = tmp_path / "out"
    lines = metrics_of(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]) == METRICS
    assert lines[0]["loss"] == pytest.approx(0.5 * lines[0]["ce_loss"] + 0.5 * lines[0]["kd_loss"], rel=1e-5)
    written = (out / "config.yaml").read_text()
    assert written.startswith("# distill-tune run kd_single_device --config config.yaml")
    assert yaml.safe_load(written)["kd_ratio"] == 0.5
    assert sorted(file.name for file in (out / "checkpoints" / "step_4").iterdir()) == [
        "SHA256SUMS",
        "metrics.jsonl",
        "rank_0.pt",
        "shard-00001-model-00001-of-00001.safetensors",
        "state.json",
    ]
    assert "out/model" in done.stdout
    assert "step 4/4" in done.stdout
    facts = json.loads((out / "run.json").read_text())
    assert (facts["recipe"], facts["total_steps"], facts["processes"]) == ("kd_single_device", 4, 1)
    student = load_file(out / "model" / "model.safetensors")
    assert facts["student_parameters"] == facts["trained_parameters"] == sum(map(torch.numel, student.values()))
    assert facts["teacher_parameters"] > facts["student_parameters"]
    assert facts["data"][0]["rows"] == 64
    assert facts["data"][0]["supervised_tokens"] > sum(line["supervised_tokens"] for line in lines)  # of 16 rows
    assert facts["data_val"] == []
    assert done.stderr == ""


def test_the_model_opens_with_transformers_and_gives_the_same_logits(write_config, cli, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = write_config(model=LORA, optimizer={"_component_": "torch.optim.AdamW", "lr": 0.05})
    run_ok(cli)
    tokens = torch.randint(3, VOCAB_SIZE, (2, 20))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model", dtype=torch.float32)
    ours = logits_of(config, tmp_path / "out" / "model", tokens)
    torch.testing.assert_close(merged(tokens).logits, ours, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").vocab_size == VOCAB_SIZE


@pytest.mark.torchao
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_the_adapter_opens_with_peft_and_gives_what_the_merged_model_gives(
    write_config, cli, tmp_path, student_folder, use_dora
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = write_config(
        model=LORA | {"use_dora": use_dora}, optimizer={"_component_": "torch.optim.AdamW", "lr": 0.05}
    )
    run_ok(cli)
    tokens = torch.randint(3, VOCAB_SIZE, (2, 20))
    merged = logits_of(config, tmp_path / "out" / "model", tokens)
    base = AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float32)
    untrained = base(tokens).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")(tokens).logits
    assert (merged - untrained).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(adapted, merged, rtol=0, atol=1e-4)


@pytest.mark.torchao
def test_qlora_trains_and_exports(write_config, cli, tmp_path, tokenizer_file):
    folder = write_model(tmp_path / "wide", tokenizer_file, seed=5, width=256)
    config = write_config(model=LORA | model_arguments(width=256) | {"quantize_base": True}, dtype="bf16")
    run_ok(cli, f"checkpointer.checkpoint_dir={folder}")
    lines = metrics_of(tmp_path / "out")
    assert lines[-1]["loss"] < lines[0]["loss"] * 1.1
    plain = {"_component_": "torchtune.models.llama3_2.llama3_2", **model_arguments(width=256)}
    assert torch.isfinite(
        logits_of(config, tmp_path / "out" / "model", torch.ones(1, 5, dtype=torch.long), plain)
    ).all()


def test_distilling_for_some_hundred_steps_halves_the_divergence(write_config, cli, tmp_path):
    write_config(optimizer={"_component_": "torch.optim.AdamW", "lr": 3e-3})
    run_ok(cli, "kd_ratio=1", "epochs=20", "max_steps_per_epoch=null", "gradient_accumulation_steps=1")
    lines = metrics_of(tmp_path / "out")
    assert len(lines) == 320
    assert sum(line["kd_loss"] for line in lines[-10:]) / 10 < 0.5 * lines[0]["kd_loss"]
    assert lines[-1]["ce_loss"] == 0  # kd_ratio=1 forms none


def test_a_streamed_teacher_teaches_the_same_to_the_bit(write_config, cli, tmp_path):
    write_config()
    run_ok(cli)
    run_ok(cli, "teacher_offload=True", f"output_dir={tmp_path / 'streamed'}")
    assert losses_of(tmp_path / "streamed") == losses_of(tmp_path / "out")


@pytest.mark.torchao
def test_a_quantised_teacher_and_one_in_bf16_teach_nearly_the_same(write_config, cli, tmp_path):
    write_config()
    run_ok(cli)
    whole = losses_of(tmp_path / "out")
    quantizer = "teacher_quantizer._component_=torchao.quantization.Int8WeightOnlyConfig"
    for name, override in (("int8", f"+{quantizer}"), ("bf16", "+teacher_dtype=bf16")):
        run_ok(cli, override, f"output_dir={tmp_path / name}")
        found = losses_of(tmp_path / name)
        assert found != whole
        assert found == pytest.approx(whole, rel=0.02)


def test_batches_may_be_filled_by_tokens(write_config, cli, tmp_path):
    write_config()
    run_ok(cli, "batch_size=null", "+max_tokens_per_batch=100", "max_steps_per_epoch=null")
    lines = metrics_of(tmp_path / "out")
    assert all(60 < line["tokens"] <= 100 for line in lines[:-1])
    assert sum(line["supervised_tokens"] for line in lines) > 0


def test_rows_that_do_not_fill_a_step_are_learned_and_what_the_run_is_too_short_for_is_told(
    write_config, cli, tmp_path, rows_file
):
    cosine = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
    write_config(
        dataset={"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:7]"},
        lr_scheduler={"_component_": cosine, "num_warmup_steps": 100},
        teacher_model=None,
        teacher_checkpointer=None,
    )
    settings = ["kd_ratio=0", "+shuffle=False", "epochs=2", "max_steps_per_epoch=null"]
    done = run_ok(cli, *settings)
    told = (
        "lr_scheduler.num_warmup_steps=100: the run has 4 steps, so the learning rate never reaches optimizer.lr=0.001"
    )
    assert done.stdout.count(told) == 1
    lines = metrics_of(tmp_path / "out")
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1]
    assert lines[0]["tokens"] + lines[1]["tokens"] == int(done.stdout.split(" rows, ")[1].split()[0])
    assert lines[1]["tokens"] < lines[0]["tokens"]
    plan = cli("plan", "--config", "config.yaml", *settings)
    assert told in plan.stdout and "steps: 4 (2 x 2)" in plan.stdout
    done = run_ok(cli, *settings, "batch_size=8", "lr_scheduler.num_warmup_steps=0.5", "output_dir=short")
    assert "dataset: has 7 rows, but one step takes 8 (batch_size=8 x gradient_accumulation_steps=1)" in done.stdout
    assert [line["lr"] for line in metrics_of(tmp_path / "short")] == [0.001, pytest.approx(0.0005)]


def losses_of(folder):
    return [line["loss"] for line in metrics_of(folder)]


def test_kd_ratio_0_loads_no_teacher(write_config, cli, tmp_path):
    write_config(teacher_model=None, teacher_checkpointer=None)
    run_ok(cli, "kd_ratio=0")
    lines = metrics_of(tmp_path / "out")
    assert all(line["kd_loss"] == 0 for line in lines)
    assert lines[-1]["loss"] == lines[-1]["ce_loss"] < lines[0]["loss"]


def test_same_seed_same_bits_and_resumed_the_same_bits_again(write_config, cli, tmp_path):
    write_config(
        model=LORA | {"lora_dropout": 0.1},
        lr_scheduler={
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 2,
        },
    )
    settings = ["epochs=2", "save_every_n_steps=3", "gradient_accumulation_steps=2"]
    run_ok(cli, *settings, "output_dir=first")
    run_ok(cli, *settings, "output_dir=second")
    for later in (4, 6, 8):
        shutil.rmtree(tmp_path / "second" / "checkpoints" / f"step_{later}")
    (tmp_path / "second" / "metrics.jsonl").write_text('{"step": 6, "lo')
    (tmp_path / "second" / "finished.json").unlink()
    run_ok(cli, *settings, "output_dir=second", "resume_from_checkpoint=True")
    first, second = metrics_of(tmp_path / "first"), metrics_of(tmp_path / "second")
    kept = METRICS - {"tokens_per_second", "supervised_tokens_per_second", "peak_memory_bytes", "seconds"}
    assert [{key: line[key] for key in kept} for line in first] == [{key: line[key] for key in kept} for line in second]
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(tmp_path / "first" / name), load_file(tmp_path / "second" / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_vocabulary_that_differs_by_padding_rows_is_compared_on_the_common_part(
    write_config, cli, tmp_path, tokenizer_file
):
    folder = write_model(tmp_path / "padded", tokenizer_file, seed=2, width=64, layers=3, vocab_size=VOCAB_SIZE + 64)
    write_config()
    done = run_ok(cli, f"teacher_checkpointer.checkpoint_dir={folder}", f"teacher_model.vocab_size={VOCAB_SIZE + 64}")
    assert f"student {VOCAB_SIZE}, teacher {VOCAB_SIZE + 64}" in done.stdout
    assert f"compared on the common {VOCAB_SIZE} tokens" in done.stdout
    lines = metrics_of(tmp_path / "out")
    assert lines[-1]["kd_loss"] < lines[0]["kd_loss"]


def test_every_setting_of_memory_and_data_runs_and_learns_the_same(write_config, cli, tmp_path, rows_file):
    """Checkpointed activations change no number; packed and weighted data, validation and a logger run beside them."""
    write_config()
    run_ok(cli, "output_dir=plain")
    run_ok(cli, "output_dir=checkpointed", "enable_activation_checkpointing=True")
    plain, checkpointed = metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "checkpointed")
    assert [line["loss"] for line in plain] == [line["loss"] for line in checkpointed]

    entry = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "packed": True}
    write_config(
        dataset=[entry | {"weight": 3}, entry | {"weight": 1, "split": "train[:50%]"}],
        dataset_val={
            "_component_": "torchtune.datasets.alpaca_dataset",
            "source": str(rows_file),
            "split": "train[:8]",
        },
        metric_logger={"_component_": "torchtune.training.metric_logging.TensorBoardLogger", "log_dir": "tensorboard"},
        clip_grad_norm=0.1,
    )
    done = run_ok(cli, "run_val_every_n_steps=2", "batch_size=2", "dtype=bf16", "temperature=2", "output_dir=packed")
    assert "step 2: val_loss" in done.stdout
    lines = metrics_of(tmp_path / "packed")
    assert [("val_kd_loss" in line) for line in lines] == [False, True, False, True]
    assert list((tmp_path / "tensorboard").rglob("events.*"))


def test_a_torchtune_kd_config_runs_unchanged(cli, tmp_path, student_folder, teacher_folder, rows_file):
    """The keys, components and arguments of torchtune 0.6.1's KD configs, with paths and sizes of the tiny models."""
    (tmp_path / "theirs.yaml").write_text(f"""
output_dir: {tmp_path}/out
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 4
  lora_alpha: 8  # usually alpha=2*rank
  lora_dropout: 0.0
  {"".join(f"{key}: {value}{chr(10)}  " for key, value in model_arguments().items())}
teacher_model:
  _component_: torchtune.models.llama3_2.llama3_2
  {"".join(f"{key}: {value}{chr(10)}  " for key, value in model_arguments(width=64, layers=3).items())}
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: {student_folder}/tokenizer.model
  max_seq_len: null
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: {student_folder}
  checkpoint_files: [
    model.safetensors
  ]
  recipe_checkpoint: null
  output_dir: ${{output_dir}}
  model_type: LLAMA3
resume_from_checkpoint: False
save_adapter_weights_only: False
teacher_checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: {teacher_folder}
  checkpoint_files: [
    model.safetensors
  ]
  recipe_checkpoint: null
  output_dir: ${{output_dir}}
  model_type: LLAMA3
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  source: {rows_file}
  packed: False  # True increases speed
  split: train[:32]
seed: null
shuffle: True
batch_size: 4
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
kd_loss:
  _component_: torchtune.modules.loss.ForwardKLWithChunkedOutputLoss
kd_ratio: 0.5
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8  # Use to increase effective batch size
clip_grad_norm: null
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${{output_dir}}/logs
log_every_n_steps: 1
log_peak_memory_stats: True
device: cpu
dtype: bf16
enable_activation_checkpointing: False
enable_activation_offloading: False
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: False
  output_dir: ${{output_dir}}/profiling_outputs
  cpu: True
  cuda: True
  profile_memory: False
  with_stack: False
  record_shapes: True
  with_flops: False
  wait_steps: 5
  warmup_steps: 3
  active_steps: 2
  num_cycles: 1
""")
    done = cli("run", "kd_single_device", "--config", "theirs.yaml", "tokenizer.max_seq_len=128")
    assert done.returncode == 0, done.stderr
    assert len(metrics_of(tmp_path / "out")) == 1
    assert list((tmp_path / "out" / "logs").glob("log_*.txt"))


def test_a_copied_recipe_and_config_run_from_any_folder_with_a_key_of_their_own(cli, write_config, tmp_path):
    write_config()
    assert cli("cp", "kd_single_device", "mine.py").returncode == 0
    source = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(source.replace("# ---- Settings", 'print("greeting:", cfg.get("greeting"))'))
    done = cli("run", "mine.py", "--config", "config.yaml", "+greeting=你好", "max_steps_per_epoch=1")
    assert done.returncode == 0, done.stderr
    assert "greeting: 你好" in done.stdout


def test_under_torchrun_one_process_runs_and_two_are_told_what_to_do(cli, write_config, tmp_path):
    write_config(max_steps_per_epoch=1)
    done = cli("run", "--nproc_per_node", "1", "kd_single_device", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model").is_dir()
    done = run_failing(cli, "output_dir=other", WORLD_SIZE="2", RANK="0")
    assert "this recipe runs on one device, but 2 processes were started" in done.stderr


def run_failing(cli, *arguments, **environment):
    done = cli("run", "kd_single_device", "--config", "config.yaml", *arguments, **environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done


def test_a_compiler_that_is_not_there_is_told_before_models_load(cli, write_config):
    write_config(compile=True)
    done = run_failing(cli, "model.num_layers=99", TORCH_COMPILE_BACKEND="indoctor")
    assert "compile=True: TORCH_COMPILE_BACKEND=indoctor: PyTorch has " in done.stderr
    assert "model does not fit" not in done.stderr


def test_compiled_layers_learn_the_same(cli, tmp_path):
    """With what PyTorch traces as it is: tests of compiled layers take it through autograd and a compiler."""
    of_run = ["device=cpu", "max_steps_per_epoch=2", "epochs=1", "batch_size=2"]
    losses = []
    for how in ([], ["compile=True", "enable_activation_checkpointing=True"]):
        out = tmp_path / f"out{len(losses)}"
        arguments = [*of_run, *how, f"output_dir={out}", "dataset.num_rows=4"]
        done = cli(
            "run", "kd_single_device", "--config", "signals/reverse_kl", *arguments, TORCH_COMPILE_BACKEND="eager"
        )
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in metrics_of(out)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
