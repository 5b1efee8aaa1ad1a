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

from crmray.commands.headers import CHURNED, OUTCOMES, PERSONAL, REQUIRED, SYNONYMS, bare, plain
from crmray.data import files, infer
from crmray.errors import DataError
from crmray.sources import TableSource

SAMPLE_ROWS = 20_000
DATES = (
    "holds dates as text ({form}), and as they stand each of them is a category of its own; write all in ISO 8601 as "
    "2024-01-31 (in Parquet as timestamps), which counts as days, or leave the column out"
)
"""of an attribute"""


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
    dates: dict[str, str] = field(default_factory=dict)
    """column of text that holds dates -> how it writes them, where they are no attribute of time as they stand"""
    two_valued: dict[str, str] = field(default_factory=dict)
    """column with two values that may be predicted -> its kind"""
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
    names = {plain(name): name for name in reversed(seen)}
    fits = {table: columns for table in SYNONYMS if set(columns := _columns(table, names)) >= REQUIRED[table]}
    if fits:
        found.table = max(fits, key=lambda table: len(fits[table]) + 0.5 * len(REQUIRED[table]))
        found.columns = fits[found.table]
    _drop_a_log(found, rows)
    _take_label(found, rows, names)
    times = {name for canonical, name in found.columns.items() if canonical.endswith("_at")}  # 13.12.09 is no number
    texts = [name for name in seen if name not in times and pa.types.is_string(rows.schema.field(name).type)]
    if _has_decimal_comma([rows[name] for name in texts]):
        found.settings["decimal"] = ","
    if time := found.columns.get("occurred_at") or found.columns.get("created_at"):
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


def _take_label(found: Guess, rows: pa.Table, names: dict[str, str]) -> None:
    """Where a column looks like an outcome the file has one row per customer, unless its customers repeat."""
    known = [name for name in (*CHURNED, *OUTCOMES) if name in names]
    hit = next((name for name in known if pc.count_distinct(rows[names[name]]).as_py() == 2), None)
    columns = _columns("customers", names)
    key = columns.get("entity_id")
    if hit is None or found.table == "leads" or (key and _repeats(rows[key])):
        return
    found.label, found.outcome = names[hit], "churn" if hit in CHURNED else hit
    found.table, found.made_id = "customers", key is None
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


def render(name: str, guesses: Sequence[Guess], folder: Path, *, is_named: bool = True) -> str:
    """The draft as YAML text, every guess marked with what else was there. is_named: whether the user gave the name."""
    lines = [
        f"name: {name}" if is_named else f"name: {name}  # GUESS by the first file",
        "storage: lake  # GUESS a folder beside this file; s3://bucket/prefix works as well",
        "currency: USD  # GUESS",
        "source:",
        "  kind: files",
        "  tables:",
    ]
    for table in dict.fromkeys(guess.table for guess in guesses if guess.table):
        lines.append(f"    {table}:")
        for one in (guess for guess in guesses if guess.table == table):
            lines += _source_lines(one, _place(one, folder))
    if labelled := [one for one in guesses if one.label]:
        lines.append("    outcomes:  # of the same file, on purpose: what is predicted is no attribute")
        lines += [line for one in labelled for line in _outcome_lines(one, _place(one, folder))]
    lines += [f"    # left out: {line}" for line in left_out(guesses)]
    return "\n".join([*lines, *_task_lines(guesses)]) + "\n"


def _place(one: Guess, folder: Path) -> str:
    return one.path if os.path.isabs(one.path) else os.path.relpath(one.path, folder)


