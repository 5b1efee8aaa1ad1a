"""Calibration keeps the order and repairs a known distortion."""

import json

import numpy as np
import pytest

from crmray.evaluate import calibration, metrics


def drawn(num_rows: int, seed: int = 0):
    """Labels with known probabilities, spread over 0..1."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(1, 3, num_rows)
    return (rng.random(num_rows) < truth).astype(int), truth


@pytest.mark.parametrize(
    ("distort", "method"),
    [
        (lambda p: p, "none"),
        (lambda p: 1 / (1 + np.exp(-(3 * np.log(p / (1 - p)) + 2))), "platt"),
        (lambda p: np.where(p < 0.2, p / 4, 0.9 + p / 10), "isotonic"),
    ],
)
def test_the_right_method_is_found_and_new_rows_are_calibrated(distort, method):
    y, truth = drawn(4000)
    state = json.loads(json.dumps(calibration.fit(y, distort(truth))))
    reached = state["logloss"]
    if method != "none":  # a model that is right already loses nothing by a curve, nor gains
        assert state["method"] == method
        assert reached[method] < reached["none"] - 0.01
    new_y, new_truth = drawn(4000, seed=1)
    p = calibration.apply(state, distort(new_truth))
    assert metrics.expected_calibration_error(new_y, p) < 0.03
    assert np.abs(p - new_truth).mean() < 0.03
    assert metrics.auc(new_y, p) == pytest.approx(metrics.auc(new_y, distort(new_truth)), abs=1e-9)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_maps_are_strictly_increasing_within_0_and_1(method):
    y, truth = drawn(500)
    p = calibration.apply(calibration.FITTERS[method](y, truth), np.linspace(0, 1, 10_001))
    assert p.min() >= 0
    assert p.max() <= 1
    assert (np.diff(p) > 0).all()


def test_a_score_against_the_label_is_not_turned_round():
    y, truth = drawn(500)
    p = calibration.apply(calibration._platt(y, 1 - truth), np.array([0.1, 0.9]))
    assert p[0] < p[1]
    assert p == pytest.approx([y.mean()] * 2, abs=0.01)


def test_isotonic_blocks_by_hand():
    # .2 has 0 of 1, .4 and .6 pool to 1 of 2, .8 has 1 of 1; one row of the base rate (1/2) is added to each
    state = calibration._isotonic(np.array([0, 1, 0, 1]), np.array([0.2, 0.4, 0.6, 0.8]))
    assert state["scores"] == pytest.approx([0.2, 0.5, 0.8])
    assert state["probabilities"] == pytest.approx([0.25, 0.5, 0.75])


def test_too_few_rows_leave_the_scores_alone():
    y = np.array([1] * 9 + [0] * 50)
    state = calibration.fit(y, np.linspace(0, 1, 59))
    assert state["method"] == "none"
    assert "9 rows" in state["why"]


def test_bands_by_hand():
    # F1 at .7 (3 of 3, of 4) is 6/7, at .3 (4 of 7, of 4) 8/11; below .3 lies no positive, below .7 one of 4
    y, p = np.array([0, 0, 1, 0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.7, 0.8, 0.9])
    thresholds = calibration.fit_bands(y, p)
    assert thresholds == {"low": 0.3, "high": 0.7}
    names = calibration.bands(np.array([0.1, 0.3, 0.69, 0.7]), thresholds)
    assert names.tolist() == ["low", "medium", "medium", "high"]
    assert calibration.fit_bands(y, p, missed_share=0.25)["low"] == 0.7


def test_a_refitted_model_keeps_the_shape_and_has_its_own_level():
    rng = np.random.default_rng(5)
    odds = rng.normal(size=4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-odds))).astype(int)
    before = 1 / (1 + np.exp(-(0.7 * odds - 0.5)))  # too timid, and too low, as a model of older rows may be
    refitted = 1 / (1 + np.exp(-0.7 * odds))  # has learned the level
    state = calibration.fit(y, before)
    assert calibration.apply(state, refitted).mean() > y.mean() + 0.08  # the level would be added twice
    older = (rng.random(4000) < before).astype(int)  # its own rows, on which it is right
    moved = calibration.refitted(state, before, calibration.own_level(older, before, before))
    p = calibration.apply(moved, refitted)
    assert p.mean() == pytest.approx(y.mean(), abs=0.05)
    assert metrics.logloss(y, p) < metrics.logloss(y, refitted)
    assert np.array_equal(np.argsort(p), np.argsort(refitted))


def test_a_level_that_is_wrong_on_the_models_own_rows_stays_corrected():
    rng = np.random.default_rng(6)
    odds = rng.normal(size=4000) - 2.0
    y = (rng.random(4000) < 1 / (1 + np.exp(-odds))).astype(int)
    weighted = 1 / (1 + np.exp(-(odds + 2.0)))  # as with class weights: about half of the rows, on its own rows too
    state = calibration.fit(y, weighted)
    moved = calibration.refitted(state, weighted, calibration.own_level(y, weighted, weighted))
    assert moved["shift"] == pytest.approx(0.0, abs=0.01)
    assert calibration.apply(moved, weighted).mean() == pytest.approx(y.mean(), abs=0.005)
