"""A whole training run of one of the tools, in this process: ``step_of.py ours|torchtune|trl FOLDER CASE``.

It leaves FOLDER/TOOL.jsonl, a line a step: when the step was over, its losses, and the peak memory so far.
"""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

LORA = {"rank": 8, "alpha": 16}


def config_of(folder, case, torchtune):
    """One YAML for our recipe and for torchtune's."""

    def model(shape, lora):
        builder = "lora_llama3" if lora else "llama3"
        adapters = {
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "lora_rank": LORA["rank"],
            "lora_alpha": LORA["alpha"],
            "lora_dropout": 0.0,
        }
        return {
            "_component_": f"torchtune.models.llama3._component_builders.{builder}",
            **(adapters if lora else {}),
            "vocab_size": case.vocab_size,
            "num_layers": shape.layers,
            "num_heads": shape.heads,
            "num_kv_heads": shape.heads // 2,
            "embed_dim": shape.width,
            "max_seq_len": 4096,
            "intermediate_dim": shape.intermediate,
            "rope_base": 500000,
        }

    def checkpointer(name):
        return {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder / name),
            "checkpoint_files": ["model.safetensors"],
            "output_dir": str(folder / "out"),
            "model_type": "LLAMA3",
        }

    import prepare

    config = {
        "output_dir": str(folder / ("out_torchtune" if torchtune else "out")),
        "model": model(case.student, lora=True),
        "teacher_model": model(case.teacher, lora=False),
        "checkpointer": checkpointer("student"),
        "teacher_checkpointer": checkpointer("teacher"),
        "tokenizer": {**prepare.TOKENIZER, "max_seq_len": None},
        "dataset": {"_component_": "components.rows", "path": str(folder / "rows.json")},
        "batch_size": case.batch_size,
        "shuffle": False,
        "seed": 0,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 1,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "kd_loss": {"_component_": "torchtune.modules.loss.ForwardKLWithChunkedOutputLoss"},
        "kd_ratio": 0.5,
        "epochs": 1,
        "max_steps_per_epoch": case.steps,
        "gradient_accumulation_steps": 1,
        "compile": False,
        "metric_logger": {
            "_component_": "components.clock",
            "path": str(folder / ("torchtune.jsonl" if torchtune else "ours.jsonl")),
        },
        "log_every_n_steps": 1,
        "log_peak_memory_stats": True,
        "device": "cpu",
        "dtype": "fp32",
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "resume_from_checkpoint": False,
        "save_adapter_weights_only": True,
    }
    if torchtune:
        config |= {"clip_grad_norm": None, "profiler": {"_component_": _NO_PROFILER, "enabled": False}}
    return config


_NO_PROFILER = "torchtune.training.setup_torch_profiler"


def run_ours(folder, case):
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(config_of(folder, case, torchtune=False)), folder / "ours.yaml")
    shutil.rmtree(folder / "out", ignore_errors=True)  # of an earlier round
    recipe = ["kd_single_device"] if case.ranks == 1 else ["--nproc_per_node", str(case.ranks), "kd_distributed"]
    command = [sys.executable, "-m", "distill_tune", "run", *recipe, "--config", str(folder / "ours.yaml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run_torchtune(folder, case):
    from omegaconf import OmegaConf

    import distill_tune._torchtune_compat  # noqa: F401  (torchtune is our dependency: it runs beside our torchao)

    import torchtune

    recipes = Path(torchtune.__file__).parents[1] / "recipes"
    OmegaConf.save(OmegaConf.create(config_of(folder, case, torchtune=True)), folder / "torchtune.yaml")
    sys.argv = ["recipe", "--config", str(folder / "torchtune.yaml")]
    runpy.run_path(str(recipes / "knowledge_distillation_single_device.py"), run_name="__main__")


def run_trl(folder, case):
    import torch
    import transformers
    from components import write_line
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    transformers.set_seed(0)
    rows = json.loads((folder / "rows.json").read_text())
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 2}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    file = (folder / "trl.jsonl").open("w")

    def collate(batch):
        longest = max(len(row["input_ids"]) for row in batch)

        def padded(name, value):
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

        inputs = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
        inputs["attention_mask"] = padded("attention_mask", 0)
        return inputs

    class InOrder(GKDTrainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Clock(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                write_line(file, state.global_step, {"loss": logs["loss"]})

    data = [{"input_ids": r["tokens"], "labels": r["labels"], "attention_mask": [1] * len(r["tokens"])} for r in rows]
    trainer = InOrder(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32),
        teacher_model=transformers.AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32),
        args=GKDConfig(
            output_dir=str(folder / "out_trl"),
            per_device_train_batch_size=case.batch_size,
            max_steps=case.steps,
            learning_rate=1e-4,
            max_grad_norm=0.0,
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=LORA["rank"],
            lora_alpha=LORA["alpha"],
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            task_type="CAUSAL_LM",
        ),
        callbacks=[Clock()],
    )
    trainer.train()


if __name__ == "__main__":
    from cases import CASES, SCALING

    tool, folder, name = sys.argv[1:]
    {"ours": run_ours, "torchtune": run_torchtune, "trl": run_trl}[tool](Path(folder), (CASES | SCALING)[name])
