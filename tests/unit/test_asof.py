"""As-of features of tiny customers, computed by hand; nothing at or after as_of changes them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray import schema
from crmray.data import asof, asof_purchases
from crmray.data.sequences import EVENT_KINDS, MAX_EVENTS

AS_OF = datetime(2024, 1, 1, tzinfo=timezone.utc)
SETTINGS = {"lookback_days": 365, "horizon_days": 90}


def ago(days: float) -> datetime:
    return AS_OF - timedelta(days=days)


def table(name: str, *rows: dict) -> pa.Table:
    """Canonical rows; only the columns that some row names, as an org that maps no others would have."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = pa.table({key: [row.get(key) for row in rows] for key in columns})
    return schema.check(name, data).select(columns)


def line(entity: str, days: float, order: str, product: str, units: float, price: float) -> dict:
    return {
        "entity_id": entity, "occurred_at": ago(days), "order_id": order, "product_id": product,
        "num_units": units, "unit_price_amount": price, "net_amount": units * price,
    }  # fmt: skip


TRANSACTIONS = table(
    "transactions",
    line("a", 90, "o1", "p1", 1, 10),
    line("a", 60, "o2", "p3", 1, 40),
    line("a", 30, "o3", "p1", 2, 5),
    line("a", 30, "o3", "p2", 1, 20),
    line("a", 20, "r1", "p2", -1, 5),
    line("a", 10, "g1", "p4", 1, 0),  # a gift: neither purchase nor return
    line("b", 334, "o4", "p1", 1, 10),
    line("b", 0, "o5", "p1", 1, 10),  # at as_of: not before it
)
PRODUCTS = table(
    "products",
    {"product_id": "p1", "category": "tea", "price_amount": 10.0},
    {"product_id": "p2", "category": "cups", "price_amount": 40.0},
    {"product_id": "p3", "category": "tea", "price_amount": None},
)


def one(tables: dict, entity: str, **options) -> dict:
    rows = asof.frame(tables, AS_OF, **{**SETTINGS, **options})
    return rows.filter(pc.equal(rows["entity_id"], entity)).to_pylist()[0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("recency_days", 30), ("tenure_purchase_days", 90),
        ("frequency_orders_30d", 1), ("frequency_orders_60d", 2), ("frequency_orders_365d", 3),
        ("frequency_orders_all", 3), ("frequency_purchase_days", 3), ("frequency_decayed_30d", 0.5 + 0.25 + 0.125),
        ("frequency_orders_per_30d", 30 * 3.5 / 180),
        ("gap_mean_days", 30), ("gap_std_days", 0), ("gap_last_days", 30), ("gap_recency_per_mean", 1),
        ("spend_gross_30d_amount", 30), ("spend_gross_90d_amount", 80),
        ("spend_net_30d_amount", 25), ("spend_net_365d_amount", 75),
        ("trend_orders_30d", 0), ("trend_spend_90d", np.log2(81)),
        ("basket_lines_mean", 4 / 3), ("basket_amount_mean", 80 / 3), ("basket_amount_last", 30),
        ("return_orders_365d", 1), ("return_share_of_units", 1 / 5), ("return_share_of_spend", 5 / 80),
        ("product_num", 3), ("product_repeat_share", 1 / 4), ("product_num_categories", 2),
        ("product_category_share", 3 / 4), ("price_mean_amount", (10 + 40 + 5 + 20) / 4),
        ("price_discount_mean", (0 + 0.5 + 0.5) / 3), ("price_discount_last", 0.5), ("season_orders", 0),
    ],
)  # fmt: skip
def test_purchases_by_hand(column, expected):
    row = one({"transactions": TRANSACTIONS, "products": PRODUCTS}, "a")
    assert row[column] == pytest.approx(expected, abs=1e-5)


def test_one_purchase_has_no_gap_and_the_season_is_a_year_ago():
    row = one({"transactions": TRANSACTIONS, "products": PRODUCTS}, "b")
    assert row["product_category_top"] == "tea"
    assert row["gap_mean_days"] is None
    assert row["gap_recency_per_mean"] is None
    assert row["season_orders"] == 1  # 334 days ago is within (275, 365]
    assert row["frequency_orders_all"] == 1


def test_purchase_rows_need_positive_units_and_amount():
    lines = TRANSACTIONS.filter(pc.equal(TRANSACTIONS["entity_id"], "a"))
    assert asof_purchases.is_purchase(lines).tolist() == [True, True, True, True, False, False]
    assert asof_purchases.is_purchase(lines.select(["entity_id"])).all()


def test_young_is_less_history_than_the_lookback():
    tables = {"transactions": TRANSACTIONS}
    assert one(tables, "a")["is_young"]
    assert one(tables, "b")["is_young"]
    assert not one(tables, "b", lookback_days=334)["is_young"]
    created = table("customers", {"entity_id": "a", "created_at": ago(400)}, {"entity_id": "b", "created_at": None})
    assert not one({**tables, "customers": created}, "a")["is_young"]


