"""A student trained on chats answers, and stops, where transformers reads what was exported."""

import json

import pytest
import torch
from template_families import assistant, templates_folder, tokenizer_of, user

ROWS = [
    [user("Is 7 a prime number? Answer with yes or no."), assistant("yes")],
    [user("Is 8 a prime number? Answer with yes or no."), assistant("no")],
    [user("Say yes."), assistant("yes"), user("Now say no or yes: no"), assistant("no")],
]


def write_model(folder, template: str) -> None:
    """Random weights of a Qwen2, and a tokenizer with this template."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer_of(template).transformers_tokenizer
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        "qwen2", vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, **sizes, **ends
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "qwen3"])
def test_a_student_learns_to_answer_and_to_stop(cli, tmp_path, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_model(tmp_path / "base", (templates_folder() / f"{name}.jinja").read_text(encoding="utf-8"))
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": turns} for turns in ROWS]))
    (tmp_path / "config.yaml").write_text(
        json.dumps(
            {
                "output_dir": "out",
                "model": {"_component_": "distill_tune.models.from_hf", "path": "base"},
                "tokenizer": {"_component_": "distill_tune.data.hf_tokenizer", "path": "base", "max_seq_len": 256},
                "dataset": {"_component_": "distill_tune.data.chat", "source": "rows.json"},
                "kd_ratio": 0,
                "batch_size": 3,
                "epochs": 120,
                "seed": 0,
                "optimizer": {"_component_": "torch.optim.AdamW", "lr": 3e-3},
                "clip_grad_norm": 1.0,
                "device": "cpu",
                "dtype": "fp32",
            }
        )
    )
    ran = cli("run", "kd_single_device", "--config", "config.yaml")
    assert ran.returncode == 0, ran.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    for *question, answer in ROWS:
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        # R1-Distill's asks for reasoning, which no written answer has.
        tokens = tokenizer(prompt.removesuffix("<think>\n"), add_special_tokens=False, return_tensors="pt")
        made = model.generate(**tokens, max_new_tokens=60, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        assert made[-1] == tokenizer.eos_token_id
        said = tokenizer.decode(made, skip_special_tokens=True)
        assert said.removeprefix("<think>\n\n</think>\n\n").strip() == answer["content"]
