"""Recommendation: the rows of both protocols, figures and what is learned from few, by hand."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError
from shop import AS_OF, SETTINGS, by_customer, now, org, tables, with_products

from crmray import schema
from crmray.errors import DataError, NotEnoughDataError
from crmray.models import content
from crmray.models.neighbours import Popularity
from crmray.tasks import recommendation
from crmray.tasks.recommendation import Settings
from crmray.train import rows as training_rows

LINES = [
    ("ann", -50, "p1", 1.0, 5.0), ("ann", -40, "p2", 1.0, 5.0), ("ann", -30, "p1", 2.0, 9.0),
    ("ann", -20, "p3", -1.0, -5.0),  # a return
    ("ann", 0, "p4", 1.0, 5.0), ("ann", 5, "p1", 1.0, 5.0), ("ann", 29, "p5", 1.0, 5.0), ("ann", 30, "p6", 1.0, 5.0),
    ("bob", -200, "p1", 1.0, 5.0), ("bob", 3, "p2", 1.0, 5.0),
    ("cat", 4, "p9", 1.0, 5.0),
    ("dan", -10, "gift", 1.0, 5.0), ("dan", 2, "gift", 1.0, 5.0),
]  # fmt: skip
PEOPLE = schema.check(
    "customers", pa.table({"entity_id": ["ann", "cat", "eve"], "created_at": [AS_OF - timedelta(days=1)] * 3})
)


def test_history_ends_before_as_of_and_the_target_is_new():
    rows = by_customer(recommendation.examples(tables(LINES, customers=PEOPLE), AS_OF, SETTINGS, labels=True))
    ann = rows["ann"]
    assert ann["history"] == ["p1", "p2", "p1"]  # oldest first; the return is none
    assert ann["history_days_before"] == [50.0, 40.0, 30.0]
    assert ann["target"] == ["p4", "p5"]  # p1 is owned; day 30 is outside [as_of, as_of + 30)
    assert [rows[who]["audience"] for who in ("ann", "bob", "cat", "eve")] == ["active", "lapsed", "cold", "cold"]
    assert rows["cat"]["history"] == []
    assert rows["cat"]["target"] == ["p9"]
    assert rows["dan"]["target"] == []
    assert rows["eve"]["target"] == []


def test_views_before_as_of_within_the_lookback():
    moments = [AS_OF + timedelta(days=day) for day in (-200, -9, -8, 0, -3)]
    views = {"entity_id": ["ann"] * 4 + ["bob"], "occurred_at": moments, "kind": ["visit"] * 5}
    table = schema.check("engagement", pa.table({**views, "product_id": ["p7", "p8", None, "p9", "p1"]}))
    rows = by_customer(recommendation.examples(tables(LINES, engagement=table), AS_OF, SETTINGS, labels=False))
    assert rows["ann"]["viewed"] == ["p8"]
    assert rows["bob"]["viewed"] == ["p1"]
    assert rows["dan"]["viewed"] == []


def test_without_labels_nothing_of_the_future_is_there():
    blind = recommendation.examples(tables(LINES), AS_OF, SETTINGS, labels=False)
    assert blind["target"].null_count == blind.num_rows
    assert blind["entity_id"].to_pylist() == ["ann", "bob", "dan"]  # cat is not known yet


def test_bought_again_where_that_is_allowed():
    settings = SETTINGS.model_copy(update={"exclude_owned": False})
    rows = by_customer(recommendation.examples(tables(LINES), AS_OF, settings, labels=True))
    assert rows["ann"]["history"] == ["p1", "p2", "p1"]
    assert rows["ann"]["target"] == ["p1", "p4", "p5"]  # by id
    assert rows["dan"]["target"] == ["gift"]


def test_only_products_that_match_and_only_the_newest_of_a_history():
    settings = SETTINGS.model_copy(update={"products_matching": "^p[0-9]$", "history_length": 1})
    rows = by_customer(recommendation.examples(tables(LINES), AS_OF, settings, labels=True))
    assert rows["dan"]["history"] == []
    assert rows["ann"]["history"] == ["p1"]
    with pytest.raises(ValidationError, match="regular expression"):
        Settings(products_matching="(")
    with pytest.raises(ValidationError, match="got training dates"):
        Settings(train_as_of=[AS_OF])


def test_leave_one_out_by_hand():
    lines = [("u", day, what, 1.0, 1.0) for day, what in enumerate("abcd")]
    lines += [("v", 0, "a", 1.0, 1.0), ("v", 1, "b", 1.0, 1.0), ("w", 5, "c", 1.0, 1.0), ("w", 6, "a", 1.0, 1.0)]
    lines += [("w", 7, "c", 1.0, 1.0), ("w", 8, "b", 1.0, 1.0)]
    settings = Settings(protocol="leave_one_out")
    assert not settings.uses_time
    rows = recommendation.examples(tables(lines), None, settings, labels=True)
    told = {(r["entity_id"], r["part"]): (r["history"], r["target"]) for r in rows.to_pylist()}
    assert told == {
        ("u", "train"): (["a", "b"], None),
        ("u", "validation"): (["a", "b"], ["c"]),
        ("u", "test"): (["a", "b", "c"], ["d"]),
        ("v", "train"): (["a", "b"], None),  # two items: in training only
        ("w", "train"): (["c"], None),  # c counts at its first place
        ("w", "validation"): (["c"], ["a"]),
        ("w", "test"): (["c", "a"], ["b"]),
    }
    now = recommendation.examples(tables(lines), None, settings, labels=False)
    assert by_customer(now)["u"]["history"] == list("abcd")


def test_the_temporal_protocol_needs_a_clock():
    with pytest.raises(DataError, match="leave_one_out"):
        recommendation.examples(tables(LINES), None, SETTINGS, labels=True)


def test_training_rows_are_those_before_validation_and_for_the_refit_those_before_the_test():
    settings = Settings(as_of=AS_OF, validation_as_of=AS_OF - timedelta(days=31), horizon_days=30)
    dates = recommendation.dates(settings, (AS_OF - timedelta(days=300), AS_OF + timedelta(days=60)))
    assert dates.train == (AS_OF - timedelta(days=31), AS_OF)
    table = pa.concat_tables([recommendation.examples(tables(LINES), d, settings, labels=True) for d in dates.train])
    seen = table.filter(pa.array(training_rows.splits.selection(table["as_of"], dates)))
    assert pc.unique(seen["as_of"]).to_pylist() == [AS_OF - timedelta(days=31)]
    again = table.filter(pa.array(training_rows.splits.refit(table["as_of"], dates)))
    model = Popularity(window_days=None).fit(again, None, seed=0)
    assert dict(zip(model.catalogue.items, model.catalogue.buyers, strict=True)) == {"p1": 2, "p2": 1, "gift": 1}


def labelled(targets: list[list[str]], audience: list[str]) -> pa.Table:
    return pa.table({"target": pa.array(targets, pa.list_(pa.string())), "audience": audience})


def test_figures_by_hand():
    truth = labelled([["a", "b"], ["z"], [], ["a"]], ["active", "active", "active", "lapsed"])
    products = np.full((4, 10), None, dtype=object)
    products[0, :3], products[1, 0], products[2, 0], products[3, 0] = ["x", "a", "b"], "y", "a", "a"
    figures = recommendation.score(truth, {"products": products})
    ndcg = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert figures == pytest.approx({"hr10": 0.5, "ndcg10": ndcg / 2, "recall10": 0.5, "mrr10": 0.25, "rows": 2})
    hits = np.zeros((4, 10))
    hits[0, 1:3] = 1
    assert recommendation.score(truth, {"hits": hits}) == pytest.approx(figures)
    with pytest.raises(NotEnoughDataError, match="none bought in the lookback"):
        recommendation.score(truth.slice(2, 2), {"products": products[2:]})


def test_attributes_of_few_customers_and_single_purchases_lift_nothing():
    def train(countries: list[str], histories: list[list[str]]) -> pa.Table:
        days = [[1.0] * len(history) for history in histories]
        return pa.table(
            {
                "entity_id": [f"c{i}" for i in range(len(countries))],
                "as_of": pa.array([AS_OF] * len(countries), schema.TIME),
                "target": pa.nulls(len(countries), pa.list_(pa.string())),
                "history": pa.array(histories, pa.list_(pa.string())),
                "history_days_before": pa.array(days, pa.list_(pa.float32())),
                "exclude_owned": [True] * len(countries),
                "customer_country": countries,
            }
        )

    # 20 British customers, 10 French ones, 9 Swiss ones with purchases and 5 without
    countries = ["UK"] * 20 + ["FR"] * 10 + ["CH"] * 14
    bought = [["tea"]] * 20 + [["tea"]] * 4 + [["wine"]] * 5 + [["rare"]] + [["wine"]] * 9 + [[]] * 5
    found = content.lifts(train(countries, bought))
    assert found["products"] == ["tea", "wine", "rare"]
    told = found["columns"]["customer_country"]
    assert set(told) == {"UK", "FR"}
    # France: of 10 purchases 6.15 teas were expected and 4 are too few to tell: 5; one rare product lifts nothing
    tea, wine = 24 / 39, 14 / 39
    ratios = [(5 + 50 * tea) / 60 / tea, (5 + 50 * wine) / 60 / wine, 1.0]
    assert told["FR"] == pytest.approx(np.log(ratios).tolist(), abs=1e-4)
    assert told["UK"][2] == 0.0


def test_the_refit_knows_the_products_launched_until_its_last_date():
    lately = {"tea9": AS_OF - timedelta(days=20)}  # between the two dates
    there = with_products(org(), launched_at=lambda product: lately.get(product, AS_OF - timedelta(days=900)))
    dates = (AS_OF - timedelta(days=31), AS_OF)
    train = pa.concat_tables([recommendation.examples(there, date, SETTINGS, labels=True) for date in dates])
    fit = recommendation.CANDIDATES["content"]().fit
    assert "tea9" in fit(train, None, seed=0).catalogue.items
    early = train.filter(pc.equal(train["as_of"], pa.scalar(dates[0], schema.TIME)))
    assert "tea9" not in fit(early, None, seed=0).catalogue.items


def test_products_that_do_not_match_are_shown_by_no_model():
    settings = SETTINGS.model_copy(update={"products_matching": "^(tea[0-3]|wine)"})
    rows = recommendation.examples(org(), AS_OF, settings, labels=True)
    model = recommendation.CANDIDATES["content"]().fit(rows, None, seed=0)
    assert {"tea0", "wine0"} <= set(model.catalogue.items)
    assert not {"bread", "tea9", "tea-old"} & set(model.catalogue.items)
    assert set(now(org(), settings)["new_products"].to_pylist()[1]) == set()
