"""The text of what a model has written, and the texts at which it stops."""

import shutil

import pytest
import sentencepiece
import transformers

from distill_tune.data import hf_tokenizer
from distill_tune.generation import Completion, Sampling
from distill_tune.generation.answers import Question, answer_of
from distill_tune.generation.stop_texts import StopTexts
from distill_tune.generation.texts import text_of
from distill_tune.training.answers import Wanted
from distill_tune.training.writers import Writer

from torchtune.models.llama2 import llama2_tokenizer

QUESTION = Question(0, "row 1", {}, ({"role": "user", "content": "How?"},), None, (), (1, 2))


@pytest.fixture(scope="module")
def thinking_tokenizer(student_folder, tmp_path_factory):
    """With ``<think>`` and ``</think>`` as special tokens."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(student_folder, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(student_folder)
    theirs.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    theirs.save_pretrained(folder)
    return hf_tokenizer(str(folder))


def recorded(tokenizer, tokens, ends=frozenset({2})):
    writer = Writer("teacher", None, ends, {}, None)
    return Wanted(QUESTION, 0, "key").sample(
        Completion(tuple(tokens), (-1.0,) * len(tokens), "stop"), writer, 0, tokenizer
    )


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


def test_one_text_is_a_list_of_one():
    assert Sampling(stop="done").stop == ("done",) and Sampling(stop_token_ids=7).stop_token_ids == (7,)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
