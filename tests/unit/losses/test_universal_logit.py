"""Sorted probabilities against their definition in float64, value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from aligned_rows import SPANS, compared, example, same_tokenizer

from distill_tune.losses import UniversalLogit


def plain(student, teacher):
    """Of two rows of probabilities, for autograd."""
    widest = max(len(student), len(teacher))
    student, teacher = (F.pad(of, (0, widest - len(of))).sort(descending=True).values for of in (student, teacher))
    return (student - teacher).abs().sum()


@pytest.mark.parametrize("masked", [[], [3, 8]], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("v_s", "v_t"), [(19, 23), (23, 19), (19, 19)])
def test_value_and_gradient_are_those_of_the_definition(v_s, v_t, temperature, masked):
    student, teacher, targets, word, _ = example(masked=masked, v_s=v_s, v_t=v_t)
    logits = student.double().requires_grad_()
    q, p = ((of.double() / temperature).softmax(-1) for of in (logits, teacher))
    starts = [0, 1, 3, 4, 8, 11], [0, 1, 2, 5, 6, 8]  # of the spans
    wanted = {mine: plain(q[mine], p[theirs]) for mine, theirs in zip(*starts, strict=True) if mine not in masked}
    gradient = torch.autograd.grad(sum(wanted.values()), logits)[0] * temperature
    values, found = compared(UniversalLogit(), student, teacher, targets, word, temperature)
    assert len(wanted) == len(SPANS) - sum(mine in masked for mine in starts[0])
    for row, value in enumerate(values.tolist()):
        assert value == pytest.approx(wanted[row].item() if row in wanted else 0.0, abs=1e-6)
    torch.testing.assert_close(found, gradient.float(), rtol=1e-5, atol=1e-6)


def test_with_one_tokenizer_every_row_counts():
    student, teacher, targets, word, _ = same_tokenizer()
    values, _ = compared(UniversalLogit(), student, teacher, targets, word)
    q, p = (of.double().softmax(-1).sort(-1).values for of in (student, teacher))
    torch.testing.assert_close(values, (q - p).abs().sum(-1).float(), rtol=0, atol=1e-6)


def test_nothing_where_both_agree_whatever_the_tokens_are_called():
    student, _, targets, word, _ = same_tokenizer()
    renamed = student[:, torch.randperm(student.shape[1])]
    values, gradient = compared(UniversalLogit(), student, renamed, targets, word)
    assert values.abs().max() < 1e-6
    values, gradient = compared(UniversalLogit(), student, student.clone(), targets, word)
    assert not values.any()
    assert not gradient.any()


def test_a_shifted_alignment_is_another_value():
    student, teacher, targets, word, _ = same_tokenizer()
    values, _ = compared(UniversalLogit(), student, teacher, targets, word)
    shifted, _ = compared(UniversalLogit(), student, teacher.roll(-1, 0), targets, word)
    assert ((values - shifted).abs() > 1e-3).all()


def test_rows_within_the_teachers_token_have_no_loss():
    student, teacher, targets, word, _ = example([([1, 1, 1, 1], [4])])
    values, gradient = compared(UniversalLogit(), student, teacher, targets, word)
    assert values[0] > 0
    assert not values[1:].any()
    assert not gradient[1:].any()


def test_no_boundary_is_no_loss():
    student, teacher, targets, word, _ = example([([2, 2], [4])], masked=[0, 1])
    for of_teacher in (teacher, teacher[:0]):
        values, gradient = compared(UniversalLogit(), student, of_teacher, targets, word)
        assert not values.any()
        assert not gradient.any()
