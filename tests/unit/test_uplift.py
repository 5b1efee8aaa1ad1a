"""Qini by hand, meta-learners on a planted effect, the line of effects, balance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import uplift
from crmray.models.uplift import ClassTransformation, SLearner, TLearner, TreatAll, XLearner


def test_the_qini_area_by_hand():
    # by score: treated yes, control no, treated no, control yes; N1 = 2
    treated, y, score = np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1]), np.array([4.0, 3.0, 2.0, 1.0])
    # q: 1 (no control row yet), 1 - 0 · 1/1, 1 - 0 · 2/1, 1 - 1 · 2/2; over N1: .5 .5 .5 0
    assert uplift.qini_area(treated, y, score) == pytest.approx((0.5 + 0.5 + 0.5 + 0.0) / 4 - 0.0 / 2)
    curve = uplift.qini_curve(treated, y, score)
    assert curve["gain"] == [0.0, 0.5, 0.5, 0.5, 0.0]
    assert curve["random"] == [0.0] * 5


def test_ties_stay_in_row_order_and_weights_repeat_rows():
    treated, y = np.array([1, 0, 1, 0]), np.array([1, 0, 0, 0])
    level = uplift.qini_area(treated, y, np.array([1.0, 1.0, 0.0, 0.0]))
    assert level == uplift.qini_area(treated, y, np.array([4.0, 3.0, 2.0, 1.0]))
    figure = uplift.qini_figure(treated, y, np.array([1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(figure(np.array([1.0, 0.0, 1.0, 0.0])))


def test_a_score_that_ranks_nobody_has_no_area():
    lucky = uplift.qini_area(np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert lucky > 0
    level = uplift.qini_figure(np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1]), np.full(4, 0.5))
    assert level(np.ones(4)) == 0.0
    assert np.isnan(level(np.array([1.0, 0.0, 1.0, 0.0])))  # no control row: nothing is known of any score


def test_refusals():
    with pytest.raises(NotEnoughDataError, match="expected both arms"):
        uplift.qini_area(np.ones(3), np.ones(3), np.zeros(3))
    with pytest.raises(DataError, match="not finite"):
        uplift.qini_area(np.array([1, 0]), np.array([1, 0]), np.array([np.nan, 0.0]))


def test_deciles_by_hand():
    treated = np.tile([1, 0], 10)
    y = np.where(np.arange(20) < 10, treated, 0)
    found = uplift.by_decile(treated, y, -np.arange(20.0), num_groups=2)
    told = [(group["rows"], group["treated"], group["control"], group["uplift"]) for group in found]
    assert told == [(10, 1.0, 0.0, 1.0), (10, 0.0, 0.0, 0.0)]


def planted(n: int = 4000, seed: int = 0, share: float = 0.5) -> tuple[pa.Table, np.ndarray]:
    """x > 0 gains 0.3 by the treatment, the others lose 0.1; z moves the outcome alone."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(2, n))
    effect = np.where(x > 0, 0.3, -0.1)
    treated = rng.random(n) < share
    p = 0.3 + 0.2 * (z > 0) + effect * treated
    columns = {"entity_id": np.arange(n).astype(str), "label": (rng.random(n) < p).astype(np.int8)}
    return pa.table({**columns, "label_treated": treated.astype(np.int8), "x": x, "z": z}), effect


@pytest.mark.parametrize("learner", [SLearner, TLearner, XLearner, ClassTransformation])
@pytest.mark.parametrize("base", ["lightgbm", "linear"])
def test_learners_find_who_is_moved(learner, base):
    rows, _ = planted(share=0.7)
    later, effect = planted(seed=1, share=0.7)
    model = learner(base=base, num_leaves=8).fit(rows, None, seed=0)
    found = model.predict(later)["uplift"]
    if (learner, base) != (SLearner, "linear"):  # one straight line for both arms has one effect in log odds
        assert np.corrcoef(found, effect)[0, 1] > 0.7
        assert found.mean() == pytest.approx(0.1, abs=0.05)
    again = learner.load(model.save()).predict(later)
    assert all(np.array_equal(values, again[name]) for name, values in model.predict(later).items())


def test_treating_all_is_the_average_effect():
    rows, _ = planted()
    model = TreatAll().fit(rows, None, seed=0)
    treated, label = rows["label_treated"].to_numpy(), rows["label"].to_numpy()
    assert model.predict(rows)["uplift"][0] == pytest.approx(uplift.average_effect(treated, label))
    assert TreatAll.load(model.save()).predict(rows)["p_control"][0] == pytest.approx(label[treated == 0].mean())


def test_the_line_of_effects_shrinks_a_score_that_says_too_much():
    rows, effect = planted(20_000)
    treated, label = rows["label_treated"].to_numpy(), rows["label"].to_numpy()
    true = uplift.effect_line(treated, label, effect)
    assert true["slope"] == pytest.approx(1.0, abs=0.15)
    loud = uplift.effect_line(treated, label, 4 * effect)
    assert loud["slope"] == pytest.approx(0.25, abs=0.05)
    noise = uplift.effect_line(treated, label, np.random.default_rng(5).normal(size=20_000))
    assert noise["slope"] < 0.02
    level = uplift.effect_line(treated, label, np.full(20_000, 0.1))
    assert level == {"slope": 0.0, "intercept": uplift.average_effect(treated, label)}


def test_balance_by_hand():
    table = pa.table({"x": [1.0, 3.0, 0.0, 2.0], "label": [0, 1, 0, 1]})
    # means 2 and 1, both variances 1
    assert uplift.balance(table, np.array([1, 1, 0, 0])) == {"x": 1.0}
