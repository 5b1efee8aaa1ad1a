"""Features left out with a reason, features that are too good to be true, and focal loss: facts worked out by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import metrics
from crmray.models import focal, selection
from crmray.models.blend import Blend
from crmray.models.boosting import LightGBM
from crmray.models.labels import Target, class_scores
from crmray.models.linear import Linear
from crmray.models.one_rule import OneRule
from crmray.models.preprocess import Preparation, Tabular
from crmray.models.selection import eliminated, removed_of, suspects
from crmray.models.trees import DecisionTree, RandomForest

PLAIN = (Linear, DecisionTree, RandomForest, LightGBM, OneRule)


def planted(num_rows: int, seed: int) -> pa.Table:
    """The label follows from `cause`; `copy` says the same in other units; five columns are noise."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=num_rows)
    columns = {"entity_id": [f"c{i}" for i in range(num_rows)], "cause": cause, "copy": 3 - 2 * cause}
    columns |= {f"noise_{k}": rng.normal(size=num_rows) for k in range(5)}
    label = rng.random(num_rows) < 1 / (1 + np.exp(-3 * cause))
    return pa.table(columns | {"label": label.astype(np.int8)})


TRAIN, VALIDATION = planted(1500, 0), planted(600, 1)


def test_the_later_of_two_columns_that_say_the_same_is_left_out():
    x = np.arange(12.0)
    table = pa.table({"x": x, "minus": -x, "other": x % 2, "half": np.where(x < 6, x, 0.0)})
    fitted = Tabular.fit(table, Preparation(max_correlation=0.9))
    assert fitted.dropped == {"minus": "correlation -1.000 with 'x'"}
    assert fitted.number_names == ["x", "other", "half"]
    # |r| of x and half is 0.2966: with a lower limit it goes too, and one that was left out is not compared with
    r = abs(np.corrcoef(x, table["half"].to_numpy())[0, 1])
    assert list(Tabular.fit(table, Preparation(max_correlation=r - 0.01)).dropped) == ["minus", "half"]
    assert Tabular.fit(table, Preparation()).dropped == {}
    assert Tabular.from_state(fitted.state()) == fitted


def test_correlation_survives_the_largest_numbers_and_missing_ones():
    x = pa.array([1e300, -1e300, None, 5e299, 0.0, 1e298])
    fitted = Tabular.fit(pa.table({"x": x, "y": x, "z": [1.0, 0, 1, 0, 1, 1]}), Preparation(max_correlation=0.95))
    assert list(fitted.dropped) == ["y"]


def test_recursive_elimination_keeps_the_cause_and_tells_what_it_cost():
    gone = eliminated(TRAIN, "yes_no", seed=0)
    assert "cause" not in gone or "copy" not in gone
    assert {f"noise_{k}" for k in range(5)} <= set(gone)
    assert all("least gain among" in why and "loss over 5 folds" in why for why in gone.values())
    assert eliminated(TRAIN, "yes_no", seed=0) == gone
    assert eliminated(TRAIN.select(["entity_id", "cause", "label"]), "yes_no", seed=0) == {}


def test_the_search_keeps_a_rare_class_among_the_rows_that_it_looks_at(monkeypatch):
    monkeypatch.setattr(selection, "MAX_ROWS", 500)
    rng, label = np.random.default_rng(0), np.zeros(20_000, np.int8)
    label[-3:] = 1
    eliminated(pa.table({"label": label, "x": rng.normal(size=20_000), "y": rng.normal(size=20_000)}), "yes_no", seed=0)


@pytest.mark.parametrize("family", [Linear, DecisionTree, LightGBM])
def test_what_was_left_out_stands_in_the_bundle_and_is_not_asked_for(family):
    model = family(eliminate=True, max_correlation=0.9).fit(TRAIN, VALIDATION, seed=0)
    gone = removed_of(model)[""]
    kept = VALIDATION.drop_columns([name for name in gone if name != "label"])
    assert np.array_equal(model.predict(kept)["score"], model.predict(VALIDATION)["score"])
    again = family.load(model.save())
    assert removed_of(Blend(members={"a": model, "b": again}, weights={"a": 0.5, "b": 0.5})) == {"a": gone, "b": gone}


