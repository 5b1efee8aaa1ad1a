"""The lake: immutable runs under one root, local or on an object store; only this module opens its files.

    <root>/<kind>/<name>/<run_id>/…          files of one run
    <root>/<kind>/<name>/<run_id>/manifest.json   written last; no manifest, no run
    <root>/<kind>/<name>/latest.json         names the current run

A run_id is a hash of all that determines the content, so the same inputs give the same run, which is there already.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from crmray import __version__, claim, disk, encryption
from crmray.config import Org
from crmray.errors import CorruptError, NotFoundError, StorageError

KINDS = ("raw", "tables", "examples", "bundles", "evaluations", "predictions", "receipts", "truth", "registry")
MAKES = {
    "raw": "ingest", "tables": "shard", "examples": "examples", "bundles": "train", "evaluations": "evaluate",
    "predictions": "score",
}  # fmt: skip


def run_id(stage: str, *, inputs: Mapping[str, str], settings: Mapping[str, Any], seed: int, format: int) -> str:
    """16 hex digits that depend on what determines a run's content, and on nothing else (no time, no host).

    inputs: name -> run_id of what is read; settings: the slice of the org file that the stage reads (JSON-able; other
    values by their str); format: number of the stage's output format, raised when the code changes what it writes.
    """
    parts = {
        "stage": stage, "inputs": inputs, "settings": settings, "seed": seed, "format": format, "version": __version__,
    }  # fmt: skip
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Lake:
    """A root folder or URL with its runs. Picklable and cheap to make: workers make their own from `root`."""

    def __init__(self, root: str | Path):
        self.root = str(root).rstrip("/")
        # Listings of object stores are cached by default: what other processes write would stay unseen.
        self.fs, self.base = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    @classmethod
    def of(cls, org: Org) -> Lake:
        """The lake of an org file. With `privacy.lake_key` its Parquet files are encrypted from the first one on.

        PrivacyError when the key cannot be read, is another one, or the lake began without.
        """
        lake = cls(org.root)
        if org.privacy.lake_key is not None:
            encryption.begin(lake, org.privacy.lake_key, org.folder, any(lake.names(kind) for kind in KINDS))
        return lake

    @staticmethod
    def address_of(root: str) -> str:
        """A digest of where a lake is: enough to tell lakes apart, and no secret that its URL may hold."""
        return hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[type[Lake], tuple[str]]:
        return Lake, (self.root,)

    @functools.cached_property
    def file_keys(self) -> encryption.FileKeys | None:
        """Keys of the lake's Parquet files; None where they are not encrypted."""
        try:
            return encryption.FileKeys(self.read(encryption.MARK))
        except NotFoundError:
            return None

    def __repr__(self) -> str:
        return f"Lake({self.root!r})"

    def run(self, kind: str, name: str, run_id: str) -> Run:
        """The run of that address, whether it exists or not."""
        assert kind in KINDS, kind
        return Run(self, kind, name, run_id)

    def latest(self, kind: str, name: str) -> Run:
        """The current run; NotFoundError says which job makes it."""
        try:
            run = self.run(kind, name, self.latest_id(kind, name))
        except NotFoundError:
            raise NotFoundError(
                f"{kind}/{name}: nothing there yet in {self.root}; run the {MAKES.get(kind, kind)!r} job first"
            ) from None
        if not run.exists():
            raise CorruptError(
                f"{kind}/{name}/latest.json names run {run.run_id}, which has no manifest; run the "
                f"{MAKES.get(kind, kind)!r} job again"
            )
        return run

    def latest_id(self, kind: str, name: str) -> str:
        """The run id in latest.json; NotFoundError when there is none, CorruptError when it says no run id."""
        path = f"{kind}/{name}/latest.json"
        try:
            return str(json.loads(self.read(path))["run_id"])
        except (ValueError, KeyError, TypeError):
            raise CorruptError(
                f'{path} in {self.root}: got a file that is damaged, expected {{"run_id": …}}; run the '
                f"{MAKES.get(kind, kind)!r} job again, which writes it anew"
            ) from None

    def has(self, kind: str, name: str) -> bool:
        """Whether a current run is there."""
        return self.fs.exists(f"{self.base}/{kind}/{name}/latest.json")

    def names(self, kind: str) -> list[str]:
        """Names under a kind that have a current run, sorted."""
        return sorted(path.split("/")[-2] for path in self.fs.glob(f"{self.base}/{kind}/*/latest.json"))

    def runs(self, kind: str, name: str) -> list[Run]:
        """All complete runs, oldest first by the time of their manifest."""
        found = [
            self.run(kind, name, path.split("/")[-2])
            for path in self.fs.glob(f"{self.base}/{kind}/{name}/*/manifest.json")
        ]
        return sorted(found, key=lambda run: (run.manifest()["created_at"], run.run_id))

    def work_folder(self, *parts: str) -> str:
        """Path or URL of a folder for what must outlive a crash but is no result (Tune and Train state)."""
        scheme = "" if self.is_local else self.root.split("://")[0] + "://"
        path = "/".join([self.base, "_work", *parts])
        self._make_folder(path)
        return scheme + path

    def _make_folder(self, path: str) -> None:
        try:
            self.fs.makedirs(path, exist_ok=True)
        except OSError as error:  # among others: a read-only disk, no permission, a file where a folder should be
            raise disk.error_of(path, error) from None

    def local(self, run: Run) -> Path:
        """A local folder with the run's files: the run itself, or a copy made once under the user's ~/.cache."""
        if self.is_local:
            return Path(run.path)
        target = Path.home() / ".cache" / "crmray" / run.kind / run.name / run.run_id
        if not (target / "manifest.json").exists():
            draft = target.with_name(f".{run.run_id}.{uuid.uuid4().hex}")
            self.fs.get(run.path, str(draft), recursive=True)
            try:
                draft.rename(target)
            except OSError as error:
                if not (target / "manifest.json").exists():
                    raise disk.error_of(str(target), error) from None
                # another process was faster: its copy is as good
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return target

    def create_exclusive(self, rel: str, data: bytes) -> bool:
        """Create a file with this content; False when there is one already. Atomic between processes and hosts."""
        path = f"{self.base}/{rel}"
        self._make_folder(path.rsplit("/", 1)[0])
        try:
            if self.is_local:
                disk.create(path, data)
            else:
                self.fs.pipe_file(path, data, mode="create")  # a conditional put on stores that have one
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise disk.error_of(path, error) from None

    @contextlib.contextmanager
    def open_output(self, rel: str) -> Iterator[Any]:
        """A binary file to write in pieces; it takes its name when the block ends well, else it vanishes.

        StorageError when it cannot be written.
        """
        path = f"{self.base}/{rel}"
        draft = f"{path}.{uuid.uuid4().hex}.tmp"
        self._make_folder(path.rsplit("/", 1)[0])
        try:
            if self.is_local:
                with open(draft, "wb", buffering=1 << 20) as sink:
                    yield sink
                    sink.flush()
                    os.fsync(sink.fileno())
                os.replace(draft, path)
            else:  # an object appears when its upload is closed, so it needs no draft name
                with self.fs.open(path, "wb") as sink, contextlib.ExitStack() as abort:
                    if hasattr(sink, "discard"):
                        abort.callback(sink.discard)
                    yield sink
                    abort.pop_all()
        except OSError as error:
            raise disk.error_of(path, error) from None
        finally:
            if self.is_local:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft)

    def write(self, rel: str, data: bytes) -> None:
        """Write or replace one file under the root so that it appears whole or not at all."""
        with self.open_output(rel) as sink:
            sink.write(data)

    def read(self, rel: str) -> bytes:
        """Bytes of a file under the root; NotFoundError when there is none."""
        try:
            return self.fs.cat_file(f"{self.base}/{rel}")
        except FileNotFoundError:
            raise NotFoundError(f"{rel}: no such file in {self.root}") from None
        except OSError as error:
            raise StorageError(f"{rel}: cannot be read from {self.root}: {error}") from None

    def list(self, pattern: str) -> list[str]:
        """Paths under the root that match a glob, relative to it, sorted."""
        return sorted(path[len(self.base) + 1 :] for path in self.fs.glob(f"{self.base}/{pattern}"))


