"""Modelfiles: the file, all ends, settings for sampling, and no template beside that of the GGUF file."""

import dataclasses
import json

import pytest
from tiny_tokenizer import write_tokenizer

from distill_tune.errors import UserError
from distill_tune.export.gguf import write_modelfile
from distill_tune.export.gguf.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    write_tokenizer(folder)
    return folder


def instructions(folder, tokenizer, **generation):
    (folder / "generation_config.json").write_text(json.dumps(generation))
    modelfile = write_modelfile(folder / "student-q8_0.gguf", folder, tokenizer or Tokenizer.of_folder(folder, 400))
    assert modelfile == folder / "Modelfile"
    return [line for line in modelfile.read_text().splitlines() if not line.startswith("#")]


def test_ends_and_sampling_are_said_and_the_template_is_left_to_the_file(folder):
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    assert instructions(folder, None, eos_token_id=[1, 0], max_new_tokens=64, **settings) == [
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
    assert "PARAMETER temperature 0" in instructions(folder, None, do_sample=False, temperature=0.7, eos_token_id=1)


def test_a_model_without_a_chat_template_is_sent_the_prompt(folder):
    plain = dataclasses.replace(Tokenizer.of_folder(folder, 400), chat_template=None)
    assert instructions(folder, plain)[-1] == "TEMPLATE {{ .Prompt }}"


def test_a_quote_in_an_end_is_quoted(folder):
    tokenizer = Tokenizer.of_folder(folder, 400)
    tokens = ['<"end">' if token in tokenizer.ends else text for token, text in enumerate(tokenizer.tokens)]
    said = instructions(folder, dataclasses.replace(tokenizer, tokens=tokens))
    assert 'PARAMETER stop """<"end">"""' in said


def test_a_broken_generation_config_is_told(folder, tmp_path):
    tokenizer = Tokenizer.of_folder(folder, 400)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config.json: is broken"):
        write_modelfile(tmp_path / "model.gguf", tmp_path, tokenizer)
