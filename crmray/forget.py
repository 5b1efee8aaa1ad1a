"""`crmray forget`: a person or an account erased from everything that the lake holds, and kept from coming back.

In this order, each step safe to do again: tombstones, the list of what is about them (in the vault where there is one),
runs written again without their rows (raw to predictions and receipts), references repointed, bundles that hold their
rows retired with what they predicted, _work emptied, vault and caches; a receipt with counts alone. Killed anywhere,
the same command completes it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from crmray import claim, log
from crmray.config import DemoSource, FilesSource, Org, SalesforceSource
from crmray.data.ingest import origins
from crmray.erase import FORMAT, ROW_KINDS, Erased, bundles_with, complete, drop, repointed, rewrite, widen
from crmray.errors import ConfigError, NotFoundError, StorageError
from crmray.privacy import Pseudonyms, Vault, people
from crmray.privacy.consent import NAME as CONSENT
from crmray.privacy.forgotten import Tombstones
from crmray.privacy.pseudonyms import PATTERN
from crmray.registry import Ledger
from crmray.salesforce import ids
from crmray.storage import KINDS, Lake, Run, run_id

_PENDING = "forgetting"
_PENDING_FILE = "_work/forgetting.json"
_PERSONS = ("001", "003", "00Q", "0PK")
"""key prefixes of Account, Contact, Lead, Individual"""


def forget(org: Org, lake: Lake, asked: Sequence[str]) -> Run:
    """Erase persons or accounts by their record ids (or pseudonyms); the receipt.

    ConfigError for the demo source, DataError for what is no record id, PrivacyError without a key for tombstones,
    StorageError while a job works on the lake. The next pull is a full one; the next shard and examples jobs do their
    work again.
    """
    if isinstance(org.source, DemoSource):
        raise ConfigError("source.kind: got demo, whose customers are made up, expected a source with persons")
    _refuse_busy(lake)
    pseudonyms = Pseudonyms.of_lake(org, lake)
    vault = Vault.open(org, lake) if org.privacy.vault_key else None
    if isinstance(org.source, SalesforceSource):
        for one in asked:
            if not re.match(PATTERN, one.strip()):
                ids.to_18(one.strip())  # refuses what can be no record id
    own = {pseudonyms.one(one) if pseudonyms else ids.normalize(one) for one in asked if one.strip()}
    if not own:
        raise ConfigError("got no ids, expected one record id or more")
    tombstones = Tombstones.open(org, lake)
    tombstones.add(sorted(own))
    erased = _pending(lake, vault, own)
    erased.replaced = _replaced(lake)
    if isinstance(org.source, FilesSource):
        mapped = (
            (one.raw, [one.source.columns.get(name) for name in ("entity_id", "lead_id")]) for one in origins(org)
        )
        erased.columns = {raw: frozenset(name for name in names if name) for raw, names in mapped}
    widen(lake, erased)
    tombstones.add(sorted(one for one in erased.ids if _is_person(one, pseudonyms is not None)))
    erased.mark = tombstones.digest
    _note(lake, vault, erased)
    trained = _erase_rows(lake, erased)
    _retire(lake, vault, erased)
    _forget_elsewhere(lake, vault, erased, pseudonyms is not None)
    receipt = _receipt(lake, erased, len(own), trained, tombstones.digest)
    _note_done(lake, vault)
    return receipt


def _refuse_busy(lake: Lake) -> None:
    for kind in (*KINDS, "_work"):  # in _work: a pull before its first run
        for path in lake.list(f"{kind}/*/*/{claim.FILE}"):
            run = Run(lake, *path.split("/")[:3])
            if not run.exists() and claim.is_held(run):
                raise StorageError(f"{run!r} is being made, expected no job to run; let it end, then run again")


def _is_person(id_: str, pseudonymised: bool) -> bool:
    if pseudonymised:
        return re.match(PATTERN, id_) is not None
    return id_.startswith(_PERSONS) and len(id_) == 18


# -- what is to be done, kept until it is done -------------------------------------------------------------------------


def _pending(lake: Lake, vault: Vault | None, own: set[str]) -> Erased:
    """The ids, with those of a forgetting that was cut off."""
    erased = Erased(ids=set(own))
    kept: dict[str, list[str]] = {}
    if vault is not None and _PENDING in vault.names():
        kept = json.loads(vault.read(_PENDING)["json"][0].as_py())
    elif vault is None:
        with contextlib.suppress(NotFoundError):
            kept = json.loads(lake.read(_PENDING_FILE))
    erased.ids |= set(kept.get("ids", ()))
    erased.entities |= set(kept.get("entities", ()))
    erased.retired |= set(kept.get("retired", ()))
    return erased


def _note(lake: Lake, vault: Vault | None, erased: Erased) -> None:
    kept = {"ids": erased.ids, "entities": erased.entities, "retired": erased.retired}
    text = json.dumps({name: sorted(found) for name, found in kept.items()})
    if vault is not None:
        vault.write(_PENDING, pa.table({"json": [text]}))
    else:
        lake.write(_PENDING_FILE, text.encode())


def _note_done(lake: Lake, vault: Vault | None) -> None:
    if vault is not None:
        vault.remove(_PENDING)
    elif lake.fs.exists(f"{lake.base}/{_PENDING_FILE}"):
        lake.fs.rm_file(f"{lake.base}/{_PENDING_FILE}")


def _replaced(lake: Lake) -> dict[str, str]:
    """Runs that an earlier forgetting replaced."""
    runs = (run for kind in ROW_KINDS for run in complete(lake, kind))
    return {old: run.run_id for run in runs for old in run.manifest().get("replaces", ())}


# -- steps -------------------------------------------------------------------------------------------------------------


def _erase_rows(lake: Lake, erased: Erased) -> list[str]:
    """Rewrite all runs that hold rows; versions of the bundles that were trained with some of them."""
    for kind in ROW_KINDS:
        _drop_unfinished(lake, kind)
    todo = [run for kind in ROW_KINDS for run in complete(lake, kind)]
    for run in sorted(todo, key=lambda one: (one.kind, one.name) == ("raw", CONSENT)):
        # consent goes last: until no row is left, it keeps the endpoints from answering for those who withdrew
        if (run.kind, run.name) != ("receipts", "forget"):
            rewrite(run, erased)
    for run in (run for kind in ROW_KINDS for run in complete(lake, kind)):
        told, label = run.manifest(), f"{run.kind}/{run.name}"
        if told.get("forgotten") == erased.mark:  # those of an attempt that died included
            erased.rows[label] = erased.rows.get(label, 0) + int(told["erased"])
    for kind in (*ROW_KINDS, "bundles"):
        for run in complete(lake, kind):
            _repoint(run, erased.replaced)
    manifests = [run.manifest() for run in complete(lake, "examples")]
    touched = {old for one in manifests if one.get("forgotten") == erased.mark for old in one["replaces"]}
    trained = []
    for run in complete(lake, "bundles"):
        about = json.loads(run.read_bytes("bundle.json"))
        if about.get("data", {}).get("run_id") in touched:
            trained.append(f"{run.name}/{run.run_id}")
    return trained


def _drop_unfinished(lake: Lake, kind: str) -> None:
    """What jobs that died left behind: it may hold rows, and no manifest says which."""
    for path in lake.list(f"{kind}/*/*"):
        if lake.fs.isdir(f"{lake.base}/{path}"):
            run = lake.run(*path.split("/")[:3])
            if not run.exists():
                drop(run)


def _repoint(run: Run, replaced: dict[str, str]) -> None:
    manifest = run.manifest()
    fields = {name: value for name, value in manifest.items() if name not in ("run_id", "replaces", "files")}
    after = {**manifest, **repointed(fields, replaced)}
    if after != manifest:
        run.lake.write(f"{run.kind}/{run.name}/{run.run_id}/manifest.json", json.dumps(after, indent=1).encode())


def _retire(lake: Lake, vault: Vault | None, erased: Erased) -> None:
    """Take bundles that hold rows out of use; delete them, and what they predicted, which may quote these rows."""
    _drop_unfinished(lake, "bundles")
    retired = bundles_with(lake, erased.ids | erased.entities)
    erased.retired |= {f"{run.name}/{run.run_id}" for run in retired}
    _note(lake, vault, erased)  # for the receipt: the next attempt would not find those that are deleted
    gone = {run.run_id for run in retired}
    for task in sorted({run.name for run in retired}):
        ledger = Ledger(lake, task)
        entries = ledger.refresh()
        if entries and entries[-1]["version"] in gone:
            left = [entry["version"] for entry in entries if entry["version"] and entry["version"] not in gone]
            there = [version for version in reversed(left) if lake.run("bundles", task, version).exists()]
            ledger.append(
                len(entries),
                version=there[0] if there else None,
                previous=entries[-1]["version"],
                action="retire",
                compared_on=None,
                figures={},
                why="the version before held rows of somebody who was erased",
            )
    for run in list(complete(lake, "predictions")):
        if f"{run.name}/{run.manifest().get('version')}" in erased.retired:
            _drop_current(run, rest=[])
    for run in retired:
        others = (other for other in complete(lake, "bundles") if other.name == run.name and other.run_id not in gone)
        _drop_current(run, rest=list(others))


def _drop_current(run: Run, rest: list[Run]) -> None:
    """Delete a run; where it was the current one the newest of the rest becomes it, if there is any."""
    if run.is_latest():
        if rest:
            max(rest, key=lambda one: one.manifest()["created_at"]).make_latest()
        else:
            run.lake.fs.rm_file(f"{run.lake.base}/{run.kind}/{run.name}/latest.json")
    drop(run)


def _forget_elsewhere(lake: Lake, vault: Vault | None, erased: Erased, pseudonymised: bool) -> None:
    """The vault, copies on this machine, and what unfinished work left."""
    shown = pa.array(sorted(one for one in erased.ids if _is_person(one, pseudonymised)), pa.string())
    if vault is not None:
        plain = vault.ids_of(shown).drop_null().to_pylist() if pseudonymised else shown.to_pylist()
        people.forget(vault, frozenset(plain))
        if pseudonymised:
            vault.forget(shown)
    for old in erased.replaced:
        for kind in ROW_KINDS:
            for copy in (Path.home() / ".cache" / "crmray" / kind).glob(f"*/{old}"):
                shutil.rmtree(copy)
    for path in lake.list("_work/*"):
        if path != _PENDING_FILE:
            lake.fs.rm(f"{lake.base}/{path}", recursive=True)


def _receipt(lake: Lake, erased: Erased, num_asked: int, trained: list[str], digest: str) -> Run:
    """What was done, in counts and names of versions."""
    retired = sorted(erased.retired)
    told: dict[str, Any] = {"asked": num_asked, "rows": erased.rows, "retired": retired}
    told["trained_with"] = [one for one in trained if one not in erased.retired]
    run = lake.run("receipts", "forget", run_id("forget", inputs={"all": digest}, settings=told, seed=0, format=FORMAT))
    with run.claim("forget") as mine:
        if mine:
            run.commit(**told)
    log.event("forget.done", asked=num_asked, rows=sum(erased.rows.values()), retired=len(retired), run_id=run.run_id)
    return run
