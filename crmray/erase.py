"""Rows of persons out of the lake's runs: which rows they are, and runs written again without them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import claim
from crmray.data import parse
from crmray.errors import StorageError
from crmray.privacy.pseudonyms import PATTERN
from crmray.salesforce import ids
from crmray.storage import Lake, Run, run_id

FORMAT = 1
ROW_KINDS = ("raw", "tables", "examples", "predictions", "receipts", "truth")
"""kinds of runs that hold rows, parents first"""
_LOOSE = frozenset({"MasterRecordId", "ReportsToId", "BillToContactId", "ShipToContactId", "CustomerSignedId"})
"""references that do not make a row one about the person: they are emptied, the row stays"""
_TREES = frozenset({"Account", "Contact", "Campaign"})
"""objects whose ParentId names another record of the same kind"""
ID_COLUMNS = ("entity_id", "lead_id", "customer_id")
"""columns of the canonical tables, of examples and predictions that hold ids of customers and leads"""
_HEAD = ("kind", "name", "run_id", "crmray", "created_at", "files", "replaces")


@dataclass(kw_only=True)
class Erased:
    """What was found and done so far."""

    ids: set[str]
    """ids as they stand in the lake whose rows go: persons, and records that are about them"""
    mark: str = ""
    """of this forgetting, in the manifests of the runs that it makes"""
    columns: dict[str, frozenset[str]] = field(default_factory=dict)
    """raw name -> its columns of ids, where an id could be mistaken for another value"""
    entities: set[str] = field(default_factory=set)
    """customers in whose rows they were: their examples and predictions go too"""
    retired: set[str] = field(default_factory=set)
    """`task/version` of bundles that held rows of them"""
    rows: dict[str, int] = field(default_factory=dict)
    """`kind/name` -> rows erased"""
    replaced: dict[str, str] = field(default_factory=dict)
    """run_id of a run that is gone -> that of the run in its place"""

    def wanted(self, run: Run) -> Wanted:
        """What to look for in a run."""
        ids = self.ids | self.entities if run.kind in ("examples", "predictions") else self.ids
        return Wanted(ids=ids, name=run.name, columns=self.columns.get(run.name, frozenset(ID_COLUMNS)))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to look for in the files of one run."""

    ids: set[str]
    """ids as they stand in the lake"""
    name: str
    """name of the run's object, table or task"""
    columns: frozenset[str]
    """columns in which ids that look like other values are looked for"""

    def find(self, rows: pa.Table) -> tuple[np.ndarray, list[str]]:
        """Mask of the rows about the ids, and the columns that mention them in rows about others."""
        mask, loose = np.zeros(rows.num_rows, bool), []
        sure = {one for one in self.ids if _is_sure(one)}
        for column in rows.column_names:
            type_ = rows.schema.field(column).type
            if column in self.columns:
                found = pc.is_in(parse.ids(rows[column]), _set(self.ids)).to_numpy()
            elif sure and parse.is_text(type_):
                found = pc.is_in(rows[column].cast(pa.string()), _set(sure)).to_numpy()
            else:
                continue
            last = column.rpartition(".")[2]
            if last in _LOOSE or (last == "ParentId" and self.name in _TREES):
                loose += [column] if found.any() else []
            else:
                mask |= found
        return mask, loose


def _is_sure(id_: str) -> bool:
    """Whether nothing else looks like this id: a pseudonym, or a Salesforce id."""
    return re.match(PATTERN, id_) is not None or (len(id_) == 18 and re.match(ids.SHORT, id_[:15]) is not None)


def complete(lake: Lake, kind: str) -> Iterator[Run]:
    """All complete runs of a kind."""
    for path in lake.list(f"{kind}/*/*/manifest.json"):
        yield lake.run(*path.split("/")[:3])


def widen(lake: Lake, erased: Erased) -> None:
    """Add the ids of records that are about those who are erased (contacts, cases, the mails of a case, …), and the
    Individual of a contact or lead that was named itself."""
    named = pa.array(sorted(erased.ids), pa.string())
    while True:
        before = len(erased.ids)
        for run in complete(lake, "raw"):
            for name in run.files("*.parquet"):
                rows = run.open_parquet(name).read()
                mask, _ = erased.wanted(run).find(rows)
                if mask.any() and "Id" in rows.column_names:
                    erased.ids |= set(rows["Id"].filter(pa.array(mask)).cast(pa.string()).to_pylist())
                    if "IndividualId" in rows.column_names:
                        own = rows["IndividualId"].filter(pc.is_in(rows["Id"].cast(pa.string()), named))
                        erased.ids |= set(own.cast(pa.string()).drop_null().to_pylist())
        if len(erased.ids) == before:
            break
    for run in complete(lake, "tables"):
        for name in run.files("shard-*.parquet"):
            rows = run.open_parquet(name).read()
            if "entity_id" in rows.column_names:
                mask, _ = erased.wanted(run).find(rows)
                erased.entities |= set(rows["entity_id"].filter(pa.array(mask)).cast(pa.string()).to_pylist())
    erased.entities.discard(None)  # type: ignore[arg-type]
    erased.ids.discard(None)  # type: ignore[arg-type]


