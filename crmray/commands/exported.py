"""Files of a Salesforce export (Data Export, Data Loader: Account.csv, Order.csv, …) in a first org file.

Each file is an object, so the standard mapping says what its columns are. What reaches its customer through another
object (OrderItem by Order.AccountId) cannot be had so: files are not joined. Sales are the orders then, or the
opportunities that were won.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from crmray.commands.draft import Guess, csv_settings
from crmray.data import files
from crmray.salesforce import mapping
from crmray.sources import TableSource

KEYS = {"Id", "SystemModstamp"}
"""columns that every object of an export has"""
TABLES = tuple(table for table in {**mapping.STANDARD, **mapping.FURTHER} if table != "changes")
"""a history is of Salesforce's fields, not of a file's columns"""
SALES = {
    "Order": TableSource(
        object="Order",
        columns={"entity_id": "AccountId", "occurred_at": "EffectiveDate", "transaction_id": "Id", "order_id": "Id",
                 "net_amount": "TotalAmount"},
        drop=[mapping.DELETED, {"Status": "Draft"}, {"AccountId": {"missing": True}}],
    ),
    "Opportunity": TableSource(
        object="Opportunity",
        columns={"entity_id": "AccountId", "occurred_at": "CloseDate", "transaction_id": "Id", "order_id": "Id",
                 "net_amount": "Amount"},
        drop=[mapping.DELETED, {"IsWon": False}, {"AccountId": {"missing": True}}],
    ),
}  # fmt: skip
"""object -> whole sales, in place of their lines"""
NOTE = "a Salesforce export: order lines, campaign members, history and consent are read with `kind: salesforce` alone"
NO_ROWS, UNUSED, JOINED, TWICE = (
    "no rows", "nothing of these objects is read", "reach their customer through another object; files are not joined",
    "a deal won and its order are the same sale",
)  # fmt: skip
"""why a file is left out"""


def guesses(path: str) -> list[Guess]:
    """What the standard mapping makes of an object's file, at least one; none for a file of another kind.

    DataError when it cannot be read.
    """
    settings = csv_settings(path)
    source = files.find(
        [path], ".", encoding=settings.get("encoding", "utf-8"), delimiter=settings.get("delimiter", ",")
    )
    seen = list(files.schema(source).names)
    if not set(seen) >= KEYS:
        return []
    name = Path(path).stem.split(".")[0]
    if next(files.batches(source, ["Id"]), None) is None:
        return [Guess(path=path, seen=seen, why=NO_ROWS)]
    parts = [(table, part) for table in TABLES for part in mapping.every(table) if part.object == name]
    parts += [("transactions", SALES[name])] if name in SALES else []
    fits = [(table, fit) for table, part in parts if (fit := mapping.fit(table, part, {name: seen}))]
    if not fits:
        return [Guess(path=path, seen=seen, why=JOINED if parts else UNUSED)]
    return [
        Guess(path=path, seen=seen, settings=settings, table=table, columns=dict(fit.columns), standard=fit)
        for table, fit in fits
    ]


def one_sale(found: Iterable[Guess]) -> list[Guess]:
    """Without the opportunities where there are orders."""
    found = list(found)
    objects = {guess.standard.object for guess in found if guess.standard}
    if not objects >= set(SALES):
        return found
    return [
        Guess(path=guess.path, seen=guess.seen, why=TWICE)
        if guess.standard and guess.standard.object == "Opportunity"
        else guess
        for guess in found
    ]
