"""Where rows that were set aside stand in their source: file, row or line, and column. Never what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmray.config import Org
from crmray.data import files
from crmray.storage import Run

if TYPE_CHECKING:
    from crmray.data.plans import Feed

Places = Mapping[str, Sequence[Mapping[str, Any]]]
"""reason -> where the first few rows set aside for it stand: `raw`, `file`, `row` (from 1, the header is none),
`column`; without `file` where the rows of raw/ are not those of files: they were pulled, or the erased left out"""
FILE = "rejected/rows.parquet"
"""key and reason of all rows set aside, in the run of the table"""


def place(feed: Feed, row: int, reason: str) -> dict[str, Any]:
    """Where a row of a feed (from 0) stands; the reason begins with the canonical column."""
    manifest, column = feed.run.manifest(), reason.split(":")[0]
    found = {"raw": feed.run.name, "row": row + 1, "column": feed.plan.columns.get(column, column)}
    rows_read = manifest.get("rows_read", {})
    if sum(rows_read.values()) == manifest.get("rows"):
        for file, count in rows_read.items():
            if found["row"] <= count:
                return {**found, "file": file}
            found["row"] -= count
    return found


def first_of(places: Sequence[Mapping[str, Any]]) -> str:
    """The first place of a reason in words; empty where none is known."""
    return (
        f", the first in row {places[0]['row']} of {_file(places[0])}, column {places[0]['column']!r}" if places else ""
    )


def told(org: Org, run: Run) -> dict[str, list[str]]:
    """Reason -> where the first few of its rows stand, such as `orders.csv: line 12, line 17 (column 'Date')`.

    The lines are looked up in the files, which have to be there.
    """
    places: Places = run.manifest().get("rejected_at", {})
    lines, found = _lines(org, places), {}
    for reason, some in places.items():
        by_column: dict[tuple[str, str], list[str]] = {}
        for one in some:
            line = lines.get((one["raw"], _file(one)), {}).get(one["row"])
            numbers = by_column.setdefault((_file(one), one["column"]), [])
            numbers.append(f"line {line}" if line else f"row {one['row']}")
        found[reason] = [
            f"{file}: {', '.join(numbers)} (column {column!r})" for (file, column), numbers in by_column.items()
        ]
    return found


def _file(one: Mapping[str, Any]) -> str:
    return one.get("file", f"raw/{one['raw']}")


def _lines(org: Org, places: Places) -> dict[tuple[str, str], dict[int, int]]:
    """Raw name and CSV file -> row -> line."""
    from crmray.data.ingest import origins

    rows: dict[tuple[str, str], set[int]] = {}
    for one in (one for some in places.values() for one in some if "file" in one):
        rows.setdefault((one["raw"], one["file"]), set()).add(one["row"])
    found = {}
    for origin in (origin for origin in origins(org) if any(raw == origin.raw for raw, _ in rows)):
        part = origin.source
        source = files.find(part.files, org.folder, encoding=part.encoding, delimiter=part.delimiter)
        for path in source.paths if source.text else ():
            key = (origin.raw, files.told(path, org.folder))
            if key in rows:
                found[key] = files.lines(source, path, rows[key])
    return found
