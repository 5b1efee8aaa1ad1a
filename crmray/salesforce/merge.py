"""Which rows of overlapping parts stand, and the parts of a run made of them: in bounded memory.

Parts are given in the order in which they were asked for. Of the rows with the same id the one with the latest modstamp
stands, and of equals the one asked for last. Rows are compared by 64-bit hashes of their ids, bucket by bucket; only
ids whose hashes meet are compared in full. Parts in which every row stands are adopted as they are.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.salesforce import withheld
from crmray.salesforce.fingerprint import Fingerprint, hash_ids
from crmray.salesforce.stage import Part, Reading
from crmray.storage import Run

BUCKET_ROWS = 2_000_000
"""whose hashes are compared at once: 16 bytes each, sorted in memory"""
PART_ROWS = 256 * 1024
"""of parts that are written anew"""
SMALL_ROWS = 8 * 1024
"""parts with fewer rows are joined when there are more than MANY_SMALL of them"""
MANY_SMALL = 16
_ROW_BITS = np.uint64(32)
_ROW = np.uint64((1 << 32) - 1)

Fallen = Mapping[int, np.ndarray]
"""number of a part -> sorted numbers of its rows that do not stand"""


def merged(parts: Sequence[Part], modstamp: str, gone: pa.Array, back: Iterable[pa.Table]) -> Whole:
    """What stands of parts, in the order in which they were asked for.

    modstamp: name of the time column; gone: ids of deleted rows; back: what is kept of withheld rows besides those of
    the parts. A row falls for a later version of it, be that withheld.
    """
    beside = [part.run.read_table([part.withheld]) for part in parts if part.withheld]
    kept = withheld.without(withheld.joined([*back, *beside]), hash_ids(gone))
    there = [part for part in parts if part.rows]
    lost, outdated = _fallen(there, modstamp, gone, kept)
    return Whole(parts=there, lost=lost, withheld=withheld.without(kept, outdated))


def _fallen(parts: Sequence[Part], modstamp: str, gone: pa.Array, kept: pa.Table) -> tuple[Fallen, np.ndarray]:
    """Rows that do not stand, and the hashes of withheld rows that a later version replaces."""
    total = sum(part.rows for part in parts)
    num_buckets = max(1, -(-total // BUCKET_ROWS))
    suspects = np.union1d(hash_ids(gone), kept["hash"].to_numpy())
    found: list[np.ndarray] = []
    outdated = [np.empty(0, np.uint64)]
    with tempfile.TemporaryDirectory() as folder:
        for hashes, places in _buckets(parts, num_buckets, Path(folder)):
            candidates = _candidates(hashes, places, suspects)
            if len(candidates):
                losers, newer = _losers(parts, candidates, modstamp, gone, kept)
                found.append(losers)
                outdated.append(newer)
    places = np.sort(np.concatenate(found)) if found else np.empty(0, np.uint64)
    numbers = (places >> _ROW_BITS).astype(np.int64)
    lost = {int(number): (places[numbers == number] & _ROW).astype(np.int64) for number in np.unique(numbers)}
    return lost, np.concatenate(outdated)


def _buckets(parts: Sequence[Part], num_buckets: int, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(hash of the id, place) of all rows in buckets by hash, by way of the disk; place: part << 32 | row."""
    pieces = _ids(parts)
    if num_buckets == 1:
        blocks = list(pieces)
        yield _joined([hashes for hashes, _ in blocks]), _joined([places for _, places in blocks])
        return
    with contextlib.ExitStack() as open_files:
        sinks = [open_files.enter_context((folder / str(number)).open("wb")) for number in range(num_buckets)]
        for hashes, places in pieces:
            bucket = (hashes % np.uint64(num_buckets)).astype(np.uint16)
            order = np.argsort(bucket, kind="stable")
            pairs = np.stack([hashes[order], places[order]], axis=1)
            ends = np.cumsum(np.bincount(bucket, minlength=num_buckets))
            for sink, chosen in zip(sinks, np.split(pairs, ends[:-1]), strict=True):
                chosen.tofile(sink)
    for number in range(num_buckets):
        pairs = np.fromfile(folder / str(number), np.uint64).reshape(-1, 2)
        yield pairs[:, 0].copy(), pairs[:, 1].copy()


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *blocks])


def _ids(parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hashes of the ids and places, row group by row group."""
    for number, part in enumerate(parts):
        start = 0
        for hashes in _hashes(part):
            rows = np.arange(start, start + len(hashes), dtype=np.uint64)
            yield hashes, (np.uint64(number) << _ROW_BITS) | rows
            start += len(hashes)
        assert start == part.rows, (part.rel, start, part.rows)


def _hashes(part: Part) -> Iterator[np.ndarray]:
    if part.keys:
        yield _keys(part, "hash")
        return
    for table in row_groups(part, ["Id"]):
        yield hash_ids(table["Id"])


def row_groups(part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a part, one row group at a time."""
    with part.run.open_parquet(part.rel) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns=list(columns) if columns is not None else None, use_threads=False)


def _candidates(hashes: np.ndarray, places: np.ndarray, suspects: np.ndarray) -> np.ndarray:
    """Places of the rows whose hash occurs twice or more, or is among `suspects`."""
    in_order = np.sort(hashes)
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    if len(in_order) and len(suspects):  # most of the suspects are not here: looked up before all rows are
        suspects = suspects[in_order[np.searchsorted(in_order, suspects).clip(max=len(in_order) - 1)] == suspects]
    suspects = np.union1d(twice, suspects)
    return places[np.isin(hashes, suspects)] if len(suspects) else np.empty(0, np.uint64)


