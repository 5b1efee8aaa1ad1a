"""`crmray init` on the files of a Salesforce export: which objects they are, and what the draft makes of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmray import cli, config
from crmray.commands import draft, exported
from crmray.data.ingest import ingest
from crmray.data.plans import inline
from crmray.data.shard import shard
from crmray.storage import Lake

EXPORT = {
    "AccountHistory": "Id,IsDeleted,AccountId,CreatedDate,Field,OldValue,NewValue",
    "Account": "Id,IsDeleted,Name,Phone,Industry,NumberOfEmployees,CreatedDate,LastModifiedDate,SystemModstamp",
    "Contact": "Id,IsDeleted,AccountId,LastName,Email,CreatedDate,SystemModstamp",
    "Order": "Id,IsDeleted,AccountId,EffectiveDate,Status,TotalAmount,CreatedDate,SystemModstamp",
    "OrderItem": "Id,IsDeleted,OrderId,Product2Id,Quantity,UnitPrice,TotalPrice,CreatedDate,SystemModstamp",
    "Opportunity": "Id,IsDeleted,AccountId,Amount,CloseDate,IsWon,CreatedDate,SystemModstamp",
    "Lead": "Id,IsDeleted,LastName,Email,LeadSource,ConvertedDate,ConvertedAccountId,CreatedDate,SystemModstamp",
    "CampaignMember": "Id,IsDeleted,CampaignId,ContactId,CreatedDate,SystemModstamp",
    "Task": "Id,IsDeleted,AccountId,Subject,TaskSubtype,Status,CreatedDate,SystemModstamp",
    "Case": "Id,IsDeleted,AccountId,Subject,CreatedDate,SystemModstamp",
}
"""object -> header of its file in a Salesforce Data Export"""


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., list[str]]:
    def write(*objects: str, empty: str = "") -> list[str]:
        for name in objects:
            header = EXPORT[name]
            row = ",".join("1" if column == "IsWon" else f"{column}-1" for column in header.split(","))
            (tmp_path / f"{name}.csv").write_text(f"{header}\n" + (f"{row}\n" if name != empty else ""))
        return [str(tmp_path / f"{name}.csv") for name in objects]

    return write


def test_init_reads_a_salesforce_export_by_the_standard_mapping(
    export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", *export(*EXPORT, empty="Case"), "--out", str(tmp_path / "org.yaml")]) == 0
    told = capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert "left out AccountHistory.csv, Contact.csv: nothing of these objects is read\n" in told
    assert "left out OrderItem.csv, CampaignMember.csv: reach their customer through another object" in told
    assert "left out Opportunity.csv: a deal won and its order are the same sale\n" in told
    assert "left out Case.csv: no rows\n" in told
    assert "order lines, campaign members, history and consent are read with `kind: salesforce` alone" in told
    org = config.load(tmp_path / "org.yaml")
    assert org.source.kind == "files"
    assert set(org.source.tables) == {"customers", "transactions", "leads", "interactions"}
    (account,), (order,) = org.source.tables["customers"], org.source.tables["transactions"]
    assert account.attributes == ["NumberOfEmployees"]  # neither names nor phones
    assert (order.columns["occurred_at"], order.columns["net_amount"]) == ("EffectiveDate", "TotalAmount")
    assert {"Status": "Draft"} in order.drop
    assert [part.values["channel"] for part in org.source.tables["interactions"]] == ["call", "task"]
    assert {"churn", "leads"} <= set(org.tasks)


def test_init_knows_the_files_of_an_export_with_few_columns_by_their_ids(tmp_path: Path) -> None:
    """Neither IsDeleted nor SystemModstamp; the Data Loader gives a file whatever name it is told."""
    content = {
        "account": "Id,Name,Industry,CreatedDate\n0015e00000000gqAAA,A,Retail,2024-01-01\n",
        "OrderItem": "Id,OrderId,Product2Id,Quantity,UnitPrice\n8025e00000000AB,801,01t,1,2\n",
        "USER": "Id,Name\n0055e00000000AB,Ann\n",
    }
    for name, text in content.items():
        (tmp_path / f"{name}.csv").write_text(text)
    found = [guess for name in content for guess in exported.guesses(str(tmp_path / f"{name}.csv"))]
    assert [(guess.table, guess.why) for guess in found[1:]] == [(None, exported.JOINED), (None, exported.UNUSED)]
    assert (found[0].table, found[0].standard and found[0].standard.attributes) == ("customers", [])
    assert set(found[0].columns) >= {"entity_id", "industry"}


def test_init_takes_won_deals_for_the_sales_of_an_export_without_orders(export, tmp_path: Path) -> None:
    assert cli.main(["init", *export("Account", "Opportunity"), "--out", str(tmp_path / "org.yaml")]) == 0
    org = config.load(tmp_path / "org.yaml")
    assert org.source.kind == "files"
    (deals,) = org.source.tables["transactions"]
    assert (deals.columns["occurred_at"], {"IsWon": False} in deals.drop) == ("CloseDate", True)


@pytest.mark.parametrize(
    ("file", "content", "table", "entity"),
    [
        ("orders_2024.csv", "Id,SystemModstamp,customer_id,date,amount\n1,2,3,2024-01-01,5\n", "transactions",
         "customer_id"),
        ("order.csv", "Id,customer_id,date,amount\n202401010000001,3,2024-01-01,5\n", "transactions", "customer_id"),
        ("ORDER.csv", "Id,customer_id,date,amount\nORD202401010001,3,2024-01-01,5\n", "transactions", "customer_id"),
        ("Invoice__c.csv", "Id,SystemModstamp,Account,Date,Amount\n1,2,3,2024-01-01,5\n", "transactions", "Account"),
    ],
)  # fmt: skip
def test_init_guesses_at_what_is_no_file_of_an_object_that_it_knows(
    file: str, content: str, table: str, entity: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(content)
    assert cli.main(["init", str(tmp_path / file), "--out", str(tmp_path / "org.yaml")]) == 0
    org = config.load(tmp_path / "org.yaml")
    assert org.source.kind == "files"
    assert org.source.tables[table][0].columns["entity_id"] == entity


@pytest.mark.parametrize(
    ("name", "without", "why"),
    [
        ("Order", {"Status"}, "got no column Status, expected what the standard mapping needs; export it too"),
        ("Order", {"Status", "AccountId"}, "got no column AccountId, Status, expected"),
        ("OrderItem", {"Quantity"}, "reach their customer through another object"),
        ("Contact", {"Email"}, "nothing of these objects is read"),
    ],
)
def test_init_names_the_columns_that_an_objects_file_lacks(
    name: str, without: set[str], why: str, tmp_path: Path
) -> None:
    columns = [column for column in EXPORT[name].split(",") if column not in without]
    (tmp_path / f"{name}.csv").write_text(f"{','.join(columns)}\n{','.join('1' for _ in columns)}\n")
    (told,) = draft.left_out(exported.guesses(str(tmp_path / f"{name}.csv")))
    assert told.startswith(f"{tmp_path / name}.csv: {why}")


def test_init_guesses_no_csv_settings_of_parquet(tmp_path: Path) -> None:
    noise = bytes(range(128, 256)) + b";" * 1000  # lies in the file as it is: no UTF-8, and many delimiters
    rows = pa.table({name: [noise] for name in EXPORT["Account"].split(",")})
    pq.write_table(rows, tmp_path / "Account.parquet", compression="none")
    (guess,) = exported.guesses(str(tmp_path / "Account.parquet"))
    assert (guess.table, guess.settings) == ("customers", {})


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("Order", ["o1,0,a1,2024-01-02,Activated,10", "o2,0,a1,2024-01-03,Draft,20", "o3,1,a2,2024-01-04,Activated,30",
                   "o4,0,,2024-01-05,Activated,40"]),
        ("Opportunity", ["o1,0,a1,10,2024-01-02,1", "o2,0,a1,20,2024-01-03,0", "o3,1,a2,30,2024-01-04,1",
                         "o4,0,,40,2024-01-05,1"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("written", [str, str.upper])
def test_the_sales_of_a_drafted_export_are_neither_drafts_nor_lost_nor_deleted(
    name: str, rows: list[str], written: Callable[[str], str], tmp_path: Path
) -> None:
    """The Data Export writes AccountId, the Data Loader may write ACCOUNTID."""
    path, stamp = tmp_path / f"{name}.csv", "2024-02-01T00:00:00.000Z"
    path.write_text("".join(f"{row}\n" for row in [written(EXPORT[name]), *(f"{row},{stamp},{stamp}" for row in rows)]))
    assert cli.main(["init", str(path), "--out", str(tmp_path / "org.yaml")]) == 0
    org = config.load(tmp_path / "org.yaml")
    lake = Lake.of(org)
    ingest(org, lake)
    sales = shard(org, lake, inline)["transactions"].read_table(columns=["entity_id", "order_id", "net_amount"])
    assert sales.to_pylist() == [{"entity_id": "a1", "order_id": "o1", "net_amount": 10.0}]


def test_init_does_not_look_into_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "WE_00D.ZIP", "w") as packed:
        packed.writestr("Account.csv", EXPORT["Account"])
    assert cli.main(["init", str(tmp_path / "WE_00D.ZIP")]) == 2
    assert "got an archive of files, expected CSV or Parquet; unpack it" in capsys.readouterr().err
