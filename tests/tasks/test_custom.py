"""Predictions of one's own: what an org file may say, and labels of every kind and entity by hand."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from by_hand import AS_OF, at, table
from conformance import planted

from crmray import config, schema, tasks
from crmray.data import asof_products
from crmray.data.examples_shard import task_at
from crmray.errors import ConfigError, DataError
from crmray.tasks import custom


def cases(*rows: tuple) -> dict[str, pa.Table]:
    """interactions: (entity, day, channel, rating)."""
    names = ("entity_id", "occurred_at", "channel", "rating")
    return {"interactions": table("interactions", names, *((e, at(day), *rest) for e, day, *rest in rows))}


TABLES = cases(
    ("a", -50, "case", 2.0), ("a", 0, "case", 4.0), ("a", 89, "call", 5.0),
    ("b", -40, "call", None), ("b", 10, "case", 1.0), ("b", 20, "case", 3.0), ("b", 90, "case", 5.0),
    ("c", -30, "case", 1.0), ("c", 5, "chat", None), ("new", 3, "case", 1.0),
)  # fmt: skip


def labels(outcome: dict, tables=TABLES, as_of: datetime | None = AS_OF, **settings) -> dict:
    own = custom.Settings.model_validate({"outcome": outcome, **settings})
    rows = custom.examples(tables, as_of, own, labels=True)
    return dict(zip(rows["entity_id"].to_pylist(), rows["label"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"where": {"channel": "case"}}, {"a": 1, "b": 1, "c": 0}),
        ({"where": {"channel": "case"}, "at_least": 2}, {"a": 0, "b": 1, "c": 0}),
        ({"where": {"channel": "case"}, "measure": "none"}, {"a": 0, "b": 0, "c": 1}),
        ({"measure": "count"}, {"a": 2.0, "b": 2.0, "c": 1.0}),
        ({"measure": "sum", "column": "rating"}, {"a": 9.0, "b": 4.0, "c": 0.0}),
        ({"measure": "mean", "column": "rating"}, {"a": 4.5, "b": 2.0}),  # c has no rating: it is no example
        ({"measure": "first", "column": "channel"}, {"a": "case", "b": "case", "c": "chat"}),
        ({"measure": "last", "column": "channel"}, {"a": "call", "b": "case", "c": "chat"}),
        ({"measure": "last", "column": "rating"}, {"a": 5.0, "b": 3.0}),
        ({"where": {"rating": {"ge": 3}, "channel": {"in": ["case", "call"]}}}, {"a": 1, "b": 1, "c": 0}),
    ],
)
def test_outcomes_within_the_half_open_horizon(outcome, expected):
    assert labels({"table": "interactions", **outcome}) == expected


def test_populations():
    case, call = ({"table": "interactions", "where": {"channel": channel}} for channel in ("case", "call"))
    assert set(labels(case, population=[case])) == {"a", "c"}
    assert set(labels(case, population=[{**case, "days": 45}])) == {"c"}
    assert set(labels(case, population=[{**case, "at_least": 0, "at_most": 0}])) == {"b"}
    assert set(labels(case, population=[case, call])) == set()
    people = schema.check("customers", pa.table({"entity_id": ["a", "b", "c"], "country": ["UK", "FR", "UK"]}))
    tables = {**TABLES, "customers": people}
    assert set(labels(case, tables, population=[{"table": "customers", "where": {"country": "UK"}}])) == {"a", "c"}


def test_what_a_later_date_says_is_not_known_yet():
    runs = {"entity_id": ["a", "b", "c"], "subscription_id": ["1", "2", "3"], "started_at": [at(-100)] * 3}
    ended = schema.check("subscriptions", pa.table({**runs, "ended_at": [at(10), at(-5), None]}))
    tables = {**TABLES, "subscriptions": ended}
    running = {"table": "subscriptions", "where": {"ended_at": {"missing": True}}}
    assert set(labels({"table": "interactions"}, tables, population=[running])) == {"a", "c"}
    rows = TABLES["interactions"]
    closed = pa.array([at(4), at(30), at(95), *([at(30)] * (rows.num_rows - 3))], schema.TIME)
    tables = {"interactions": rows.append_column("closed_at", closed)}
    # a: the case of day 0 is closed on day 30, the call of day 89 after the horizon of 90 days
    outcome = {"table": "interactions", "where": {"closed_at": {"missing": False}}, "measure": "count"}
    assert labels(outcome, tables)["a"] == 1.0
    rated = {"table": "interactions", "where": {"channel": "case", "rating": {"ge": 1}}}  # of day -50, not closed yet
    assert set(labels(outcome, tables, population=[rated])) == set()


def test_given_labels_and_attributes():
    given = {"entity_id": ["a", "b", "c"], "name": ["nps", "nps", "left"], "value": [9.0, 3.0, 1.0]}
    tables = {**TABLES, "outcomes": schema.check("outcomes", pa.table(given))}
    people = pa.table({"entity_id": ["a", "b", "c"], "segment": ["x", None, "y"], "staff": [5.0, 7.0, None]})
    tables["customers"] = schema.check("customers", people)
    assert labels({"given": "nps", "kind": "number"}, tables, None) == {"a": 9.0, "b": 3.0}
    assert labels({"given": "left"}, tables, None) == {"c": 1}
    split = {**given, "split": ["test", None, "train"]}
    parted = {**tables, "outcomes": schema.check("outcomes", pa.table(split))}
    own = custom.Settings.model_validate({"outcome": {"given": "nps", "kind": "number"}})
    rows = custom.examples(parted, None, own, labels=True)
    assert rows["part"].to_pylist()[0] == "test"  # a mapped split is honoured
    assert labels({"attribute": "segment"}, tables, None) == {"a": "x", "c": "y"}
    assert labels({"attribute": "staff", "kind": "number"}, tables, None) == {"a": 5.0, "b": 7.0}
    own = custom.Settings.model_validate({"outcome": {"attribute": "segment"}})
    assert not own.uses_time
    rows = custom.examples(tables, None, own, labels=False)  # predicted for everyone, and no feature of itself
    assert rows.num_rows == 3
    assert "customer_segment" not in rows.column_names
    assert "customer_staff" in rows.column_names
    with pytest.raises(DataError, match="got 5, expected true and false"):
        labels({"attribute": "staff", "kind": "yes_no"}, tables, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"outcome": {}}, "got none of table, given, attribute; expected .* or {attribute: plan, kind: class}"),
        ({"outcome": {"table": "leads"}}, "got 'leads' for entity customer, expected one of transactions"),
        ({"outcome": {"table": "interactions", "measure": "sum"}}, "column: got '' with measure sum, expected the col"),
        ({"outcome": {"table": "interactions", "column": "rating"}}, "got 'rating' with measure exists, expected none"),
        ({"outcome": {"table": "interactions", "where": {"channel": {"is": "x"}}}}, r"got condition \['is'\], expect"),
        ({"outcome": {"table": "interactions", "kind": "class"}}, "got class with measure exists, expected yes_no"),
        (
            {"outcome": {"attribute": "shoe_size"}},
            "got nothing for attribute 'shoe_size' of customers, expected yes_no",
        ),
        ({"outcome": {"given": "nps", "kind": "class"}}, "expected yes_no or number"),
        ({"outcome": {"table": "interactions", "measure": "avg"}}, "outcome.measure: got 'avg'.*'exists', 'none'"),
        (
            {"outcome": {"table": "interactions"}, "horizon": 5},
            "got 'horizon', expected only .*; did you mean 'horizon_days'",
        ),
        ({"outcome": {"table": "interactions", "measure": "first", "column": "text"}}, "got 'text'.*free text is none"),
        ({"population": [{"table": "interactions", "at_most": 0}]}, r"got at_most 0, expected at_least \(1\) or more"),
        ({"population": [{"table": "products"}]}, "got 'products' for entity customer, expected one of"),
        ({"population": [{"table": "customers", "days": 30}]}, "got days 30 with table customers, expected none"),
        (
            {"outcome": {"table": "interactions", "where": {"channel": None}}},
            "where: column channel: eq: got nothing, expected a value",
        ),
        (
            {"outcome": {"table": "interactions", "where": {"channel": {}}}},
            r"column channel: got condition \[\], expect",
        ),
        (
            {"outcome": {"table": "interactions", "where": {"text": {"matches": "["}}}},
            "matches: got '\\[', expected a reg",
        ),
        (
            {"outcome": {"table": "interactions", "where": {"channel": {"in": "case"}}}},
            "in: got 'case', expected a list",
        ),
        ({"outcome": {"table": "interactions", "where": {"channel": {"missing": "no"}}}}, "got 'no', expected true or"),
    ],
)
def test_wrong_definitions_are_told_by_key_value_and_expectation(settings, words):
    with pytest.raises(ConfigError, match=words):
        tasks.check_settings(tasks.task("custom.mine"), settings)


def test_what_a_product_is_today_chooses_no_past_examples():
    sold_today = {
        "population": [{"table": "products", "where": {"active": True}}],
        "outcome": {"table": "transactions"},
    }
    with pytest.raises(ConfigError, match="got column active of products, expected one that was known at past dates"):
        tasks.check_settings(tasks.task("custom.product.mine"), sold_today)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"rating": {"ge": "high"}}, "column 'rating': ge: got 'high', expected a number"),
        ({"rating": True}, "column 'rating': eq: got True, expected a number"),
        ({"occurred_at": {"lt": "yesterday"}}, "column 'occurred_at': lt: got 'yesterday', expected a date"),
        ({"first_call": {"in": [True, "maybe"]}}, r"'first_call': in: got \[True, 'maybe'\], expected true or false"),
    ],
)
def test_a_condition_of_the_wrong_type_is_told(where, words):
    rows = TABLES["interactions"]
    rows = rows.append_column("first_call", pa.array([True] * rows.num_rows))
    with pytest.raises(DataError, match=words):
        labels({"table": "interactions", "where": where}, {"interactions": rows})
    dated = {"occurred_at": {"lt": "2024-02-01"}, "rating": {"in": [1, 3.0]}, "first_call": True}
    assert sum(labels({"table": "interactions", "where": dated}, {"interactions": rows}).values()) == 1


def test_somebody_described_inline_may_have_no_rows_of_a_table():
    case = {"table": "interactions", "where": {"channel": "case"}}
    person = {"customers": schema.check("customers", pa.table({"entity_id": ["inline"]}))}
    nobody = custom.Settings.model_validate({"outcome": case, "population": [case]})
    assert custom.examples(person, AS_OF, nobody, labels=False).num_rows == 0
    anybody = custom.Settings.model_validate({"outcome": case})
    assert custom.examples(person, AS_OF, anybody, labels=False)["entity_id"].to_pylist() == ["inline"]


def test_a_column_that_the_org_does_not_have_is_named():
    with pytest.raises(
        DataError, match="outcome: table interactions has no column 'colour' with a value .*, got entity"
    ):
        labels({"table": "interactions", "where": {"colour": "red"}})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("outcome: {table: transaktions}", "got 'transaktions' .*; did you mean 'transactions'?"),
        ("outcome: {table: transactions, measure: sum, column: net_amont}",
         "outcome: table transactions: got column 'net_amont', expected one of .*; did you mean 'net_amount'?"),
        ("outcome: {table: transactions, measure: sum, column: Paid}", "; Paid of the source is called 'net_amount'"),
        ("outcome: {table: transactions, where: {rating: 5}}", "; table interactions has one"),
        ("outcome: {attribute: Tear}",
         "outcome.attribute: table customers: got column 'Tear', expected one of .*, Tier; did you mean 'Tier'?"),
        ("outcome: {attribute: Tier}", "outcome.kind: got nothing for attribute 'Tier' of customers, expected yes_no, "
         "number or class, for example outcome: {attribute: Tier, kind: yes_no}"),
        ("population: [{table: customers, where: {shoe: 43}}]",
         "population: .*got column 'shoe', .*; what else the source has goes under `attributes:`"),
        ("population: [{table: interactions, where: {Origin: Web}}]", "Origin of the source is called 'channel' there"),
    ],
)  # fmt: skip
def test_a_name_that_the_org_does_not_have_is_told_with_what_may_be_meant(tmp_path, section, words):
    path = tmp_path / "org.yaml"
    path.write_text(f"""
