"""Reasons of models whose workings are known."""

import json
import re
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest

from crmray import schema
from crmray.data import asof, asof_leads, asof_products, asof_sentiment
from crmray.errors import SchemaError
from crmray.evaluate import card, phrases, reasons

TRAIN = pa.table(
    {
        "entity_id": ["a", "b", "c", "d", "e"],
        "label": [0, 1, 0, 1, 0],
        "recency_days": [10, 20, 30, 40, 50],
        "num_orders": [1.0, 2.0, 2.0, 2.0, None],
        "plan": pa.array(["basic", "basic", "pro", "pro", "basic"]).dictionary_encode(),
        "event_days_before": pa.array(
            [[9.0, 3.0], [1.0], [5.0, 4.0], [7.0, 4.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32())
        ),
        "event_kind": [["x", "x"], ["y"], ["x", "y"], ["y", "y"], ["x"] * 3],
    }
)
GROUPS = {"time since the last order": ("recency_days",), "orders": ("num_orders",), "not there": ("gone",)}


def model(examples: pa.Table) -> np.ndarray:
    """0.01 per day of recency, 0.1 for pro, 0.02 per event; orders count for nothing."""
    days = examples["recency_days"].to_numpy().astype(float)
    pro = np.array([plan == "pro" for plan in examples["plan"].to_pylist()])
    events = np.array([len(kinds) for kinds in examples["event_kind"].to_pylist()])
    return 0.01 * days + 0.1 * pro + 0.02 * events


def test_groups_take_in_every_feature():
    assert reasons.groups_of(TRAIN.schema, GROUPS) == {
        "time since the last order": ("recency_days",),
        "orders": ("num_orders",),
        "plan": ("plan",),
        reasons.SEQUENCE: ("event_days_before", "event_kind"),
    }


def test_reference_is_the_typical_training_row():
    found = reasons.reference(TRAIN, reasons.groups_of(TRAIN.schema, GROUPS))
    assert found["values"]["recency_days"] == 30
    assert found["values"]["num_orders"] == 2
    assert found["values"]["plan"] == "basic"
    # median length 2: rows a, c, d with mean days 6, 4.5, 5.5; d is the median
    assert found["values"]["event_days_before"] == [7.0, 4.0]
    assert found["values"]["event_kind"] == ["y", "y"]
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(SchemaError, match="'gone' is missing"):
        reasons.reference(TRAIN, GROUPS)


def test_effects_and_words_by_hand():
    groups = reasons.groups_of(TRAIN.schema, GROUPS)
    reference = reasons.reference(TRAIN, groups)
    matrix = reasons.effects(model, TRAIN, model(TRAIN), reference, groups)
    assert matrix[:, 0] == pytest.approx([-0.2, -0.1, 0, 0.1, 0.2])
    assert matrix[:, 1] == pytest.approx(0)
    assert matrix[:, 2] == pytest.approx([0, 0, 0.1, 0.1, 0])
    assert matrix[:, 3] == pytest.approx([0, -0.02, 0, 0, 0.02])
    said = reasons.explain(model, TRAIN, reference, groups, top=2)
    assert said[4] == [
        "time since the last order: last purchase 50 days ago, typically 30 (+0.20)",
        "the order and timing of all that happened: purchases, visits, mails, contacts (+0.02)",
    ]
    assert said[2] == ["plan: pro, typically basic (+0.10)"]
    assert said[0] == ["time since the last order: last purchase 10 days ago, typically 30 (-0.20)"]


@pytest.mark.parametrize(
    ("column", "value", "typical", "said"),
    [
        ("visit_num_365d", 144.0, 45.0, "144 visits in the last 365 days, typically 45"),
        ("frequency_orders_90d", 1.0, 3.0, "1 order in the last 90 days, typically 3"),
        ("frequency_orders_per_30d", 0.514, 0.3, "0.514 orders per 30 days, typically 0.3"),
        ("frequency_decayed_30d", 1.2, 0.4, "recent orders 1.2 (half-life 30 days), typically 0.4"),
        ("visit_recency_days", 1.2, 21.0, "last visit 1 day ago, typically 21"),
        ("visit_recency_days", None, 21.0, "last visit none, typically 21 days ago"),
        ("spend_net_365d_amount", 1234.4, 80.0, "net spend 1,234 in the last 365 days, typically 80"),
        ("spend_net_all_amount", 9.0, float("nan"), "net spend 9 in all, typically none"),
        ("visit_decayed_30d", 1.1e-05, 5.74, "recent visits near 0 (half-life 30 days), typically 5.74"),
        ("trend_orders_30d", -1.0, 0.0, "orders 0.5 times the earlier pace in the last 30 days, typically 1"),
        ("mail_open_rate_90d", 0.4, 0.25, "mails opened 40 % in the last 90 days, typically 25 %"),
        ("contact_case_num_90d", 2.0, 0.0, "2 cases in the last 90 days, typically 0"),
        ("rating_mean_90d", 3.25, 4.0, "average rating 3.25 in the last 90 days, typically 4"),
        ("gap_mean_days", 30.2, 45.0, "average time between purchases 30 days, typically 45"),
        ("gap_recency_per_mean", 2.0, 0.8, "time since the last purchase 2 times the usual gap, typically 0.8"),
        (
            "gap_recency_excess",
            1.5,
            -0.5,
            "time since the last purchase 1.5 times (spread + 7 days) over the usual gap, "
            "typically 0.5 times (spread + 7 days) under the usual gap",
        ),
        (
            "gap_recency_excess",
            -2.0,
            -0.5,
            "time since the last purchase 2 times (spread + 7 days) under the usual gap, typically 0.5",
        ),
        ("subscription_monthly_amount", 20.0, 9.5, "monthly amount of subscriptions 20, typically 9.5"),
        ("contact_email_num_90d", 1.0, 0.0, "1 e-mail in the last 90 days, typically 0"),
        ("customer_industry", "Retail", None, "industry Retail, typically none"),
        ("customer_renewed_at_days", 12.0, 40.0, "renewed 12 days ago, typically 40"),
        ("customer_Renewal_Date__c_days", 12.0, 40.0, "Renewal Date 12 days ago, typically 40"),
        ("customer_Renewal_Date__c_days", -1.0, 40.0, "Renewal Date in 1 day, typically 40 days ago"),
        ("lead_crm__Renewed_At__c_days", 12.0, -40.0, "crm Renewed At 12 days ago, typically in 40 days"),
        ("customer_LastActivityDate_days", 1.0, None, "LastActivityDate 1 day ago, typically none"),
        # a date or a number of days: the name does not tell
        ("customer_birthday_days", 12.0, 40.0, "birthday 12 days, typically 40"),
        ("customer_payment_days", 30.0, 14.0, "payment 30 days, typically 14"),
        ("customer_Payment_Days__c", 30.0, 14.0, "Payment Days 30, typically 14"),
        ("product_category", "Tea", "Cups", "category Tea, typically Cups"),
        ("product_category_top", "Tea", "Cups", "main product category Tea, typically Cups"),
    ],
)
def test_features_are_told_in_words(column, value, typical, said):
    assert phrases.told(column, value, typical) == said


def test_an_attribute_is_told_by_its_name():
    assert phrases.told("lead_source", "Web", "Fair", mark=":") == "source: Web, typically Fair"
    assert phrases.told("Call Failure", 3, 1, mark=":") == "Call Failure: 3, typically 1"
    assert phrases.told("customer_Mail_Opt_In__c", 1.0, 0.0, mark=":") == "Mail Opt In: 1, typically 0"


ATTRIBUTES = {"Renewal_Date__c": schema.TIME, "birthday": schema.TIME, "Mail_Opt_In__c": pa.bool_(),
              "Payment_Days__c": pa.int32(), "Floor_Area__c": pa.float64()}  # fmt: skip


def features_of_an_org() -> set[str]:
    """Names of all features, and of ATTRIBUTES of customers, leads and products."""
    as_of, days = datetime(2024, 1, 1, tzinfo=timezone.utc), {"lookback_days": 365, "horizon_days": 90}
    tables = {name: schema.empty(name) for name in schema.TABLES}
    tables["sold"] = asof_products.sold(tables["transactions"])
    tables["interactions"] = tables["interactions"].append_column(asof_sentiment.SCORE, pa.array([], pa.float64()))
    for name, kind in ATTRIBUTES.items():
        for table in ("customers", "leads", "products"):
            tables[table] = tables[table].append_column(name, pa.array([], kind))
    columns = set()
    for family in (asof, asof_leads, asof_products):
        columns |= set(family.frame(tables, as_of, entities=pa.array(["new"]), **days).column_names)
    return columns - {*schema.KEYS, "subscription_plan"}


def test_no_feature_is_told_by_the_name_of_its_column():
    features = features_of_an_org()
    assert len(features) > 120
    for column in features:
        said = phrases.told(column, 2.0, 3.0)
        assert not re.search(r"_|  |\b(num|std|decayed|recency|per mean|c|\d+d)\b", said), said
        assert not re.search(r"days \d.* days", said), said
        assert column.replace("_", " ") not in said, said


@pytest.mark.parametrize("owner", ["customer", "lead", "product"])
def test_attributes_of_an_org_are_told_by_what_they_are(owner):
    told = {phrases.told(column, 2.0, 3.0) for column in features_of_an_org() if column.startswith(f"{owner}_")}
    assert told >= {
        "Renewal Date 2 days ago, typically 3",
        "birthday 2 days, typically 3",
        "Mail Opt In 2, typically 3",
        "Payment Days 2, typically 3",
        "Floor Area 2, typically 3",
    }


def test_the_typical_value_of_a_boolean_is_yes_or_no():
    table = pa.table({"entity_id": ["a", "b", "c"], "is_young": [True, False, False], "plan": ["x", "x", "y"]})
    groups = reasons.groups_of(table.schema, {"who they are": ("is_young", "plan")})
    for group in (groups, reasons.groups_of(table.schema.remove(2), {})):
        reference = reasons.reference(table, group)
        assert reference["values"]["is_young"] == 0.0
        said = reasons.explain(lambda rows: rows["is_young"].to_numpy() * 0.5, table, reference, group)
        words, mark = ("who they are: ", "") if group is groups else ("", ":")
        assert said == [[f"{words}less history than looked back on{mark} yes, typically no (+0.50)"], [], []]


VISITS = {"visit_num_30d": 4.0, "visit_num_365d": 45.0}
"""typical ones"""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        # leaves who does not come any more: 0.5 - 0 - 0.107 against 0.5 - 0.4 - 0.045
        (lambda lately, ever: 0.5 - 0.1 * lately - 0.001 * ever, "0 visits in the last 30 days, typically 4 (+0.34)"),
        # less unusual by far, but what the model goes by
        (lambda lately, ever: 0.1 * lately + 0 * ever, "0 visits in the last 30 days, typically 4 (-0.40)"),
        # it takes both, so neither alone makes it
        (lambda lately, ever: 0.3 * ((lately != 4) & (ever != 45)), "visits: several values together (+0.30)"),
        # either is enough: the more unusual one
        (
            lambda lately, ever: 0.3 * ((lately != 4) | (ever != 45)),
            "107 visits in the last 365 days, typically 45 (+0.30)",
        ),
    ],
)
def test_the_value_of_a_group_that_is_shown_makes_what_is_told(model, said):
    table = pa.table({"visit_num_30d": [0.0, 4.0], "visit_num_365d": [107.0, 45.0]})
    reference = {"values": VISITS, "spread": {"visit_num_30d": 8.0, "visit_num_365d": 10.0}, "flags": []}

    def predict(rows):
        return model(rows["visit_num_30d"].to_numpy(), rows["visit_num_365d"].to_numpy())

    groups = {"visits": tuple(VISITS)}
    assert reasons.explain(predict, table, reference, groups) == [[said], []]
    other = pa.table({"visit_num_30d": [40.0], "visit_num_365d": [46.0]})  # of which the other value is more unusual
    assert reasons.explain(predict, pa.concat_tables([other, table]), reference, groups)[1] == [said]


