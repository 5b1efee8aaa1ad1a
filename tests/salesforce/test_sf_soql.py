"""SOQL of the sandbox org: what conditions select, how rows are ordered and grouped, what is refused in which words.

Salesforce's meaning where it differs from SQL's: "SOQL SELECT syntax", "Comparison operators", SOQL and SOSL Reference.
"""

from __future__ import annotations

from datetime import date, datetime, timezone

import pyarrow as pa
import pytest

from crmray.salesforce import ids
from crmray.salesforce.sandbox import soql
from crmray.salesforce.sandbox.dates import date_range
from crmray.salesforce.sandbox.results import SoqlError
from crmray.salesforce.sandbox.store import Store

NOW = datetime(2026, 3, 18, 12)  # a Wednesday
ACCOUNTS = [
    # name, type, employees, created
    ("Acme", "Customer", 10, datetime(2026, 3, 18, 9)),
    ("acme south", "Partner", None, datetime(2026, 3, 17, 23, 30)),
    ("Beta_1", None, 30, datetime(2026, 2, 10)),
    ("50% O'Neil", "Customer", 40, datetime(2025, 12, 31, 23, 59, 59)),
]
NAMES = [row[0] for row in ACCOUNTS]


@pytest.fixture(scope="module")
def store():
    org = Store(now=lambda: NOW)
    names, types, employees, created = zip(*ACCOUNTS, strict=True)
    account_ids = ids.make("001", range(4))
    times = pa.array(created, pa.timestamp("us", "UTC"))
    org.load(
        {
            "Account": [
                pa.table(
                    {
                        "Id": account_ids, "Name": names, "Type": types, "NumberOfEmployees": employees,
                        "Mail_Opt_In__c": [True, False, True, False], "CreatedDate": times, "SystemModstamp": times,
                    }
                )
            ],
            "Contact": [
                pa.table(
                    {
                        "Id": ids.make("003", range(3)), "AccountId": account_ids.take(pa.array([0, 1, None])),
                        "LastName": ["One", "Two", "Three"], "FirstName": ["Ann", None, "Cy"],
                        "CreatedDate": times[:3], "SystemModstamp": times[:3],
                    }
                )
            ],
            "Opportunity": [
                pa.table(
                    {
                        "Id": ids.make("006", range(3)), "AccountId": account_ids.take(pa.array([0, 0, 2])),
                        "Name": ["a", "b", "c"], "StageName": ["Closed Won", "Prospecting", "Closed Lost"],
                        "CloseDate": [date(2026, 3, 1), date(2026, 4, 1), date(2025, 3, 1)],
                        "Amount": [100.0, 50.0, None],
                        "CreatedDate": times[:3], "SystemModstamp": times[:3],
                    }
                )
            ],
        }
    )  # fmt: skip
    yield org
    org.close()


def names(store: Store, where: str) -> list[str]:
    return sorted(store.query(f"SELECT Name FROM Account WHERE {where}").table["Name"].to_pylist(), key=NAMES.index)


@pytest.mark.parametrize(
    ("where", "places"),
    [
        ("Name = 'ACME'", [0]),  # texts compare without regard to case
        ("Type != 'customer'", [1, 2]),  # null is unequal to every value
        ("Type = null", [2]),
        ("Type = ''", [2]),
        ("Type <> NULL", [0, 1, 3]),
        ("NumberOfEmployees > 10", [2, 3]),
        ("NumberOfEmployees <= 1e1", [0]),
        ("NOT NumberOfEmployees > 10", [0, 1]),  # a comparison with null is false, its negation true
        ("NumberOfEmployees IN (10, 40)", [0, 3]),
        ("NumberOfEmployees NOT IN (10, 40)", [1, 2]),
        ("Type IN ('partner', null)", [1, 2]),
        ("Name LIKE 'acme%'", [0, 1]),
        ("Name LIKE 'Beta__'", [2]),
        ("Name LIKE 'Beta\\__'", [2]),
        ("Name LIKE '50\\% %'", [3]),
        ("Name LIKE '%\\%'", []),
        ("Name = '50% O\\'Neil'", [3]),
        ("Mail_Opt_In__c = true", [0, 2]),
        ("Mail_Opt_In__c != TRUE", [1, 3]),
        ("Type = 'Customer' AND (NumberOfEmployees = 10 OR Mail_Opt_In__c = false)", [0, 3]),
        ("NOT (Type = 'Customer' OR NumberOfEmployees = 30)", [1]),
        ("CreatedDate = TODAY", [0]),
        ("CreatedDate = YESTERDAY", [1]),
        ("CreatedDate < TODAY", [1, 2, 3]),
        ("CreatedDate >= YESTERDAY", [0, 1]),
        ("CreatedDate <= LAST_MONTH", [2, 3]),
        ("CreatedDate > LAST_MONTH", [0, 1]),
        ("CreatedDate != THIS_YEAR", [3]),
        ("CreatedDate = LAST_N_DAYS:1", [0, 1]),
        ("CreatedDate = LAST_YEAR", [3]),
        ("CreatedDate IN (TODAY, LAST_MONTH)", [0, 2]),
        ("CreatedDate >= 2026-03-18T00:30:00+01:00", [0, 1]),  # 23:30 UTC of the day before
        ("CreatedDate > 2026-03-17T23:30:00.000Z", [0]),
        ("CreatedDate < 2026-03-17T18:30:00-05:00", [2, 3]),
        ("Id IN (SELECT AccountId FROM Contact)", [0, 1]),
        ("Id NOT IN (SELECT AccountId FROM Contact WHERE LastName = 'one')", [1, 2, 3]),
        ("Id IN (SELECT AccountId FROM Opportunity WHERE IsWon = true) AND Type != null", [0]),
        ("Owner.Name = 'system administrator'", [0, 1, 2, 3]),
        ("Account.Name = 'Acme'", [0]),
        ("Name = '\\'; DROP TABLE Account; --'", []),
        ("Name = 'x\\' OR \\'1\\'=\\'1'", []),
    ],
)
def test_where(store, where, places):
    assert names(store, where) == [NAMES[place] for place in places]


