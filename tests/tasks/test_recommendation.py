"""Recommendation: the rows of both protocols by hand, figures by hand, and answers that say where they come from."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from crmray import schema
from crmray.data.product_facts import Facts, attach
from crmray.errors import DataError, NotEnoughDataError
from crmray.models import content, ranking
from crmray.models.histories import Catalogue
from crmray.models.neighbours import Popularity
from crmray.models.rules import Rules
from crmray.tasks import recommendation
from crmray.tasks.recommendation import Request, Settings
from crmray.train import rows as training_rows

AS_OF = datetime(2024, 6, 1, tzinfo=timezone.utc)
SETTINGS = Settings(horizon_days=30, lookback_days=100)


def tables(lines: list[tuple], **others: pa.Table) -> dict[str, pa.Table]:
    """lines: (customer, days from AS_OF, product, units, amount)."""
    names = ("entity_id", "occurred_at", "product_id", "num_units", "net_amount")
    lines = [(who, AS_OF + timedelta(days=day), what, units, amount) for who, day, what, units, amount in lines]
    columns = dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))
    found = schema.check("transactions", pa.table(columns)).select(list(names))
    return {"transactions": found.sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")]), **others}


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


def by_customer(rows: pa.Table) -> dict[str, dict]:
    return {row["entity_id"]: row for row in rows.to_pylist()}


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


def org() -> dict[str, pa.Table]:
    """British customers buy tea, French ones wine; both buy bread. A new tea was launched lately."""
    rng = np.random.default_rng(0)
    lines, people = [], []
    for number in range(60):
        who, country = f"c{number:02d}", "UK" if number % 2 else "FR"
        own = [f"tea{i}" for i in range(4)] if country == "UK" else [f"wine{i}" for i in range(4)]
        for day, what in zip((-60, -45, -12, 3, 8), [*rng.permutation(own), "bread"], strict=True):
            lines.append((who, day, str(what), 1.0, 2.0))
        people.append((who, country))
    people += [("new-uk", "UK"), ("new-xx", None)]
    customers = schema.check(
        "customers", pa.table({"entity_id": [p[0] for p in people], "country": [p[1] for p in people]})
    )
    ids = ["bread", "tea0", "tea1", "tea2", "tea3", "wine0", "wine1", "wine2", "wine3", "tea9", "tea-old", "tea-off"]
    launched = [AS_OF - timedelta(days=5 if i in ("tea9", "tea-off") else 900) for i in ids]
    products = pa.table(
        {
            "product_id": ids,
            "name": [f"{i.rstrip('0123456789')} no {i}" for i in ids],
            "launched_at": pa.array(launched, schema.TIME),
            "active": [i != "tea-off" for i in ids],
        }
    )
    return tables(
        lines, customers=customers.select(["entity_id", "country"]), products=schema.check("products", products)
    )


def now(tables: dict[str, pa.Table], settings: Settings = SETTINGS) -> pa.Table:
    """The rows of the present."""
    return recommendation.examples(tables, AS_OF, settings, labels=False)


@pytest.fixture(scope="module")
def fitted():
    rows = recommendation.examples(org(), AS_OF, SETTINGS, labels=True)
    candidate = recommendation.CANDIDATES["ease"](l2=5.0)
    model = candidate.fit(rows, None, seed=0)
    return model, recommendation.finalize(model, rows, rows, SETTINGS), rows


def test_answers_say_where_they_come_from(fitted):
    model, decision, rows = fitted
    assert list(decision["lifts"]["columns"]) == ["customer_country"]
    answers = by_customer(recommendation.predict(model, decision, rows, explain=True, num_products=3))
    assert answers["c01"]["source"] == "personal"
    assert answers["c01"]["products"][0].startswith("tea")  # the fourth tea: three are owned
    assert answers["c01"]["reasons"][0].startswith("bought with tea")
    assert answers["new-uk"]["source"] == "content"
    assert all(product.startswith("tea") for product in answers["new-uk"]["products"])
    assert answers["new-uk"]["reasons"][0] == "bought by similar customers"
    assert answers["new-xx"]["source"] == "popular"
    assert answers["new-xx"]["reasons"] == ["popular now"] * 3


def test_new_products_stand_apart_and_are_like_what_was_bought(fitted):
    model, decision, _ = fitted
    answers = by_customer(recommendation.predict(model, decision, now(org())))
    assert answers["c01"]["new_products"] == ["tea9"]  # not the old one, not the inactive one
    assert "tea9" not in answers["c01"]["products"]
    assert answers["new-uk"]["new_products"] == []


def test_excluded_products_are_not_shown(fitted):
    model, decision, rows = fitted
    rows = now(org())
    first = by_customer(recommendation.predict(model, decision, rows))["c01"]
    barred = [first["products"][0], "tea9", "no such product"]
    answers = by_customer(recommendation.predict(model, decision, rows, exclude=barred))
    assert answers["c01"]["products"] == first["products"][1:]
    assert answers["c01"]["new_products"] == []
    options = Request(id="c01", num_products=2, exclude=["bread"]).options()
    assert {"num_products": 2, "exclude": ["bread"]}.items() <= options.items()
    for wrong in (0, 101):
        with pytest.raises(ValidationError):
            Request(id="c01", num_products=wrong)


def test_the_report_tells_customers_without_purchases_apart(fitted):
    model, decision, _ = fitted
    later = org()
    more = tables([("new-uk", 2, "tea0", 1.0, 2.0)])["transactions"]
    later["transactions"] = pa.concat_tables([later["transactions"], more]).sort_by(
        [("entity_id", "ascending"), ("occurred_at", "ascending")]
    )
    test = recommendation.examples(later, AS_OF, SETTINGS, labels=True)
    figures = recommendation.evaluate(model, decision, test, SETTINGS)
    assert figures["rows"] == 60
    assert figures["cold"]["rows"] == 1
    assert figures["cold"]["hr10"] == 1.0
    assert figures["sources"] == {"personal": 60, "content": 1, "popular": 1}
    low, high = figures["ndcg10_interval"]
    assert low <= figures["ndcg10"] <= high
    assert figures["new_products"] == {"rows": 0, "hr10": None, "ndcg10": None}
    assert figures["targets_unknown"] == pytest.approx(60 / 121)  # nobody had bought bread before


def test_the_report_tells_new_products_apart(fitted):
    model, decision, _ = fitted
    later = org()
    more = tables([("c01", 2, "tea9", 1.0, 2.0), ("c00", 2, "tea9", 1.0, 2.0)])["transactions"]
    later["transactions"] = pa.concat_tables([later["transactions"], more]).sort_by(
        [("entity_id", "ascending"), ("occurred_at", "ascending")]
    )
    test = recommendation.examples(later, AS_OF, SETTINGS, labels=True)
    figures = recommendation.evaluate(model, decision, test, SETTINGS)
    assert figures["new_products"]["rows"] == 2
    assert figures["new_products"]["hr10"] == 1.0  # it is the only new product
    assert figures["targets_unknown"] > 0


def test_what_goes_with_a_product(fitted):
    model, decision, _ = fitted
    request = Request(similar_to="tea1", num_products=2)
    assert request.described == {"transactions": [{"product_id": "tea1", "occurred_at": "1970-01-02T00:00:00Z"}]}
    described = dict(org())
    moment = datetime(1970, 1, 2, tzinfo=timezone.utc)
    line = {"entity_id": ["inline"], "product_id": ["tea1"], "occurred_at": [moment]}
    described["transactions"] = schema.check("transactions", pa.table(line))
    described["customers"] = described["customers"].slice(0, 0)
    rows = now(described)
    answer = recommendation.predict(model, decision, rows, explain=True, **request.options()).to_pylist()[0]
    assert [product[:3] for product in answer["products"]] == ["tea", "tea"]
    assert "tea1" not in answer["products"]
    assert answer["reasons"][0] == "bought with tea no tea1"
    new = described["transactions"]
    new = new.set_column(new.schema.get_field_index("product_id"), "product_id", [["tea9"]])
    rows = now({**described, "transactions": new})
    answer = recommendation.predict(model, decision, rows, similar_to="tea9", num_products=3).to_pylist()[0]
    assert answer["source"] == "content"  # nobody bought it: by its name
    assert all(product.startswith("tea") for product in answer["products"])
    with pytest.raises(ValidationError, match="expected exactly one"):
        Request(id="c01", similar_to="tea1")


def test_customers_for_a_product(fitted):
    model, decision, _ = fitted
    rows = now(org())
    found = recommendation.customers_for(model, decision, rows, "tea1", num_customers=5)
    assert found.num_rows == 5
    answers = by_customer(recommendation.predict(model, decision, rows, for_product="tea1"))
    bought = {row["entity_id"]: row["history"] for row in rows.to_pylist()}
    for who in found["entity_id"].to_pylist():
        assert int(who[1:]) % 2 == 1  # a British customer, who buys tea
        assert "tea1" not in bought[who]
        assert answers[who]["place"] == answers[who]["products"].index("tea1") + 1
    owner = next(who for who, history in bought.items() if "tea1" in history)
    assert answers[owner]["place"] is None


def test_nobody_is_found_for_a_product_that_may_not_be_shown(fitted):
    model, decision, _ = fitted
    there = org()
    stock = [product != "tea1" for product in there["products"]["product_id"].to_pylist()]
    there["products"] = there["products"].append_column("in_stock", pa.array(stock))
    empty = now(there, SETTINGS.model_copy(update={"stock_column": "in_stock"}))
    assert recommendation.customers_for(model, decision, empty, "tea1").num_rows == 0
    rows, rules = now(org()), {**decision["rules"], "exclude": ["tea1"]}
    assert recommendation.customers_for(model, decision, rows, "tea1").num_rows > 30
    assert recommendation.customers_for(model, {**decision, "rules": rules}, rows, "tea1").num_rows == 0
    for row in recommendation.predict(model, decision, rows, for_product="tea2", exclude=["tea2"]).to_pylist():
        assert row["place"] is None


def test_an_unknown_product_gets_one_clear_message(fitted):
    model, decision, rows = fitted
    for option in ("similar_to", "for_product"):
        with pytest.raises(DataError, match="got product 'gone', expected the id of one of the 8 products"):
            recommendation.predict(model, decision, rows, **{option: "gone"})


def test_more_products_than_there_are_and_none_that_is_left(fitted):
    model, decision, _ = fitted
    rows = now(org())
    answers = by_customer(recommendation.predict(model, decision, rows, num_products=100))
    assert len(answers["c01"]["products"]) == 8 - len(set(rows.to_pylist()[1]["history"]))
    assert len(answers["c01"]["scores"]) == len(answers["c01"]["products"])
    everything = recommendation.predict(model, decision, rows, exclude=list(model.catalogue.items), explain=True)
    assert everything["products"].to_pylist() == [[]] * rows.num_rows
    assert everything["reasons"].to_pylist() == [[]] * rows.num_rows


def test_what_is_out_of_stock_or_excluded_by_the_org_is_not_shown(fitted):
    model, _, rows = fitted
    there = org()
    stock = [product not in ("tea0", "wine0") for product in there["products"]["product_id"].to_pylist()]
    there["products"] = there["products"].append_column("in_stock", pa.array(stock))
    settings = SETTINGS.model_copy(update={"stock_column": "in_stock", "exclude_products": ["wine2"]})
    decision = recommendation.finalize(model, rows, rows, settings)
    answers = recommendation.predict(model, decision, now(there, settings), num_products=9)
    shown = {product for row in answers["products"].to_pylist() for product in row}
    assert not shown & {"tea0", "wine0", "wine2"}
    assert {"tea1", "wine1"} <= shown


def test_caps_and_diversity_reorder_a_list(fitted):
    model, decision, _ = fitted
    there = org()
    kinds = [product.rstrip("0123456789") for product in there["products"]["product_id"].to_pylist()]
    place = there["products"].schema.get_field_index("category")
    there["products"] = there["products"].set_column(place, "category", pa.array(kinds))
    rows = now(there)
    answers = recommendation.predict(model, decision, rows, max_per_category=1, num_products=9)
    for products in answers["products"].to_pylist():
        found = [product.rstrip("0123456789") for product in products]
        assert len(found) == len(set(found))
    with pytest.raises(DataError, match="no product has a category"):
        recommendation.predict(model, decision, now(org()), max_per_category=1)


def test_caps_hold_among_new_products_too(fitted):
    model, decision, _ = fitted
    rows = pa.table({"product_id": ["n1", "n2", "n3"], "category": ["x", "x", "y"], "name": ["tea", "tea", "tea"]})
    history = pa.array([["tea0"], []], pa.list_(pa.string()))
    head = {"entity_id": ["a", "b"], "as_of": pa.array([AS_OF] * 2, schema.TIME), "history": history}
    head |= {"history_days_before": pa.array([[3.0], []], pa.list_(pa.float32())), "exclude_owned": [True, True]}
    head["new_products"] = pa.array([["n2", "n1", "n3"], []], pa.list_(pa.string()))
    head["customer_country"] = pa.array([None, None], pa.string())
    rows = attach(pa.table(head), rows, stock_column=None, is_now=True)
    assert recommendation.predict(model, decision, rows)["new_products"].to_pylist() == [["n2", "n1", "n3"], []]
    capped = recommendation.predict(model, decision, rows, max_per_category=1)
    assert capped["new_products"].to_pylist() == [["n2", "n3"], []]


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
    there = org()
    launched = [AS_OF - timedelta(days=d) for d in (900,) * 9 + (20, 900, 900)]  # tea9 between the two dates
    place = there["products"].schema.get_field_index("launched_at")
    there["products"] = there["products"].set_column(place, "launched_at", pa.array(launched, schema.TIME))
    dates = (AS_OF - timedelta(days=31), AS_OF)
    train = pa.concat_tables([recommendation.examples(there, date, SETTINGS, labels=True) for date in dates])
    fit = recommendation.CANDIDATES["content"]().fit
    assert "tea9" in fit(train, None, seed=0).catalogue.items
    early = train.filter(pc.equal(train["as_of"], pa.scalar(dates[0], schema.TIME)))
    assert "tea9" not in fit(early, None, seed=0).catalogue.items


def test_a_list_is_the_same_alone_and_beside_one_that_runs_out():
    """Two rows over six products: at a pool of three, rules leave enough for the first and too few for the other."""
    names = ["tea", "tea", "wine", "milk", "milk", "milk"]
    products = pa.table({"product_id": list("abcdef"), "name": names, "category": ["x", "y", "y", "x", "x", "y"]})
    head = {"history": pa.array([[], ["b", "f"]], pa.list_(pa.string())), "exclude_owned": [True, True]}
    rows = attach(pa.table(head), products, stock_column=None, is_now=True)
    catalogue = Catalogue.named(list("abcdef"))
    score = {0: [1.0, 0.9, 0.5, 0.4, 0.3, -9.0], 2: [1.0, 0.0, 0.0, 0.9, 0.8, 0.0]}

    def lists(part: pa.Table) -> list:
        return ranking.lists(
            lambda block: np.array([score[len(own)] for own in block["history"].to_pylist()], np.float32), catalogue,
            part, 2, Rules(max_per_category=1, diversity=0.3), Facts.of(part), [], pool=3,
        )  # fmt: skip

    assert [names for names, _ in lists(rows)] == [["a", "b"], ["a", "c"]]
    # scaled over all six products b and c would lie closely together, and c, which is unlike a, would be shown
    assert lists(rows) == [*lists(rows.slice(0, 1)), *lists(rows.slice(1, 1))]


def test_products_that_do_not_match_are_shown_by_no_model():
    settings = SETTINGS.model_copy(update={"products_matching": "^(tea[0-3]|wine)"})
    rows = recommendation.examples(org(), AS_OF, settings, labels=True)
    model = recommendation.CANDIDATES["content"]().fit(rows, None, seed=0)
    assert {"tea0", "wine0"} <= set(model.catalogue.items)
    assert not {"bread", "tea9", "tea-old"} & set(model.catalogue.items)
    assert set(now(org(), settings)["new_products"].to_pylist()[1]) == set()


def test_reasons_are_words_of_the_models():
    rows = recommendation.examples(org(), AS_OF, SETTINGS, labels=True)
    said = {}
    for name in ("ease", "userknn", "content", "als"):
        model = recommendation.CANDIDATES[name]().fit(rows, None, seed=0)
        decision = {"lifts": {}, "rules": {}}
        decision["rules"] = {"exclude": [], "max_per_category": None, "diversity": 0.0}
        answers = by_customer(recommendation.predict(model, decision, rows, explain=True, num_products=1))
        said[name] = answers["c01"]["reasons"][0]
    assert said["ease"].startswith("bought with ")
    assert said["userknn"] == "others like you buy it"
    assert said["content"].startswith("like tea")
    assert said["als"] == "fits what was bought"
