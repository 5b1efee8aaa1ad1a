"""Rows that the guard keeps back because of a person's wish: they never reach the lake, yet the org counts them.

What is kept of such a row is a hash of its id (of its pseudonym, where there is one), when it was created and when it
was last changed: enough to prove that nothing else is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.schema import TIME

SCHEMA = pa.schema([("hash", pa.uint64()), ("created", TIME), ("changed", TIME)])
CREATED = "CreatedDate"


def of_rows(ids: np.ndarray, rows: pa.Table, modstamp: str) -> pa.Table:
    """What is kept of rows. ids: hashes of theirs, as the lake has them; modstamp: name of the time column."""
    created = rows[CREATED] if CREATED in rows.column_names else pa.nulls(rows.num_rows, TIME)
    return pa.table([pa.array(ids), created, rows[modstamp]], schema=SCHEMA)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """The latest of each id."""
    rows = pa.concat_tables([SCHEMA.empty_table(), *tables])
    order = rows.append_column("at", pa.array(np.arange(rows.num_rows))).sort_by(
        [("hash", "ascending"), ("changed", "ascending"), ("at", "ascending")]
    )
    hashes = order["hash"].to_numpy()
    last = np.ones(len(hashes), bool)
    last[:-1] = hashes[1:] != hashes[:-1]
    return order.filter(pa.array(last)).select(SCHEMA.names)


def without(rows: pa.Table, hashes: np.ndarray) -> pa.Table:
    """Those whose hash is not among these."""
    return rows.filter(pc.invert(pc.is_in(rows["hash"], value_set=pa.array(hashes, pa.uint64()))))


def changed_of(rows: pa.Table, hashes: np.ndarray) -> np.ndarray:
    """(n,) int64 microseconds: when the withheld row of each hash was last changed; the smallest int64 for none.

    rows: sorted by hash, as `joined` gives them.
    """
    known, times = rows["hash"].to_numpy(), rows["changed"].to_numpy().astype("datetime64[us]").astype(np.int64)
    found = np.full(len(hashes), np.iinfo(np.int64).min)
    if len(known):
        place = np.searchsorted(known, hashes).clip(max=len(known) - 1)
        there = known[place] == hashes
        found[there] = times[place[there]]
    return found


def columns(about: Sequence[str], modstamp: str, there: Sequence[str]) -> list[str]:
    """Columns of a row that tell whether it is withheld, and what is kept of it then."""
    wanted = dict.fromkeys(["Id", CREATED, modstamp, *about])
    return [name for name in wanted if name in there]
