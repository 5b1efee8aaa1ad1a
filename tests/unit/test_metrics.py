"""Figures worked out by hand."""

import numpy as np
import pytest

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import compare, metrics


def test_auc_counts_ordered_pairs_and_half_of_ties():
    # positives .8 and .4, negatives .6, .4, .1: pairs won 3 + 1, one tie of 6
    assert metrics.auc(np.array([1, 1, 0, 0, 0]), np.array([0.8, 0.4, 0.6, 0.4, 0.1])) == pytest.approx(4.5 / 6)


def test_average_precision_is_the_mean_of_precision_at_each_positive():
    # descending 1 0 1 0: precision 1/1 at the first positive, 2/3 at the second
    assert metrics.average_precision(np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(5 / 6)
    # all tied: one step at the base rate
    assert metrics.average_precision(np.array([1, 0, 0, 0]), np.full(4, 0.5)) == pytest.approx(0.25)


def test_logloss_is_clipped_and_brier_is_a_square():
    assert metrics.logloss(np.array([1, 0]), np.array([0.0, 0.5])) == pytest.approx((-np.log(1e-6) + np.log(2)) / 2)
    assert metrics.brier(np.array([1, 0]), np.array([0.7, 0.5])) == pytest.approx((0.09 + 0.25) / 2)


def test_expected_calibration_error():
    # bin [.2,.3): 2 rows, mean p .25, share 1/2, gap .25; bin [.9,1]: 2 rows incl. p = 1, mean .95, share 1, gap .05
    y, p = np.array([1, 0, 1, 1]), np.array([0.2, 0.3 - 1e-12, 0.9, 1.0])
    assert metrics.expected_calibration_error(y, p) == pytest.approx((0.25 + 0.05) / 2)


def test_f1_threshold_takes_the_highest_of_equal_ones():
    # >= .9: tp 1, said 1, F1 2/(1+2); >= .8: tp 1, said 2, 2/4; >= .3: tp 2, said 3, 4/5; >= .1: 4/6
    y, p = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1])
    assert metrics.f1_threshold(y, p) == 0.3
    figures = metrics.at_threshold(y, p, 0.3)
    assert figures == pytest.approx({"accuracy": 0.75, "precision": 2 / 3, "recall": 1.0, "f1": 0.8})
    # F1 is 2/3 at both .9 (1 of 1, of 2) and .2 (2 of 4, of 2)
    assert metrics.f1_threshold(np.array([1, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.2])) == 0.9


def test_undefined_and_broken_input_is_refused():
    with pytest.raises(NotEnoughDataError, match="0 positives in 2 rows"):
        metrics.binary(np.zeros(2), np.zeros(2))
    with pytest.raises(DataError, match="1 scores that are not finite"):
        metrics.auc(np.array([0, 1]), np.array([np.nan, 1]))
    with pytest.raises(DataError, match="other than 0 and 1"):
        metrics.auc(np.array([0, 2]), np.array([0.1, 1]))


def test_top_share():
    assert metrics.top_share(np.array([1, 0, 0, 1]), np.array([0.9, 0.8, 0.2, 0.1]), 0.25) == {
        "lift": 2.0,
        "recall": 0.5,
    }


def test_ranking_figures():
    ranked = np.array([["a", "b", "c"], ["a", "b", None], ["x", "y", "z"]], dtype=object)
    truth = [{"b"}, ["a", "b", "q", "r"], {"w"}]
    rows = metrics.ranking_rows(ranked, truth, k=3)
    assert rows["hr"].tolist() == [1, 1, 0]
    assert rows["recall"] == pytest.approx([1, 2 / 4, 0])
    assert rows["mrr"] == pytest.approx([1 / 2, 1, 0])
    log3 = 1 / np.log2(3)
    assert rows["ndcg"] == pytest.approx([log3, (1 + log3) / (1 + log3 + 1 / 2), 0])
    assert metrics.coverage(ranked, num_items=10) == pytest.approx(6 / 10)  # a b c x y z; None is no item
    codes = metrics.ranking_rows(np.array([[4, -1], [5, 6]]), [[4], [4]], k=2)
    assert codes["hr"].tolist() == [1, 0]
    with pytest.raises(DataError, match="not empty"):
        metrics.ranking_rows(ranked, [{"a"}, set(), {"b"}])


def test_bootstrap_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=400)
    low, high = metrics.bootstrap_ci(metrics.mean_figure(values), 400)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_weights_are_repeated_rows():
    rng = np.random.default_rng(3)
    y, p, w = rng.integers(0, 2, 50), rng.integers(0, 9, 50) / 9, rng.integers(0, 4, 50)
    for make in (metrics.auc_figure, metrics.average_precision_figure, lambda y, p: metrics.mean_figure((p - y) ** 2)):
        repeated = make(np.repeat(y, w), np.repeat(p, w))(np.ones(w.sum()))
        assert make(y, p)(w.astype(float)) == pytest.approx(repeated)


def test_paired_bootstrap_tells_better_from_the_same():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    weak, strong = y + rng.normal(size=600) * 3, y + rng.normal(size=600)
    before, after = metrics.auc_figure(y, weak), metrics.auc_figure(y, strong)
    found = compare.paired_bootstrap(before, after, 600)
    assert (found.verdict, found.rows) == ("better", 600)
    assert found.gain == pytest.approx(metrics.auc(y, strong) - metrics.auc(y, weak))
    assert found.p_value < 0.01
    assert compare.paired_bootstrap(after, before, 600).verdict == "worse"
    same = compare.paired_bootstrap(after, metrics.auc_figure(y, strong * 2.0), 600)
    assert (same.gain, same.verdict, same.p_value) == (0.0, "no difference", 1.0)
    ones, zeros = (metrics.mean_figure(values) for values in (np.ones(50), np.zeros(50)))
    errors = compare.paired_bootstrap(ones, zeros, 50, mode="min")
    assert (errors.gain, errors.verdict) == (1.0, "better")