def test_a_group_whose_rows_do_not_fit_one_call_is_told_the_same(monkeypatch):
    groups = reasons.groups_of(TRAIN.schema, {"habits": ("recency_days", "num_orders", "plan")})
    reference = reasons.reference(TRAIN, groups)
    whole = reasons.explain(model, TRAIN, reference, groups)
    assert whole[2] == ["habits: plan pro, typically basic (+0.10)"]
    monkeypatch.setattr(reasons, "ROWS_PER_CALL", 1)
    assert reasons.explain(model, TRAIN, reference, groups) == whole


def test_attributes_that_are_0_or_1_are_told_as_no_and_yes():
    """The examples have the booleans of an org as numbers."""
    train = pa.table({"customer_Opt_In__c": [0.0, 0.0, 1.0, None], "customer_cars": [0.0, 0.0, 1.0, 2.0],
                      "visit_num_30d": [0.0, 0.0, 1.0, 1.0]})  # fmt: skip
    groups = reasons.groups_of(train.schema, {})
    reference = reasons.reference(train, groups)
    assert reference["flags"] == ["customer_Opt_In__c"]
    told = reasons.explain(lambda rows: rows["customer_Opt_In__c"].fill_null(3).to_numpy(), train, reference, groups)
    assert told == [[], [], ["Opt In: yes, typically no (+1.00)"], ["Opt In: none, typically no (+3.00)"]]


