"""Cleaning: every canonical type from text and from typed columns, and every reason for which a row is set aside."""

from collections import Counter
from datetime import datetime, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from crmray.data import infer, parse
from crmray.data.clean import Plan, clean
from crmray.data.conditions import matches
from crmray.errors import DataError, SchemaError
from crmray.salesforce.ids import normalize

MAPPED = {"entity_id": "who", "occurred_at": "when", "num_units": "n", "unit_price_amount": "price"}


def utc(*parts):
    return datetime(*parts, tzinfo=timezone.utc)


def cleaned(rows, **settings):
    """Clean rows given as (who, when, n, price)."""
    columns = dict(zip(("who", "when", "n", "price"), map(list, zip(*rows, strict=True)), strict=True))
    return clean(pa.table(columns), Plan(table="transactions", columns=MAPPED, **settings))


def reasons(result):
    return dict(Counter(result.rejected["reason"].to_pylist()))


def values(parsed):
    return parsed.values.to_pylist()


def problems(parsed):
    return {reason: np.flatnonzero(rows).tolist() for reason, rows in parsed.problems}


def test_net_amount_returns_and_zero_prices():
    result = cleaned([("a", "2024-01-02", "2", "1.5"), ("a", "2024-01-03", "-1", "1.5"), ("b", "2024-01-03", "4", "0")])
    assert result.rows["net_amount"].to_pylist() == [3.0, -1.5, 0.0]
    assert not result.rejected.num_rows


def test_every_row_leaves_with_a_reason_or_stays():
    result = cleaned(
        [
            ("a", "2024-01-02", "1", "2"),
            (None, "2024-01-02", "1", "2"),
            ("  ", "2024-01-02", "1", "2"),
            ("b", "02/01/2024", "1", "2"),
            ("b", "2024-02-30", "1", "2"),
            ("b", "2024-01-02", "two", "2"),
            ("b", "2024-01-02", "1", "€ 2"),
            ("b", "1899-12-30", "1", "2"),
            ("b", "2031-01-01", "1", "2"),
            ("b", "2024-01-02", "1", "inf"),
            ("b", "2024-01-02", "1e10", "2"),
            ("b", None, "1", "2"),
        ],
        latest=utc(2024, 6, 1),
    )
    assert reasons(result) == {
        "entity_id: missing": 2,
        "occurred_at: not a time in ISO 8601 (set date_format?)": 2,
        "num_units: not a number": 1,
        "unit_price_amount: amount in another currency than USD": 1,
        "occurred_at: before 1990": 1,
        "occurred_at: later than the source can know": 1,
        "unit_price_amount: not finite or absurdly large": 1,
        "num_units: not finite or absurdly large": 1,
        "occurred_at: missing": 1,
    }
    assert result.rows["entity_id"].to_pylist() == ["a"]
    assert result.rejected["key"].to_pylist()[:3] == [None, None, "b"]


def test_lines_that_repeat_are_kept():
    assert cleaned([("a", "2024-01-02", "1", "2")] * 3).rows.num_rows == 3


def test_a_frame_gives_what_a_table_gives():
    table = pa.table({"who": ["a", "b"], "when": ["2024-01-02", "x"], "n": [1, 2], "price": [1.0, 2.0]})
    plan = Plan(table="transactions", columns=MAPPED)
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    assert clean(frame, plan).rows.equals(clean(table, plan).rows)
    assert reasons(clean(frame, plan)) == reasons(clean(table, plan))


def test_cutting_the_input_changes_nothing():
    rows = [("a", "2024-01-02", "1", "2"), ("b", "bad", "1", "2"), ("c", "2024-01-02T10:00:00Z", "1,000", "2")]
    whole = cleaned(rows).rows
    parts = pa.concat_tables([cleaned([row]).rows for row in rows])
    assert whole.to_pylist() == parts.to_pylist()


