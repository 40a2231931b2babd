"""Losses between two tokenizers against TRL's own code, on rows that it is given rightly."""

import itertools
import types

import pytest
import torch
from aligned_rows import compared, example

import distill_tune._torchtune_compat  # noqa: F401  (before TRL, which imports torchao)
from distill_tune.losses import Gold, UniversalLogit

ONE_EACH = [([length], [length]) for length in (3, 1, 4, 1, 5, 9)]


def trl_loss(word, merge="observed", hybrid=True, beta=0.5):
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = types.SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_use_hybrid_loss=hybrid,
        uld_token_merge_strategy=merge,
        beta=beta,
    )
    loss = ULDLoss(config)
    mine, theirs = word.classes.shared_student, word.classes.shared_teacher
    loss._vocab_mapping = dict(zip(theirs.tolist(), mine.tolist(), strict=True))
    loss._teacher_matched_ids, loss._student_matched_ids = set(theirs.tolist()), set(mine.tolist())
    loss.mapping_tensor = torch.full((len(word.classes.teacher),), -1).index_copy_(0, theirs, mine)
    return loss


def assert_same(method, of_example, wanted, logits):
    student, teacher, targets, word, _ = of_example
    values, gradient = compared(method, student, teacher, targets, word)
    assert values.sum().item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, logits)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_gold_has_trls_mixture_of_merged_spans(beta):
    """Its steps one by one: as a whole it takes the merge's first distribution a row too late."""
    student, teacher, targets, word, rows = example()
    loss = trl_loss(word, beta=beta)
    logits = student.clone().requires_grad_()
    sides = [
        loss._merge_probabilities_with_alignment_groups(of.softmax(-1), groups, tokens.tolist())
        for of, groups, tokens in zip((logits, teacher), zip(*rows, strict=True), (targets, word.targets), strict=True)
    ]
    wanted = loss._compute_hybrid_uld_loss(*sides) * len(rows)  # it has a mean
    assert_same(Gold(beta), (student, teacher, targets, word, rows), wanted, logits)


@pytest.mark.parametrize("hybrid", [True, False])
def test_the_whole_loss_of_trl_where_spans_are_single_tokens(hybrid):
    """Its other merge is cut rightly, and merges nothing here."""
    student, teacher, targets, word, rows = example(ONE_EACH)
    loss = trl_loss(word, "bayesian", hybrid)
    ends = [0, *itertools.accumulate(length for (length,), _ in ONE_EACH)]
    offsets = torch.tensor([(0, 0), *itertools.pairwise(ends)])[None]
    logits = student.clone().requires_grad_()

    def sequence(of, tokens):
        """Behind a prompt of one token, whose row predicts the first."""
        ids = torch.cat([tokens.new_zeros(1), tokens])[None]
        labels = ids.index_fill(1, torch.tensor([0]), -100)
        return torch.cat([of, of.new_zeros(1, of.shape[1])])[None], labels, ids

    mine, theirs = sequence(logits, targets), sequence(teacher, word.targets)
    pairs = [of for pair in zip(mine, theirs, strict=True) for of in pair]
    value = loss(*pairs, offsets, offsets)
    method = Gold(0.5) if hybrid else UniversalLogit()
    assert_same(method, (student, teacher, targets, word, rows), value * len(rows), logits)