def test_an_id_may_have_15_characters(store):
    id_ = store.query("SELECT Id FROM Account WHERE Name = 'Beta_1'").table["Id"][0].as_py()
    assert names(store, f"Id = '{id_[:15]}'") == ["Beta_1"]
    assert names(store, f"Id > '{id_}'") == ["50% O'Neil"]


def test_relationship_columns_and_spelling(store):
    found = store.query("select c.lastname, C.account.NAME, Account.Owner.Id, name from contact c order by LASTNAME")
    assert found.columns == ["LastName", "Account.Name", "Account.Owner.Id", "Name"]
    assert found.types == ["string", "string", "id", "string"]
    assert found.object == "Contact"
    assert found.table.to_pylist() == [
        {"LastName": "One", "Account.Name": "Acme", "Account.Owner.Id": store.user_id, "Name": "Ann One"},
        {"LastName": "Three", "Account.Name": None, "Account.Owner.Id": None, "Name": "Cy Three"},
        {"LastName": "Two", "Account.Name": "acme south", "Account.Owner.Id": store.user_id, "Name": "Two"},
    ]


def test_order_limit_and_offset(store):
    def ordered(rest: str) -> list[str]:
        return store.query(f"SELECT Name FROM Account ORDER BY {rest}").table["Name"].to_pylist()

    assert ordered("Name") == ["50% O'Neil", "Acme", "acme south", "Beta_1"]
    assert ordered("NumberOfEmployees") == ["acme south", "Acme", "Beta_1", "50% O'Neil"]  # nulls first
    assert ordered("NumberOfEmployees DESC NULLS LAST") == ["50% O'Neil", "Beta_1", "Acme", "acme south"]
    assert ordered("Type DESC NULLS LAST, Name DESC LIMIT 2 OFFSET 1") == ["Acme", "50% O'Neil"]


def test_count_and_groups(store):
    count = store.query("SELECT COUNT() FROM Account WHERE Type = 'Customer'")
    assert (count.count, count.columns, count.table.num_rows) == (2, [], 0)
    assert store.query("SELECT COUNT() FROM Account LIMIT 3").count == 3
    grouped = store.query(
        "SELECT AccountId, COUNT(Id), SUM(Amount) total, MAX(CloseDate) FROM Opportunity GROUP BY AccountId "
        "HAVING COUNT(Id) > 0 ORDER BY COUNT(Id) DESC"
    )
    assert grouped.aggregate
    assert grouped.columns == ["AccountId", "expr0", "total", "expr1"]
    assert grouped.types == ["reference", "int", "double", "date"]
    assert [tuple(row.values())[1:] for row in grouped.table.to_pylist()] == [
        (2, 150.0, date(2026, 4, 1)), (1, None, date(2025, 3, 1)),
    ]  # fmt: skip
    whole = store.query("SELECT COUNT(Amount), AVG(Amount), MIN(Name), COUNT_DISTINCT(AccountId) n FROM Opportunity")
    assert whole.table.to_pylist() == [{"expr0": 2, "expr1": 75.0, "expr2": "a", "n": 2}]


