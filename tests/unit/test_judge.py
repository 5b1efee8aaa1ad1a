"""What a report says of predictions, worked out by hand or by scikit-learn and SciPy."""

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn import metrics as sk

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import amounts, judge, metrics

LABEL = np.array([1, 0, 1, 0])
PROBABILITY = np.array([0.9, 0.8, 0.3, 0.1])


def test_a_binary_judgement_of_four_rows():
    found = judge.binary(LABEL, PROBABILITY, 0.3, groups={"upper": PROBABILITY > 0.5, "none": np.zeros(4, bool)})
    assert found["confusion"] == [[1, 1], [0, 2]]  # of two negatives one is called positive, of two positives both
    assert (found["accuracy"], found["recall"], found["f1"]) == (0.75, 1.0, pytest.approx(0.8))
    assert found["auc"] == 0.75
    assert found["top_tenth"] == {"lift": 2.0, "recall": 0.5}  # one row, a positive, of a base rate of a half
    curves = found["curves"]
    gains = dict(zip(curves["gains"]["share"], curves["gains"]["found"], strict=True))
    assert [gains[share] for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert [(one["from"], one["rows"], one["rate"]) for one in curves["calibration"]] == [
        (0.1, 1, 0.0), (0.3, 1, 1.0), (0.8, 1, 0.0), (0.9, 1, 1.0),
    ]  # fmt: skip
    assert [one["lift"] for one in curves["lift"]] == [2.0, 0.0, 2.0, 0.0]
    upper = found["groups"]["upper"]
    assert (upper["rows"], upper["rate"], upper["auc"], upper["precision"]) == (2, 0.5, 1.0, 0.5)
    assert "none" not in found["groups"]
    json.dumps(found, allow_nan=False)


def test_curves_and_intervals_of_many_rows():
    rng = np.random.default_rng(0)
    probability = rng.random(3000).round(3)
    label = (rng.random(3000) < probability).astype(int)
    found = judge.binary(label, probability, 0.5)
    roc, pr = found["curves"]["roc"], found["curves"]["pr"]
    assert max(len(curve["recall"]) for curve in (roc, pr)) <= judge.MAX_POINTS
    assert np.trapezoid(roc["recall"], roc["false_positive_rate"]) == pytest.approx(found["auc"], abs=2e-3)
    assert (roc["recall"][0], roc["recall"][-1], pr["recall"][0], pr["recall"][-1]) == (0, 1, 1, 0)
    for name in ("auc", "ap", "logloss", "brier", "accuracy", "precision", "recall", "f1"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
    low, high = found["intervals"]["accuracy"]  # a binomial share
    error = 1.96 * np.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 3000)
    assert (high - low) / 2 == pytest.approx(error, rel=0.15)
    assert len(json.dumps(found)) < 20_000


def test_said_figures_weigh_rows_as_if_repeated():
    rng = np.random.default_rng(1)
    y, p, w = rng.integers(0, 2, 60), rng.random(60), rng.integers(0, 4, 60)
    for name, expected in metrics.at_threshold(np.repeat(y, w), np.repeat(p, w), 0.4).items():
        assert metrics.said_figure(y, p, 0.4, name)(w.astype(float)) == pytest.approx(expected)
    said = (p >= 0.4).astype(int)
    macro = metrics.macro_f1_figure(y, said, 2)(w.astype(float))
    assert macro == pytest.approx(sk.f1_score(np.repeat(y, w), np.repeat(said, w), average="macro"))
    never = metrics.said_figure(y, p, 2.0, "precision")
    assert np.isnan(never(np.ones(60)))


def test_classes_are_judged_as_scikit_learn_does():
    rng = np.random.default_rng(2)
    probability = rng.dirichlet(np.ones(4), 500)
    probability[:, 3] = 0.0  # a class that nobody is said to be of
    label = np.array([rng.choice(4, p=row / row.sum()) for row in probability + 0.05])
    said = probability.argmax(1)
    found = judge.classes(label, probability, ["a", "b", "c", "d"])
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(label, said))
    for name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        each = function(label, said, average=None, zero_division=0)
        assert found[f"macro_{name}"] == pytest.approx(each.mean())
        assert [one[name] for one in found["classes"].values()] == pytest.approx(each.tolist())
    assert found["confusion"] == sk.confusion_matrix(label, said).tolist()
    assert found["classes"]["b"]["auc"] == pytest.approx(sk.roc_auc_score(label == 1, probability[:, 1]))
    assert found["majority_share"] == pytest.approx(np.bincount(label).max() / 500)
    low, high = found["intervals"]["macro_f1"]
    assert low < found["macro_f1"] < high
    json.dumps(found, allow_nan=False)


