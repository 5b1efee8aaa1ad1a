"""Whole customers per shard: the hash that says which one, the split of rows, and the merge into a sorted shard.

The hash is SipHash-2-4 of the id's UTF-8 bytes under a fixed key, mixed once more (`pandas.util.hash_array`), so a customer stays
shard on every machine, in every process and for good; the split into train, validation and test uses another hash.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data.clean import REJECTED

_KEY = "crmray-shards-v1"
assert len(_KEY) == 16, "SipHash takes a key of 16 bytes"
# Rows that are one fact told twice although the table has no row key.
_IDENTITY = {"outcomes": ("entity_id", "name", "as_of")}


def shard_of(ids: pa.Array | pa.ChunkedArray, num_shards: int) -> np.ndarray:
    """(N,) int32 shard of each id (strings, no nulls), 0 <= shard < num_shards. Hashes each distinct id once."""
    flat = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    encoded = flat.dictionary_encode()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    hashes = pd.util.hash_array(distinct, hash_key=_KEY, categorize=False)
    return (hashes % np.uint64(num_shards)).astype(np.int32)[encoded.indices.to_numpy()]


def split(rows: pa.Table, entity: str, num_shards: int) -> list[pa.RecordBatch]:
    """One batch for each shard, in the order of the rows; without rows where a shard has none."""
    if num_shards == 1:
        return [_batch(rows)]
    shards = shard_of(rows[entity], num_shards)
    narrow = shards.astype(np.int16) if num_shards <= 1 << 15 else shards  # 16-bit keys are sorted by radix
    grouped = rows.take(pa.array(np.argsort(narrow, kind="stable")))
    ends = np.cumsum(np.bincount(shards, minlength=num_shards))
    starts = np.concatenate([[0], ends[:-1]])
    return [_batch(grouped.slice(start, end - start)) for start, end in zip(starts, ends, strict=True)]


def merge(table: str, batches: list[pa.RecordBatch], schema_: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """The rows of one shard, sorted by entity and time (ties in source order), and the repeats that were set aside.

    Rows of one entity with the same row key are one row: the last in source order stays. Rows without a key all stay.
    """
    rows = pa.Table.from_batches(batches, schema=schema_).combine_chunks()
    repeats = REJECTED.empty_table()
    spec = schema.table(table)
    identity = _IDENTITY.get(table) or ((spec.entity, spec.key) if spec.key else ())
    if identity and rows.num_rows:
        keep = _last_of_each(rows, identity)
        if not keep.all():
            gone = rows[spec.entity].filter(pa.array(~keep))
            reason = pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(gone), np.int16)), [f"{identity[-1]}: repeated (the last row stays)"]
            )
            repeats = pa.table([gone, reason], schema=REJECTED)
            rows = rows.filter(pa.array(keep))
    return rows.take(pa.array(_order(rows, spec.entity, spec.time))), repeats


def _batch(rows: pa.Table) -> pa.RecordBatch:
    parts = rows.combine_chunks().to_batches()
    return parts[0] if parts else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _ranks(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64 rank of each value among the distinct ones in byte order; null has the highest."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, np.int64)
    rank[order], rank[-1] = np.arange(len(order)), len(order)
    return rank[pc.fill_null(encoded.indices, len(order)).to_numpy()]


def _order(rows: pa.Table, entity: str, time: str | None) -> np.ndarray:
    """Stable order by entity and time, rows without a time last of their entity."""
    ranks = _ranks(rows[entity])
    if time is None or not rows.num_rows:
        return np.argsort(ranks, kind="stable")
    column = rows[time].combine_chunks()
    latest = np.iinfo(np.int64).max
    micros = pc.fill_null(column.cast(pa.int64()), latest).to_numpy()
    return np.lexsort((micros, ranks))


def _last_of_each(rows: pa.Table, identity: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: rows that are the last of their identity; rows whose last identity column is null count as single."""
    codes = np.zeros(rows.num_rows, np.int64)
    for name in dict.fromkeys(identity):
        column = rows[name] if rows[name].type == pa.string() else rows[name].cast(pa.string())
        ranks = _ranks(column)
        _, codes = np.unique(codes * (ranks.max() + 1) + ranks, return_inverse=True)
    keep = np.zeros(rows.num_rows, bool)
    backwards = codes[::-1]
    keep[rows.num_rows - 1 - np.unique(backwards, return_index=True)[1]] = True
    if identity[-1] != "as_of":
        keep |= rows[identity[-1]].is_null().to_numpy()
    return keep
