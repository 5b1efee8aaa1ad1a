"""What a job will read, and how long that may take, told before it starts."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path

from crmray import log
from crmray.config import DemoSource, FilesSource, Org, SalesforceSource
from crmray.errors import NotFoundError, StorageError
from crmray.storage import Lake

# What a station reads; what is not named here reads the source.
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


def estimate(org: Org, station: str, tasks: Sequence[str] = ()) -> str:
    """One line: bytes and rows to read, and the time the same job took last in this lake, scaled by the bytes; no word
    of the time of what has not run here."""
    lake = Lake.of(org)
    size, rows = _to_read(org, lake, station, tasks)
    reads = _told(size, rows) if station in READS else _source_told(org, size, rows)
    known = {task: last_s for task in tasks or [""] if (last_s := _last(org, lake, station, task)) is not None}
    if not known:
        return f"{station}: {reads}"
    names = f" for {', '.join(known)}" if len(known) < len(tasks) else ""
    last_s = max(sum(known.values()), 1)
    return f"{station}: {reads}; about {last_s:.0f} s{names} by its last run here, unless its result is there"


def first_run(org: Org) -> str:
    """What to know of times while no job has run in the lake; else nothing."""
    if Lake.of(org).list(_place("*", "")):
        return ""
    return "the first run here: how long each step takes is told before it from the second run on"


def _told(size: int, rows: int) -> str:
    if not size:
        return "its input is not there yet"
    return f"reads {_size(size)}" + (f", {rows:,} rows" if rows else "")


def _source_told(org: Org, size: int, rows: int) -> str:
    if isinstance(org.source, SalesforceSource):
        return f"pulls {org.source.login.url}"
    if isinstance(org.source, DemoSource):
        return f"generates about {rows:,} rows"
    return f"reads {_size(size)} of files" if size else "reads files"  # at a URL: not looked at before


def note(org: Org, station: str, task: str, seconds: float) -> None:
    """Keep the time of a job that was not skipped, for the next `estimate`. task: "" for a station without.

    StorageError where the lake cannot be read or written.
    """
    lake = Lake.of(org)
    size, _ = _to_read(org, lake, station, [task] if task else [])
    lake.write(_place(station, task), json.dumps({"seconds": seconds, "input_bytes": size}).encode())


def _last(org: Org, lake: Lake, station: str, task: str) -> float | None:
    """Seconds that the job took last, scaled by the bytes; None where that is not known."""
    kept = _kept(lake, _place(station, task))
    if kept is None:
        return None
    seconds, input_bytes = kept
    size, _ = _to_read(org, lake, station, [task] if task else [])
    return seconds * (size / input_bytes if size and input_bytes else 1.0)


def _kept(lake: Lake, path: str) -> tuple[float, float] | None:
    """Seconds and bytes as `note` wrote them; None where they are not there, or the file is damaged: that stops no
    job."""
    try:
        last = json.loads(lake.read(path))
        return float(last["seconds"]), float(last["input_bytes"])
    except NotFoundError:
        return None
    except (StorageError, ValueError, KeyError, TypeError) as error:
        log.warn("estimate.unreadable", file=path, kind=type(error).__name__)
        return None


def _place(station: str, task: str) -> str:
    return f"_work/times/{'-'.join(filter(None, (station, task)))}.json"


def _to_read(org: Org, lake: Lake, station: str, tasks: Sequence[str]) -> tuple[int, int]:
    """Bytes and rows, as far as they are known."""
    if station not in READS:
        return _source_bytes(org)
    by_task = tasks and READS[station] in ("examples", "bundles", "predictions")
    return _inputs(lake, READS[station], tasks if by_task else lake.names(READS[station]))


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


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
