"""Series of one customer's sales: whose they are, and how they are asked for."""

from __future__ import annotations

from weekly import rows_of, sold

from crmray.data import asof_series


def test_a_series_of_one_customers_sales_says_whose_they_are():
    """Named after the customer, or wholly within its series: all products of a level that each have one buyer."""
    tables = sold(("1", 0, "a", 1.0), ("1", 7, "a", 1.0), ("2", 1, "b", 2.0), ("2", 8, "c", 2.0))
    levels = ["total", "customer", "customer,category", "category,customer", "product"]
    told = rows_of(tables, 2, levels=levels).select(["entity_id", "customer_id"]).to_pylist()
    assert {one["entity_id"]: one["customer_id"] for one in told} == {
        "total": None, "customer:1": "1", "customer:2": "2", "customer,category:1,Tea": "1",
        "customer,category:2,Pots": "2", "category,customer:Tea,1": "1", "category,customer:Pots,2": "2",
        "product:a": "1", "product:b": "2", "product:c": "2",
    }  # fmt: skip
    shared = sold(("1", 0, "a", 1.0), ("2", 7, "a", 1.0), ("2", 1, "b", 2.0))
    told = rows_of(shared, 2, levels=["customer", "product"]).select(["entity_id", "customer_id"]).to_pylist()
    assert [one["customer_id"] for one in told] == ["1", "2", None, None]
    assert rows_of(shared, 2, levels=["total"])["customer_id"].to_pylist() == [None]


def test_a_series_is_asked_for_by_the_customers_own_id():
    names = {
        "customer:C1": "customer:p-C1", "customer,product:C1,a,b": "customer,product:p-C1,a,b",
        "product,customer:a,b,C1": "product,customer:a,b,p-C1", "category:customer:C1": "category:customer:C1",
        "total": "total",
    }  # fmt: skip
    assert {name: asof_series.in_lake(name, lambda id_: f"p-{id_}") for name in names} == names
