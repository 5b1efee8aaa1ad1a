"""Business rules over a ranking, and what is known of products."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmray.data.product_facts import Facts, attach
from crmray.errors import DataError, SchemaError
from crmray.models import content
from crmray.models.rules import Rules
from crmray.schema import TIME

AS_OF = datetime(2024, 6, 1, tzinfo=timezone.utc)
PRODUCTS = pa.table(
    {
        "product_id": ["t1", "t2", "t3", "w1", "w2", "n1"],
        "name": ["green tea", "green tea", "green tea", "red wine", "white wine", None],
        "category": ["tea", "tea", "tea", "wine", "wine", None],
        "active": [True, None, True, False, True, True],
        "num_in_stock": [3, None, 0, 5, 1, 2],
        "launched_at": pa.array([AS_OF - timedelta(days=d) for d in (900, 900, 900, 900, 10, -1)], TIME),
    }
)


def facts(*, is_now: bool = True, stock_column: str | None = None, products: pa.Table | None = PRODUCTS) -> Facts:
    rows = attach(pa.table({"as_of": pa.array([AS_OF], TIME)}), products, stock_column=stock_column, is_now=is_now)
    return Facts.of(rows)


def chosen(rules: Rules, names: list[str], top_k: int = 3) -> list[str]:
    scores = np.linspace(1.0, 0.0, len(names))
    return [names[i] for i in rules.choose(names, scores, top_k, facts())]


def test_without_rules_the_best_are_shown():
    assert chosen(Rules(), ["t1", "t2", "w1", "t3"]) == ["t1", "t2", "w1"]
    assert chosen(Rules(), ["t1"]) == ["t1"]
    assert chosen(Rules(max_per_category=1, diversity=0.5), []) == []


def test_a_category_is_full_at_its_cap():
    assert chosen(Rules(max_per_category=1), ["t1", "t2", "t3", "w2", "n1"]) == ["t1", "w2", "n1"]
    assert chosen(Rules(max_per_category=2), ["t1", "t2", "t3", "w2"]) == ["t1", "t2", "w2"]
    assert chosen(Rules(max_per_category=1), ["t1", "t2", "t3"]) == ["t1"]  # nothing else is left


def test_diversity_is_maximal_marginal_relevance():
    # scores 1, 2/3, 1/3, 0; t1 and t2 have equal texts, so their likeness is 1: .5 * 2/3 - .5 < .5 * 1/3 - .5 * 0
    assert chosen(Rules(diversity=0.5), ["t1", "t2", "w2", "t3"], 2) == ["t1", "w2"]
    assert chosen(Rules(diversity=0.1), ["t1", "w2", "t2", "t3"], 2) == ["t1", "w2"]
    assert chosen(Rules(diversity=1.0), ["t1", "t2", "t3", "n1"], 2) == ["t1", "n1"]


def test_a_request_adds_its_exclusions_and_replaces_the_rest():
    rules = Rules(exclude=("a",), max_per_category=3, diversity=0.2)
    assert rules.with_request({"exclude": ["b"], "diversity": 0.0}) == Rules(
        exclude=("a", "b"), max_per_category=3, diversity=0.0
    )
    assert rules.with_request({}) == rules


def test_a_rule_that_needs_what_is_not_known_is_refused():
    bare = facts(products=PRODUCTS.select(["product_id"]))
    Rules().check(bare)
    with pytest.raises(DataError, match="max_per_category: got 2, but no product has a category"):
        Rules(max_per_category=2).check(bare)
    with pytest.raises(DataError, match=r"diversity: got 0\.5"):
        Rules(diversity=0.5).check(bare)


def test_what_cannot_be_sold_is_known_of_the_present_alone():
    assert facts().unavailable == ["w1"]
    assert facts(stock_column="num_in_stock").unavailable == ["t3", "w1"]
    assert facts(is_now=False).unavailable == []
    with pytest.raises(SchemaError, match="stock_column: got 'stock'"):
        facts(stock_column="stock")
    with pytest.raises(SchemaError, match=r"products\.name: got string"):
        facts(stock_column="name")


def test_facts_are_of_products_launched_before_and_stay_with_the_rows(tmp_path):
    dates = pa.array([AS_OF - timedelta(days=60), AS_OF], TIME)
    rows = attach(pa.table({"as_of": dates}), PRODUCTS, stock_column=None, is_now=False)
    pq.write_table(rows, tmp_path / "rows.parquet")
    again = pa.concat_tables([pq.read_table(tmp_path / "rows.parquet"), rows]).take([0, 3]).slice(1)
    found = Facts.of(again)
    assert found.table["product_id"].to_pylist() == ["t1", "t2", "t3", "w1", "w2"]  # n1 comes tomorrow
    assert found.launched_within(AS_OF, 30).tolist() == [4]
    early = Facts.of(rows.slice(0, 1))  # as training sees it before it reads the newer rows
    assert early.table["product_id"].to_pylist() == ["t1", "t2", "t3", "w1"]
    with pytest.raises(SchemaError, match="without the products' facts"):
        Facts.of(pa.table({"x": [1]}))
    assert len(facts(products=None)) == 0


def test_likeness_of_products_is_the_cosine_of_their_words():
    vectors = content.product_vectors(facts())
    like = (vectors @ vectors.T).toarray()
    assert like[0, 1] == pytest.approx(1.0)
    assert 0 < like[3, 4] < 1
    assert like[0, 3] == 0