class Run:
    """One immutable folder of results."""

    def __init__(self, lake: Lake, kind: str, name: str, run_id: str):
        self.lake, self.kind, self.name, self.run_id = lake, kind, name, run_id
        self.path = f"{lake.base}/{kind}/{name}/{run_id}"

    def __repr__(self) -> str:
        return f"Run({self.kind}/{self.name}/{self.run_id})"

    def exists(self) -> bool:
        """Whether the run is complete."""
        return self.lake.fs.exists(f"{self.path}/manifest.json")

    def manifest(self) -> dict[str, Any]:
        """The manifest; NotFoundError when the run is not complete."""
        return json.loads(self.read_bytes("manifest.json"))

    def has(self, rel: str) -> bool:
        """Whether a file is there (files appear whole or not at all)."""
        return self.lake.fs.exists(f"{self.path}/{rel}")

    def files(self, pattern: str = "**") -> list[str]:
        """Relative paths of the run's files that match a glob, sorted."""
        found = self.lake.fs.find(self.path) if self.lake.fs.exists(self.path) else []
        names = (path[len(self.path) + 1 :] for path in found)
        return sorted(name for name in names if not name.endswith(".tmp") and disk.matches(name, pattern))

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_bytes(self, rel: str) -> bytes:
        """Bytes of one file; errors as of `Lake.read`."""
        return self.lake.read(f"{self.kind}/{self.name}/{self.run_id}/{rel}")

    def read_verified(self) -> dict[str, bytes]:
        """Bytes of every file by name; CorruptError names the first that differs from the manifest."""
        files = {}
        for name, entry in self.manifest()["files"].items():
            files[name] = self.read_bytes(name)
            if hashlib.sha256(files[name]).hexdigest() != entry["sha256"]:
                raise CorruptError(
                    f"{self!r}: {name} differs from its SHA-256 in the manifest; restore it, or run the "
                    f"{MAKES.get(self.kind, self.kind)!r} job again"
                )
        return files

    def read_table(
        self, rel: str | Sequence[str] = "*.parquet", columns: Sequence[str] | None = None, filters: Any = None
    ) -> pa.Table:
        """Rows of one Parquet file, of a list of them or of all that match a glob, in the order of their names.

        filters: a pyarrow.dataset expression. NotFoundError when nothing matches, CorruptError for a damaged file.
        """
        names = self.files(rel) if isinstance(rel, str) else list(rel)
        if not names:
            raise NotFoundError(f"{self!r}: no file matches {rel!r}")
        try:
            return self.dataset(names).to_table(columns=list(columns) if columns is not None else None, filter=filters)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptError(f"{self!r}: cannot read {names[0]} … ({len(names)} files): {error}") from None

    def dataset(self, names: Sequence[str]) -> pads.Dataset:
        """A pyarrow dataset over some of the run's Parquet files, for reading in batches."""
        keys = self.lake.file_keys
        format = keys.format() if keys else "parquet"
        return pads.dataset([f"{self.path}/{name}" for name in names], format=format, filesystem=self._arrow_fs())

    def open_parquet(self, rel: str) -> pq.ParquetFile:
        """One Parquet file, opened for reading by row group."""
        properties = self.lake.file_keys.for_reading() if self.lake.file_keys else None
        try:
            file = self._arrow_fs().open_input_file(f"{self.path}/{rel}")
            return pq.ParquetFile(file, decryption_properties=properties)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptError(f"{self!r}: cannot read {rel}: {error}") from None

    def _arrow_fs(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem() if self.lake.is_local else pafs.PyFileSystem(pafs.FSSpecHandler(self.lake.fs))

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write one file so that it appears whole or not at all. Refused once the run is complete."""
        assert not self.exists(), f"{self!r} is complete and cannot be changed"
        self._put(rel, data)

    def write_table(self, rel: str, table: pa.Table, *, row_group_rows: int = 128 * 1024) -> None:
        """Write one zstd Parquet file so that it appears whole or not at all."""
        with self.parquet_writer(rel, table.schema) as writer:
            writer.write_table(table, row_group_size=row_group_rows)

    @contextlib.contextmanager
    def parquet_writer(self, rel: str, schema: pa.Schema, *, plain: bool = False) -> Iterator[pq.ParquetWriter]:
        """A zstd Parquet file to write in pieces; it takes its name when the block ends well, else it vanishes.

        plain: LZ4 without dictionaries and statistics, in a quarter of the time: for rows that are read as a whole.
        """
        settings: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
        if plain:
            settings = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
        if self.lake.file_keys:
            settings["encryption_properties"] = self.lake.file_keys.for_writing()
        with self.open_output(rel) as sink, pq.ParquetWriter(sink, schema, **settings) as writer:
            yield writer

    def adopt(self, source: Run, source_rel: str, rel: str) -> None:
        """Take a file of another run of this lake as it is: a hard link where the disk can, else a copy.

        The source keeps it, so that work that dies half-way can be done again.
        """
        origin, path = f"{source.path}/{source_rel}", f"{self.path}/{rel}"
        self.lake._make_folder(path.rsplit("/", 1)[0])
        try:
            if self.lake.is_local:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # of an attempt that died: a link to the source cannot be copied over
                with contextlib.suppress(OSError):  # a file system without hard links, or on another disk
                    os.link(origin, path)
                    return
            self.lake.fs.cp_file(origin, path)
        except OSError as error:
            raise disk.error_of(path, error) from None

    def open_output(self, rel: str) -> contextlib.AbstractContextManager[Any]:
        """As Lake.open_output, of a file of the run."""
        return self.lake.open_output(f"{self.kind}/{self.name}/{self.run_id}/{rel}")

    def _put(self, rel: str, data: bytes) -> None:
        self.lake.write(f"{self.kind}/{self.name}/{self.run_id}/{rel}", data)

    def commit(self, *, current: bool = True, **fields: Any) -> Run:
        """Complete the run: write the manifest with the fields and a list of all files, and make it the current one.

        Durations and other things that differ between equal runs belong under the field `facts`.
        """
        files = {}
        for name in self.files():
            if name not in ("manifest.json", claim.FILE):
                files[name] = {"bytes": self.lake.fs.size(f"{self.path}/{name}"), "sha256": self._sha256(name)}
        head = {"kind": self.kind, "name": self.name, "run_id": self.run_id, "crmray": __version__}
        created = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        manifest = {**head, "created_at": created, **fields, "files": files}
        self._put("manifest.json", json.dumps(manifest, indent=1, default=str).encode())
        return self.make_latest() if current else self

    def is_latest(self) -> bool:
        """Whether this is the current run; CorruptError where latest.json is damaged."""
        return self.lake.has(self.kind, self.name) and self.lake.latest_id(self.kind, self.name) == self.run_id

    def make_latest(self) -> Run:
        """Make this complete run the current one."""
        with contextlib.suppress(CorruptError):  # a damaged one is written anew
            if self.is_latest():
                return self
        self.lake.write(f"{self.kind}/{self.name}/latest.json", json.dumps({"run_id": self.run_id}).encode())
        return self

    def _sha256(self, rel: str) -> str:
        with self.lake.fs.open(f"{self.path}/{rel}", "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    def claim(self, stage: str, *, timeout_s: float = 24 * 3600) -> contextlib.AbstractContextManager[bool]:
        """Exclusive work on this run: `with run.claim("shard") as mine: if mine: …`; see crmray.claim.hold."""
        return claim.hold(self, stage, timeout_s=timeout_s)