def test_types_of_columns(store):
    row = store.query(
        "SELECT CreatedDate, CloseDate, Amount, IsWon, Probability FROM Opportunity WHERE Name = 'a'"
    ).table
    assert row.schema.types == [pa.timestamp("us", "UTC"), pa.date32(), pa.float64(), pa.bool_(), pa.float64()]
    assert row.to_pylist() == [
        {
            "CreatedDate": datetime(2026, 3, 18, 9, tzinfo=timezone.utc), "CloseDate": date(2026, 3, 1),
            "Amount": 100.0, "IsWon": True, "Probability": 100.0,
        }
    ]  # fmt: skip


def test_fields_all(store):
    found = store.query("SELECT FIELDS(ALL) FROM Account LIMIT 1")
    assert set(found.columns) == {field["name"] for field in store.describe("Account")["fields"]}
    custom = store.query("SELECT Id, FIELDS(CUSTOM) FROM Account LIMIT 1")
    assert custom.columns == ["Id", "Mail_Opt_In__c", "Price_Level__c"]


def test_what_a_polymorphic_reference_tells(store):
    account = store.query("SELECT Id FROM Account WHERE Name = 'Acme'").table["Id"][0].as_py()
    (task,) = store.insert("Task", [{"Subject": "Call", "WhatId": account}])
    found = store.query(f"SELECT What.Name, What.Type, AccountId FROM Task WHERE Id = '{task.id}'").table.to_pylist()
    assert found == [{"What.Name": "Acme", "What.Type": "Account", "AccountId": account}]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("SELECT Id FORM Account", "MALFORMED_QUERY", "unexpected token: 'Account'"),
        ("SELECT Id FROM Account WHERE", "MALFORMED_QUERY", "unexpected token: '<EOF>'"),
        ("SELECT FROM Account", "MALFORMED_QUERY", "unexpected token: 'FROM'"),
        ("SELECT Id FROM Account WHERE Name = '\\uD800'", "MALFORMED_QUERY", "Illegal string literal"),
        ("SELECT Id FROM Account LIMIT 99999999999", "MALFORMED_QUERY", "unexpected token"),
        ("SELECT Id FROM Account WHERE Name = 'a", "MALFORMED_QUERY", "unexpected token: '''"),
        ("SELECT Id FROM Account; DROP TABLE Account", "MALFORMED_QUERY", "unexpected token: ';'"),
        (
            "SELECT Id FROM Account WHERE Name = 'a' AND Name = 'b' OR Name = 'c'",
            "MALFORMED_QUERY",
            "unexpected token: 'OR'",
        ),
        ("SELECT Id FROM Account LIMIT -1", "MALFORMED_QUERY", "unexpected token: '-1'"),
        ("SELECT Foo FROM Account", "INVALID_FIELD", "No such column 'Foo' on entity 'Account'."),
        (
            "SELECT Contact.Name FROM Account",
            "INVALID_FIELD",
            "Didn't understand relationship 'Contact' in field path.",
        ),
        ("SELECT Id, id FROM Account", "INVALID_FIELD", "duplicate field selected: Id"),
        ("SELECT Id FROM Acount", "INVALID_TYPE", "sObject type 'Acount' is not supported."),
        ("SELECT Id FROM Account WHERE Name = 5", "INVALID_FIELD", "for field 'Name' must be of type string"),
        (
            "SELECT Id FROM Account WHERE CreatedDate > '2026-01-01'",
            "INVALID_FIELD",
            "for field 'CreatedDate' must be of type dateTime and should not be enclosed in quotes",
        ),
        ("SELECT Id FROM Account WHERE CreatedDate > 2026-01-01", "INVALID_FIELD", "must be of type dateTime"),
        ("SELECT Id FROM Account WHERE NumberOfEmployees LIKE '1%'", "INVALID_QUERY_FILTER_OPERATOR", "number field"),
        (
            "SELECT Id FROM Account WHERE Id LIKE '001%'",
            "INVALID_QUERY_FILTER_OPERATOR",
            "invalid operator on id field",
        ),
        ("SELECT Id FROM Account WHERE Id = 'abc'", "INVALID_QUERY_FILTER_OPERATOR", "invalid ID field: abc"),
        ("SELECT Id FROM Case WHERE Description = 'a'", "INVALID_FIELD", "field 'Description' can not be filtered"),
        ("SELECT Id FROM Case ORDER BY Description", "INVALID_FIELD", "field 'Description' can not be sorted"),
        ("SELECT Name, COUNT(Id) FROM Account", "MALFORMED_QUERY", "Field must be grouped or aggregated: Name"),
        ("SELECT Id FROM Account OFFSET 2001", "NUMBER_OUTSIDE_VALID_RANGE", "Maximum SOQL offset allowed is 2000"),
        ("SELECT FIELDS(ALL) FROM Account", "MALFORMED_QUERY", "must have a LIMIT of at most 200"),
        ("SELECT Id, (SELECT Id FROM Contacts) FROM Account", "MALFORMED_QUERY", "nested queries are not"),
        ("SELECT Id FROM Account WHERE CreatedDate = SOMEDAY", "MALFORMED_QUERY", "unexpected token: 'SOMEDAY'"),
        ("SELECT Id FROM Account WHERE CreatedDate > 2026-02-30T00:00:00Z", "MALFORMED_QUERY", "Invalid dateTime"),
        (
            "SELECT Id FROM Account WHERE Id IN (SELECT Name FROM Contact)",
            "MALFORMED_QUERY",
            "must be an ID or reference",
        ),
        (
            "SELECT Id FROM Account WHERE Id IN (SELECT AccountId FROM Contact ORDER BY Name LIMIT 1)",
            "MALFORMED_QUERY",
            "Semi join sub-selects cannot use",
        ),
        ("SELECT Name FROM Account HAVING COUNT(Id) > 1", "MALFORMED_QUERY", "only allowed in aggregate queries"),
        ("SELECT Type FROM Account GROUP BY Type HAVING Name = 'a'", "MALFORMED_QUERY", "grouped or aggregated: Name"),
        ("SELECT Id FROM Account WHERE NOT COUNT(Id) > 1", "MALFORMED_QUERY", "not allowed in a where clause"),
        ("SELECT Id FROM Account ORDER BY COUNT(Id)", "MALFORMED_QUERY", "must be grouped or aggregated"),
        (f"SELECT Id FROM Account WHERE {'(' * 500}Name = 'a'{')' * 500}", "MALFORMED_QUERY", "too complex"),
    ],
)
def test_what_is_refused(store, text, code, words):
    with pytest.raises(SoqlError) as caught:
        store.query(text)
    assert caught.value.code == code
    assert words in caught.value.message


