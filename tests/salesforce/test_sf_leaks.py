"""Attributes of the past in the examples of a task: what is used, and what the outcome itself writes is kept out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from past import INDUSTRY, START, changes, customers, day

from crmray import config, schema
from crmray.data import asof, asof_leads, examples, history, leaks
from crmray.data.asof_attributes import PARTLY, TRACKED
from crmray.data.partition import shard_of
from crmray.data.plans import inline
from crmray.data.profile import Profile
from crmray.storage import Lake
from crmray.tasks import churn

CHURN = {"horizon_days": 30, "lookback_days": 60, "num_snapshots": 4, "snapshot_every_days": 30}
CUSTOMERS, LEAVES = 240, 130
NUM_SHARDS = 2


def org_of(lake: Lake, insist: tuple = ()) -> config.Org:
    attributes = ["Tier__c", "Reason__c", "Size__c"]
    sources = {
        "customers": {
            "object": "Account",
            "columns": {"entity_id": "Id", "modified_at": "M"},
            "attributes": attributes,
        },
        "leads": {"object": "Lead", "columns": {"lead_id": "Id", "created_at": "CreatedDate", "status": "Status"}},
    }
    source = {"kind": "files", "tables": sources}
    return config.Org(name="small", storage=lake.root, source=source, history={"insist": list(insist)})


def write(lake: Lake, name: str, rows: pa.Table) -> None:
    rows, run = schema.check(name, rows), lake.run("tables", name, "0123456789abcdef")
    home = shard_of(rows[schema.TABLES[name].entity].combine_chunks(), NUM_SHARDS)
    for shard in range(NUM_SHARDS):
        run.write_table(f"shard-{shard:05d}.parquet", rows.filter(pa.array(home == shard)))
    columns = {field.name: str(field.type) for field in rows.schema}
    run.commit(**Profile.of(name, rows).to_json(), columns=columns, num_shards=NUM_SHARDS, clock="utc")


def left(number: int) -> int:
    """Day on which a customer leaves: every third one, spread over the time of the snapshots; the others stay."""
    return LEAVES + number * 180 // CUSTOMERS if number % 3 == 0 else 365


def lake_of(path, *, tracked: bool) -> Lake:
    """Customers buy every 10 days until they leave. Five days later their Reason__c is filled in; tracked or not."""
    lake, names = Lake(path), [f"c{number:03d}" for number in range(CUSTOMERS)]
    bought = [
        {"entity_id": name, "occurred_at": day(number % 10 + at), "net_amount": 5.0, "num_units": 1.0}
        for number, name in enumerate(names)
        for at in range(0, left(number), 10)
        if number % 10 + at < min(left(number), 365)
    ]
    write(lake, "transactions", pa.Table.from_pylist(bought))
    gone = [left(number) + 5 if left(number) < 360 else None for number in range(CUSTOMERS)]
    tiers = [("c001", 200, "silver", "gold"), ("c002", 1, "bronze", "silver"), ("c002", 220, "silver", "gold")]
    past = [changes(*tiers, field="Tier__c")]
    if tracked:
        wrote = [(name, at, None, "moved away") for name, at in zip(names, gone, strict=True) if at is not None]
        past.append(changes(*wrote, ("c001", 0.5, "moved away", None), field="Reason__c"))
    write(lake, "changes", pa.concat_tables(past))
    written = {name: at for name, at in zip(names, gone, strict=True) if at is not None}
    people = [
        {
            "entity_id": name,
            "created_at": day(-30),
            "modified_at": day(written.get(name, {"c001": 200, "c002": 220}.get(name, -30))),
            "Tier__c": "gold" if name in ("c001", "c002") else "silver",
            "Reason__c": "moved away" if name in written else None,
            "Size__c": 7.0,
        }
        for name in names
    ]
    write(lake, "customers", pa.Table.from_pylist(people))
    return lake


def make(lake: Lake, insist: tuple = ()):
    return examples.examples(org_of(lake, insist), lake, churn, churn.Settings(**CHURN), inline)


def test_examples_hold_what_stood_there_and_no_leak(tmp_path):
    run = make(lake_of(tmp_path, tracked=True))
    about = run.manifest()["attributes"]
    assert {name: how["used"] for name, how in about.items()} == {
        "Tier__c": "as of", "Reason__c": "kept out", "Size__c": "kept out",
    }  # fmt: skip
    assert about["Tier__c"]["status"] == TRACKED
    assert about["Size__c"]["status"] == PARTLY  # nobody was modified after the test date
    rows = run.read_table("*/*.parquet")
    assert "customer_Reason__c" not in rows.column_names
    assert "customer_Size__c" not in rows.column_names
    tiers = {
        (row["entity_id"], (row["as_of"] - START).days): row["customer_Tier__c"]
        for row in rows.select(["entity_id", "as_of", "customer_Tier__c"]).to_pylist()
    }
    assert {tier for (name, when), tier in tiers.items() if name == "c001" and when <= 200} == {"silver"}
    assert {tier for (name, when), tier in tiers.items() if name == "c001" and when > 200} == {"gold"}
    evidence = about["Reason__c"]["leak"]
    # the reason is written 5 days after a customer leaves, so after as_of only for some; never for who stayed
    assert evidence["by"] == "history"
    assert evidence["share_with"] >= 0.1
    assert evidence["share_without"] == 0
    assert START.strftime("%Y-%m-%d") < evidence["first_day"] < evidence["last_day"]
    assert "moved away" not in str(run.manifest())


def test_a_leak_is_kept_out_although_the_org_file_insists(tmp_path):
    lake = lake_of(tmp_path, tracked=False)
    about = make(lake).manifest()["attributes"]["Reason__c"]
    assert (about["used"], about["changes"], "leak" in about) == ("kept out", 0, False)
    about = make(lake, ("Account.Reason__c", "Account.Size__c")).manifest()["attributes"]
    assert about["Reason__c"]["used"] == "kept out"
    assert about["Reason__c"]["leak"]["by"] == "value"
    assert about["Size__c"]["used"] == "today's"


def test_ratings_of_cases_count_from_their_close():
    rows = pa.table(
        {
            "channel": ["case", "case", "case", "review"],
            "rating": [1.0, 2.0, 3.0, 4.0],
            "closed_at": pa.array([day(5), day(15), None, None], schema.TIME),
        }
    )
    assert history.until_closed(rows, day(10))["rating"].to_pylist() == [1.0, None, None, 4.0]


def test_fields_that_are_written_at_conversion(tmp_path):
    lake, org = Lake(tmp_path), org_of(Lake(tmp_path))
    people = [
        {
            "lead_id": f"l{number:03d}",
            "created_at": day(0),
            "converted_at": day(50) if number % 2 else None,
            "modified_at": day(50),
            "status": "Closed - Converted" if number % 2 else "Open",
            "source": ("Web", "Phone")[number // 2 % 2],
        }
        for number in range(200)
    ]
    write(lake, "leads", pa.Table.from_pylist(people))
    found = asof_leads.leaks_of(org, lake)
    assert list(found) == ["status"]
    assert (found["status"]["share_with"], found["status"]["share_without"]) == (1.0, 0.0)


def test_a_few_writes_are_no_leak():
    nine = {"rows": [100, 50], "how": "history", "held": {"filled": [0, 9]}, "span_us": [0, 1]}
    often = {"rows": [100, 100], "how": "history", "held": {"filled": [15, 60]}, "span_us": [0, 1]}
    clear = {"rows": [100, 100], "how": "history", "held": {"filled": [12, 60]}, "span_us": [0, 86_400_000_000]}
    found = leaks.found({"nine": nine, "often": often, "clear": clear}, "label")
    assert found == {
        "clear": {
            "label": "label", "by": "history", "share_with": 0.6, "share_without": 0.12, "rows_with": 100,
            "rows_without": 100, "first_day": "1970-01-01", "last_day": "1970-01-02",
        }
    }  # fmt: skip


def test_counts_of_writes_by_hand():
    """a leaves: bought before day 30, not in the horizon from there on. b, c stay; d leaves in the second horizon."""
    rows = customers(*({"entity_id": name, "industry": "A"} for name in "abcd"))
    labels = {day(30): np.array([1, 0, 0, 0]), day(60): np.array([leaks.NONE, 0, 0, 1])}
    past = changes(("a", 40, "B", "A"), ("b", 40, "B", "A"), ("c", 29, "B", "A"), ("d", 59, "B", "A"))
    counts = leaks.count(rows, labels, 30, {INDUSTRY: history.changes_of(past, INDUSTRY, rows)})["industry"]
    # on day 30 against a stand b and c, who bought in the next horizon too; day 60 has no date after its horizon
    assert counts["rows"] == [2, 1]
    assert counts["held"] == {"filled": [1, 1]}


def test_the_history_of_a_lead_makes_no_customer():
    past = changes(("a", 10, "B", "A"), ("l", 10, "Open", "Working"))
    of_lead = past.set_column(1, "object", pa.array(["Account", "Lead"]))
    assert asof.known({"changes": of_lead}, day(20)).to_pylist() == ["a"]
