"""Rows that lie in the lake already, as the guard would have them now: wishes and names may have come since."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from crmray.salesforce import merge, withheld
from crmray.salesforce.fingerprint import Fingerprint, hash_ids
from crmray.salesforce.stage import Part, Reading, Stage

FOLDER = "base"


def withdrawn(reading: Reading, parts: Sequence[Part]) -> Iterator[pa.Table]:
    """What is kept of the rows of a base that are about somebody who has withdrawn since."""
    if not reading.guard.withholds:
        return
    for part in parts:
        names = part.run.open_parquet(part.rel).schema_arrow.names
        for table in merge.row_groups(part, withheld.columns(reading.guarded.about, reading.modstamp, names)):
            rows = table.filter(reading.guard.withheld(table, reading.guarded, pseudonyms=True))
            if rows.num_rows:
                yield withheld.of_rows(hash_ids(rows["Id"]), rows, reading.modstamp)


def renewed(stage: Stage, reading: Reading, parts: Sequence[Part]) -> list[Part]:
    """The parts of a base; those in whose texts a name stands that was not known before are written anew."""
    if not reading.guard.renames or not (reading.guarded.texts or reading.guarded.changes):
        return list(parts)
    stage.clear_folder(FOLDER)
    return [_renewed(stage, reading, part) for part in parts]


def _renewed(stage: Stage, reading: Reading, part: Part) -> Part:
    rel, rows, mark, changed = f"{FOLDER}/{part.rel}", 0, Fingerprint(), False
    schema = part.run.open_parquet(part.rel).schema_arrow
    with stage.run.parquet_writer(rel, schema) as writer:
        for table in merge.row_groups(part):
            now = reading.guard.renew(table, reading.guarded).cast(schema)
            changed = changed or not now.equals(table)
            writer.write_table(now)
            rows += now.num_rows
            mark += Fingerprint.of(reading.hashes(now))
    return Part(run=stage.run, rel=rel, rows=rows, fingerprint=mark) if changed else part
