"""The two units of work of sharding, as plain functions over files of a run: a piece of the source, and a shard.

A piece is some consecutive raw parts: cleaned, split by shard, written as one Arrow file whose batch k belongs to
shard k. A shard is batch k of every piece: merged, sorted, written as Parquet. Pieces are named by how the table is
cut, so what a run with another memory budget left behind is never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from crmray import schema
from crmray.data import partition, rejected
from crmray.data.clean import FEW, REJECTED, clean
from crmray.data.plans import Feed
from crmray.data.profile import Profile
from crmray.errors import CorruptError
from crmray.storage import Run

FOLDER = "groups"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive raw parts of one feed that one task cleans."""

    name: str
    """path of its files in the run, without suffix"""
    feed: Feed
    """where its rows come from"""
    parts: tuple[str, ...]
    """files of the feed, in source order"""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The size of a table before it is read."""

    rows: int
    """rows of all feeds"""
    part_bytes: tuple[tuple[int, ...], ...]
    """bytes in memory, for each feed and each of its parts; from the first part of the feed"""

    @property
    def bytes(self) -> int:
        """Bytes of all rows in memory."""
        return sum(map(sum, self.part_bytes))


def estimate(feeds: Sequence[Feed]) -> Estimate:
    """Rows from the manifests; bytes from the file sizes, by the first part's ratio of memory to file."""
    rows, part_bytes = 0, []
    for feed in feeds:
        manifest = feed.run.manifest()
        rows += manifest["rows"] if "rows" in manifest else _count(feed)
        sizes = [manifest["files"][part]["bytes"] for part in feed.parts]
        ratio = feed.run.read_table([feed.parts[0]]).nbytes / sizes[0]
        part_bytes.append(tuple(int(size * ratio) for size in sizes))
    return Estimate(rows=rows, part_bytes=tuple(part_bytes))


def _count(feed: Feed) -> int:
    return sum(feed.run.open_parquet(part).metadata.num_rows for part in feed.parts)


def cut(feeds: Sequence[Feed], size: Estimate, group_bytes: float, pieces_per_group: int) -> list[list[Piece]]:
    """The table cut into groups of at most `group_bytes` (one part at least), each into pieces of about equal size."""
    layout: list[list[tuple[int, tuple[str, ...]]]] = []
    for index, feed in enumerate(feeds):
        sizes = size.part_bytes[index]
        pieces = _runs(feed.parts, sizes, _even(sum(sizes), group_bytes, pieces_per_group))
        groups = [pieces[start : start + pieces_per_group] for start in range(0, len(pieces), pieces_per_group)]
        layout += [[(index, parts) for parts in group] for group in groups]
    mark = hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:8]
    return [
        [
            Piece(name=f"{FOLDER}/{mark}/{number:05d}-{place:03d}", feed=feeds[index], parts=parts)
            for place, (index, parts) in enumerate(group)
        ]
        for number, group in enumerate(layout)
    ]


def _even(total: int, group_bytes: float, pieces_per_group: int) -> float:
    """Bytes per piece so that groups are full of pieces of the same size: no CPU waits for a larger neighbour."""
    num_groups = math.ceil(total / group_bytes)
    return total / (max(1, num_groups) * pieces_per_group)


def _runs(parts: Sequence[str], sizes: Sequence[int], limit: float) -> list[tuple[str, ...]]:
    """Consecutive parts, cut where the running total passes a multiple of `limit`."""
    found: list[list[str]] = []
    total, place = 0.0, -1
    for part, size in zip(parts, sizes, strict=True):
        slot = int((total + size / 2) / limit)
        if slot != place or not found:
            found.append([])
            place = slot
        found[-1].append(part)
        total += size
    return [tuple(run) for run in found]


def read(piece: Piece) -> pa.Table:
    """The raw rows of a piece."""
    return piece.feed.run.read_table(piece.parts)


def make_piece(run: Run, num_shards: int, piece: Piece, frame: pd.DataFrame | pa.Table) -> Profile:
    """Clean and split the rows of a piece, write them under the run; the profile goes last and marks it as done."""
    cleaned = clean(frame, piece.feed.plan)
    entity = schema.table(piece.feed.plan.table).entity
    with run.open_output(f"{piece.name}.arrow") as sink, pa.ipc.new_file(sink, cleaned.rows.schema) as writer:
        for batch in partition.split(cleaned.rows, entity, num_shards):
            writer.write_batch(batch)
    if cleaned.rejected.num_rows:
        run.write_table(f"{piece.name}.rejected", cleaned.rejected)
    profile = Profile(rows_in=len(frame), rows=cleaned.rows.num_rows).count(cleaned.rejected)
    run.write_bytes(f"{piece.name}.json", json.dumps({**profile.to_json(), "first": cleaned.first}).encode())
    return profile


def done(run: Run, piece: Piece) -> bool:
    """Whether a piece was made already."""
    return run.has(f"{piece.name}.json")


def profile_of(run: Run, piece: Piece) -> Profile:
    """The profile of a piece that was made."""
    return Profile.from_json(json.loads(run.read_bytes(f"{piece.name}.json")))


def rejected_at(run: Run, pieces: Sequence[Piece]) -> dict[str, list[dict[str, Any]]]:
    """Where the first few rows set aside for each reason stand; see `crmray.data.rejected`."""
    found: dict[str, list[dict[str, Any]]] = {}
    feed, before = None, 0
    for piece in pieces:
        told = json.loads(run.read_bytes(f"{piece.name}.json"))
        before = before if piece.feed is feed else 0
        feed = piece.feed
        for reason, rows in told["first"].items():
            some = found.setdefault(reason, [])
            some += [rejected.place(feed, before + row, reason) for row in rows[: FEW - len(some)]]
        before += told["rows_in"]
    return dict(sorted(found.items()))


def make_shard(run: Run, table: str, pieces: Sequence[Piece], shard: int) -> dict[str, Any]:
    """Merge, sort and write one shard; its facts: a profile and the number of entities. What is there is not redone."""
    facts_name = f"{pieces[0].name.rsplit('/', 1)[0]}/shard-{shard:05d}"
    if run.has(f"{facts_name}.json"):
        return json.loads(run.read_bytes(f"{facts_name}.json"))
    batches = [_batch(run, f"{piece.name}.arrow", shard) for piece in pieces]
    merged = partition.merge(table, batches, pieces[0].feed.plan.schema)
    del batches
    if merged.repeats.num_rows:
        run.write_table(f"{facts_name}.rejected", merged.repeats)
    rows = schema.check(table, merged.rows).select(merged.rows.column_names)
    run.write_table(f"shard-{shard:05d}.parquet", rows)
    profile = Profile.of(table, rows).count(merged.repeats)
    facts = {"profile": profile.to_json(), "entities": merged.entities}
    run.write_bytes(f"{facts_name}.json", json.dumps(facts).encode())
    return facts


def _batch(run: Run, name: str, shard: int) -> pa.RecordBatch:
    path = f"{run.path}/{name}"
    try:
        with run.lake.fs.open(path, "rb") as file, pa.ipc.open_file(file) as reader:
            return reader.get_batch(shard)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise CorruptError(
            f"{run!r}: cannot read {name}: {error}; remove {run.path} and run the 'shard' job again"
        ) from None


def gather_rejected(run: Run) -> None:
    """Bring all rows set aside into one file, `rejected.FILE`; none is written when there are none."""
    names = run.files(f"{FOLDER}/*/*.rejected")
    if not names:
        return
    with run.parquet_writer(rejected.FILE, REJECTED) as writer:
        for name in names:
            writer.write_table(run.open_parquet(name).read())
