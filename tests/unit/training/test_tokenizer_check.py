"""What is told of a tokenizer before training: of torchtune's, whether it writes the prompts that will be asked."""

import base64

import numpy
import pytest
from tiny_tokenizer import TEMPLATE, write_tokenizer

from distill_tune import data, models
from distill_tune.errors import UserError
from distill_tune.training.tokenizer_check import describe_prompt

LLAMA = (
    "{{ bos_token }}%s{%% for m in messages %%}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|start_header_id|>assistant<|end_header_id|>\n\n{%% endif %%}"
)
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>"


@pytest.fixture
def llama3(tmp_path):
    """torchtune's tokenizer of 256 bytes and Llama 3's control tokens; the same as a folder, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from torchtune.models.llama3._tokenizer import LLAMA3_SPECIAL_TOKENS, Llama3Tokenizer

    ranks = "\n".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
    (tmp_path / "tokenizer.model").write_text(f"{ranks}\n")
    control = {token: index - 128_000 + 256 for token, index in LLAMA3_SPECIAL_TOKENS.items()}
    theirs = Llama3Tokenizer(str(tmp_path / "tokenizer.model"), control)
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}

    def write(template: str | None):
        tokenizer = Tokenizer(models.BPE(letters, []))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        ours = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **named)
        ours.add_tokens(sorted(control, key=control.__getitem__), special_tokens=True)
        (tmp_path / "folder").mkdir()
        ours.save_pretrained(tmp_path / "folder")
        return theirs, tmp_path / "folder"

    return write


@pytest.mark.parametrize(
    ("template", "differs"), [(LLAMA % "", False), (LLAMA % SYSTEM, True), (TEMPLATE, True), (None, False)]
)
def test_torchtunes_tokenizer_is_told_where_the_exported_template_writes_another_prompt(llama3, template, differs):
    tokenizer, folder = llama3(template)
    line = describe_prompt(tokenizer, folder)
    assert bool(line) is differs
    if differs:
        assert f"take distill_tune.data.hf_tokenizer with path={folder}" in line


def test_ours_writes_the_exported_template(llama3):
    _, folder = llama3(LLAMA % SYSTEM)
    assert describe_prompt(data.hf_tokenizer(str(folder)), folder) is None


def test_arguments_that_change_the_prompt_are_told(llama3):
    _, folder = llama3((LLAMA % "") + "{% if quiet %}<|python_tag|>{% endif %}")
    told = [
        describe_prompt(data.hf_tokenizer(str(folder), chat_template_kwargs=arguments), folder)
        for arguments in ({"quiet": True}, {"quiet": False}, None)
    ]
    assert "tokenizer.chat_template_kwargs: the rows' prompts end in" in told[0]
    assert told[1:] == [None, None]


def test_a_tokenizer_of_torchtunes_of_another_family_is_refused(llama3, tmp_path):
    tokenizer, folder = llama3(LLAMA % "")
    models.check_own_tokens(folder, tokenizer, numpy.array([1]))
    other = tmp_path / "other"
    other.mkdir()
    write_tokenizer(other)
    with pytest.raises(UserError, match=f"of the student {other}; take its own: .* tokenizer.path={other}"):
        models.check_own_tokens(other, tokenizer, numpy.array([1]))
