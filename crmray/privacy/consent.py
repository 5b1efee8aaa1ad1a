"""raw/consent: what persons and accounts withdrew, by the ids that stand in the lake. Data, scores, endpoints and
write-back all look here.

    entity_id, processing, profiling (false: withdrawn), channels (those withdrawn); no row: nothing was withdrawn
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from crmray.privacy.forgotten import Tombstones
from crmray.privacy.people import Wishes
from crmray.privacy.pseudonyms import Pseudonyms
from crmray.storage import Lake, Run, run_id

NAME = "consent"
FORMAT = 1
CUSTOMER = "customer_id"
"""column of rows that are about a customer under a name of their own"""
_FILE = "part-00000.parquet"
SCHEMA = pa.schema(
    [
        ("entity_id", pa.string()),
        ("processing", pa.bool_()),
        ("profiling", pa.bool_()),
        ("channels", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Withheld:
    """Who withdrew what, as the lake knows it; ids as they stand in the lake, of accounts, contacts and leads."""

    run_id: str | None = None
    """run of raw/consent; None where none was ever made: nobody is known to have withdrawn anything"""
    processing: frozenset[str] = frozenset()
    """may not be processed"""
    profiling: frozenset[str] = frozenset()
    """may not be profiled; contains `processing`"""
    channels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """channel (email, phone, fax, mail, …) -> those who do not want to be addressed by it"""

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which rows of examples or predictions are about somebody who may not be profiled."""
        return pc.is_in(whom(rows), value_set=pa.array(sorted(self.profiling), pa.string()))

    @classmethod
    def of(cls, lake: Lake) -> Withheld:
        """As the current run has it."""
        return cls.from_run(lake.latest("raw", NAME)) if lake.has("raw", NAME) else cls()

    @classmethod
    def from_run(cls, run: Run) -> Withheld:
        """As a run has it."""
        rows = run.read_table([_FILE], columns=SCHEMA.names)
        ids, processing, profiling, channels = (column.to_pylist() for column in rows.columns)
        by_channel: dict[str, set[str]] = {}
        for id_, withdrawn in zip(ids, channels, strict=True):
            for channel in withdrawn:
                by_channel.setdefault(channel, set()).add(id_)
        return cls(
            run_id=run.run_id,
            processing=frozenset(id_ for id_, may in zip(ids, processing, strict=True) if not may),
            profiling=frozenset(id_ for id_, may in zip(ids, profiling, strict=True) if not may),
            channels={name: frozenset(found) for name, found in by_channel.items()},
        )


def whom(rows: pa.Table) -> pa.ChunkedArray:
    """The person whom each row of examples or predictions is about, text: `customer_id` where rows have it (of an
    interaction who wrote it, of a series its one customer, null where it has several), else entity_id."""
    return rows[CUSTOMER if CUSTOMER in rows.column_names else "entity_id"].cast(pa.string())


def write(lake: Lake, wishes: Wishes, pseudonyms: Pseudonyms | None, tombstones: Tombstones) -> Run:
    """Make the run, or find it made. Those who were erased have no rows whose use could be withheld, and none here."""
    everyone = sorted({*wishes.profiling, *(one for ids in wishes.channels.values() for one in ids)})
    shown = pseudonyms.of(everyone) if pseudonyms else pa.array(everyone, pa.string())
    channels = [[name for name, ids in sorted(wishes.channels.items()) if one in ids] for one in everyone]
    processing = [one not in wishes.processing for one in everyone]
    profiling = [one not in wishes.profiling for one in everyone]
    table = pa.table([shown, processing, profiling, channels], schema=SCHEMA).sort_by("entity_id")
    table = table.filter(pa.array(~tombstones.mask(table["entity_id"])))
    digest = hashlib.sha256(str(table.to_pydict()).encode()).hexdigest()
    run = lake.run("raw", NAME, run_id("ingest", inputs={"rows": digest}, settings={}, seed=0, format=FORMAT))
    with run.claim("ingest") as mine:
        if mine:
            run.write_table(_FILE, table)
            columns = {one.name: str(one.type) for one in SCHEMA}
            run.commit(rows=table.num_rows, columns=columns, text=False)
    return run