def test_a_planted_leak_is_found_whether_its_value_or_its_absence_tells():
    rng = np.random.default_rng(0)

    def with_leaks(rows: pa.Table) -> pa.Table:
        yes = rows["label"].to_numpy() == 1
        told = pa.array(np.where(yes, "price", "none"), mask=rng.random(len(yes)) < 0.3)
        filled = pa.array(rng.normal(size=len(yes)), mask=~yes)
        return rows.append_column("reason", told).append_column("closed_days", filled)

    found = suspects(with_leaks(TRAIN), with_leaks(VALIDATION), ("label",))
    assert {name: about["by"] for name, about in found.items()} == {"reason": "value", "closed_days": "missing"}
    assert found["closed_days"] == {
        "label": "label", "by": "missing", "auc": 1.0, "rows_with": int((VALIDATION["label"].to_numpy() == 1).sum()),
        "rows_without": int((VALIDATION["label"].to_numpy() == 0).sum()),
    }  # fmt: skip
    assert suspects(TRAIN, VALIDATION, ("label",)) == {}  # a strong cause is no leak
    assert suspects(with_leaks(TRAIN).slice(0, 9), with_leaks(VALIDATION).slice(0, 9), ("label",)) == {}  # too few rows
    numbers = TRAIN.set_column(TRAIN.num_columns - 1, "label", pa.array(np.ones(1500)))
    assert suspects(numbers, numbers, ("label",)) == {}  # no yes or no


def test_focal_loss_slopes_are_those_of_its_formula_and_gamma_0_is_the_log_loss():
    z, y, step = np.linspace(-3, 3, 7), np.array([0.0, 1, 0, 1, 1, 0, 1]), 1e-5

    def loss(logits):
        given = np.where(y == 1, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))
        return -((1 - given) ** 2) * np.log(given)

    slope, curvature = focal.derivatives(z, y, 2.0)
    assert slope == pytest.approx((loss(z + step) - loss(z - step)) / (2 * step), abs=1e-6)
    assert (curvature >= focal.LEAST_CURVATURE).all()
    p = 1 / (1 + np.exp(-z))
    slope, curvature = focal.derivatives(z, y, 0.0)
    assert slope == pytest.approx(p - y)
    assert curvature == pytest.approx(p * (1 - p))


def test_the_probability_is_recovered_from_what_minimises_the_expected_focal_loss():
    grid = np.linspace(-6, 6, 24_001)
    p = 1 / (1 + np.exp(-grid))
    yes, no = -((1 - p) ** 2) * np.log(p), -(p**2) * np.log(1 - p)
    for truth in (0.02, 0.3, 0.5, 0.9):
        best = p[np.argmin(truth * yes + (1 - truth) * no)]
        assert focal.recovered(np.array([best]), 2.0)[0] == pytest.approx(truth, abs=1e-3)
    assert focal.recovered(p, 0.0) == pytest.approx(p)
    assert (np.diff(focal.recovered(np.linspace(0, 1, 1001), 2.0)) >= 0).all()


def test_focal_boosting_gives_probabilities_not_minimisers():
    plain, focused = (LightGBM(imbalance=how, patience=20).fit(TRAIN, VALIDATION, seed=0) for how in ("none", "focal"))
    y, p = VALIDATION["label"].to_numpy(), focused.predict(VALIDATION)["score"]
    assert metrics.auc(y, p) > 0.87
    assert abs(p.mean() - y.mean()) < 0.04
    assert metrics.logloss(y, p) < metrics.logloss(y, plain.predict(VALIDATION)["score"]) + 0.03
    assert np.array_equal(LightGBM.load(focused.save()).predict(VALIDATION)["score"], p)