name: mine
storage: lake
source:
  kind: files
  tables:
    transactions: {{files: [s.csv], columns: {{entity_id: Who, occurred_at: When, net_amount: Paid}}}}
    customers: {{files: [c.csv], columns: {{entity_id: Who}}, attributes: [Tier]}}
    interactions: {{files: [i.csv], columns: {{entity_id: Who, occurred_at: When, channel: Origin}}, attributes: "*"}}
tasks:
  custom.mine: {{{section}}}
  custom.theirs: {{outcome: {{table: interactions, where: {{shade: dark}}}}}}
""")
    org = config.load(path)
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        tasks.settings(org, "custom.mine")
    assert tasks.settings(org, "custom.theirs").kind == "yes_no"  # all columns of the file are there, by what name ever


def test_a_salesforce_field_is_told_by_its_canonical_name(tmp_path):
    path = tmp_path / "org.yaml"
    outcome = "{table: transactions, measure: sum, column: TotalPrice}"
    path.write_text(f"name: a\nstorage: s\nsource: {{kind: demo}}\ntasks: {{custom.x: {{outcome: {outcome}}}}}\n")
    with pytest.raises(ConfigError, match="TotalPrice of the source is called 'net_amount' there"):
        tasks.settings(config.load(path), "custom.x")


def test_names_routes_and_workers():
    task = tasks.task("custom.lead.will_reply")
    assert (task.NAME, task.ROUTE, task.ENTITY) == ("custom.lead.will_reply", "/v1/custom/lead/will_reply", "lead")
    assert task.METRIC == custom.METRIC
    for found in (task_at(task.__name__), pickle.loads(pickle.dumps(task))):
        assert (found.NAME, found.ROUTE, found.Settings) == (task.NAME, task.ROUTE, task.Settings)
    assert hasattr(tasks.task("custom.product.sells"), "gather")
    assert not hasattr(task, "gather")
    for wrong in (
        "custom.",
        "custom.Mine",
        "custom.order.mine",
        "custom.mine.too",
        "custom.a__b",
        "custom.lead",
        "custom." + "x" * 21,
    ):
        with pytest.raises(ConfigError, match="expected custom.<name>"):
            tasks.task(wrong)
    with pytest.raises(ConfigError, match="churn is a task of its own"):
        tasks.task("custom.churn")
    for name in ("custom.mine", "custom"):  # whom it is about follows from the name
        with pytest.raises(ConfigError, match="entity: got 'lead'"):
            tasks.check_settings(tasks.task(name), {"entity": "lead"})


def test_an_org_file_may_hold_several(tmp_path):
    path = tmp_path / "org.yaml"
    path.write_text("""
