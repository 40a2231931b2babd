"""A base student with its teacher's tokenizer and template: what is told, resumed on another day, and exported."""

import json
import re

import yaml
from architectures import write_architecture
from peft import AutoPeftModelForCausalLM
from tiny_tokenizer import TEMPLATE, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

DATED = "{% if strftime_now is defined %}Today: {{ strftime_now('%d %b %Y') }}\n{% endif %}" + TEMPLATE
CHAT = [{"role": "user", "content": "hello"}]


def write_folder(folder, name, template, eos, size, **changes):
    """A model folder whose tokenizer has a control token more than the model has rows."""
    ids = {"bos_token_id": None, "eos_token_id": 0 if eos == "<|im_start|>" else 1, "pad_token_id": None}
    write_architecture(folder, name, vocab_size=size, **ids, **changes)
    write_tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    more = content["added_tokens"][0] | {"id": len(content["model"]["vocab"]), "content": "<image>"}
    content["added_tokens"].append(more)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return more["id"]


def test_it_is_told_kept_on_another_day_and_exported(cli, tmp_path, rows_file):
    size = write_folder(tmp_path / "probe", "qwen2", None, "<|im_end|>", 400)
    assert write_folder(tmp_path / "base", "qwen2", None, "<|im_start|>", size) == size
    write_folder(tmp_path / "teacher", "qwen2", DATED, "<|im_end|>", size + 8)
    (tmp_path / "base" / "adapter_config.json").write_text('{"base_model_name_or_path": "gone", "peft_type": "LORA"}')
    config = {
        "output_dir": "out",
        "model": {
            "_component_": "distill_tune.models.lora_from_hf",
            "path": "base",
            "lora_attn_modules": ["q_proj", "v_proj"],
            "lora_rank": 2,
            "lora_alpha": 4,
        },
        "teacher_model": {"_component_": "distill_tune.models.from_hf", "path": "teacher"},
        "tokenizer": {"_component_": "distill_tune.data.hf_tokenizer", "path": "teacher", "max_seq_len": 128},
        "dataset": {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:4]"},
        "batch_size": 4,
        "seed": 0,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "epochs": 1,
        "device": "cpu",
        "dtype": "fp32",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    began = cli("run", "kd_single_device", "--config", "config.yaml", "+date=2024-02-29")
    assert began.returncode == 0, began.stderr
    told = [line for line in began.stdout.splitlines() if "answers end in" in line]
    assert len(told) == 1
    assert re.search(r"<\|im_end\|> \(1\); .*base/generation_config.json is <\|im_start\|> \(0\); model/ will", told[0])

    # On another day, where nothing is left of the rows that were tokenised.
    line = ("run", "kd_single_device", "--config", "config.yaml", "epochs=2", "resume=auto")
    resumed = cli(*line, DISTILL_TUNE_CACHE=str(tmp_path / "another"))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stdout + resumed.stderr
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["date"] == "2024-02-29"

    prompt = AutoTokenizer.from_pretrained(tmp_path / "teacher").apply_chat_template(CHAT, add_generation_prompt=True)
    for folder in (tmp_path / "out" / "model", tmp_path / "out" / "adapter"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True) == prompt
        assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == DATED
        assert (folder / "chat_template.jinja").read_text() == DATED
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == [1, 0]
    (tmp_path / "base" / "adapter_config.json").unlink()  # which peft would take for the base's own
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "adapter")


def test_rows_that_a_teacher_reads_as_other_tokens_are_refused_with_the_key(cli, tmp_path, rows_file, write_config):
    size = write_folder(tmp_path / "base", "qwen2", TEMPLATE, "<|im_end|>", 400)
    write_folder(tmp_path / "teacher", "qwen2", TEMPLATE, "<|im_end|>", size + 8)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / "teacher" / name).read_text()
        (tmp_path / "teacher" / name).write_text(text.replace("<|im_start|>", "<User>"))
    config = write_config(
        model={"_component_": "distill_tune.models.from_hf", "path": "base"},
        checkpointer=None,
        teacher_model={"_component_": "distill_tune.models.from_hf", "path": "teacher"},
        teacher_checkpointer=None,
        tokenizer={"_component_": "distill_tune.data.hf_tokenizer", "path": "base", "max_seq_len": 128},
    )
    refused = cli("run", "kd_single_device", "--config", config)
    assert refused.returncode == 2
    assert "0 ('<|im_start|>' is '<User>')" in refused.stderr and "tokenizer.path=teacher" in refused.stderr
