"""Preprocessing facts worked out by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from crmray.errors import NotEnoughDataError, SchemaError
from crmray.models.columns import feature_columns
from crmray.models.preprocess import Preparation, Tabular

NONE = None


def table(**columns) -> pa.Table:
    return pa.table(columns)


def test_columns_are_told_apart_by_type_and_keys_labels_and_lists_are_no_features():
    t = table(
        entity_id=["a"],
        part=["train"],
        label=[1.0],
        label_amount=[2.0],
        spend=[1.5],
        vip=[True],
        plan=["x"],
        days=[[1.0]],
    )
    assert feature_columns(t.schema) == (["spend", "vip"], ["plan"])
    assert feature_columns(t.schema, labels=("spend",)) == (["vip"], ["plan"])
    with pytest.raises(SchemaError, match=r"'since'.*timestamp"):
        feature_columns(pa.schema([("since", pa.timestamp("us", "UTC"))]))


@pytest.mark.parametrize(("missing", "fill"), [("mean", 4.0), ("median", 2.5), ("mode", 2.0)])
def test_missing_and_infinite_numbers_are_filled_and_flagged(missing, fill):
    t = table(x=[2.0, 2.0, NONE, 3.0, 9.0, float("inf")])  # known: 2 2 3 9
    fitted = Tabular.fit(t, Preparation(missing=missing, scale="none"))
    assert fitted.number_names == ["x", "x_is_missing"]
    assert fitted.numbers(t).tolist() == [[2, 0], [2, 0], [fill, 1], [3, 0], [9, 0], [fill, 1]]
    assert np.isnan(fitted.raw(t)[[2, 5], 0]).all()


def test_bounds_are_the_quartiles_plus_k_iqr_and_spare_a_column_without_spread():
    t = table(x=[0.0, 1.0, 2.0, 3.0, 100.0], mostly_zero=[0, 0, 0, 0, 7])  # quartiles of x: 1 and 3
    fitted = Tabular.fit(t, Preparation(outliers="clip", iqr_k=1.5, scale="none"))
    assert fitted.numbers(t)[:, 0].tolist() == [0, 1, 2, 3, 6]
    assert fitted.numbers(t)[:, 1].tolist() == [0, 0, 0, 0, 7]


def test_scaling():
    t = table(x=[2.0, 4.0, 6.0, 8.0])
    minmax = Tabular.fit(t, Preparation(scale="minmax")).numbers(t)[:, 0]
    assert minmax == pytest.approx([0, 1 / 3, 2 / 3, 1])
    standard = Tabular.fit(t, Preparation(scale="standard")).numbers(t)[:, 0]
    assert standard == pytest.approx(np.array([-3, -1, 1, 3]) / np.sqrt(5))
    skewed = table(x=np.exp(np.random.default_rng(0).normal(size=4001)))
    normal = Tabular.fit(skewed, Preparation(scale="quantile")).numbers(skewed)[:, 0]
    assert np.median(normal) == pytest.approx(0, abs=0.01)
    assert normal.std() == pytest.approx(1, abs=0.03)
    many_zeros = table(
        x=[0.0] * 50 + list(range(1, 51))
    )  # ties take the middle of their ranks: about the 25 % quantile
    zero = Tabular.fit(many_zeros, Preparation(scale="quantile")).numbers(many_zeros)[0, 0]
    assert -3.5 < zero < -0.6


def test_categories_get_codes_by_frequency_and_the_rest_is_unknown():
    t = table(plan=["b"] * 3 + ["a"] * 2 + ["rare", NONE])
    fitted = Tabular.fit(t, Preparation(min_frequency=2))
    new = table(plan=pa.array(["a", "b", "rare", "never seen", NONE]).dictionary_encode())
    assert fitted.codes(new)[:, 0].tolist() == [3, 2, 0, 0, 1]
    assert fitted.num_codes == [4]
    assert fitted.names == ["plan=(other)", "plan=(missing)", "plan=b", "plan=a"]
    assert fitted.matrix(new)[0].tolist() == [0, 0, 0, 1]


def test_columns_without_information_are_dropped_and_listed_and_extra_ones_ignored():
    t = table(same=[1, 1, 1], gone=pa.nulls(3), name=["p", "q", "r"], one=["x"] * 3, x=[1, 2, 3])
    fitted = Tabular.fit(t, Preparation())
    assert fitted.dropped == {"same": "constant", "gone": "constant", "name": "no value has 10 rows", "one": "constant"}
    assert fitted.matrix(table(extra=["?"], x=[2])).shape == (1, 1)


def test_new_data_that_does_not_fit_names_the_column():
    fitted = Tabular.fit(table(x=[1.0, 2.0, NONE], plan=["a", "b", "a"]), Preparation(min_frequency=1))
    with pytest.raises(SchemaError, match="'x' is missing"):
        fitted.matrix(table(plan=["a"]))
    with pytest.raises(SchemaError, match=r"'x'.*string"):
        fitted.matrix(table(x=["1"], plan=["a"]))
    with pytest.raises(SchemaError, match=r"'plan'.*int64"):
        fitted.matrix(table(x=[1.0], plan=[1]))
    with pytest.raises(NotEnoughDataError, match="0 training rows"):
        Tabular.fit(table(x=pa.array([], pa.float64())), Preparation())


@pytest.mark.parametrize("scale", ["none", "minmax", "standard", "quantile"])
def test_state_survives_json_with_the_same_bits(scale):
    rng = np.random.default_rng(1)
    t = table(x=[NONE, *rng.normal(size=99)], plan=rng.choice(["a", "b"], 100))
    fitted = Tabular.fit(t, Preparation(scale=scale, outliers="clip"))
    again = Tabular.from_state(json.loads(json.dumps(fitted.state())))
    assert again == fitted
    assert np.array_equal(again.matrix(t), fitted.matrix(t))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="got scale='log', expected one of none"):
        Preparation(scale="log")
