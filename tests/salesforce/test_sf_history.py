"""Rows as of a date: by hand, and against a simulator that wrote down what stood there."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from past import INDUSTRY, changes, customers, day

from crmray.data import asof_attributes, history
from crmray.data.asof_attributes import NOT, PARTLY, STANDS, TRACKED, UNCHECKED
from crmray.data.history import NEVER, Field
from crmray.data.splits import Snapshots, micros
from crmray.errors import ConfigError
from crmray.sources import TableSource


def at(rows: pa.Table, past: pa.Table, as_of: datetime, field: Field = INDUSTRY, covered_from: float = 0) -> list:
    """Values at a date; "?" where they are not known."""
    found = history.changes_of(past, field, rows)
    values, known = history.values(rows, field, found, as_of, covered_from_us=micros(day(covered_from)))
    return [value if sure else "?" for value, sure in zip(values.to_pylist(), known, strict=True)]


def test_values_by_hand():
    rows = customers(
        {"entity_id": "a", "industry": "Retail", "modified_at": day(50)},
        {"entity_id": "b", "industry": "Energy", "modified_at": day(5)},
        {"entity_id": "c", "industry": "Health", "modified_at": day(70)},
        {"entity_id": "d", "industry": "Media", "modified_at": day(45), "created_at": day(40)},
    )
    past = changes(("a", 10, "Steel", "Glass"), ("a", 50, "Glass", "Retail"))
    assert at(rows, past, day(6), covered_from=6) == ["Steel", "Energy", "Health", None]
    # a change at the very date was not yet there
    assert at(rows, past, day(10), covered_from=6) == ["Steel", "Energy", "Health", None]
    assert at(rows, past, day(10.5), covered_from=6) == ["Glass", "Energy", "Health", None]
    assert at(rows, past, day(50.5), covered_from=6) == ["Retail", "Energy", "Health", "Media"]
    # before tracking is known to have been on, only a row that was not touched since is valid as it stands
    assert at(rows, past, day(6), covered_from=8) == ["?", "Energy", "?", None]
    # without any history that alone counts
    assert at(rows, changes(), day(46), covered_from=1e4) == ["?", "Energy", "?", "Media"]


def test_what_was_written_untracked_is_not_known():
    rows = customers({"entity_id": "a", "industry": "Retail"}, {"entity_id": "b", "industry": "Energy"})
    # a: between day 10 and 20 somebody wrote Wood; b: after day 10 somebody wrote Energy
    past = changes(("a", 10, "Steel", "Glass"), ("a", 20, "Wood", "Retail"), ("b", 10, "Coal", "Gas"))
    assert at(rows, past, day(5)) == ["Steel", "Coal"]
    assert at(rows, past, day(15)) == ["?", "?"]
    assert at(rows, past, day(25)) == ["Retail", "?"]
    breaks = history.changes_of(past, INDUSTRY, rows).breaks_us(rows["industry"].combine_chunks())
    assert breaks.tolist() == [micros(day(20)), NEVER]


def test_saves_within_one_second_and_values_that_history_does_not_keep():
    rows = customers({"entity_id": "a", "industry": "C"}, {"entity_id": "b", "industry": "long text"})
    past = changes(("a", 10, "B", "C"), ("a", 10, "A", "B"), ("b", 10, None, None))
    assert at(rows, past, day(9)) == ["A", "?"]
    assert at(rows, past, day(11)) == ["C", "long text"]


def test_values_take_the_type_of_the_column():
    rows = customers(
        {"entity_id": "a", "level": 1.1025, "vip": True, "since": day(3)},
        {"entity_id": "b", "level": 2.0, "vip": None, "since": None},
    )
    numbers = changes(("a", 10, "1", "1.05"), ("a", 20, "1.05", "1.1025"), ("b", 20, "about two", "2"), field="L")
    level = Field(column="level", object="Account", field="L")
    assert at(rows, numbers, day(15), level) == [1.05, "?"]
    assert at(rows, numbers, day(25), level) == [1.1025, 2.0]
    flags = changes(("a", 10, "false", "true"), ("b", 10, "true", None), field="V")
    assert at(rows, flags, day(5), Field(column="vip", object="Account", field="V")) == [False, True]
    times = changes(("a", 10, None, "2023-01-04T00:00:00.000+0000"), field="S")
    since = Field(column="since", object="Account", field="S")
    assert [at(rows, times, day(number), since) for number in (5, 15)] == [[None, None], [day(3), None]]


def simulated(seed: int, tracked_from: int = 0, tracked_to: int = 400) -> tuple[pa.Table, pa.Table, dict[int, dict]]:
    """Customers, changes, and what stood in the field just before each tenth day, over 400 days of random saves.

    Saves fall on whole hours, several of a customer on the same one; only those in the tracked days are in the history.
    """
    rng = np.random.default_rng(seed)
    names = [f"c{number:03d}" for number in range(80)]
    created = {name: int(rng.integers(0, 300)) for name in names}
    saves = sorted(
        (float(rng.integers(created[name] * 24 + 1, 400 * 24)) / 24, name)
        for name in names
        for _ in range(rng.poisson(2))
    )
    saves = sorted([*saves, *(save for save in saves if rng.random() < 0.2)])
    now, modified, past, seen = {}, {name: created[name] for name in names}, [], {}
    values = {name: f"v{rng.integers(3)}" if rng.random() < 0.8 else None for name in names}
    for number in range(0, 401, 10):
        while saves and saves[0][0] < number:
            when, name = saves.pop(0)
            before, serial = values[name], len(past) + len(seen)
            values[name] = rng.choice(["v0", "v1", "v2", f"w{serial}"]) if rng.random() < 0.9 else None
            modified[name] = when
            if values[name] != before and tracked_from <= when < tracked_to:
                past.append((name, when, before, values[name]))
        seen[number] = {name: values[name] for name in names if created[name] < number}
    now = values
    rng.shuffle(past)
    rows = customers(
        *(
            {
                "entity_id": name,
                "industry": now[name],
                "created_at": day(created[name]),
                "modified_at": day(modified[name]),
            }
            for name in names
        )
    )
    return rows, changes(*past), seen


@pytest.mark.parametrize("seed", range(5))
def test_rows_rebuilt_at_any_date_are_those_written_down_then(seed):
    rows, past, seen = simulated(seed)
    for number, then in seen.items():
        found = dict(zip(rows["entity_id"].to_pylist(), at(rows, past, day(number)), strict=True))
        assert {name: found[name] for name in then} == then, number
        assert all(found[name] is None for name in found if name not in then), number


@pytest.mark.parametrize("seed", range(5))
def test_what_is_known_is_right_when_tracking_began_late(seed):
    rows, past, seen = simulated(seed, tracked_from=150)
    first = pc.min(past["occurred_at"]).as_py()
    plan = planned(rows, past, [day(number) for number in seen if number], INDUSTRY)["industry"]
    assert plan["covered_from"] == first.isoformat()
    assert plan["status"] == PARTLY
    for number, then in seen.items():
        found = dict(zip(rows["entity_id"].to_pylist(), at(rows, past, day(number), covered_from=150), strict=True))
        assert {name: found[name] for name in then if found[name] != "?"}.items() <= then.items(), number
        assert number < 150 or "?" not in found.values()
        if day(number).isoformat() in plan["dates"]:
            assert "?" not in found.values()


def test_a_field_whose_tracking_was_switched_off_is_not_trusted():
    rows, past, _ = simulated(0, tracked_to=200)
    plan = planned(rows, past, [day(number) for number in (100, 200, 300)], INDUSTRY)["industry"]
    assert plan["covered_from"] is None
    assert plan["status"] == NOT
    assert plan["used"] == "kept out"


# -- what is used at which date --------------------------------------------------------------------------------------


def planned(rows: pa.Table, past: pa.Table, dates: list[datetime], *fields: Field, insist: tuple = ()) -> dict:
    days = Snapshots(train=tuple(dates[:-2] or dates), validation=dates[-2], test=dates[-1], now=day(999))
    counts = asof_attributes.merge([asof_attributes.survey(rows, past, fields, days.past)])
    has_modified = rows["modified_at"].null_count < rows.num_rows
    return asof_attributes.plan(counts, fields, days, has_modified=has_modified, insist=insist)


def as_seen(rows: pa.Table, past: pa.Table, as_of: datetime | None, plan: dict) -> pa.Table:
    return asof_attributes.at(rows, asof_attributes.histories(rows, past, plan), as_of, plan)


def test_an_attribute_is_used_where_it_is_known_of_all():
    dates = [day(number) for number in (10, 20, 30, 40)]
    people = [
        {"entity_id": f"c{number}", "industry": "A", "region": "N", "modified_at": day(25)} for number in range(3)
    ]
    region = Field(column="region", object="Account", field="BillingState")
    rows, past = customers(*people), changes(("c0", 15, "B", "A"))
    plan = planned(rows, past, dates, INDUSTRY, region)
    # the history of Industry begins on day 15; nobody was modified after day 25, so the region stands from then on
    assert plan["industry"]["status"] == PARTLY
    assert plan["industry"]["dates"] == [date.isoformat() for date in dates[1:]]
    assert plan["region"]["status"] == PARTLY
    assert plan["region"]["dates"] == [date.isoformat() for date in dates[2:]]
    assert plan["region"]["known"] == {dates[0].isoformat(): 0, dates[1].isoformat(): 0} | dict.fromkeys(
        plan["region"]["dates"], 1
    )
    # both training dates lie before: a model could not learn what the region means
    assert [plan[name]["used"] for name in ("industry", "region")] == ["as of", "kept out"]
    then = as_seen(rows, past, dates[1], plan)
    assert then["industry"].to_pylist() == ["A", "A", "A"]
    assert "region" not in then.column_names
    assert as_seen(rows, past, dates[0], plan)["industry"].null_count == 3
    assert as_seen(rows, past, None, plan)["industry"].to_pylist() == ["A", "A", "A"]

    insisted = planned(rows, past, dates, INDUSTRY, region, insist=("Account.BillingState",))
    assert insisted["region"]["used"] == "today's"
    assert as_seen(rows, past, dates[0], insisted)["region"].to_pylist() == ["N", "N", "N"]


def test_status_of_fields():
    dates = [day(number) for number in (10, 20, 30)]
    known = customers({"entity_id": "a", "industry": "A", "modified_at": day(5)})
    touched = customers({"entity_id": "a", "industry": "A", "modified_at": day(50)})
    untold = customers({"entity_id": "a", "industry": "A"})
    early = changes(("a", 8, "B", "A"))
    found = [
        planned(rows, past, dates, INDUSTRY)["industry"]
        for rows, past in ((known, changes()), (touched, early), (touched, changes()), (untold, changes()))
    ]
    assert [plan["status"] for plan in found] == [STANDS, TRACKED, NOT, UNCHECKED]
    assert [plan["used"] for plan in found] == ["as of", "as of", "kept out", "today's"]


def test_insisting_on_what_is_not_mapped_is_refused():
    source = TableSource(object="Account", columns={"entity_id": "Id", "industry": "Industry"})
    fields = asof_attributes.fields_of([source], ["entity_id", "industry", "Tier__c"])
    assert [field.name for field in fields] == ["Account.Industry", "Account.Tier__c"]
    asof_attributes.check_insisted(["Account.Industry"], [source], fields)
    with pytest.raises(ConfigError, match="got 'Account.Tpye', expected one of Account.Industry, Account.Tier__c"):
        asof_attributes.check_insisted(["Account.Tpye"], [source], fields)