def test_iso_times_and_zones():
    texts = [
        "2024-07-01",
        "2024-07-01 12:30",
        "2024-07-01T12:30:00Z",
        "2024-07-01T12:30:00.000+0000",
        "2024-07-01T12:30+02:00",
    ]
    parsed = parse.times(pa.array(texts), time_zone="Europe/Berlin")
    assert values(parsed) == [
        utc(2024, 6, 30, 22),
        utc(2024, 7, 1, 10, 30),
        utc(2024, 7, 1, 12, 30),
        utc(2024, 7, 1, 12, 30),
        utc(2024, 7, 1, 10, 30),
    ]
    # 02:30 happens twice on the day the clock goes back: the earlier one, still summer time
    assert values(parse.times(pa.array(["2024-10-27 02:30"]), time_zone="Europe/Berlin")) == [utc(2024, 10, 27, 0, 30)]


def test_day_and_month_are_never_guessed():
    texts = pa.array(["13/02/2024", "02/13/2024", "2024-02-13"])
    assert values(parse.times(texts, date_format="%d/%m/%Y")) == [utc(2024, 2, 13), None, None]
    assert problems(parse.times(texts, date_format="%d/%m/%Y")) == {"not a time of the form %d/%m/%Y": [1, 2]}
    assert problems(parse.times(texts)) == {"not a time in ISO 8601 (set date_format?)": [0, 1]}


def test_typed_times():
    naive = pa.array([datetime(2024, 1, 1, 12)], pa.timestamp("ns"))
    assert values(parse.times(naive, time_zone="America/New_York")) == [utc(2024, 1, 1, 17)]
    assert values(parse.times(pa.array([datetime(2024, 1, 1).date()]))) == [utc(2024, 1, 1)]
    with pytest.raises(DataError, match=r"got int64, expected times or text.*ordinal"):
        parse.times(pa.array([1]))


def test_ordinal_positions_keep_their_order():
    parsed = parse.times(pa.array(["2", "0", "1.5"]), date_format="ordinal")
    assert values(parsed) == [utc(1970, 1, 1, 0, 0, 2), utc(1970, 1, 1), None]
    assert problems(parsed) == {"not a whole position": [2]}


def test_numbers():
    texts = ["1", " -2.5 ", "1,234.5", "1e3", "", "N/A", "1,5", "12abc", "1.2.3"]
    assert values(parse.numbers(pa.array(texts))) == [1.0, -2.5, 1234.5, 1000.0, None, None, None, None, None]
    assert problems(parse.numbers(pa.array(texts))) == {"not a number": [6, 7, 8]}
    assert values(parse.numbers(pa.array(["1.234,5", "1,5", "1.5"]), decimal=",")) == [1234.5, 1.5, None]
    assert values(parse.numbers(pa.array([1.5, float("nan")]))) == [1.5, None]


def test_money_in_the_currency_of_the_org():
    parsed = parse.numbers(pa.array(["£1,200.50", "GBP 3", "4 GBP", "-£5", "€6", "USD 7"]), currency="GBP")
    assert values(parsed) == [1200.5, 3.0, 4.0, -5.0, None, None]
    assert problems(parsed) == {"amount in another currency than GBP": [4, 5]}
    # 12AB is no amount in a currency AB; a quantity carries none at all
    assert problems(parse.numbers(pa.array(["12AB"]), currency="GBP")) == {"not a number": [0]}
    assert problems(parse.numbers(pa.array(["£1"]))) == {"not a number": [0]}


def test_booleans():
    parsed = parse.booleans(pa.array(["True", "no", "1", "", "maybe"]))
    assert (values(parsed), problems(parsed)) == ([True, False, True, None, None], {"not true or false": [4]})


