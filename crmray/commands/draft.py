"""A first org file from data files: which canonical table each file is, which column is which. Guesses are marked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from crmray.data import files
from crmray.errors import DataError
from crmray.sources import TableSource

SAMPLE_ROWS = 20_000
# Canonical column -> names under which sources have it, compared without case, spaces and marks; the best first.
_ENTITY = (
    "customerid",
    "custid",
    "customer",
    "accountid",
    "account",
    "userid",
    "user",
    "reviewerid",
    "clientid",
    "memberid",
    "customerno",
    "customernumber",
    "custno",
    "memberno",
    "kundennummer",
)
_TIME = (
    "invoicedate", "orderdate", "effectivedate", "purchasedate", "transactiondate", "occurredat", "timestamp",
    "createddate", "activitydate", "datetime", "date", "time",
)  # fmt: skip
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "transactions": {
        "entity_id": _ENTITY,
        "occurred_at": _TIME,
        "order_id": ("invoiceno", "invoice", "orderid", "ordernumber", "orderno", "order", "basketid", "receiptid"),
        "product_id": (
            "stockcode",
            "productid",
            "sku",
            "itemid",
            "asin",
            "product2id",
            "product",
            "item",
            "article",
            "articleno",
        ),
        "num_units": ("quantity", "qty", "units", "numunits"),
        "unit_price_amount": ("unitprice", "price", "unitpriceamount"),
        "net_amount": ("netamount", "amount", "total", "totalprice", "sales", "linetotal", "revenue"),
        "channel": ("channel",),
    },
    "interactions": {
        "entity_id": _ENTITY,
        "occurred_at": _TIME,
        "channel": ("channel", "origin"),
        "subject": ("subject", "title", "summary"),
        "text": ("text", "body", "textbody", "description", "reviewtext", "comment", "message"),
        "rating": ("rating", "stars", "overall", "score"),
        "status": ("status",),
    },
    "products": {
        "product_id": ("productid", "sku", "stockcode", "itemid", "asin", "id"),
        "name": ("name", "productname", "title", "description"),
        "category": ("category", "family", "department"),
        "brand": ("brand",),
        "price_amount": ("price", "unitprice", "listprice"),
    },
    "customers": {
        "entity_id": (*_ENTITY, "id"),
        "created_at": ("createddate", "createdat", "signupdate", "joined", "since"),
        "country": ("country", "billingcountry"),
        "region": ("region", "state", "billingstate"),
        "industry": ("industry",),
        "segment": ("segment",),
    },
}
_PERSONAL = re.compile(r"(?i)mail|phone|mobile|fax|name|street|address|birth|passport|iban|card")
"""columns of customers that tell who somebody is: no attribute of a draft"""
REQUIRED = {
    "transactions": {"entity_id", "occurred_at"},
    "interactions": {"entity_id", "occurred_at", "text"},
    "products": {"product_id", "name"},
    "customers": {"entity_id"},
}
LABELS = ("churn", "churned", "exited", "attrition", "attrited", "left", "target", "label")


@dataclass(kw_only=True)
class Guess:
    """What a file seems to be."""

    path: str
    """as given"""
    table: str | None = None
    """canonical table; None when nothing fits"""
    columns: dict[str, str] = field(default_factory=dict)
    """canonical column -> source column"""
    label: str | None = None
    """column with two values that looks like an outcome"""
    settings: dict[str, str] = field(default_factory=dict)
    """encoding, delimiter, decimal, date_format, where not the default"""
    seen: list[str] = field(default_factory=list)
    """all columns of the file"""
    made_id: bool = False
    """whether rows have no id, so that their number has to serve"""
    standard: TableSource | None = None
    """of a file of a Salesforce export: what the standard mapping makes of its object"""
    why: str = "no canonical table fits its columns"
    """that it is left out"""


def look(path: str) -> tuple[files.Source, Guess]:
    """A file as it has to be read, and its settings and columns without a guess. DataError when it cannot be read."""
    settings = csv_settings(path)
    source = files.find([path], ".", **settings)
    return source, Guess(path=path, settings=settings, seen=list(files.schema(source).names))


def guess(path: str) -> Guess:
    """Look at the first rows of a file. DataError when it cannot be read."""
    source, found = look(path)
    seen = found.seen
    first = next(files.batches(source, seen, rows=SAMPLE_ROWS), None)
    if first is None or not first.num_rows:
        raise DataError(f"file {path}: got a header and no rows, expected rows to guess from")
    rows = pa.Table.from_batches([first])
    names = {_plain(name): name for name in reversed(seen)}
    best = 0.0
    for table, synonyms in SYNONYMS.items():
        columns = {canonical: names[hit] for canonical, options in synonyms.items() if (hit := _first(options, names))}
        score = len(columns) + 0.5 * len(REQUIRED[table] & set(columns))
        if set(columns) >= REQUIRED[table] and score > best:
            best, found.table, found.columns = score, table, columns
    _drop_a_log(found, rows)
    if (hit := _first(LABELS, names)) and pc.count_distinct(rows[names[hit]]).as_py() == 2:
        found.label = names[hit]
        found.made_id = found.table != "customers"
        found.table = "customers"
        found.columns = {"entity_id": files.ROW} if found.made_id else found.columns
    times = {name for canonical, name in found.columns.items() if canonical.endswith("_at")}  # 13.12.09 is no number
    texts = [name for name in seen if name not in times and pa.types.is_string(rows.schema.field(name).type)]
    if _has_decimal_comma([rows[name] for name in texts]):
        found.settings["decimal"] = ","
    if found.table in ("transactions", "interactions"):
        found.settings |= _date_format(rows[found.columns["occurred_at"]])
    return found


def _drop_a_log(found: Guess, rows: pa.Table) -> None:
    """No guess where a table of one row per customer or product would lose most rows: it is a log of something."""
    key = found.columns.get({"customers": "entity_id", "products": "product_id"}.get(found.table or "", ""))
    if key and pc.count_distinct(rows[key]).as_py() < rows.num_rows / 2:
        found.why = f"most values of {key!r} repeat, so it is no table of {found.table}, and no column has the name"
        found.why += f" of a date that it knows; map it by hand if it is a log of orders: {', '.join(found.seen)}"
        found.table, found.columns = None, {}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _first(options: Sequence[str], names: dict[str, str]) -> str | None:
    return next((option for option in options if option in names), None)


def csv_settings(path: str) -> dict[str, str]:
    """Delimiter and encoding from the first line and the first bytes, where they are not the default; of CSV alone."""
    if path.lower().endswith((".parquet", ".pq")):
        return {}
    settings = {}
    try:
        with files.open_file(path) as file:
            head = file.read(1 << 20)
    except DataError:
        return {}  # `find` says it better
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            settings["encoding"] = "latin-1"
    first = head.split(b"\n", 1)[0]
    delimiter = max(b",", b";", b"\t", b"|", key=first.count)
    if delimiter != b",":
        settings["delimiter"] = delimiter.decode()
    return settings


def _has_decimal_comma(columns: Sequence[pa.ChunkedArray]) -> bool:
    """Whether numbers in text are written 1.234,50: some end in a comma and digits, none in a point and digits. A file
    has one way of writing them, so a list such as 1,2 counts for nothing where another column has 12.50."""
    comma, point = (
        any(
            pc.any(pc.match_substring_regex(values, rf"^\s*-?[\d.,]*\d{mark}\d{{1,2}}\s*$")).as_py()
            for values in columns
        )
        for mark in (",", r"\.")
    )
    return comma and not point


def _date_format(values: pa.ChunkedArray) -> dict[str, str]:
    """A strptime format when the times are text that is not ISO; day or month first is told by values above 12."""
    if not pa.types.is_string(values.type):
        return {}
    sample = [value for value in values.slice(0, 5000).to_pylist() if value]
    matches = [
        re.match(r"^(\d{1,2})([/.-])(\d{1,2})\2(\d{2,4})(?: (\d{1,2}):(\d{2})(:\d{2})?)?", value) for value in sample
    ]
    if not sample or not all(matches):
        return {}
    found = [match for match in matches if match]
    mark, year = found[0][2], "%Y" if len(found[0][4]) == 4 else "%y"
    month_first = max(int(match[3]) for match in found) > 12
    days = f"%m{mark}%d" if month_first else f"%d{mark}%m"
    clock = "" if not found[0][5] else " %H:%M:%S" if found[0][7] else " %H:%M"
    return {"date_format": f"{days}{mark}{year}{clock}"}


def render(name: str, guesses: Sequence[Guess], folder: Path) -> str:
    """The draft as YAML text, every guess marked with what else was there."""
    lines = [
        f"name: {name}",
        "storage: lake  # GUESS a folder beside this file; s3://bucket/prefix works as well",
        "currency: USD  # GUESS",
        "source:",
        "  kind: files",
        "  tables:",
    ]
    for table in dict.fromkeys(guess.table for guess in guesses if guess.table):
        lines.append(f"    {table}:")
        for one in (guess for guess in guesses if guess.table == table):
            place = one.path if os.path.isabs(one.path) else os.path.relpath(one.path, folder)
            lines += _source_lines(one, place)
            if one.label:
                lines += ["    outcomes:", *_outcome_lines(one, place)]
    lines += [f"    # left out: {line}" for line in left_out(guesses)]
    return "\n".join([*lines, *_task_lines(guesses)]) + "\n"


def _task_lines(guesses: Sequence[Guess]) -> list[str]:
    """The tasks that such columns can carry; those that take longest to train as a hint."""
    columns = {(guess.table, column) for guess in guesses for column in guess.columns}
    bought = ("transactions", "entity_id") in columns
    tasks = []
    if any(guess.label for guess in guesses):
        tasks.append('  churn: {label: "outcome:churn"}')
    elif bought:
        tasks.append("  churn: {}")
    tasks += ["  segmentation: {}"] if bought else []
    tasks += ["  recommendation: {}"] if ("transactions", "product_id") in columns else []
    tasks += ["  sentiment: {}"] if ("interactions", "rating") in columns else []
    tasks += ["  leads: {}"] if ("leads", "converted_at") in columns else []
    if ("transactions", "net_amount") in columns or ("transactions", "unit_price_amount") in columns:
        tasks += [f"  # {name}: {{}}  # can be carried too" for name in ("value", "forecast")]
    note = "# GUESS what this data can carry; `crmray check` tells"
    return [f"tasks:  {note}", *tasks] if tasks else [f"tasks: {{}}  {note}"]


def left_out(guesses: Sequence[Guess]) -> list[str]:
    """A line for each reason, with the files that are left out by it and the columns of those that fit nothing."""
    reasons: dict[str, list[str]] = {}
    for one in (guess for guess in guesses if not guess.table):
        told = one.why if one.why != Guess.why else f"{one.why} {', '.join(one.seen)}"
        reasons.setdefault(told, []).append(one.path)
    return [f"{', '.join(paths)}: {told}" for told, paths in reasons.items()]


def _standard_lines(one: Guess, source: TableSource, place: str) -> list[str]:
    """A source of the standard mapping, of a file."""
    told = {"files": [place], **source.model_dump(exclude={"object"}, exclude_defaults=True), **one.settings}
    lines = yaml.safe_dump(told, sort_keys=False, default_flow_style=None, width=100).splitlines()
    return [f"      # Salesforce's {source.object}", f"      - {lines[0]}", *(f"        {line}" for line in lines[1:])]


def _source_lines(one: Guess, place: str) -> list[str]:
    if one.standard is not None:
        return _standard_lines(one, one.standard, place)
    unused = [name for name in one.seen if name not in one.columns.values() and name != one.label]
    lines = [f"      - files: [{_quoted(place)}]", "        columns:"]
    for canonical, column in one.columns.items():
        note = "the file has no id; the number of the row serves" if column == files.ROW else "GUESS by its name"
        lines.append(f"          {canonical}: {_quoted(column)}  # {note}")
    lines += [f"        {key}: {_quoted(value)}  # GUESS from the first rows" for key, value in one.settings.items()]
    if one.table == "customers" and unused:
        personal = [name for name in unused if _PERSONAL.search(name)]
        lines += [f"        # personal, left out: {', '.join(personal)}"] if personal else []
        others = [name for name in unused if name not in personal]
        lines += (
            [f"        attributes: [{', '.join(map(_quoted, others))}]  # GUESS all other columns"] if others else []
        )
    elif unused:
        lines.append(f"        # not mapped: {', '.join(unused)}")
    return lines


def _outcome_lines(one: Guess, place: str) -> list[str]:
    assert one.label is not None
    return [
        f"      - files: [{_quoted(place)}]",
        "        columns:",
        f"          entity_id: {_quoted(one.columns['entity_id'])}",
        f"          value: {_quoted(one.label)}  # GUESS the label, by its name and its two values",
        "        values: {name: churn}  # GUESS",
    ]


def _quoted(text: str) -> str:
    """As YAML reads it back: a column may be called No, which is a bool there."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text
    return text if plain else "'" + text.replace("'", "''") + "'"
