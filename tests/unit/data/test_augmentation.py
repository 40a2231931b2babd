"""Prompts change, answers never do; the same row changes the same way at the same time."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tiny_tokenizer
import torch
from omegaconf import OmegaConf

from distill_tune.config import instantiate
from distill_tune.data import (
    Augmentations,
    DropTokens,
    Reading,
    ReplaceTokens,
    StepPlan,
    TokenisedRows,
    TruncatePrompt,
    prepare_rows,
)
from distill_tune.data.augmentation import special_tokens
from distill_tune.data.batch import Row
from distill_tune.errors import UserError

TOKENIZER = SimpleNamespace(vocab_size=100, bos_id=1, eos_id=2, special_tokens={"<s>": 1, "<turn>": 50})
TOKENS = torch.tensor([1, *range(10, 30), 50, *range(60, 70), 2], dtype=torch.int32)
LABELS = torch.where(torch.arange(len(TOKENS)) < 22, -100, TOKENS).int()
IS_TEXT = (TOKENS >= 10) & (TOKENS != 50)
ROW = Row(TOKENS, LABELS, is_text=IS_TEXT)
ALL = [DropTokens(0.3), ReplaceTokens(0.3), TruncatePrompt(1.0, 0.5)]


def changed(augmentation, place=(0, 0, 0), seed=0):
    return Augmentations([augmentation], TOKENIZER, seed)(ROW, place)


@pytest.mark.parametrize("augmentation", ALL)
def test_answers_special_tokens_and_the_first_token_stay(augmentation):
    for time in range(20):
        row = changed(augmentation, (time, 0, 0))
        assert torch.equal(row.labels[row.labels != -100], TOKENS[22:])
        assert row.tokens[0] == 1
        assert (row.tokens == 50).sum() == 1
        assert len(row.tokens) == len(row.labels)


@pytest.mark.parametrize("augmentation", ALL)
def test_it_is_a_function_of_seed_epoch_and_row(augmentation):
    def tokens(place, seed=0):
        return changed(augmentation, place, seed).tokens.tolist()

    assert tokens((3, 0, 7)) == tokens((3, 0, 7))
    others = [tokens((4, 0, 7)), tokens((3, 1, 7)), tokens((3, 0, 8)), tokens((3, 0, 7), seed=1)]
    assert all(other != tokens((3, 0, 7)) for other in others)


def test_each_does_what_it_says():
    dropped = [22 - int((changed(DropTokens(0.3), (n, 0, 0)).labels == -100).sum()) for n in range(200)]
    assert sum(dropped) / 200 == pytest.approx(0.3 * 20, rel=0.1)
    replaced = changed(ReplaceTokens(1.0)).tokens
    assert len(replaced) == len(TOKENS)
    assert (replaced[1:21] != TOKENS[1:21]).float().mean() > 0.9
    assert not set(replaced[1:21].tolist()) & {1, 2, 50}
    cut = changed(TruncatePrompt(1.0, 1.0), (5, 0, 0)).tokens
    assert cut.tolist() == [1, *TOKENS[len(TOKENS) - len(cut) + 1 :].tolist()]
    assert torch.equal(changed(TruncatePrompt(0.0)).tokens, TOKENS)


def test_a_plan_takes_changed_rows_and_counts_them():
    count = 8
    rows = TokenisedRows(
        TOKENS.repeat(count),
        LABELS.repeat(count),
        torch.arange(count + 1) * len(TOKENS),
        packed=False,
        max_seq_len=None,
        is_text=IS_TEXT.repeat(count),
    )
    augmentations = Augmentations([DropTokens(0.5)], TOKENIZER, 0)
    plan, plain = (StepPlan([rows], batch_size=4, augmentations=a) for a in (augmentations, None))
    (batch,) = plan.micro_batches(0, 0)
    assert sorted(batch.lengths) == sorted(plan.shape(0, 0).lengths) != sorted(plain.shape(0, 0).lengths)
    assert plan.num_supervised(0, 0) == plain.num_supervised(0, 0) == len(batch.supervised_positions)
    (again,) = plan.micro_batches(0, 0)
    assert torch.equal(batch.tokens, again.tokens)
    assert plan.identity != plain.identity
    other = dataclasses.replace(rows, is_text=torch.ones_like(rows.is_text))
    assert StepPlan([other], batch_size=4, augmentations=augmentations).identity != plan.identity
    assert StepPlan([other], batch_size=4).identity == plain.identity


QUESTIONS = ["What is the assistant user", "assistant", "hello\n there \n", "你好 🙂"]


@pytest.fixture(params=["chatml", "torchtune"])
def read(request, tmp_path, tokenizer_file):
    """Rows of QUESTIONS, with the tokenizer that wrote them, and what it writes for a conversation without words."""
    component = {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file)}
    if request.param == "chatml":
        tiny_tokenizer.write_tokenizer(tmp_path)
        component = {"_component_": "distill_tune.data.hf_tokenizer", "path": str(tmp_path)}
    turns = [
        [{"role": "system", "content": "Be kind. "}, {"role": "user", "content": question},
         {"role": "assistant", "content": "user"}, {"role": "user", "content": question},
         {"role": "assistant", "content": "hello"}]
        for question in QUESTIONS
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": of_row} for of_row in turns]))

    def rows(source="distill_tune.data.chat", **more):
        dataset = OmegaConf.create({"_component_": source, "source": str(tmp_path / "rows.json"), **more})
        tokenizer = OmegaConf.create(component)
        (found,), _ = prepare_rows(dataset, instantiate(tokenizer), tokenizer, reading=Reading(augmented=True))
        return found, instantiate(tokenizer)

    return rows


@pytest.mark.parametrize("augmentation", [DropTokens(0.5), ReplaceTokens(0.5), TruncatePrompt(1.0, 1.0)])
def test_what_the_template_writes_around_the_turns_stays(read, augmentation):
    rows, tokenizer = read()
    augmentations, damaged = Augmentations([augmentation], tokenizer), 0
    for number in range(len(rows)):
        row = rows[number]
        around = ~(row.is_text & (row.labels == -100))
        for time in range(50):
            changed = augmentations(row, (time, 0, number))
            kept = ~(changed.is_text & (changed.labels == -100))
            assert torch.equal(changed.tokens[kept], row.tokens[around])
            damaged += not torch.equal(changed.tokens, row.tokens)
    assert damaged > 150


def test_the_turns_own_words_are_known_to_the_letter(read):
    rows, tokenizer = read()
    for number, question in enumerate(QUESTIONS):
        row, texts = rows[number], []
        is_word = (row.is_text & (row.labels == -100)).tolist()
        for at, word in enumerate(is_word):
            if word and not (at and is_word[at - 1]):
                texts.append([])
            if word:
                texts[-1].append(int(row.tokens[at]))
        # Before several questions torchtune's template writes the system prompt several times: it is left alone.
        system = [["Be", "kind."]] if hasattr(tokenizer, "tokenise_conversation") else []
        assert [tokenizer.decode(text).split() for text in texts] == [*system, *[question.split()] * 2]


def test_a_dataset_that_does_not_tell_its_words_is_refused(read, tokenizer_file):
    rows, tokenizer = read()
    silent = dataclasses.replace(rows, is_text=None)
    augmentations = Augmentations([DropTokens(0.5)], tokenizer)
    with pytest.raises(UserError, match="augmentations: this dataset does not tell a turn's text from what is written"):
        StepPlan([silent], batch_size=1, augmentations=augmentations)
    StepPlan([silent], batch_size=1)
    plain = dataclasses.replace(silent, labels=silent.tokens)
    plan = StepPlan([plain], batch_size=len(plain), shuffle=False, augmentations=augmentations)
    assert torch.equal(plan.micro_batches(0, 0)[0].tokens[0].sort()[0], plain.tokens.long().sort()[0])


def test_special_tokens_of_torchtunes_tokenizers(student_folder):
    from torchtune.models.llama2 import llama2_tokenizer

    assert {1, 2} <= special_tokens(llama2_tokenizer(str(student_folder / "tokenizer.model")))


@pytest.mark.parametrize("make", [lambda: DropTokens(1.5), lambda: ReplaceTokens(-1), lambda: TruncatePrompt(0.5, 2)])
def test_rates_are_shares(make):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        make()


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, (0.8, 0.2)), (2.0, (2 / 3, 1 / 3)), (1e9, (0.5, 0.5))])
def test_a_temperature_evens_out_datasets(temperature, shares):
    def rows(count, first):
        tokens = torch.arange(first, first + count * 2, dtype=torch.int32)
        return TokenisedRows(tokens, tokens, torch.arange(count + 1) * 2, packed=False, max_seq_len=None)

    plan = StepPlan([rows(960, 0), rows(240, 10_000)], batch_size=1200, dataset_temperature=temperature)
    (batch,) = plan.micro_batches(0, 0)
    of_first = int((batch.tokens[0, ::2] < 10_000).sum())
    assert of_first / 1200 == pytest.approx(shares[0], abs=0.002)