def test_ids():
    # 001 000000000ABC type ids: suffix computed by hand from the capitals of each five characters
    # "0015e" none -> A; "00000" none -> A; "1AbcD" capitals at 1 and 4 -> 2 + 16 = 18 -> S
    given = ["0015e000001AbcD", "0015e000001AbcDAAS", " x ", "123456789012345", "ABCDEFGHIJKLMNO"]
    assert parse.ids(pa.array(given)).to_pylist() == [
        "0015e000001AbcDAAS", "0015e000001AbcDAAS", "x", "123456789012345", "ABCDEFGHIJKLMNO",
    ]  # fmt: skip
    for value in ("0015e000001AbcD", "0015e000001AbcDAAS", " C00042 ", "123456789012345"):
        assert [normalize(value)] == parse.ids(pa.array([value])).to_pylist()
    assert normalize("0015e000001AbcD") == "0015e000001AbcDAAS"
    assert parse.ids(pa.array([12346.0, None, 1.5])).to_pylist() == ["12346", None, "1.5"]


def test_conditions():
    data = pa.table(
        {"kind": ["a", "b", None], "when": ["2024-01-01", "2024-03-01", "2024-05-01"], "n": ["5", "10", "x"]}
    )
    plan = Plan(table="transactions", columns={"entity_id": "kind", "occurred_at": "when"})

    def hit(**entry):
        return np.flatnonzero(matches(data, entry, plan)).tolist()

    assert hit(kind="a") == [0]
    assert hit(kind={"ne": "a"}) == [1, 2]
    assert hit(kind={"in": ["a", "b"]}) == [0, 1]
    assert hit(kind={"missing": True}) == [2]
    assert hit(kind={"matches": "^[bc]"}) == [1]
    assert hit(n={"gt": 6}) == [1]
    assert hit(n={"ge": 5, "lt": 10}) == [0]
    assert hit(when={"ge": "2024-03-01"}, kind={"missing": False}) == [1]
    assert hit(when={"lt": datetime(2024, 2, 1).date()}) == [0]


def test_drop_comes_first():
    result = cleaned([("a", "bad", "1", "2"), ("b", "2024-01-01", "1", "2")], drop=({"who": "a"},))
    assert reasons(result) == {"left out by the mapping": 1}


def test_outcomes_take_yes_and_no_and_known_parts():
    plan = Plan(
        table="outcomes", columns={"entity_id": "id", "value": "left", "split": "part"}, values={"name": "churn"}
    )
    result = clean(
        pa.table({"id": ["1", "2", "3"], "left": ["Yes", "no", "yes"], "part": ["train", "test", "dev"]}), plan
    )
    assert result.rows.select(["entity_id", "name", "value", "split"]).to_pylist() == [
        {"entity_id": "1", "name": "churn", "value": 1.0, "split": "train"},
        {"entity_id": "2", "name": "churn", "value": 0.0, "split": "test"},
    ]
    assert reasons(result) == {"split: not one of train, validation, test": 1}


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", "-2", ""], pa.int64()), (["1", "2.5"], pa.float64()), (["007", "8"], pa.string()),
        (["true", "FALSE"], pa.bool_()), (["2024-01-01", "2024-01-02T00:00:00Z"], parse.TIME),
        (["1", "x"], pa.string()), (["1234567890123456"], pa.string()),
        (["", "N/A"], pa.string()), (["1,5"], pa.string()),
    ],
)  # fmt: skip
def test_types_of_attributes(texts, kind):
    assert infer.decide(infer.possible(pa.chunked_array([texts]))) == kind


def test_types_of_attributes_hold_for_all_parts():
    kinds = infer.possible(pa.chunked_array([["1", "2"]])) & infer.possible(pa.chunked_array([["x"]]))
    assert infer.decide(kinds) == pa.string()
    assert infer.common([{"a": pa.int64()}, {"a": pa.float64(), "b": pa.string()}]) == {
        "a": pa.float64(),
        "b": pa.string(),
    }


def test_plans_are_checked():
    with pytest.raises(SchemaError, match="column 'occurred_at' is not mapped"):
        Plan(table="transactions", columns={"entity_id": "a"})
    with pytest.raises(SchemaError, match="got column 'price', expected one of"):
        Plan(table="transactions", columns={"entity_id": "a", "occurred_at": "b", "price": "c"})
    with pytest.raises(DataError, match="got time zone 'Mars', expected an IANA name"):
        Plan(table="transactions", columns={"entity_id": "a", "occurred_at": "b"}, time_zone="Mars")
