"""What a data file seems to be: which canonical table, which column is which, how it writes numbers and dates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from crmray.commands.headers import CHURNED, OUTCOMES, PERSONAL, REQUIRED, SYNONYMS, TOPICS, bare, plain
from crmray.data import files, infer, parse
from crmray.errors import DataError
from crmray.sources import TableSource

SAMPLE_ROWS = 20_000
MOST_TOPICS = 50
"""values of a column that labels texts; one with more is something else"""
SENTIMENTS = {"negative", "neutral", "positive"}


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
    outcome: str = ""
    """what its values say: churn, or something else that came of a customer"""
    topic: str | None = None
    """column that labels texts"""
    task: str = ""
    """task that such labels are for"""
    dates: dict[str, str] = field(default_factory=dict)
    """column of text that holds dates -> how it writes them, where they are no attribute of time as they stand"""
    two_valued: dict[str, str] = field(default_factory=dict)
    """column with two values that may be predicted -> its kind"""
    settings: dict[str, str] = field(default_factory=dict)
    """encoding, delimiter, decimal, date_format, where not the default"""
    seen: list[str] = field(default_factory=list)
    """all columns of the file"""
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
    names = {plain(name): name for name in reversed(seen)}
    fits = {table: columns for table in SYNONYMS if set(columns := _columns(table, names)) >= REQUIRED[table]}
    if fits:
        found.table = max(fits, key=lambda table: len(fits[table]) + 0.5 * len(REQUIRED[table]))
        found.columns = fits[found.table]
    _drop_a_log(found, rows)
    _take_texts(found, rows, names)
    _take_label(found, rows, names)
    times = {name for canonical, name in found.columns.items() if canonical.endswith("_at")}  # 13.12.09 is no number
    texts = [name for name in seen if name not in times and pa.types.is_string(rows.schema.field(name).type)]
    if _has_decimal_comma([rows[name] for name in texts]):
        found.settings["decimal"] = ","
    time = found.columns.get("occurred_at") or found.columns.get("created_at")
    if time in seen:
        form = infer.form_of_dates(rows[time]) if pa.types.is_string(rows[time].type) else None
        found.settings |= {"date_format": form} if form not in (None, infer.ISO) else {}
    for name in attributes(found):
        found.dates |= _odd_dates(name, rows[name], source.text)
        found.two_valued |= _two_valued(name, rows[name])
    return found


def _columns(table: str, names: dict[str, str]) -> dict[str, str]:
    """Canonical column -> source column, of a table whatever it lacks. names: plain name -> source column."""
    hits = {column: next((name for name in known if name in names), "") for column, known in SYNONYMS[table].items()}
    return {column: names[hit] for column, hit in hits.items() if hit}


def _repeats(values: pa.ChunkedArray) -> bool:
    """Whether most values stand in several rows."""
    return pc.count_distinct(values).as_py() < len(values) / 2


def _take_texts(found: Guess, rows: pa.Table, names: dict[str, str]) -> None:
    """Labelled texts: of customers at a date, or where the file lacks one of these the row's number serves."""
    columns = _columns("interactions", names)
    topic = next((names[name] for name in TOPICS if name in names), None)
    if found.table not in (None, "interactions") or "text" not in columns or not topic:
        return
    labels = {str(value).lower() for value in pc.unique(rows[topic].drop_null()).to_pylist()}
    if not 2 <= len(labels) <= MOST_TOPICS:
        return
    found.topic, found.task = topic, "sentiment" if labels <= SENTIMENTS else "intent"
    if not found.table:
        found.table = "interactions"
        by_row = dict.fromkeys(("entity_id", "interaction_id", "occurred_at"), files.ROW)
        found.columns = {**by_row, **{name: columns[name] for name in ("entity_id", "text") if name in columns}}
        found.settings["date_format"] = parse.ORDINAL


def _take_label(found: Guess, rows: pa.Table, names: dict[str, str]) -> None:
    """Where a column looks like an outcome the file has one row per customer, unless its customers repeat, or it is one
    of leads, texts or products."""
    known = [name for name in (*CHURNED, *OUTCOMES) if name in names]
    hit = next((name for name in known if pc.count_distinct(rows[names[name]]).as_py() == 2), None)
    columns = _columns("customers", names)
    key = columns.get("entity_id")
    is_other = found.table in ("leads", "interactions") or (found.table == "products" and not key)
    if hit is None or is_other or (key and _repeats(rows[key])):
        return
    found.label, found.outcome = names[hit], "churn" if hit in CHURNED else hit
    found.table = "customers"
    found.columns = columns if key else {"entity_id": files.ROW}


def _odd_dates(name: str, values: pa.ChunkedArray, is_csv: bool) -> dict[str, str]:
    """The column and how it writes dates, unless each is read as a time: that is so of ISO in CSV alone."""
    form = infer.form_of_dates(values) if pa.types.is_string(values.type) else None
    if form is None or (is_csv and "time" in infer.possible(values)):
        return {}
    return {name: form}


def _two_valued(name: str, values: pa.ChunkedArray) -> dict[str, str]:
    """The column and the kind of a prediction of it, where it has two values."""
    two = {str(value).lower() for value in pc.unique(values.drop_null()).to_pylist()}
    if len(two) != 2:
        return {}
    return {name: "yes_no" if two in ({"0", "1"}, {"true", "false"}) else "class"}


def _drop_a_log(found: Guess, rows: pa.Table) -> None:
    """No guess where a table of one row per customer or product would lose most rows: it is a log of something."""
    key = found.columns.get({"customers": "entity_id", "products": "product_id"}.get(found.table or "", ""))
    if key and _repeats(rows[key]):
        found.why = f"most values of {key!r} repeat, so it is no table of {found.table}, and no column has the name"
        found.why += f" of a date that it knows; map it by hand if it is a log of orders: {', '.join(found.seen)}"
        found.table, found.columns = None, {}


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


def unused(one: Guess) -> list[str]:
    """Columns that are neither mapped nor the outcome."""
    return [name for name in one.seen if name not in one.columns.values() and name != one.label]


def attributes(one: Guess) -> list[str]:
    """Columns that a draft keeps of customers beside those it maps: all that do not tell who somebody is."""
    return [name for name in unused(one) if not PERSONAL.search(bare(name))] if one.table == "customers" else []
