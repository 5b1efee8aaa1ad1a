"""Whole customers per shard: the hash that says which one, the split of rows, and the merge into a sorted shard.

The hash depends on the id's UTF-8 bytes alone: 8 bytes at a time, each mixed by the finaliser of SplitMix64 (Steele,
Lea and Flood, 2014). So a customer stays in its shard on every machine, in every process and for good; the split into
train, validation and test uses another hash.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data.clean import REJECTED

_SEED = np.uint64(0x9E3779B97F4A7C15)
REPEATED = "repeated (the last row stays)"
"""after the name of the row key: the reason of a row that a later one takes the place of"""
# Rows that are one fact told twice although the table has no row key.
_IDENTITY = {"outcomes": ("entity_id", "name", "as_of")}


def shard_of(ids: pa.Array | pa.ChunkedArray, num_shards: int) -> np.ndarray:
    """(N,) int32 shard of each id (strings, no nulls), 0 <= shard < num_shards."""
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    hashes = [_hashes(chunk) for chunk in chunks] or [np.zeros(0, np.uint64)]
    return (np.concatenate(hashes) % np.uint64(num_shards)).astype(np.int32)


def _hashes(ids: pa.StringArray) -> np.ndarray:
    """(N,) uint64: seed plus length in bytes, then for each 8 bytes (little endian, zeros after) xor and mix."""
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    raw = np.frombuffer(data, np.uint8)[: ends[-1]] if data else np.zeros(0, np.uint8)
    padded = np.concatenate([raw, np.zeros(8, np.uint8)])
    words = np.ndarray((len(raw) + 1,), "<u8", padded, strides=(1,))  # the 8 bytes from each place on
    starts, left = ends[:-1], np.diff(ends)
    hashes = _SEED + left.astype(np.uint64)
    rows: np.ndarray | slice = slice(None)
    while len(left):
        part = words[starts]
        short = left < 8
        part[short] &= (np.uint64(1) << (8 * left[short]).astype(np.uint64)) - np.uint64(1)
        hashes[rows] = _mix(hashes[rows] ^ part)
        more = left > 8
        if not more.any():
            break
        rows = np.arange(len(hashes))[rows][more]
        starts, left = starts[more] + 8, left[more] - 8
    return hashes


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


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


@dataclass(frozen=True, kw_only=True)
class Merged:
    """One shard."""

    rows: pa.Table
    """sorted by entity and time, ties in source order"""
    repeats: pa.Table
    """`key` and `reason` of the rows set aside"""
    entities: int
    """distinct entities"""


def merge(table: str, batches: list[pa.RecordBatch], schema_: pa.Schema) -> Merged:
    """Sort the rows of one shard and set repeats aside.

    Rows of one entity with the same row key are one row: the last in source order stays. Rows without a key all stay.
    """
    rows = pa.Table.from_batches(batches, schema=schema_).combine_chunks()
    repeats = REJECTED.empty_table()
    spec = schema.table(table)
    identity = _IDENTITY.get(table) or ((spec.entity, spec.key) if spec.key else ())
    if identity and rows[identity[1]].null_count < rows.num_rows:
        keep = _last_of_each(rows, identity)
        if not keep.all():
            gone = rows[spec.entity].filter(pa.array(~keep))
            reason = pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(gone), np.int16)), [f"{identity[-1]}: {REPEATED}"]
            )
            repeats = pa.table([gone, reason], schema=REJECTED)
            rows = rows.filter(pa.array(keep)).combine_chunks()
    ranks, entities = _ranks(rows[spec.entity])
    return Merged(rows=rows.take(pa.array(_order(rows, ranks, spec.time))), repeats=repeats, entities=entities)


def _batch(rows: pa.Table) -> pa.RecordBatch:
    parts = rows.combine_chunks().to_batches()
    return parts[0] if parts else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _ranks(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """(N,) int64 rank of each value among the distinct ones in byte order, null highest; and how many there are."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, np.int64)
    rank[order], rank[-1] = np.arange(len(order)), len(order)
    return rank[pc.fill_null(encoded.indices, len(order)).to_numpy()], len(order)


def _order(rows: pa.Table, ranks: np.ndarray, time: str | None) -> np.ndarray:
    """Stable order by rank and time, rows without a time last of their entity.

    By time first, which costs little for data that comes in runs of rising time, then by the digits of the rank: NumPy
    sorts 16-bit keys by radix.
    """
    order = np.arange(len(ranks))
    if time is not None:
        column = rows[time].combine_chunks().cast(pa.int64())
        order = np.argsort(pc.fill_null(column, np.iinfo(np.int64).max).to_numpy(), kind="stable")
    for shift in range(0, int(ranks.max(initial=0)).bit_length(), 16):
        digit = ((ranks[order] >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit, kind="stable")]
    return order


def _last_of_each(rows: pa.Table, identity: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: rows that are the last of their identity; a row without the row key is alone."""
    codes = np.zeros(rows.num_rows, np.int64)
    for name in dict.fromkeys(identity):
        column = rows[name] if rows[name].type == pa.string() else rows[name].cast(pa.string())
        ranks, distinct = _ranks(column)
        _, codes = np.unique(codes * (distinct + 1) + ranks, return_inverse=True)
    keep = np.zeros(rows.num_rows, bool)
    keep[rows.num_rows - 1 - np.unique(codes[::-1], return_index=True)[1]] = True
    return keep | rows[identity[1]].is_null().to_numpy()
