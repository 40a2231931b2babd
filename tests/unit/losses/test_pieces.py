"""Rows in pieces: of even size, within a budget, cut where all teachers allow it."""

import itertools

import numpy
import pytest
import torch
from toy_tokenizers import written

from distill_tune.losses.pieces import even_pieces, pieces_between_cuts


def positions_of(seed=0, length=300):
    toy = written(seed, length=length)
    return toy.map().positions(toy.alignment(), numpy.array(toy.student_row))


def test_rows_are_cut_so_many_at_a_time():
    assert even_pieces(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert even_pieces(0, 3) == []


@pytest.mark.parametrize("budget", [40, 90, 200, 10_000])
def test_a_piece_keeps_to_its_budget_and_ends_at_a_cut_of_every_teacher(budget):
    several = [positions_of(), positions_of()]
    n, cuts = len(several[0]), several[0].cuts()
    pieces = pieces_between_cuts(n, 2, [(positions, 3) for positions in several], budget)
    assert [row for start, stop in pieces for row in range(start, stop)] == list(range(n))
    assert all(cuts[stop] for _, stop in pieces)
    sizes = []
    for start, stop in pieces:
        _, first, end = several[0].cut(start, stop)
        sizes.append(2 * (stop - start) + 2 * 3 * (end - first))
        assert sizes[-1] <= budget or not cuts[start + 1 : stop].any()
    assert len(pieces) <= 2 + 1.6 * sum(sizes) / budget


def test_where_no_cut_is_within_the_budget_a_piece_goes_to_the_next_one():
    positions = positions_of()
    boundaries = positions.cuts().nonzero()[:, 0].tolist()
    assert pieces_between_cuts(len(positions), 1, [(positions, 1)], 1) == list(itertools.pairwise(boundaries))


def test_rows_of_which_nothing_is_known_are_cut_anywhere():
    positions = positions_of(length=9).among(torch.arange(4, 4 + len(positions_of(length=9))), 40)
    assert positions.cuts()[:5].tolist() == [True] * 5
    assert pieces_between_cuts(40, 1, [(positions, 1)], 8)[-1][1] == 40


def test_no_rows_are_no_piece():
    assert pieces_between_cuts(0, 1, [], 1) == []