name: mine
storage: lake
source: {kind: demo}
tasks:
  custom.repeat_case: {outcome: {table: interactions, where: {channel: case}, at_least: 2}, horizon_days: 60}
  custom.product.next_month: {outcome: {table: transactions, measure: sum, column: num_units}, horizon_days: 30}
""")
    org = config.load(path)
    assert tasks.settings(org, "custom.repeat_case").kind == "yes_no"
    assert tasks.settings(org, "custom.product.next_month").kind == "number"


def test_products_are_counted_over_all_shards():
    task = tasks.task("custom.product.sells")
    outcome = {"table": "transactions", "where": {"net_amount": {"gt": 50}}, "measure": "sum", "column": "num_units"}
    population = [{"table": "products", "where": {"category": "even"}}, {"table": "transactions", "days": 90}]
    settings = task.Settings.model_validate({"outcome": outcome, "population": population, "horizon_days": 30})
    tables, date = planted(), datetime(2022, 12, 1, tzinfo=timezone.utc)
    lines = tables["transactions"]
    odd = pa.array([int(key[1:]) % 2 == 1 for key in lines["entity_id"].to_pylist()])
    shards = [{**tables, "transactions": lines.filter(mask)} for mask in (odd, pc.invert(odd))]
    parts = [task.gather({n: t for n, t in shard.items() if n in ("transactions", "products")}, settings)
             for shard in shards]  # fmt: skip
    rows = task.examples(task.combine(parts, settings), date, settings, labels=True)
    assert rows["entity_id"].to_pylist() == [f"p{i:02d}" for i in range(0, 24, 2)]
    time = lines["occurred_at"]
    end = date + timedelta(days=30)
    of_first = pc.equal(lines["product_id"], "p00")
    later = pc.and_(pc.greater_equal(time, pa.scalar(date)), pc.less(time, pa.scalar(end)))
    expected = lines.filter(pc.and_(pc.and_(of_first, later), pc.greater(lines["net_amount"], 50)))
    assert rows["label"][0].as_py() == pc.sum(expected["num_units"]).as_py()
    month = pc.and_(pc.less(time, pa.scalar(date)), pc.greater_equal(time, pa.scalar(date - timedelta(days=30))))
    assert rows["sold_num_units_30d"][0].as_py() == pc.sum(lines.filter(pc.and_(of_first, month))["num_units"]).as_py()
    with pytest.raises(DataError, match="expected midnight UTC"):
        task.examples(task.combine(parts, settings), date + timedelta(hours=1), settings, labels=True)
    with pytest.raises(ConfigError, match="got mean for entity product"):
        tasks.check_settings(task, {"outcome": {**outcome, "measure": "mean"}})


def test_sales_by_day_have_the_same_bits_on_any_number_of_threads():
    rng, size, threads = np.random.default_rng(0), 40_000, pa.cpu_count()
    day = pa.array(np.zeros(size, np.int64)).cast(schema.TIME)
    amounts = pa.array(rng.gamma(1.0, 37.3, size))
    sold = pa.table({"entity_id": pa.repeat("p", size), "occurred_at": day, "net_amount": amounts})
    parts = [sold.slice(start, 2_000) for start in range(0, size, 2_000)]
    try:
        pa.set_cpu_count(4)
        found = {asof_products.together(parts)["net_amount"][0].as_py() for _ in range(12)}
    finally:
        pa.set_cpu_count(threads)
    assert len(found) == 1


def test_whether_a_product_is_sold_today_is_no_feature_of_a_past_date():
    products = {"product_id": ["p1", "p2"], "category": ["x", "y"], "active": [True, False]}
    tables = {"products": schema.check("products", pa.table(products))}
    shown = {"lookback_days": 90, "horizon_days": 30, "entities": pa.array(["p1", "p2"])}
    past = asof_products.frame(tables, AS_OF, **shown).column_names
    assert "product_category" in past
    assert "product_active" not in past
    assert "product_active" in asof_products.frame(tables, None, **shown).column_names


def test_leads_have_their_own_frame():
    task = tasks.task("custom.lead.called")
    settings = task.Settings.model_validate({"outcome": {"table": "interactions"}, "horizon_days": 30})
    leads = {"lead_id": ["l1", "l2", "l3"], "created_at": [at(-20), at(-10), at(1)], "source": ["web", "fair", "web"]}
    tables = {
        "leads": schema.check("leads", pa.table(leads)),
        **cases(("l1", -5, "call", None), ("l2", 4, "call", None)),
    }
    rows = task.examples(tables, AS_OF, settings, labels=True)
    assert dict(zip(rows["entity_id"].to_pylist(), rows["label"].to_pylist(), strict=True)) == {"l1": 0, "l2": 1}
    assert rows["lead_age_days"].to_pylist() == [20.0, 10.0]