def test_an_error_shows_its_place():
    with pytest.raises(SoqlError) as caught:
        soql.parse("SELECT Id\nFROM Account WHERE Name ~ 'a'")
    lines = caught.value.message.split("\n")
    assert lines[1:] == [
        "FROM Account WHERE Name ~ 'a'",
        "                        ^",
        "ERROR at Row:2:Column:25",
        "unexpected token: '~'",
    ]


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("LAST_WEEK", -1, date(2026, 3, 8), date(2026, 3, 14)),  # weeks begin on Sunday
        ("THIS_WEEK", -1, date(2026, 3, 15), date(2026, 3, 21)),
        ("THIS_QUARTER", -1, date(2026, 1, 1), date(2026, 3, 31)),
        ("LAST_QUARTER", -1, date(2025, 10, 1), date(2025, 12, 31)),
        ("NEXT_MONTH", -1, date(2026, 4, 1), date(2026, 4, 30)),
        ("LAST_N_MONTHS", 2, date(2026, 1, 1), date(2026, 2, 28)),
        ("NEXT_N_DAYS", 3, date(2026, 3, 19), date(2026, 3, 21)),
        ("LAST_N_DAYS", 3, date(2026, 3, 15), date(2026, 3, 18)),
        ("N_DAYS_AGO", 3, date(2026, 3, 15), date(2026, 3, 15)),
        ("N_YEARS_AGO", 1, date(2025, 1, 1), date(2025, 12, 31)),
        ("LAST_90_DAYS", -1, date(2025, 12, 18), date(2026, 3, 18)),
    ],
)
def test_date_literals(name, count, first, last):
    low, high = date_range(name, count, NOW.date())
    assert (low, high.toordinal() - 1) == (first, last.toordinal())


def test_child_rows_are_refused_with_the_place(store):
    with pytest.raises(SoqlError) as caught:
        store.query("SELECT Id,\n  (SELECT Id FROM Contacts) FROM Account")
    assert "ERROR at Row:2:Column:3\n" in caught.value.message


def test_a_count_leaves_out_what_offset_skips_and_stops_at_the_limit(store):
    assert store.query("SELECT COUNT() FROM Account OFFSET 1").count == 3
    assert store.query("SELECT COUNT() FROM Account LIMIT 2 OFFSET 1").count == 2
    assert store.query("SELECT COUNT() FROM Account OFFSET 9").count == 0
