"""The text of what a model has written, and the texts at which it stops."""

import shutil

import pytest
import sentencepiece
import torch
import transformers

from distill_tune.data import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.generation import Completion, Decoder, Request, Sampling
from distill_tune.generation.answers import Prompt, Question, answer_of
from distill_tune.generation.stop_texts import StopTexts
from distill_tune.generation.texts import text_of
from distill_tune.training.answers import Wanted
from distill_tune.training.writers import Writer

from torchtune.models.llama2 import llama2_tokenizer
from torchtune.models.llama3_2 import llama3_2

QUESTION = Question(0, "row 1", {}, ({"role": "user", "content": "How?"},), None, (), {"teacher": Prompt((1, 2))})


@pytest.fixture(scope="module")
def thinking_tokenizer(student_folder, tmp_path_factory):
    """With ``<think>`` and ``</think>`` as special tokens."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(student_folder, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(student_folder)
    theirs.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    theirs.save_pretrained(folder)
    return hf_tokenizer(str(folder))


def recorded(tokenizer, tokens, ends=frozenset({2}), log_probs=None):
    writer = Writer("teacher", None, ends, {}, None, tokenizer=tokenizer)
    completion = Completion(tuple(tokens), log_probs or (-1.0,) * len(tokens), "stop")
    return Wanted(QUESTION, 0, "key", (1, 2)).sample(completion, writer, 0)


def test_a_thought_in_special_tokens_is_told_from_the_answer(thinking_tokenizer):
    tokens = thinking_tokenizer.encode("<think>7 plus 1</think>It is 8", add_bos=False, add_eos=False)
    sample = recorded(thinking_tokenizer, [*tokens, 2])
    found = answer_of(QUESTION, sample, "field")
    assert (found.thinking.strip(), found.text.strip()) == ("7 plus 1", "It is 8")
    assert "</think>" in answer_of(QUESTION, sample, "keep").text
    stop = StopTexts(["</think>"], thinking_tokenizer)
    assert any(stop.cut(tokens[:count], [0.0] * count) for count in range(1, len(tokens) + 1))


@pytest.mark.parametrize(
    ("stop", "text", "left"),
    [(" done", "3 plus 4 is 7, done", "3 plus 4 is 7,"), (" plus", "plus 4", ""), ("plus", "3 plus 4", "3")],
)
def test_stop_texts_begin_with_a_space_where_sentencepiece_writes_one(student_folder, stop, text, left):
    path = str(student_folder / "tokenizer.model")
    tokenizer, stop_texts = llama2_tokenizer(path), StopTexts([stop], llama2_tokenizer(path))
    tokens = list[int]()
    for token in sentencepiece.SentencePieceProcessor(path).encode(text):
        tokens.append(token)
        if stop_texts.cut(tokens, [0.0] * len(tokens)):
            break
    else:
        pytest.fail("never cut")
    assert tokenizer.decode(tokens) == left


def test_a_token_that_the_tokenizer_lacks_has_no_text(student_folder, thinking_tokenizer):
    tokenizer = llama2_tokenizer(str(student_folder / "tokenizer.model"))
    tokens = tokenizer.encode("3 plus 4", add_bos=False, add_eos=False)
    padded = [tokens[0], tokenizer.vocab_size + 3, *tokens[1:], 10**6]
    assert text_of(tokenizer, padded) == recorded(tokenizer, padded).text == "3 plus 4"
    assert text_of(thinking_tokenizer, [*tokens, 10**6]) == text_of(thinking_tokenizer, tokens)


def test_the_token_that_ends_an_answer_is_no_text_of_it(student_folder):
    tokenizer = llama2_tokenizer(str(student_folder / "tokenizer.model"))
    tokens = tokenizer.encode("3 plus 4", add_bos=False, add_eos=False)
    assert recorded(tokenizer, tokens, frozenset({2, tokens[-1]})).text == tokenizer.decode(tokens[:-1])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_a_model_whose_logits_are_no_numbers_is_named(student_folder, temperature):
    tokenizer = llama2_tokenizer(str(student_folder / "tokenizer.model"))
    model = llama3_2(300, 1, 1, 1, 4, 16)
    model.norm.scale.data.fill_(torch.nan)
    (found,) = Decoder(model, (), Sampling(2, temperature=temperature)).generate([Request([1, 5])])
    with pytest.raises(UserError, match=r"teacher: its logits are no numbers \(NaN\)"):
        recorded(tokenizer, found.tokens, log_probs=found.log_probs)


def test_one_text_is_a_list_of_one():
    assert Sampling(stop="done").stop == ("done",) and Sampling(stop_token_ids=7).stop_token_ids == (7,)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
