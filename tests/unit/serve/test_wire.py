"""Bodies of requests and answers."""

import dataclasses

import numpy
import pytest
import torch
from safetensors.numpy import save

from distill_tune.data.batch import Row, joined
from distill_tune.serve.wire import WireError, records_as_bytes, records_of, rows_as_bytes, rows_of, with_others


def row(tokens, learned):
    tokens = torch.tensor(tokens, dtype=torch.int32)
    return Row(tokens, torch.where(torch.tensor(learned), tokens, -100))


ROWS = [row([5, 6, 7, 8], [False, False, True, True]), row([9, 3], [False, True])]


def body(**changes):
    tensors = {
        "tokens": numpy.array([5, 6, 7], numpy.int32),
        "learned": numpy.array([0, 1, 1], numpy.uint8),
        "lengths": numpy.array([3], numpy.int64),
    }
    return save({name: value for name, value in (tensors | changes).items() if value is not None})


def test_rows_arrive_as_they_were_with_the_same_digests():
    found = rows_of(rows_as_bytes(joined(ROWS)), vocab_size=10, most_tokens=8)
    assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in ROWS]
    assert joined(found).digests == joined(ROWS).digests
    assert torch.equal(joined(found).targets, joined(ROWS).targets)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"nothing", "no safetensors file"),
        (b"\xff" * 64, "no safetensors file"),
        (body(tokens=None), "without tokens"),
        (body(tokens=numpy.array([5, 6, 7], numpy.int64)), "without tokens, int32"),
        (body(lengths=numpy.array([2], numpy.int64)), "add up to 2, there are 3"),
        (body(lengths=numpy.array([-1, 4], numpy.int64)), "must have 1 to 8"),
        (body(lengths=numpy.array([], numpy.int64)), "there must be a row"),
        (body(tokens=numpy.array([5, 6, 99], numpy.int32)), "the token 99: the teacher knows 10"),
        (body(tokens=numpy.array([5, -6, 9], numpy.int32)), "the token -6"),
    ],
)
def test_a_body_that_is_none_is_told(content, told):
    with pytest.raises(WireError, match=told):
        rows_of(content, vocab_size=10, most_tokens=8)


def test_a_row_that_is_too_long_is_told():
    with pytest.raises(WireError, match="a row has 3 tokens: each must have 1 to 2"):
        rows_of(body(), vocab_size=10, most_tokens=2)


def test_records_arrive_row_by_row():
    rows = [b"one", b"", b"three"]
    assert [bytes(found) for found in records_of(records_as_bytes(rows), 3)] == rows
    with pytest.raises(WireError, match="3 rows, where 2 were asked for"):
        records_of(records_as_bytes(rows), 2)


def test_tokens_that_are_named_for_each_learned_one_arrive_with_their_rows():
    named = torch.tensor([[1, 2], [3, 4], [5, 6]])
    content = rows_as_bytes(dataclasses.replace(joined(ROWS), likeliest=named))
    rows = rows_of(content, vocab_size=10, most_tokens=8)
    assert torch.equal(joined(with_others(rows, content, 2, 10)).likeliest, named)
    for count, vocab_size, told in ((3, 10, "has 6 tokens, where 3 of each of 3"), (2, 6, "none of the teacher's 6")):
        with pytest.raises(WireError, match=told):
            with_others(rows, content, count, vocab_size)
