"""Steps of on-policy distillation by one of the tools, in this process: ``on_policy_step_of.py TOOL FOLDER STEPS``.

TOOL is ours, gkd or distillation (TRL's GKDTrainer and DistillationTrainer). FOLDER has prompts.json, student/ and
teacher/; what is left there is TOOL.json, the seconds of each step.
"""

import json
import shutil
import sys
import time
from pathlib import Path

ROWS, NEW_TOKENS, LR = 16, 128, 5e-4


def run_ours(folder: Path, steps: int) -> list[float]:
    from distill_tune.cli.main import main

    shutil.rmtree(folder / "out", ignore_errors=True)  # of an earlier round
    settings = [
        f"batch_size={ROWS}",
        "shuffle=False",
        f"dataset.num_rows={ROWS * steps}",
        f"max_steps_per_epoch={steps}",
    ]
    settings += [f"rollouts.sampling.max_new_tokens={NEW_TOKENS}", f"optimizer.lr={LR}", "~lr_scheduler", "epochs=1"]
    models = [f"model.path={folder / 'student'}", f"teacher_model.path={folder / 'teacher'}"]
    sys.argv = ["distill-tune"]
    command = ["run", "kd_single_device", "--config", "on_policy", *settings, *models, "device=cpu"]
    main([*command, f"output_dir={folder / 'out'}"])
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"] for line in lines]


def run_trl(folder: Path, steps: int, kind: str) -> list[float]:
    import torch
    import transformers
    from datasets import Dataset

    transformers.set_seed(0)
    prompts = json.loads((folder / "prompts.json").read_text())[: ROWS * steps]
    student, teacher = (
        transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("student", "teacher")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.seconds = list[float]()

        def on_step_begin(self, *arguments, **others):
            self.started = time.perf_counter()

        def on_step_end(self, *arguments, **others):
            self.seconds.append(time.perf_counter() - self.started)

    def collate(rows):
        """Prompts on the left of one column, and an answer of one token that generation takes the place of."""
        longest = max(len(row["tokens"]) for row in rows)
        tokens = torch.tensor([[0] * (longest - len(row["tokens"])) + row["tokens"] for row in rows])
        mask = torch.tensor([[0] * (longest - len(row["tokens"])) + [1] * len(row["tokens"]) for row in rows])
        end = torch.full((len(rows), 1), tokenizer.eos_token_id)
        return {
            "prompts": tokens,
            "prompt_attention_mask": mask,
            "input_ids": torch.cat([tokens, end], 1),
            "attention_mask": torch.cat([mask, torch.ones_like(end)], 1),
            "labels": torch.cat([torch.full_like(tokens, -100), end], 1),
        }

    clock = Clock()
    settings = {
        "output_dir": str(folder / f"out_{kind}"),
        "per_device_train_batch_size": ROWS,
        "max_steps": steps,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "beta": 1.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    common = {"teacher_model": teacher, "processing_class": tokenizer, "callbacks": [clock]}
    if kind == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        data = Dataset.from_list([{"tokens": tokens} for tokens in prompts])
        settings |= {"lmbda": 1.0, "max_new_tokens": NEW_TOKENS, "remove_unused_columns": False}
        trainer = GKDTrainer(
            model=student, args=GKDConfig(**settings), data_collator=collate, train_dataset=data, **common
        )
    else:
        from trl import DistillationConfig, DistillationTrainer

        data = Dataset.from_list([{"prompt": tokenizer.decode(tokens, skip_special_tokens=True)} for tokens in prompts])
        settings |= {"max_completion_length": NEW_TOKENS, "shuffle_dataset": False}
        trainer = DistillationTrainer(model=student, args=DistillationConfig(**settings), train_dataset=data, **common)
    trainer.train()
    return clock.seconds


if __name__ == "__main__":
    tool, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seconds = run_ours(folder, steps) if tool == "ours" else run_trl(folder, steps, tool)
    (folder / f"{tool}.json").write_text(json.dumps(seconds))
