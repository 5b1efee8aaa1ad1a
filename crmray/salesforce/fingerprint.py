"""Hashes of rows, and the fingerprint of a set of rows: it depends on the rows and on nothing else, not their order or
how they lie in files, so that equal contents get equal run_ids, however they were pulled.

Not cryptographic: two sums of 64 bits, with the finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x5851F42D4C957F2D)
_WIDEST = 64
"""bytes of strings that are hashed by words of eight; longer ones (free text) by BLAKE2b, one by one"""


@dataclass(frozen=True)
class Fingerprint:
    """Of a set of rows: those of disjoint sets add up."""

    first: int = 0
    second: int = 0

    @classmethod
    def of(cls, hashes: np.ndarray) -> Fingerprint:
        """Of rows with these hashes."""
        return cls(int(hashes.sum(dtype=np.uint64)), int(_mix(hashes ^ _NULL).sum(dtype=np.uint64)))

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """From its 32 hex digits."""
        return cls(int(text[:16], 16), int(text[16:], 16))

    def __str__(self) -> str:
        return f"{self.first:016x}{self.second:016x}"

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint((self.first + other.first) & _MASK, (self.second + other.second) & _MASK)

    def __sub__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint((self.first - other.first) & _MASK, (self.second - other.second) & _MASK)


def of_rows(table: pa.Table, columns: Sequence[str], known: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """(rows,) uint64: a hash of each row over these columns, in this order. known: hashes of columns made before."""
    total = np.zeros(table.num_rows, np.uint64)
    for number, name in enumerate(columns, start=1):
        values = known[name] if known and name in known else of_values(table[name])
        total = _mix(total + values * np.uint64(2 * number + 1))
    return total


def of_values(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(rows,) uint64: a hash of each value; equal values have equal hashes, nulls one of their own."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([np.empty(0, np.uint64), *(_of_chunk(chunk) for chunk in chunks)])


def _of_chunk(values: pa.Array) -> np.ndarray:
    there = values.drop_null() if values.null_count else values
    if pa.types.is_string(there.type):
        found = _of_strings(there)
    elif pa.types.is_boolean(there.type):
        found = _mix(there.cast(pa.uint8()).to_numpy(zero_copy_only=False).astype(np.uint64))
    else:
        assert there.type.bit_width == 64, there.type
        found = _mix(np.frombuffer(there.buffers()[1], np.uint64, len(there), 8 * there.offset))
    if not values.null_count:
        return found
    hashes = np.full(len(values), _NULL)
    hashes[values.is_valid().to_numpy(zero_copy_only=False)] = found
    return hashes


def _of_strings(values: pa.StringArray) -> np.ndarray:
    """Of strings without nulls. The hash of a string hangs on nothing but itself."""
    if not len(values):
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, 4 * values.offset).astype(np.int64)
    lengths = np.diff(offsets)
    if not offsets[-1] - offsets[0]:
        return _of_words(np.empty((len(values), 0), np.uint8))
    data = np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    if lengths[0] <= _WIDEST and (lengths == lengths[0]).all():
        return _of_words(data.reshape(-1, int(lengths[0])))
    encoded = values.dictionary_encode()
    if len(encoded.dictionary) < len(values):
        return _of_strings(encoded.dictionary)[encoded.indices.to_numpy()]
    return _of_distinct(data, offsets - offsets[0], lengths)


def _of_distinct(data: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of strings of different lengths, those of each length together."""
    found = np.empty(len(lengths), np.uint64)
    for length in np.flatnonzero(np.bincount(lengths[lengths <= _WIDEST])):
        rows = np.flatnonzero(lengths == length)
        found[rows] = _of_words(data[offsets[rows][:, None] + np.arange(length)])
    rows = np.flatnonzero(lengths > _WIDEST)
    for row in rows:
        digest = blake2b(data[offsets[row] : offsets[row + 1]].tobytes(), digest_size=8).digest()
        found[row] = int.from_bytes(digest, "little")
    return found


def _of_words(rows: np.ndarray) -> np.ndarray:
    """Of (rows, width) bytes, eight at a time."""
    width = rows.shape[1]
    padded = np.zeros((len(rows), -(-width // 8) * 8), np.uint8)
    padded[:, :width] = rows
    words = padded.view(np.uint64)
    total = np.full(len(rows), np.uint64(width))
    for index in range(words.shape[1]):
        total = _mix(total ^ words[:, index])
    return total


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: a permutation of 64 bits in which every bit of the result hangs on every bit given."""
    mixed = values + _GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_ids(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(rows,) uint64 of record ids or pseudonyms."""
    return of_values(ids if not pa.types.is_dictionary(ids.type) else pc.dictionary_decode(ids))
