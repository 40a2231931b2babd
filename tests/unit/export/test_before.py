"""What of a model will surprise somebody, each told by a line, and nothing else told."""

import json
import shutil

import pytest
import torch
from export_folders import VOCAB_SIZE, write_base
from safetensors.torch import load_file, save_file
from tiny_tokenizer import TEMPLATE, write_tokenizer

from distill_tune.export.before import remarks
from distill_tune.export.source import open_source
from distill_tune.qat import NOTE


def told(folder, to: str = "hf") -> list[str]:
    return remarks(open_source(folder), to, holds_factors=to == "adapter")


def edited(base, folder, name: str, **changes):
    """A copy of ``base`` with a JSON file of it changed."""
    shutil.copytree(base, folder)
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))
    return folder


def test_of_a_plain_model_nothing_is_told(base):
    assert told(base) == []


def test_tied_weights_that_part_are_told(base, tmp_path):
    folder = edited(base, tmp_path / "parted", "config.json", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (line,) = told(folder)
    assert line.startswith(
        "config.json ties the output layer to the embeddings, and here they part: the files have two"
    )
    assert f"written apart, {VOCAB_SIZE * 64 * 4 / 1024:.1f} KiB more" in line


def test_an_adapter_that_parts_tied_weights_is_told(base, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tied = write_base(tmp_path / "tied", tie_word_embeddings=True)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tied), LoraConfig(r=2, target_modules=["lm_head", "q_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    model.save_pretrained(tmp_path / "adapter")
    (line,) = told(tmp_path / "adapter")
    assert "the adapter changes one of them alone; written apart" in line
    (line,) = told(tmp_path / "adapter", to="adapter")
    assert "peft puts it onto the base in the same way" in line


def test_padding_and_tokens_without_a_row_are_told(tmp_path):
    fewer = write_base(tmp_path / "fewer", vocab_size=VOCAB_SIZE + 3)
    assert told(fewer) == [f"3 rows of the vocabulary, from {VOCAB_SIZE} on, are padding: no token has them"]
    more = write_base(tmp_path / "more", vocab_size=260)
    (line,) = told(more)
    assert line.startswith("the tokenizer has ")
    assert "tokens that the model has no row for (" in line


@pytest.mark.parametrize(
    ("name", "kind"), [("llama3", "llama3 by 8"), ("qwen2_yarn", "yarn by 4"), ("gemma3", "linear by 8")]
)
def test_rope_scaling_is_told(tmp_path, name, kind):
    lines = told(write_base(tmp_path / name, name))
    assert f"rope scaling {kind}: a program that does not know it answers worse the longer a text is" in "\n".join(
        lines
    )


def test_ends_that_differ_are_told_with_those_that_are_written(base, tmp_path):
    folder = edited(base, tmp_path / "other", "generation_config.json", eos_token_id=[0, 1])
    assert told(folder) == [
        "ends of an answer differ: the tokenizer's eos <|im_end|> (1), the chat template's end <|im_end|> (1), "
        "generation_config.json <|im_start|> (0) and <|im_end|> (1), config.json <|im_end|> (1); config.json and "
        "generation_config.json are written with <|im_end|> (1) and <|im_start|> (0)"
    ]


def test_a_template_that_ends_answers_in_no_token_is_told(base, tmp_path):
    folder = tmp_path / "spelled"
    shutil.copytree(base, folder)
    write_tokenizer(folder, VOCAB_SIZE, template=TEMPLATE.replace("<|im_end|>", "<|eot_id|>"))
    assert "the chat template ends answers in <|eot_id|>, which is no token of this tokenizer" in "\n".join(
        told(folder)
    )


def test_another_format_than_the_weights_were_trained_for_is_told(base, tmp_path):
    folder = edited(base, tmp_path / "trained", NOTE, fits="gguf:q4_0", groupsize=32)
    assert told(folder, to="gguf:Q4_0") == told(folder, to="hf") == []
    assert told(folder, to="torchao:int4") == [
        "the weights were trained with the rounding of gguf:q4_0; torchao:int4 rounds otherwise, and loses that"
    ]