def test_few_rows_share_one_call_and_many_rows_give_the_same(monkeypatch):
    groups = reasons.groups_of(TRAIN.schema, GROUPS)
    reference = reasons.reference(TRAIN, groups)
    calls = []

    def counted(examples):
        calls.append(examples.num_rows)
        return model(examples)

    together = reasons.effects(counted, TRAIN, model(TRAIN), reference, groups)
    assert calls == [20]
    monkeypatch.setattr(reasons, "ROWS_PER_CALL", 1)
    calls.clear()
    assert np.array_equal(reasons.effects(counted, TRAIN, model(TRAIN), reference, groups), together)
    assert calls == [5, 5, 5, 5]
    assert reasons.explain(model, TRAIN.slice(0, 0), reference, groups) == []


def test_card_shows_the_champion_first_and_the_ceiling():
    bundle = {"task": "churn", "candidate": "lstm", "features_version": "1", "seed": 7}
    bundle |= {
        "metrics": {"tree": {"auc": 0.7}, "lstm": {"auc": 0.81234, "rows": 1200}},
        "best_possible": {"auc": 0.85},
    }
    bundle |= {"data": {"rows": {"train": 10}, "as_of": None}}
    text = card.render(bundle)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| model | ROC-AUC | rows |"
    assert lines[2] == "| lstm | 0.8123 | 1,200 |"
    assert lines[-1] == "| best possible | 0.85 |  |"
    assert "  - train: 10" in text
