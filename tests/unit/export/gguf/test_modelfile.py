"""Modelfiles: the file, all ends, settings for sampling, and no template beside that of the GGUF file."""

import json

import pytest
from tiny_tokenizer import write_tokenizer

from distill_tune.errors import UserError
from distill_tune.export.gguf import write_modelfile


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path, vocab_size=300)
    return tmp_path


def instructions(folder, **generation):
    (folder / "generation_config.json").write_text(json.dumps(generation))
    modelfile = write_modelfile(folder / "student-q8_0.gguf", folder)
    assert modelfile == folder / "Modelfile"
    return [line for line in modelfile.read_text().splitlines() if not line.startswith("#")]


def test_ends_and_sampling_are_said_and_the_template_is_left_to_the_file(folder):
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    assert instructions(folder, eos_token_id=[1, 0], max_new_tokens=64, **settings) == [
        "FROM ./student-q8_0.gguf",
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        "PARAMETER top_p 0.9",
        "PARAMETER repeat_penalty 1.1",
        "PARAMETER num_predict 64",
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|im_start|>"',
    ]


def test_greedy_is_a_temperature_of_0(folder):
    said = instructions(folder, do_sample=False, temperature=0.7, eos_token_id=1)
    assert [line for line in said if "temperature" in line] == ["PARAMETER temperature 0"]


def test_a_model_without_a_chat_template_is_sent_the_prompt(folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
    )
    assert instructions(folder)[1:] == ['PARAMETER stop "<|im_end|>"', "TEMPLATE {{ .Prompt }}"]


def test_a_quote_in_an_end_is_quoted(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace("<|im_end|>", '<\\"end\\">'))
    assert instructions(folder)[-1] == 'PARAMETER stop """<"end">"""'


def test_a_broken_generation_config_is_told(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config.json"):
        write_modelfile(folder / "model.gguf", folder)
