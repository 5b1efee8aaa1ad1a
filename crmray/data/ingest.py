"""From the source to raw/: its rows as it has them, only the columns that are needed, in parts of a fixed size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from crmray import log
from crmray.config import DemoSource, FilesSource, Org, SalesforceSource
from crmray.data import files
from crmray.data.files_guard import FilesGuard
from crmray.errors import ConfigError, DataError
from crmray.sources import TableSource
from crmray.storage import Lake, Run, run_id

PART_ROWS = 256 * 1024
FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One source of one canonical table, and where its rows lie in raw/."""

    table: str
    """canonical table"""
    source: TableSource
    """its section of the org file"""
    raw: str
    """name in raw/"""


def origins(org: Org) -> list[Origin]:
    """All sources of all tables, in the order of the org file; for the demo org the standard mapping, for a Salesforce
    org the mapping of the objects and columns that were pulled."""
    if isinstance(org.source, SalesforceSource):
        tables = _pulled(org, org.source)
    elif isinstance(org.source, DemoSource):
        from crmray.salesforce.mapping import STANDARD

        tables = STANDARD
    else:
        tables = org.source.tables
    return [
        Origin(table=table, source=source, raw=source.object or f"{table}-{index}")
        for table, sources in tables.items()
        for index, source in enumerate(sources)
    ]


def ingest(org: Org, lake: Lake) -> dict[str, Run]:
    """Bring all objects of the source into raw/; raw name -> run. What is there already is not read again.

    DataError for a missing, empty, truncated or undecodable file, or a column that is not there; for a Salesforce org
    see `crmray.salesforce.pull`.
    """
    if isinstance(org.source, SalesforceSource):
        from crmray.salesforce.pull import pull

        return pull(org, lake)
    if isinstance(org.source, FilesSource):
        guard = FilesGuard.open(org, lake)
        _learn(org, guard)
        return {origin.raw: _files(org, lake, origin, guard) for origin in origins(org)}
    if isinstance(org.source, DemoSource):
        refuse_keys_of_demo(org)
    from crmray.data import demo

    return demo.write(lake, org.source, org.seed)


def _pulled(org: Org, source: SalesforceSource) -> dict[str, list[TableSource]]:
    """The mapping, cut to what lies in raw/."""
    from crmray.salesforce import mapping

    lake = Lake.of(org)
    manifests = {name: lake.latest("raw", name).manifest() for name in lake.names("raw")}
    pulled = {name: list(manifest["columns"]) for name, manifest in manifests.items() if "reconciled" in manifest}
    return mapping.tables(source, pulled, empty=[name for name in pulled if not manifests[name]["rows"]])


def kept_columns(source: TableSource, there: list[str]) -> list[str]:
    """Source columns that are mapped, looked at by `drop`, or kept as attributes, sorted."""
    named = {*source.columns.values(), *(column for entry in source.drop for column in entry)}
    return sorted(named | set(there if source.attributes == "*" else source.attributes))


def attributes(source: TableSource, there: list[str]) -> list[str]:
    """Source columns kept as attributes: those named, or with "*" all that are not mapped."""
    if source.attributes != "*":
        return list(source.attributes)
    mapped = set(source.columns.values())
    return [name for name in there if name not in mapped and name != files.ROW]


def refuse_keys_of_demo(org: Org) -> None:
    """ConfigError when pseudonyms are asked for that nothing would make: the demo org has no persons."""
    if org.privacy.pseudonym_key is not None:
        raise ConfigError(
            "privacy.pseudonym_key: got a key for source kind demo, whose customers are made up, expected none; "
            "`crmray sandbox` has an org with persons"
        )


def files_of(org: Org, source: TableSource) -> files.Source:
    """The files of a source, as they are named now. DataError where they are not there."""
    return files.find(source.files, org.folder, encoding=source.encoding, delimiter=source.delimiter)


def _learn(org: Org, guard: FilesGuard) -> None:
    """Let the guard know the names of customers before any text is read."""
    for origin in origins(org):
        source = origin.source
        found = files_of(org, source)
        there = files.schema(found)
        plan = guard.plan(origin.table, source, kept_columns(source, there.names), there.names)
        if plan.names and plan.entity is not None:
            for batch in files.batches(found, [plan.entity, *plan.names]):
                guard.learn(plan, batch)


def _files(org: Org, lake: Lake, origin: Origin, guard: FilesGuard) -> Run:
    source = origin.source
    found = files_of(org, source)
    there = files.schema(found)
    plan = guard.plan(origin.table, source, kept_columns(source, there.names), there.names)
    columns = list(plan.read)
    settings = {"columns": columns, "encoding": source.encoding, "delimiter": source.delimiter, "text": found.text}
    settings |= guard.settings(plan)
    inputs: dict[str, Any] = {"files": files.fingerprint(found)}
    run = lake.run("raw", origin.raw, run_id("ingest", inputs=inputs, settings=settings, seed=0, format=FORMAT))
    with run.claim("ingest") as mine:
        if not mine:
            return run
        rows, read = 0, Counter[str]()
        with log.progress(f"ingest.{origin.raw}", unit="rows") as bar:
            for index, part in enumerate(_parts(files.batches(found, columns, counts=read))):
                kept = guard.apply(part, plan)
                run.write_table(f"part-{index:05d}.parquet", kept)
                rows += kept.num_rows
                bar.advance(part.num_rows)
        if not rows:
            raise DataError(f"files {source.files}: got a header and no rows, expected rows; fetch them again")
        types = {name: "int64" if name == files.ROW else str(there.field(name).type) for name in columns}
        types |= dict.fromkeys((*plan.pseudonyms, *plan.texts), "string")
        rows_read = [read[path] for path in found.paths]  # no names: a file that is renamed is not read again
        run.commit(rows=rows, columns=types, text=found.text, num_files=len(found.paths), rows_read=rows_read, **inputs)
    log.event("ingest.wrote", raw=origin.raw, rows=rows, run_id=run.run_id)
    return run


def _parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of PART_ROWS rows (the last one fewer)."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        while count >= PART_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, PART_ROWS).combine_chunks()
            rest = table.slice(PART_ROWS)
            waiting, count = rest.to_batches(), rest.num_rows
    if count:
        yield pa.Table.from_batches(waiting).combine_chunks()
