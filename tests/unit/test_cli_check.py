"""`crmray check` says what an org file can carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmray import cli, cluster, tasks
from crmray.data import examples
from crmray.data.plans import inline
from crmray.data.shard import shard
from crmray.errors import CapacityError, CorruptError, CrmrayError, PrivacyError
from crmray.org import OpenOrg


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`crmray check` with its shards made in this process: (tables, task settings) -> (exit code, what it says)."""

    def try_out(self: OpenOrg, name: str) -> tuple[int, int]:
        return examples.trial(self.config, self.lake, tasks.task(name), tasks.settings(self.config, name))

    monkeypatch.setattr(cluster, "connect", lambda address: None)
    monkeypatch.setattr(OpenOrg, "shard", lambda self: shard(self.config, self.lake, inline))
    monkeypatch.setattr(OpenOrg, "trial", try_out)

    def check(tables: str, asked: str, shards: int = 1) -> tuple[int, str]:
        path = tmp_path / "org.yaml"
        path.write_text(
            f"name: t\nstorage: lake\nshards: {shards}\nsource: {{kind: files, tables: {tables}}}\ntasks: {{{asked}}}\n"
        )
        return cli.main(["check", str(path)]), capsys.readouterr().out

    return check


SALES = "{transactions: {files: [sales.csv], columns: {entity_id: who, occurred_at: when, net_amount: paid}}}"


@pytest.fixture
def sales(tmp_path: Path) -> Callable[[int], None]:
    """Four years in which so many customers buy every month; every other one stops, one of them each month."""

    def write(customers: int) -> None:
        months = [f"20{20 + n // 12}-{n % 12 + 1:02d}-15" for n in range(48)]
        rows = [f"c{c},{day},5\n" for c in range(customers) for day in months[: 48 if c % 2 else 48 - c % 40]]
        (tmp_path / "sales.csv").write_text("who,when,paid\n" + "".join(rows))

    return write


def test_check_tells_a_mapped_column_without_values_and_dates_that_cannot_be(tmp_path: Path, sales, checked) -> None:
    sales(300)
    unpaid = SALES.replace("net_amount", "unit_price_amount")
    path = tmp_path / "sales.csv"
    path.write_text(path.read_text().replace(",5", ",n/a"))
    code, told = checked(unpaid, "churn: {horizon_days: 60}")
    assert code == 0
    assert "transactions: column unit_price_amount is mapped and has no value in any row" in told
    assert told.endswith("churn: can run\n")
    code, told = checked(unpaid, "churn: {horizon_days: 60, as_of: 2031-01-01}")
    assert code == 2
    assert "churn: cannot run: got as_of 2031-01-01 with horizon_days 60, but the data ends on 2023-12-15" in told


def test_what_the_mapping_leaves_out_is_not_told_as_rejected(tmp_path: Path, checked, monkeypatch) -> None:
    (tmp_path / "sales.csv").write_text("who,when,paid\n" + "c1,2020-01-01,5\n" * 30 + "c2,2020-01-01,5\nc3,never,5\n")
    events = []
    monkeypatch.setattr("crmray.log.event", lambda name, **fields: events.append((name, fields)))
    _, told = checked(SALES.replace("}}", "}, drop: [{who: c1}]}"), "churn: {}")
    assert "transactions: 30 rows left out by the mapping\n" in told
    assert "transactions: 1 row set aside: occurred_at: not a time" in told
    assert told.splitlines()[2].split()[:5] == ["transactions", "1", "2020-01-01", "2020-01-01", "1"]
    (wrote,) = (fields for name, fields in events if name == "shard.wrote")
    assert (wrote["rows"], wrote["rejected"], wrote["left_out"]) == (1, 1, 30)


def test_check_tells_where_rows_stand_that_were_set_aside(tmp_path: Path, checked, monkeypatch) -> None:
    """Two files that are one source; a value over two lines and an empty line come before the first row in question."""
    monkeypatch.setattr(OpenOrg, "trial", lambda self, name: (1, 1))
    good = "c1,2020-01-01,5,hm\n"
    (tmp_path / "s1.csv").write_text(f'who,when,paid,note\n{good}c1,2020-01-01,5,"two\nlines"\n\n{good}c1,soon,5,\n')
    (tmp_path / "s2.csv").write_text(f"who,when,paid,note\nc1,never,5,\n{good * 9}c2,later,5,\nc3,,5,\nc4,no,5,\n")
    code, told = checked(SALES.replace("sales.csv", "s*.csv"), "churn: {}")
    assert code == 0
    assert (
        "transactions: 4 rows set aside: occurred_at: not a time in ISO 8601 (set date_format?)  (24%: is the mapping "
        "right?)\ntransactions:   s1.csv: line 7 (column 'when')\n"
        "transactions:   s2.csv: line 2, line 12 (column 'when')\n"
    ) in told
    assert "transactions:   s2.csv: line 13 (column 'when')\n" in told  # the value that is missing
    assert "transactions: the ids of rows set aside: " in told
    assert not any(word in told for word in ("soon", "never", "later", "c1"))


