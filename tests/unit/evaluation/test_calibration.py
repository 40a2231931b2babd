import numpy as np
import pytest

from distill_tune.evaluation.calibration import NUM_BINS, calibration, calibration_sums


def tokens(num=500, seed=0):
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.01, 1, num)
    return confidence, generator.random(num) < confidence**2


def test_the_error_is_that_of_the_definition():
    confidence, correct = tokens()
    expected = 0.0
    for index in range(NUM_BINS):
        inside = (confidence > index / NUM_BINS) & (confidence <= (index + 1) / NUM_BINS)
        if inside.any():
            expected += inside.sum() / len(correct) * abs(correct[inside].mean() - confidence[inside].mean())
    found = calibration(calibration_sums(confidence, correct))
    assert found["ece"] == pytest.approx(expected)
    assert sum(entry["tokens"] for entry in found["bins"]) == 500


def test_documents_are_added():
    confidence, correct = tokens()
    pieces = [
        calibration_sums(confidence[part], correct[part]) for part in (slice(0, 3), slice(3, 200), slice(200, 500))
    ]
    assert calibration(sum(pieces))["ece"] == pytest.approx(calibration(calibration_sums(confidence, correct))["ece"])


def test_bounds_belong_to_the_bin_below_and_empty_bins_are_left_out():
    found = calibration(calibration_sums(np.array([0.0, 1.0, 1.0, 1 / NUM_BINS]), np.array([False, True, False, True])))
    assert found["bins"] == [
        {"confidence": pytest.approx(0.5 / NUM_BINS), "accuracy": 0.5, "tokens": 2},
        {"confidence": 1.0, "accuracy": 0.5, "tokens": 2},
    ]
    assert found["ece"] == pytest.approx(0.5 * (0.5 - 0.5 / NUM_BINS) + 0.5 * 0.5)


def test_of_nothing_there_is_no_error():
    assert calibration(calibration_sums(np.zeros(0), np.zeros(0, dtype=bool))) == {"ece": None, "bins": []}
