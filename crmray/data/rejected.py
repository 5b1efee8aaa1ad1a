"""Where rows that were set aside stand in their source: file, row or line, and column. Never what they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmray.config import Org
from crmray.data import files
from crmray.errors import DataError
from crmray.storage import Run

if TYPE_CHECKING:
    from crmray.data.plans import Feed

Places = Mapping[str, Sequence[Mapping[str, Any]]]
"""reason -> where the first few rows set aside for it stand: `raw`, `file` (from 0, in the order in which they were
read; a name would be wrong once it is changed), `row` (from 1, the header is none), `column`; without `file` where the
rows of raw/ are not those of files: they were pulled, or the erased left out"""
FILE = "rejected/rows.parquet"
"""key and reason of all rows set aside, in the run of the table"""


def place(feed: Feed, row: int, reason: str) -> dict[str, Any]:
    """Where a row of a feed (from 0) stands; the reason begins with the canonical column."""
    manifest, column = feed.run.manifest(), reason.split(":")[0]
    found = {"raw": feed.run.name, "row": row + 1, "column": feed.plan.columns.get(column, column)}
    rows_read = manifest.get("rows_read", [])
    if sum(rows_read) == manifest.get("rows"):
        for file, count in enumerate(rows_read):
            if found["row"] <= count:
                return {**found, "file": file}
            found["row"] -= count
    return found


def first_of(org: Org, places: Sequence[Mapping[str, Any]]) -> str:
    """The first place of a reason in words; empty where none is known."""
    if not places:
        return ""
    one, sources = places[0], _sources(org, places[:1])
    return f", the first in row {one['row']} of {_name(org, one, sources)}, column {one['column']!r}"


def told(org: Org, run: Run) -> dict[str, list[str]]:
    """Reason -> where the first few of its rows stand, such as `orders.csv: line 12, line 17 (column 'Date')`.

    Names and lines are looked up in the files as they are now.
    """
    places: Places = run.manifest().get("rejected_at", {})
    all_places = [one for some in places.values() for one in some]
    sources = _sources(org, all_places)
    lines, found = _lines(all_places, sources), {}
    for reason, some in places.items():
        by_column: dict[tuple[str, str], list[str]] = {}
        for one in some:
            line = lines.get((one["raw"], _path(one, sources)), {}).get(one["row"])
            numbers = by_column.setdefault((_name(org, one, sources), one["column"]), [])
            numbers.append(f"line {line}" if line else f"row {one['row']}")
        found[reason] = [
            f"{file}: {', '.join(numbers)} (column {column!r})" for (file, column), numbers in by_column.items()
        ]
    return found


def _sources(org: Org, places: Sequence[Mapping[str, Any]]) -> dict[str, files.Source]:
    """Raw name -> its files, without those that are gone since they were read."""
    from crmray.data.ingest import files_of, origins

    wanted = {one["raw"] for one in places if "file" in one}
    found = {}
    for origin in (origin for origin in origins(org) if origin.raw in wanted):
        with contextlib.suppress(DataError):
            found[origin.raw] = files_of(org, origin.source)
    return found


def _path(one: Mapping[str, Any], sources: Mapping[str, files.Source]) -> str:
    """The file that a place is in; "" where it is not known."""
    paths = sources[one["raw"]].paths if one["raw"] in sources else ()
    return paths[one["file"]] if "file" in one and one["file"] < len(paths) else ""


def _name(org: Org, one: Mapping[str, Any], sources: Mapping[str, files.Source]) -> str:
    if path := _path(one, sources):
        return files.told(path, org.folder)
    return f"file {one['file'] + 1} of raw/{one['raw']}" if "file" in one else f"raw/{one['raw']}"


def _lines(
    places: Sequence[Mapping[str, Any]], sources: Mapping[str, files.Source]
) -> dict[tuple[str, str], dict[int, int]]:
    """Raw name and CSV file -> row -> line."""
    rows: dict[tuple[str, str], set[int]] = {}
    for one in places:
        if (path := _path(one, sources)) and sources[one["raw"]].text:
            rows.setdefault((one["raw"], path), set()).add(one["row"])
    return {at: files.lines(sources[at[0]], at[1], wanted) for at, wanted in rows.items()}