def _task_lines(guesses: Sequence[Guess]) -> list[str]:
    """The tasks that such columns can carry; those that take longest to train as a hint."""
    columns = {(guess.table, column) for guess in guesses for column in guess.columns}
    bought = ("transactions", "entity_id") in columns
    told = bought or any(table == "interactions" for table, _ in columns) or any(map(_is_described, guesses))
    outcomes = {guess.outcome for guess in guesses if guess.label and told}
    tasks = []
    if "churn" in outcomes:
        tasks.append('  churn: {label: "outcome:churn"}')
    elif bought:
        tasks.append("  churn: {}")
    tasks += [f"  custom.{name}: {{outcome: {{given: {name}}}}}" for name in sorted(outcomes - {"churn"})]
    tasks += ["  segmentation: {}"] if bought else []
    tasks += ["  recommendation: {}"] if ("transactions", "product_id") in columns else []
    tasks += ["  sentiment: {}"] if ("interactions", "rating") in columns else []
    tasks += ["  leads: {}"] if ("leads", "converted_at") in columns else []
    if ("transactions", "net_amount") in columns or ("transactions", "unit_price_amount") in columns:
        tasks += [f"  # {name}: {{}}  # can be carried too" for name in ("value", "forecast")]
    note = "# GUESS what this data can carry; `crmray check` tells"
    return [f"tasks:  {note}", *tasks] if tasks else [f"tasks: {{}}  {note}", *_why_none(guesses)]


def _is_described(one: Guess) -> bool:
    """Whether a file says enough of customers to predict something of them by it: more than ids, an outcome, a date."""
    return one.table == "customers" and len(attributes(one)) + len({*one.columns} - {"entity_id", "created_at"}) > 0


def _why_none(guesses: Sequence[Guess]) -> list[str]:
    """What is missing for a task, and what a prediction of one's own would be."""
    lines = [
        "  # none fits yet: churn, segmentation and value need purchases (of a customer, at a date), recommendation "
        "their products,",
        "  # sentiment texts with a rating, leads the dates of creation and conversion",
    ]
    lines += [
        f"  # {one.label} is an outcome, but nothing else is known of the customers: add columns, or their purchases"
        for one in guesses
        if one.label
    ]
    for one in guesses:
        if len(attributes(one)) > 1:
            lines += [
                f"  # to predict {column}:  custom.mine: {{outcome: {{attribute: {_quoted(column)}, kind: {kind}}}}}"
                for column, kind in one.two_valued.items()
            ]
    return lines


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
    unused = _unused(one)
    lines = [f"      - files: [{_quoted(place)}]", "        columns:"]
    for canonical, column in one.columns.items():
        note = "the file has no id; the number of the row serves" if column == files.ROW else "GUESS by its name"
        lines.append(f"          {canonical}: {_quoted(column)}  # {note}")
    lines += _setting_lines(one)
    if one.table == "customers":
        kept = attributes(one)
        personal = [name for name in unused if name not in kept]
        lines += [f"        # personal, left out: {', '.join(personal)}"] if personal else []
        lines += [f"        attributes: [{', '.join(map(_quoted, kept))}]  # GUESS all other columns"] if kept else []
        lines += [f"        # {name}: {DATES.format(form=form)}" for name, form in one.dates.items()]
    elif unused:
        lines.append(f"        # not mapped: {', '.join(unused)}")
    return lines


def _setting_lines(one: Guess) -> list[str]:
    return [f"        {key}: {_quoted(value)}  # GUESS from the first rows" for key, value in one.settings.items()]


def _unused(one: Guess) -> list[str]:
    """Columns that are neither mapped nor the outcome."""
    return [name for name in one.seen if name not in one.columns.values() and name != one.label]


def attributes(one: Guess) -> list[str]:
    """Columns that a draft keeps of customers beside those it maps: all that do not tell who somebody is."""
    return [name for name in _unused(one) if not PERSONAL.search(bare(name))] if one.table == "customers" else []


def _outcome_lines(one: Guess, place: str) -> list[str]:
    assert one.label is not None
    return [
        f"      - files: [{_quoted(place)}]",
        "        columns:",
        f"          entity_id: {_quoted(one.columns['entity_id'])}",
        f"          value: {_quoted(one.label)}  # GUESS the label, by its name and its two values",
        f"        values: {{name: {one.outcome}}}  # GUESS",
        *_setting_lines(one),
    ]


def _quoted(text: str) -> str:
    """As YAML reads it back: a column may be called No, which is a bool there."""
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text
    return text if is_plain else "'" + text.replace("'", "''") + "'"
