"""Recommendation: answers of a fitted model that say where they come from, and what rules and options do to them."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from shop import AS_OF, SETTINGS, by_customer, now, org, with_lines, with_products

from crmray import schema
from crmray.data.product_facts import Facts, attach
from crmray.errors import DataError
from crmray.models import ranking
from crmray.models.histories import Catalogue
from crmray.models.rules import Rules
from crmray.tasks import recommendation
from crmray.tasks.recommendation import Request


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
    later = with_lines(org(), ("new-uk", 2, "tea0", 1.0, 2.0))
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
    later = with_lines(org(), ("c01", 2, "tea9", 1.0, 2.0), ("c00", 2, "tea9", 1.0, 2.0))
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
    assert (answer["entity_id"], answer["source"]) == ("tea1", "similar")
    new = described["transactions"]
    new = new.set_column(new.schema.get_field_index("product_id"), "product_id", [["tea9"]])
    rows = now({**described, "transactions": new})
    options = Request(similar_to="tea9", num_products=3).options()
    answer = recommendation.predict(model, decision, rows, explain=True, **options).to_pylist()[0]
    assert (answer["entity_id"], answer["source"]) == ("tea9", "similar")
    assert answer["reasons"][0] == "goes with it"  # nobody bought it: by its name
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
    there = with_products(org(), in_stock=lambda product: product != "tea1")
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
        with pytest.raises(
            DataError, match=rf"^{option}: got product 'gone', expected the id of one of the 8 products"
        ):
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
    there = with_products(org(), in_stock=lambda product: product not in ("tea0", "wine0"))
    settings = SETTINGS.model_copy(update={"stock_column": "in_stock", "exclude_products": ["wine2"]})
    decision = recommendation.finalize(model, rows, rows, settings)
    answers = recommendation.predict(model, decision, now(there, settings), num_products=9)
    shown = {product for row in answers["products"].to_pylist() for product in row}
    assert not shown & {"tea0", "wine0", "wine2"}
    assert {"tea1", "wine1"} <= shown


def test_caps_and_diversity_reorder_a_list(fitted):
    model, decision, _ = fitted
    rows = now(with_products(org(), category=lambda product: product.rstrip("0123456789")))
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
    assert said["userknn"] == "bought by others with similar purchases"
    assert said["content"].startswith("like tea")
    assert said["als"] == "fits what was bought"
