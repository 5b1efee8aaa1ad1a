"""What a job will read, and how long that may take, told before it starts."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from crmray import storage
from crmray.config import DemoSource, FilesSource, Org, SalesforceSource
from crmray.errors import NotFoundError
from crmray.storage import Lake

# What a station reads, and what it writes. {task} stands for each task of the job.
READS = {
    "shard": "raw",
    "examples": "tables",
    "train": "examples",
    "tune": "examples",
    "evaluate": "examples",
    "publish": "bundles",
    "score": "examples",
    "writeback": "predictions",
}
MAKES = {job: kind for kind, job in storage.MAKES.items()} | {"tune": "bundles"}


def estimate(org: Org, station: str, tasks: Sequence[str] = ()) -> str:
    """One line: bytes and rows to read, and the time the same station took last in this lake, scaled by the bytes."""
    lake = Lake.of(org)
    if station == "ingest":
        size, rows = _source_bytes(org)
        reads = f"reads {_size(size)} of files" if size else f"generates about {rows:,} rows"
        if isinstance(org.source, SalesforceSource):
            reads = f"pulls {org.source.login.url}"
    else:
        by_task = tasks and READS[station] in ("examples", "bundles", "predictions")
        names = tasks if by_task else lake.names(READS[station])
        size, rows = _inputs(lake, READS[station], names)
        reads = f"reads {_size(size)}" + (f", {rows:,} rows" if rows else "") if size else "its input is not there yet"
    last_s, last_bytes = _last(lake, station, tasks)
    if last_s is None:
        return f"{station}: {reads}; has not run in {lake.root} yet, so its time is unknown"
    scale = size / last_bytes if size and last_bytes else 1.0
    return f"{station}: {reads}; about {max(last_s * scale, 1):.0f} s by its last run here, unless its result is there"


def _source_bytes(org: Org) -> tuple[int, int]:
    if isinstance(org.source, DemoSource):
        return 0, org.source.customers * org.source.months
    if not isinstance(org.source, FilesSource):
        return 0, 0
    patterns = {pattern for sources in org.source.tables.values() for source in sources for pattern in source.files}
    paths = {path for pattern in patterns for path in glob.glob(str(org.folder / pattern), recursive=True)}
    return sum(Path(path).stat().st_size for path in paths), 0


def _inputs(lake: Lake, kind: str, names: Sequence[str]) -> tuple[int, int]:
    """Bytes and rows of the current runs; rows where their manifests tell them."""
    size = rows = 0
    for name in names:
        try:
            manifest = lake.latest(kind, name).manifest()
        except NotFoundError:
            continue
        size += sum(entry["bytes"] for entry in manifest["files"].values())
        told = manifest.get("rows", 0)
        rows += sum(told.values()) if isinstance(told, dict) else int(told)
    return size, rows


def _last(lake: Lake, station: str, tasks: Sequence[str]) -> tuple[float | None, int]:
    """Seconds and input bytes of the station's current results; None when a manifest does not tell."""
    kind = MAKES.get(station)
    if kind is None:
        return None, 0
    seconds, size, known = 0.0, 0, False
    for name in tasks if kind in ("examples", "bundles", "evaluations", "predictions") else lake.names(kind):
        if not lake.has(kind, name):
            continue
        facts = lake.latest(kind, name).manifest().get("facts", {})
        if "seconds" in facts:
            known = True
            told = facts["seconds"]  # one figure, or one per step
            seconds += sum(told.values()) if isinstance(told, dict) else told
            size += facts.get("input_bytes", 0)
    return (seconds if known else None), size


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