@pytest.mark.parametrize("family", PLAIN)
def test_hard_columns_give_a_right_result(family):
    """10,000 categories, a constant, nothing at all, infinite numbers: beside them the cause is still found."""
    rng = np.random.default_rng(0)

    def harder(rows: pa.Table) -> pa.Table:
        n = rows.num_rows
        city = pa.array([f"city {k}" for k in rng.integers(0, 10_000, n)])
        wild = np.where(rng.random(n) < 0.1, np.inf, np.where(rng.random(n) < 0.1, 1e300, rows["cause"].to_numpy()))
        extra = {"city": city, "constant": [1.0] * n, "nothing": pa.nulls(n, pa.float64()), "wild": wild}
        for name, values in extra.items():
            rows = rows.append_column(name, pa.array(values))
        return rows

    train, validation = harder(TRAIN), harder(VALIDATION)
    model = family().fit(train, validation, seed=0)
    score = model.predict(validation)["score"]
    assert np.isfinite(score).all()
    assert metrics.auc(validation["label"].to_numpy(), score) > 0.85
    dropped = removed_of(model).get("", {})
    assert family is OneRule or {"constant", "nothing"} <= set(dropped)


@pytest.mark.parametrize("family", PLAIN)
def test_one_class_is_one_clear_message(family):
    rows = TRAIN.set_column(TRAIN.num_columns - 1, "label", pa.array(np.zeros(1500, np.int8)))
    with pytest.raises(NotEnoughDataError, match="0 rows with 1 and 1500 with 0"):
        family().fit(rows, None, seed=0)


def test_targets_of_every_kind():
    rows = pa.table({"label": ["b", "a"] * 10 + ["rare"] * 9})
    classes = Target.fit(rows, "class")
    assert classes.known(rows).num_rows == 20
    assert classes == Target.from_state(classes.state()) == Target(kind="class", classes=("a", "b"))
    assert classes.values(pa.table({"label": ["b", "new", "a"]})).tolist() == [1, -1, 0]
    assert class_scores(classes.scores(np.array([[0.2, 0.8]])))[0] == ["a", "b"]
    with pytest.raises(NotEnoughDataError, match="got 1 of 2 classes with 10 rows or more"):
        Target.fit(pa.table({"label": ["a"] * 10 + ["b"]}), "class")
    with pytest.raises(DataError, match="got 101 classes, expected at most 100"):
        Target.fit(pa.table({"label": [f"k{k}" for k in range(101)] * 10}), "class")
    with pytest.raises(NotEnoughDataError, match="got 3 in all 2 rows"):
        Target.fit(pa.table({"label": [3.0, 3.0]}), "number")
    with pytest.raises(DataError, match="1 of 2 rows without a value"):
        Target.fit(pa.table({"label": [3.0, None]}), "number")
    for wrong in ({"kind": "amount"}, {"kind": "number", "imbalance": "weights"}, {"imbalance": "focal"}):
        with pytest.raises(ValueError, match="got (kind|imbalance)"):
            DecisionTree(**wrong)


def test_a_tree_is_drawn():
    model = DecisionTree(max_depth=2).fit(TRAIN, None, seed=0)
    drawn = model.pictures()["tree.svg"]
    assert drawn.startswith(b"<?xml")
    assert b"cause" in drawn or b"copy" in drawn
    assert model.pictures()["tree.svg"] == drawn
    assert RandomForest(num_trees=2).fit(TRAIN, None, seed=0).pictures() == {}


def test_a_drawn_tree_names_its_categories():
    label = pa.array([0] * 30 + [1] * 20 + [0] * 20, pa.int8())
    rows = pa.table({"plan": ["basic"] * 30 + ["pro"] * 20 + ["rare"] * 20, "label": label})
    drawn = DecisionTree(min_rows_leaf=5).fit(rows, None, seed=0).pictures()["tree.svg"].decode()
    assert "plan: (other), (missing), basic" in drawn  # codes 0, 1, 2: the most frequent category comes first
    assert "plan &lt;=" not in drawn


def test_one_rule_is_the_mean_by_group_with_a_prior():
    rows = pa.table({"x": [1.0] * 40 + [9.0] * 40, "label": pa.array([0] * 30 + [1] * 50, pa.int8())})
    model = OneRule().fit(rows, None, seed=0)
    # 10 of 40 and 40 of 40, each with 20 rows of the overall rate 50/80
    assert model.predict(pa.table({"x": [1.0, 9.0, None]}))["score"] == pytest.approx([22.5 / 60, 52.5 / 60, 12.5 / 20])
