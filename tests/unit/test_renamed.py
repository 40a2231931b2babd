"""What a recipe that was copied earlier reads, and is written otherwise now, says how."""

import pytest
import torch

from distill_tune import training
from distill_tune.data.batch import joined


def test_a_copied_recipe_is_told_that_a_batch_has_positions_in_place_of_a_mask():
    row = (torch.tensor([5, 6, 7, 8]), torch.tensor([-100, -100, 7, 8]))
    batch = joined([row, row])
    assert batch.supervised_positions.tolist() == [1, 2, 5, 6]
    assert batch.num_supervised == (2, 2)
    with pytest.raises(AttributeError, match=r"write batch\.supervised_positions.*hidden\[0, batch\.supervised_pos"):
        batch.supervised[0]


def test_a_copied_recipe_is_told_what_exchanges_numbers_between_ranks():
    with pytest.raises(AttributeError, match=r"sum_over_ranks is gone; write sums, _ = training\.reduced_over_ranks"):
        training.sum_over_ranks(torch.tensor(1.0), 2)
    with pytest.raises(AttributeError, match=r"most_of_ranks is gone; write _, most = training\.reduced_over_ranks"):
        training.most_of_ranks(2**40, 15)
    assert training.reduced_over_ranks([torch.tensor(1.0), 2], most=[2**40]) == ([1.0, 2.0], [2.0**40])