def rewrite(run: Run, erased: Erased) -> bool:
    """Put a run without the rows in the place of one that has them; whether it had any.

    The old one is deleted last, so that a reader always finds one of the two, and work that dies can be done again.
    """
    wanted = erased.wanted(run)
    changed = [name for name in run.files() if _rest(run, name, wanted) is not None]
    if not changed:
        return False
    mark = run_id("forget", inputs={"run": run.run_id}, settings={"files": changed}, seed=0, format=FORMAT)
    new = run.lake.run(run.kind, run.name, mark)
    is_latest = run.is_latest()
    if not new.exists():  # a claim on one that was completed before this died would make an old run the current one
        with new.claim("forget") as mine:
            if mine:
                _fill(new, run, changed, wanted, erased)
    if is_latest:
        new.make_latest()
    erased.replaced[run.run_id] = new.run_id
    drop(run)
    return True


def _fill(new: Run, run: Run, changed: list[str], wanted: Wanted, erased: Erased) -> None:
    """Complete the new run: what is left of the changed files, the others as they are."""
    gone = {}
    for name in run.files():
        if name in changed:
            gone[name] = _write(new, name, _rest(run, name, wanted))
        elif name not in ("manifest.json", claim.FILE):
            new.adopt(run, name, name)
    manifest = run.manifest()
    fields = {name: value for name, value in manifest.items() if name not in _HEAD}
    fields = _counted(repointed(fields, erased.replaced), gone)
    fields |= {"replaces": [*manifest.get("replaces", ()), run.run_id], "forgotten": erased.mark}
    new.commit(current=False, **{**fields, "erased": sum(gone.values())})


@dataclass(frozen=True, kw_only=True)
class _Rest:
    """What is left of a file."""

    rows: pa.Table | None
    """None: the file goes"""
    gone: int
    """rows that are not left"""


def _rest(run: Run, name: str, wanted: Wanted) -> _Rest | None:
    """What is left of a file that holds rows of the ids; None when it holds none."""
    if name.endswith(".parquet"):
        rows = run.open_parquet(name).read()
    elif name.endswith(".arrow"):
        rows = pa.ipc.open_file(pa.py_buffer(run.read_bytes(name))).read_all()
    elif name == "manifest.json" or not _mentions(run.read_bytes(name), wanted.ids):
        return None
    else:
        return _Rest(rows=None, gone=0)
    mask, loose = wanted.find(rows)
    if not mask.any() and not loose:
        return None
    for column in loose:
        values = rows[column].combine_chunks()
        emptied = pc.if_else(pc.is_in(values, _set(wanted.ids)), pa.scalar(None, values.type), values)
        rows = rows.set_column(rows.schema.get_field_index(column), column, emptied)
    return _Rest(rows=rows.filter(pa.array(~mask)), gone=int(mask.sum()))


def _set(ids: set[str]) -> pa.Array:
    return pa.array(sorted(ids), pa.string())


def _write(new: Run, name: str, rest: _Rest | None) -> int:
    """Write what is left of a file; the number of rows that are not."""
    assert rest is not None
    if rest.rows is None:
        return 0
    if name.endswith(".parquet"):
        new.write_table(name, rest.rows)
    else:
        with new.open_output(name) as sink, pa.ipc.new_file(sink, rest.rows.schema) as writer:
            writer.write_table(rest.rows.combine_chunks())
    return rest.gone


def _counted(manifest: dict[str, Any], gone: dict[str, int]) -> dict[str, Any]:
    """The manifest's fields with their counts of rows put right."""
    rows = manifest.get("rows")
    if isinstance(rows, int):
        direct = (count for name, count in gone.items() if "/" not in name and name.endswith(".parquet"))
        return {**manifest, "rows": rows - sum(direct)}
    if isinstance(rows, dict):  # examples: by split
        by_split = {
            split: count - sum(lost for name, lost in gone.items() if name.startswith(f"{split}/"))
            for split, count in rows.items()
        }
        return {**manifest, "rows": by_split}
    return manifest


def repointed(value: Any, replaced: dict[str, str]) -> Any:
    """A manifest's fields with the ids of runs that are gone replaced."""
    if isinstance(value, str):
        return replaced.get(value, value)
    if isinstance(value, dict):
        return {key: repointed(part, replaced) for key, part in value.items()}
    if isinstance(value, list):
        return [repointed(part, replaced) for part in value]
    return value


def drop(run: Run) -> None:
    """Delete a run, its manifest first: without one it does not exist, whenever this stops."""
    fs = run.lake.fs
    if fs.exists(f"{run.path}/manifest.json"):
        fs.rm_file(f"{run.path}/manifest.json")
    if fs.exists(run.path):
        fs.rm(run.path, recursive=True)


def bundles_with(lake: Lake, wanted: set[str]) -> list[Run]:
    """Bundles whose files hold rows of the ids: any file that mentions one, packed ones included."""
    return [
        run for run in complete(lake, "bundles") if any(_mentions(run.read_bytes(name), wanted) for name in run.files())
    ]


def _mentions(data: bytes, wanted: set[str]) -> bool:
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                return any(_mentions(packed.read(name), wanted) for name in packed.namelist())
        except zipfile.BadZipFile as error:
            raise StorageError(f"a packed file of a bundle cannot be read: {error}") from None
    return any((one if _is_sure(one) else json.dumps(one)).encode() in data for one in wanted)