def test_check_tells_rows_of_parquet(tmp_path: Path, checked) -> None:
    rows = pa.table({"who": ["c1", "c2", None, "c3"], "when": ["2020-01-01"] * 4, "paid": [1.0] * 4})
    pq.write_table(rows, tmp_path / "sales.parquet")
    _, told = checked(SALES.replace("sales.csv", "sales.parquet"), "")
    assert "transactions:   sales.parquet: row 3 (column 'who')\n" in told


def test_check_tells_attributes_that_are_empty_or_hold_dates_as_text(tmp_path: Path, checked) -> None:
    header = "who,fax,plan,signup,seen,ends"
    rows = [f"c{n},,p,{n}.03.2020,2021-03-{n},{'2022-01-01' if n < 28 else 'open'}" for n in range(10, 29)]
    (tmp_path / "people.csv").write_text("\n".join([header, *rows]) + "\n")
    _, told = checked("{customers: {files: [people.csv], columns: {entity_id: who}, attributes: '*'}}", "")
    assert told.count("customers: no value in any row, so of no use: fax\n") == 1
    assert "customers: dates as text (%d.%m.%Y), each a category of its own: signup; write them in ISO 8601, as" in told
    assert "customers: dates as text (ISO 8601), each a category of its own: ends; write" in told  # `seen` is a time


def test_check_says_which_attributes_stand_as_they_are_today(tmp_path: Path, sales, checked) -> None:
    sales(4)
    (tmp_path / "people.csv").write_text("who,plan,since\n" + "".join(f"c{n},p,2019-01-01\n" for n in range(4)))
    people = "customers: {files: [people.csv], columns: {entity_id: who, created_at: since}, attributes: '*'}"
    line = "customers: used at past dates as they stand today, since no table of changes tells their past: plan;"
    assert line in checked(f"{SALES[:-1]}, {people}}}", "")[1]
    assert "as they stand today" not in checked(f"{{{people}}}", "")[1]  # there is no past


@pytest.mark.parametrize(("late", "code"), [(2, 2), (1, 0)])
def test_check_does_not_pass_what_lost_most_of_its_rows(
    late: int, code: int, tmp_path: Path, sales, checked, monkeypatch
) -> None:
    sales(300)
    path = tmp_path / "sales.csv"
    header, *rows = path.read_text().splitlines(keepends=True)
    rows = [row.replace(",20", ",21", 1) if number % 3 < late else row for number, row in enumerate(rows)]
    path.write_text("".join([header, *rows]))
    monkeypatch.setattr(OpenOrg, "trial", lambda self, name: (1, 1))
    found, told = checked(SALES, "churn: {}")
    assert found == code
    warning = f"WARNING: transactions: {sum(',21' in row for row in rows):,} rows of {len(rows):,} (67%) were set aside"
    reason = "occurred_at: later than the source can know (column 'when' of the source)"
    assert (warning in told, reason in told) == (code == 2, code == 2)


@pytest.mark.parametrize(("unread", "code"), [(0, 0), (2, 2)])
def test_check_does_not_count_the_rows_of_earlier_snapshots_as_lost(
    unread: int, code: int, tmp_path: Path, sales, checked, monkeypatch
) -> None:
    """Each customer in ten snapshots; of the 30 that stay and those with no time to be read the more decide."""
    sales(30)
    rows = "".join(f"c{n},200{day}-01-01\n" for day in range(10) for n in range(30))
    (tmp_path / "people.csv").write_text("who,since\n" + rows + "x,never\n" * 20 * unread)
    monkeypatch.setattr(OpenOrg, "trial", lambda self, name: (1, 1))
    people = "customers: {files: [people.csv], columns: {entity_id: who, created_at: since}}"
    found, told = checked(f"{{{people}, {SALES[1:]}", "")
    assert "customers: 270 rows set aside: entity_id: repeated (the last row stays)" in told
    assert (found, "WARNING: customers: 40 rows of 70 (57%) were set aside, most for created_at" in told) == (
        code, code == 2,
    )  # fmt: skip