def _losers(
    parts: Sequence[Part], candidates: np.ndarray, modstamp: str, gone: pa.Array, kept: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Places among the candidates that do not stand, by their ids and times in full; hashes of withheld rows that are
    older than one that stands."""
    candidates = np.sort(candidates)
    numbers = (candidates >> _ROW_BITS).astype(np.int64)
    tables = [
        _pick(parts[number], (candidates[numbers == number] & _ROW).astype(np.int64), ["Id", modstamp])
        for number in np.unique(numbers)
    ]
    rows = pa.concat_tables(tables).append_column("place", pa.array(candidates))
    hashes, times = hash_ids(rows["Id"]), microseconds(rows[modstamp].to_numpy())
    since = withheld.changed_of(kept, hashes)
    known = since > np.iinfo(np.int64).min
    dead = pc.or_(pc.is_in(rows["Id"], value_set=gone), pa.chunked_array([pa.array(since >= times)]))
    lost = [rows.filter(dead)["place"].to_numpy()]
    alive = rows.filter(pc.invert(dead)).sort_by([("Id", "ascending"), (modstamp, "ascending"), ("place", "ascending")])
    if alive.num_rows > 1:
        ids = alive["Id"].combine_chunks()
        replaced = pc.equal(ids.slice(0, len(ids) - 1), ids.slice(1))
        lost.append(alive.slice(0, len(ids) - 1).filter(replaced)["place"].to_numpy())
    return np.concatenate(lost), hashes[known & (since < times)]


def _keys(part: Part, column: str) -> np.ndarray:
    """One column of what was kept of a page's rows."""
    with part.run.open_parquet(part.keys) as file:
        return file.read(columns=[column], use_threads=False)[column].to_numpy()


def microseconds(times: np.ndarray) -> np.ndarray:
    """datetime64 of any unit as int64 microseconds since 1970."""
    return times.astype("datetime64[us]").astype(np.int64)


def _pick(part: Part, wanted: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Rows of a part by their sorted numbers."""
    found, start = [], 0
    for table in row_groups(part, columns):
        inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)] - start
        found.append(table.take(pa.array(inside)))
        start += table.num_rows
    return pa.concat_tables(found)


def standing(part: Part, lost: np.ndarray | None, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a part that stand, one row group at a time."""
    start = 0
    for table in row_groups(part, columns):
        if lost is not None and len(lost):
            keep = np.ones(table.num_rows, bool)
            keep[lost[(lost >= start) & (lost < start + table.num_rows)] - start] = False
            start += table.num_rows
            table = table.filter(pa.array(keep))
        if table.num_rows:
            yield table


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All rows of an object: parts, and which of their rows do not stand."""

    parts: Sequence[Part]
    """in the order in which they were asked for"""
    lost: Fallen
    """rows that do not stand"""
    withheld: pa.Table
    """what is kept of withheld rows"""

    @property
    def rows(self) -> int:
        """Rows that stand."""
        return sum(part.rows for part in self.parts) - sum(map(len, self.lost.values()))

    def fingerprint(self, reading: Reading) -> Fingerprint:
        """Of the rows that stand."""
        total = sum((part.fingerprint for part in self.parts), Fingerprint())
        for number, lost in self.lost.items():
            names = self.parts[number].run.open_parquet(self.parts[number].rel).schema_arrow.names
            rows = _pick(self.parts[number], lost, [name for name in reading.hashed if name in names])
            total -= Fingerprint.of(reading.hashes(rows))
        return total

    def created(self) -> Iterator[np.ndarray]:
        """CreatedDate of the rows that stand, in microseconds (int64), in pieces."""
        for number, part in enumerate(self.parts):
            lost = self.lost.get(number)
            if part.keys:
                found = _keys(part, "created")
                yield microseconds(found if lost is None else np.delete(found, lost))
            else:
                for table in standing(part, lost, [withheld.CREATED]):
                    yield microseconds(table[withheld.CREATED].to_numpy())

    def columns(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of the rows that stand, in pieces."""
        for number, part in enumerate(self.parts):
            yield from standing(part, self.lost.get(number), list(dict.fromkeys(names)))


def write(run: Run, whole: Whole, reading: Reading) -> dict[str, dict[str, int | str]]:
    """Make the run's parts: whole ones adopted, the others written anew; rel -> {"rows", "fingerprint"}.

    What an earlier try left in the run is removed.
    """
    for rel in run.files("*.parquet"):
        run.lake.fs.rm_file(f"{run.path}/{rel}")
    small = [part.rows < SMALL_ROWS for part in whole.parts]
    if sum(small) <= MANY_SMALL:
        small = [False] * len(small)
    made: dict[str, dict[str, int | str]] = {}
    again: list[int] = []
    for number, part in enumerate(whole.parts):
        if small[number] or len(whole.lost.get(number, ())):
            again.append(number)
            continue
        rel = f"part-{len(made):05d}.parquet"
        run.adopt(part.run, part.rel, rel)
        made[rel] = {"rows": part.rows, "fingerprint": str(part.fingerprint)}
    tables = (table for number in again for table in standing(whole.parts[number], whole.lost.get(number)))
    ahead = next(tables, None)
    while ahead is not None:
        rel, rows, mark = f"part-{len(made):05d}.parquet", 0, Fingerprint()
        with run.parquet_writer(rel, ahead.schema, plain=True) as writer:
            while ahead is not None and (not rows or rows + ahead.num_rows <= PART_ROWS):
                writer.write_table(ahead)
                rows += ahead.num_rows
                mark += Fingerprint.of(reading.hashes(ahead))
                ahead = next(tables, None)
        made[rel] = {"rows": rows, "fingerprint": str(mark)}
    return made