def test_orders_without_ids_are_lines_of_one_moment():
    lines = TRANSACTIONS.drop_columns(["order_id"])
    assert one({"transactions": lines}, "a")["frequency_orders_365d"] == 3


def test_engagement_by_hand():
    rows = [
        ("visit", 3, 60.0),
        ("visit", 25, 20.0),
        ("visit", 200, None),
        ("send", 10, None),
        ("send", 40, None),
        ("open", 9, None),
    ]
    events = [{"entity_id": "a", "occurred_at": ago(d), "kind": k, "seconds": s} for k, d, s in rows]
    row = one({"engagement": table("engagement", *events)}, "a")
    assert [row[f"visit_num_{days}d"] for days in (7, 30, 90, 365)] == [1, 2, 2, 3]
    assert row["visit_recency_days"] == 3
    assert row["visit_mean_s"] == 40
    assert row["mail_open_rate_30d"] == 1
    assert row["mail_open_rate_90d"] == 0.5
    assert row["mail_click_rate_365d"] == 0
    assert row["trend_visits_30d"] == pytest.approx(np.log2(3 / 1))


def test_contacts_by_hand_and_a_later_close_is_still_open():
    case = {"entity_id": "a", "channel": "case"}
    contacts = table(
        "interactions",
        {**case, "occurred_at": ago(50), "priority": "High", "closed_at": ago(48), "rating": 2.0, "text": "late"},
        {**case, "occurred_at": ago(5), "priority": "Low", "closed_at": ago(-2)},
        {"entity_id": "a", "occurred_at": ago(4), "channel": "review", "rating": 5.0, "text": "good now"},
    )
    row = one({"interactions": contacts}, "a")
    assert row["contact_num_30d"] == 2
    assert row["contact_case_num_90d"] == 2
    assert row["contact_open_num"] == 1
    assert row["contact_days_to_close_mean"] == pytest.approx(2)
    assert row["contact_urgent_num_365d"] == 1
    assert (row["rating_mean"], row["rating_last"], row["rating_min"]) == (3.5, 5, 2)
    assert row["contact_text_mean_chars"] == 6


def subscription(number: str, started: float, ended: float, plan: str, amount: float) -> dict:
    return {
        "entity_id": "a", "subscription_id": number, "started_at": ago(started), "ended_at": ago(ended), "plan": plan,
        "monthly_amount": amount,
    }  # fmt: skip


def test_subscriptions_do_not_know_a_later_end():
    old = subscription("1", 365.25, 100, "basic", 10.0)
    running = subscription("2", 365.25 / 4, -30, "plus", 15.0)
    row = one({"subscriptions": table("subscriptions", old, running)}, "a")
    assert row["subscription_num_active"] == 1
    assert row["subscription_num_ended"] == 1
    assert row["subscription_oldest_active_months"] == pytest.approx(3)
    assert row["subscription_ended_recency_days"] == 100
    assert row["subscription_plan"] == "plus"
    assert row["subscription_monthly_amount"] == 15


def test_attributes_keep_their_type_and_need_no_time():
    customers = table(
        "customers",
        {"entity_id": "a", "country": "UK", "created_at": ago(10), "score": 0.1, "vip": True},
        {"entity_id": "b", "country": None, "created_at": ago(-1), "score": None, "vip": False},
    )
    rows = asof.frame({"customers": customers}, AS_OF, **SETTINGS)
    assert rows["entity_id"].to_pylist() == ["a"]  # b is not there yet
    both = asof.frame({"customers": customers}, None, **SETTINGS)
    assert both.column_names == [
        "entity_id", "as_of", "part", "is_young", "customer_country", "customer_score", "customer_vip"
    ]  # fmt: skip
    assert both["customer_score"].to_pylist() == [0.1, None]
    assert both["as_of"].null_count == 2


def test_events_are_merged_oldest_first_and_cut_at_the_newest():
    visits = [{"entity_id": "b", "occurred_at": ago(400 - i), "kind": "visit", "seconds": float(i)} for i in range(300)]
    tables = {"transactions": TRANSACTIONS, "engagement": table("engagement", *visits)}
    a, b = (one(tables, entity, events=True) for entity in "ab")
    assert [EVENT_KINDS[code] for code in a["event_kind"]] == ["purchase", "purchase", "purchase", "return"]
    assert a["event_days_before"] == [90, 60, 30, 20]
    assert a["event_value"] == [10, 40, 30, -5]
    assert len(b["event_kind"]) == MAX_EVENTS
    assert b["event_days_before"][-1] == 101
    assert b["event_kind"].count(EVENT_KINDS.index("purchase")) == 1
    assert np.all(np.diff(b["event_days_before"]) <= 0)