def test_check_needs_no_table_that_no_task_asks_for(tmp_path: Path, sales, checked, monkeypatch) -> None:
    sales(300)
    (tmp_path / "cases.csv").write_text("who,when\nc1,2020-01-01\n" + "c1,2120-01-01\n" * 3)
    monkeypatch.setattr(OpenOrg, "trial", lambda self, name: (1, 1))
    cases = "interactions: {files: [cases.csv], columns: {entity_id: who, occurred_at: when}}}"
    code, told = checked(f"{SALES[:-1]}, {cases}", "churn: {}")
    assert (code, "WARNING: interactions: 3 rows of 4 (75%)" in told) == (0, True)


def test_check_tries_no_more_shards_than_it_takes(sales, checked) -> None:
    sales(300)
    code, told = checked(SALES, "churn: {horizon_days: 60}", shards=4)
    assert (code, told.endswith("churn: can run (tried on 1 of 4 shards)\n")) == (0, True)


@pytest.mark.parametrize(
    ("customers", "asked", "why"),
    [
        (4, "churn: {horizon_days: 60}", "got label 0 in 24 rows in the train rows before the validation date"),
        (80, "leads: {}", "needs table leads (columns lead_id, created_at, converted_at), got no rows of it; map it"),
        (80, "custom.x: {horizon_days: 60, population: [{table: transactions, where: {channel: web}}]}",
         "needs column 'channel' of table transactions, got no value in any row; map it"),
        (80, "forecast: {levels: [foo]}", "forecast: got level 'foo', but none of transactions, products, customers"),
        (80, "forecast: {known_ahead: [Promotion]}", "forecast: got kind 'Promotion', but no row of table campaigns"),
    ],
)  # fmt: skip
def test_check_says_what_the_examples_would_refuse(sales, checked, customers: int, asked: str, why: str) -> None:
    sales(customers)
    code, told = checked(SALES, asked, shards=2)
    assert (code, f"cannot run: {why}" in told) == (2, True), told


def test_check_counts_the_labels_of_the_tasks_that_are_given_some(tmp_path: Path, sales, checked) -> None:
    sales(300)
    parts = ("train", "validation", "test")
    rows = "".join(f"c{n},{n},{int(n < 19)},{parts[n % 3]}\n" for n in range(300))
    (tmp_path / "rows.csv").write_text("id,age,left,part\n" + rows)
    given = (
        f"{SALES[:-1]}, customers: {{files: [rows.csv], columns: {{entity_id: id}}, attributes: [age]}}, outcomes: "
        "{files: [rows.csv], columns: {entity_id: id, value: left, split: part}, values: {name: left}}}"
    )
    _, told = checked(given, 'churn: {label: "outcome:left"}, segmentation: {horizon_days: 60}')
    assert "churn: can run; but only 19 labelled rows of one class, expected at least 20\n" in told
    assert "segmentation: can run\n" in told
    (tmp_path / "rows.csv").write_text("id,age,left,part\n" + rows.replace(",1,", ",0,"))
    code, told = checked(given, 'churn: {label: "outcome:left"}')
    assert (code, "churn: cannot run: got label 0 in" in told) == (2, True), told


@pytest.mark.parametrize("error", [PrivacyError("lake_key: missing"), CorruptError("part-0: got other bytes")])
def test_check_goes_on_after_a_task_whatever_it_meets(sales, checked, monkeypatch, error: CrmrayError) -> None:
    def trial(self: OpenOrg, name: str) -> tuple[int, int]:
        if name == "churn":
            raise error
        return 1, 1

    sales(300)
    monkeypatch.setattr(OpenOrg, "trial", trial)
    code, told = checked(SALES, "churn: {horizon_days: 60}, segmentation: {horizon_days: 60}")
    assert code == 2
    assert told.endswith(f"churn: cannot run: {error}\nsegmentation: can run\n")


def test_check_ends_where_the_cluster_fails(sales, checked, monkeypatch) -> None:
    def trial(self: OpenOrg, name: str) -> tuple[int, int]:
        raise CapacityError("got 8 CPUs, expected 1")

    sales(300)
    monkeypatch.setattr(OpenOrg, "trial", trial)
    code, told = checked(SALES, "churn: {horizon_days: 60}")
    assert (code, "churn" in told) == (2, False)


def test_check_stays_off_the_head_that_runs_unless_it_is_named(sales, checked, monkeypatch) -> None:
    sales(300)
    joined: list[str] = []
    monkeypatch.setattr(cluster, "connect", joined.append)
    checked(SALES, "")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    checked(SALES, "")
    assert joined == ["local", "127.0.0.1:6379"]