def test_a_class_that_neither_came_nor_was_said_counts_nowhere():
    found = metrics.classes(np.array([0, 1]), np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]))
    assert (found["macro_f1"], found["accuracy"]) == (1.0, 1.0)
    assert found["logloss"] == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
    assert found["ece"] == pytest.approx(0.15)  # always right: 0.1 too little in one bin, 0.2 in the other


def test_normalised_gini_by_hand():
    # shares of 4 in the true order 3 1 0 0: .75 1 1 1, sum 3.75, less 2.5, over 4; predicted order 1 3 0 0: .25 1 1 1
    truth, prediction = np.array([0.0, 3.0, 1.0, 0.0]), np.array([0.5, 2.0, 9.0, 0.1])
    found = amounts.amount(truth, prediction)
    assert found["ngini"] == pytest.approx((0.75 / 4) / (1.25 / 4))
    assert found["bias"] == pytest.approx(11.6 / 4 - 1)
    assert found["rmse"] == pytest.approx(np.sqrt((0.25 + 1 + 64 + 0.01) / 4))
    assert found["mae"] == pytest.approx((0.5 + 1 + 8 + 0.1) / 4)
    assert found["decile_lift"] == 1.0  # one row, of amount 1, which is the mean


def test_amounts_agree_with_scipy_and_with_repeated_rows():
    rng = np.random.default_rng(3)
    truth = np.where(rng.random(300) < 0.5, 0.0, rng.integers(1, 9, 300))
    prediction = truth + rng.integers(0, 6, 300)
    found = judge.amount(truth, prediction)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, prediction).statistic)
    weights = rng.integers(0, 3, 300)
    again = np.repeat(truth, weights), np.repeat(prediction, weights)
    for name, make in amounts.FIGURES.items():
        repeated = make(*again)(np.ones(len(again[0])))
        assert make(truth, prediction)(weights.astype(float)) == pytest.approx(repeated), name
    gains, lift = found["curves"]["gains"], found["curves"]["lift"]
    assert all(ideal >= reached for ideal, reached in zip(gains["ideal"], gains["found"], strict=True))
    assert [one["rows"] for one in lift] == [30] * 10
    assert lift[0]["lift"] == pytest.approx(found["decile_lift"])
    assert lift[0]["mean_prediction"] > lift[-1]["mean_prediction"]
    assert set(found["intervals"]) == set(amounts.FIGURES)


def test_amounts_that_cannot_be_judged_are_refused():
    with pytest.raises(NotEnoughDataError, match="one and the same amount in all 3 rows"):
        amounts.amount(np.ones(3), np.arange(3))
    with pytest.raises(DataError, match="1 amounts and 0 predictions that are not finite"):
        amounts.amount(np.array([1, np.nan]), np.ones(2))
    same = amounts.amount(np.array([1.0, 2.0]), np.ones(2))
    assert same["spearman"] == 0.0


@pytest.mark.parametrize("truth", [[0.1, 0.2, -0.3], [0.0, 0.0, -5.0]])
def test_amounts_that_add_up_to_nothing_or_less_have_no_figure_of_the_total(truth):
    found = judge.amount(np.array(truth * 20), np.arange(60.0))
    assert not {"bias", "ngini", "decile_lift"} & (set(found) | set(found["intervals"]))
    assert {"spearman", "rmse", "mae", "mean_truth", "rows"} <= set(found)
    json.dumps(found, allow_nan=False)


def test_figures_of_a_band_without_rows_are_null():
    found = judge.bands(np.array([1.0, 0.0]), np.array([0.9, 0.4]), np.array(["high", "high"]), ("low", "high"))
    assert found["low"] == {"rows": 0, "rate": None, "mean_probability": None}
    assert found["high"] == {"rows": 2, "rate": 0.5, "mean_probability": pytest.approx(0.65)}


def test_segments_are_frequent_values_of_few():
    test = pa.table({
        "entity_id": [str(k) for k in range(120)],
        "country": ["UK"] * 60 + ["FR"] * 55 + ["DE"] * 5,
        "city": [f"city {k}" for k in range(120)],
        "plan": ["one"] * 120,
    })  # fmt: skip
    masks = judge.segments(test)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"country = FR": 55, "country = UK": 60}