def test_later_amount_is_the_window_and_nothing_else():
    lines = table(
        "transactions",
        *[line("a", days, "o", "p", 1, 10) for days in (1, 0, -89.9, -90)],
        line("a", -5, "r", "p", -1, 3),
    )
    assert asof.later_amount({"transactions": lines}, pa.array(["a", "z"]), AS_OF, 90).to_pylist() == [17, 0]


def world(seed: int = 0) -> dict[str, pa.Table]:
    """Random rows of every event table around AS_OF, and attributes."""
    rng = np.random.default_rng(seed)
    ids = [f"c{i:02d}" for i in range(40)]

    def pick(*values):
        return values[rng.integers(len(values))]

    def rows(count: int, **choices: tuple) -> list[dict]:
        return [
            {"entity_id": pick(*ids), "occurred_at": ago(float(rng.uniform(-100, 500)))}
            | {name: pick(*values) for name, values in choices.items()}
            for _ in range(count)
        ]

    lines = rows(
        400, order_id=(None, "x", "y"), product_id=("p1", "p2", "p3"), num_units=(1.0, 2.0, -1.0),
        net_amount=(5.0, 7.0, -3.0), channel=("web", "shop"),
    )  # fmt: skip
    contacts = rows(
        200, channel=("case", "email", "fax"), direction=("inbound", None), rating=(None, 1.0, 5.0),
        text=("a", "bcd", None),
    )  # fmt: skip
    for row in contacts:
        row["closed_at"] = row["occurred_at"] + timedelta(days=30)
    terms = rows(60, plan=("a", "b"), monthly_amount=(1.0, 2.0))
    for number, row in enumerate(terms):
        row["subscription_id"], row["started_at"] = str(number), row.pop("occurred_at")
        row["ended_at"] = pick(None, row["started_at"] + timedelta(days=90))
    people = [{"entity_id": i, "country": pick("UK", "FR"), "age": int(rng.integers(90))} for i in ids]
    return {
        "transactions": table("transactions", *lines),
        "products": PRODUCTS,
        "interactions": table("interactions", *contacts),
        "engagement": table("engagement", *rows(400, kind=("visit", "send", "open"), seconds=(None, 9.0))),
        "exposures": table("exposures", *rows(50, campaign_id=("k",), arm=("a", "b"))),
        "changes": table("changes", *rows(50, object=("Account",), field=("f", "g"))),
        "subscriptions": table("subscriptions", *terms),
        "customers": table("customers", *people),
    }


TIMES = {"subscriptions": "started_at"}


def test_no_row_at_or_after_as_of_changes_anything():
    tables = world()
    whole = asof.frame(tables, AS_OF, events=True, **SETTINGS)
    before = dict(tables)
    for name in tables:
        if name in ("products", "customers"):
            continue
        time = TIMES.get(name, "occurred_at")
        before[name] = tables[name].filter(pc.less(tables[name][time], pa.scalar(AS_OF, schema.TIME)))
        assert before[name].num_rows < tables[name].num_rows
    for name, column in (("interactions", "closed_at"), ("subscriptions", "ended_at")):
        known = pc.less(before[name][column], pa.scalar(AS_OF, schema.TIME))
        at = before[name].schema.get_field_index(column)
        before[name] = before[name].set_column(at, column, pc.if_else(known, before[name][column], None))
    assert asof.frame(before, AS_OF, events=True, **SETTINGS).equals(whole)


def test_shards_together_equal_the_whole_and_row_order_does_not_matter():
    tables = world(1)
    whole = asof.frame(tables, AS_OF, events=True, **SETTINGS)
    ids = asof.known(tables, AS_OF)
    halves = []
    for half in (ids[::2], ids[1::2]):
        own = {
            name: rows.filter(pc.is_in(rows["entity_id"], half)).sort_by([("entity_id", "ascending")])
            if "entity_id" in rows.column_names
            else rows
            for name, rows in tables.items()
        }
        halves.append(asof.frame(own, AS_OF, events=True, **SETTINGS))
    assert pa.concat_tables(halves).sort_by("entity_id").combine_chunks().equals(whole.combine_chunks())


def test_columns_depend_on_the_tables_and_not_on_their_rows():
    tables = world()
    empty = {name: rows.slice(0, 0) for name, rows in tables.items()}
    rows = asof.frame(empty, AS_OF, entities=pa.array(["new"]), events=True, **SETTINGS)
    assert rows.schema == asof.frame(tables, AS_OF, events=True, **SETTINGS).schema
    assert rows["event_kind"].to_pylist() == [[]]


def test_conform_adds_what_is_missing_and_drops_what_is_new():
    wanted = pa.schema([("a", pa.float32()), ("b", pa.string())])
    assert asof.conform(pa.table({"c": [1], "a": [2]}), wanted).to_pylist() == [{"a": 2.0, "b": None}]
