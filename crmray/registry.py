"""Versions and the ledger: which bundle of a task is its champion, and why.

    registry/<task>/ledger/NNNNNN.json   one entry per change of champion, each created exclusively; the last one holds

A version is the run_id of a bundle (crmray.bundle).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.bundle import Bundle, about_of, kind_of, load_bundle
from crmray.errors import BundleError, NoChampionError, NotEnoughDataError, NotFoundError, RegistryError
from crmray.evaluate.compare import paired_bootstrap
from crmray.evaluate.metrics import Figure
from crmray.storage import Lake, Run
from crmray.tasks.contract import Task

NUM_RESAMPLES, MIN_RESAMPLES = 1_000, 100
COMPARE_BUDGET_S = 60.0
"""of bootstrap; a metric that is slow gets fewer resamples, down to MIN_RESAMPLES, and the ledger says how many"""
MAX_COMPARED_ROWS = 50_000
"""test rows of a comparison; more would not change the decision, only its cost"""


# -- ledger ------------------------------------------------------------------------------------------------------------


class Ledger:
    """The append-only list of champions of one task. Keeps what it read: `refresh` asks only for what is new."""

    def __init__(self, lake: Lake, task: str):
        self.lake, self.task = lake, task
        self._entries: list[dict[str, Any]] = []

    def refresh(self) -> list[dict[str, Any]]:
        """All entries, oldest first. Numbers have no gaps, so one read past the end is enough (no listing)."""
        known = list(self._entries)  # of this thread alone: two that append to one list would skip a number
        while True:
            try:
                known.append(json.loads(self.lake.read(self._path(len(known) + 1))))
            except NotFoundError:
                self._entries = known
                return list(known)

    def champion(self) -> str:
        """Version of the last entry; NoChampionError when nothing was published."""
        entries = self.refresh()
        if not entries or entries[-1]["version"] is None:  # None: the last version was retired
            raise NoChampionError(f"{self.task}: nothing is published yet; run the 'publish' job after training")
        return entries[-1]["version"]

    def append(self, after: int, **fields: Any) -> dict[str, Any]:
        """Write entry number `after` + 1; RegistryError when another process wrote it meanwhile."""
        when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        entry = {"number": after + 1, "task": self.task, "when": when, "who": _who(), **fields}
        if not self.lake.create_exclusive(self._path(after + 1), json.dumps(entry, indent=1, default=str).encode()):
            raise RegistryError(
                f"{self.task}: entry {after + 1} was written by somebody else meanwhile; look at it and publish again"
            )
        log.event("ledger.entry", task=self.task, number=after + 1, version=entry["version"], why=entry["why"])
        return entry

    def _path(self, number: int) -> str:
        return f"registry/{self.task}/ledger/{number:06d}.json"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd, as in a container under an arbitrary uid
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


# -- decision ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a challenger becomes champion, and why."""

    promote: bool
    """the verdict"""
    why: str
    """one sentence for people"""
    figures: Mapping[str, Any]
    """what it rests on"""


def decide(challenger: Bundle, champion: Bundle | None, rows: pa.Table) -> Decision:
    """Promote what is better on the same test rows, or no worse and trained on later data.

    champion: None when there is none or when it cannot be compared; then the challenger has to beat its own rules of
    thumb.
    """
    task = challenger.task
    if champion is None:
        return _against_rules(challenger)
    if rows.num_rows > MAX_COMPARED_ROWS:
        rows = rows.take(np.sort(np.random.default_rng(0).permutation(rows.num_rows)[:MAX_COMPARED_ROWS]))
    before, after = (_figure(task, rows, bundle.model.predict(rows)) for bundle in (champion, challenger))
    started = time.perf_counter()
    before(np.ones(rows.num_rows))
    affordable = int(COMPARE_BUDGET_S / max(2 * (time.perf_counter() - started), 1e-9))
    resamples = min(NUM_RESAMPLES, max(MIN_RESAMPLES, affordable))
    found = paired_bootstrap(before, after, rows.num_rows, mode=task.MODE, num_resamples=resamples)
    figures = {"metric": task.METRIC, "resamples": resamples, **found.to_json()}
    said = (
        f"{task.METRIC} {found.challenger:.4f} against the champion's {found.champion:.4f} on the same {found.rows} "
        f"test rows (gain {found.gain:+.4f}, {found.level:.0%} interval {found.low:+.4f} to {found.high:+.4f})"
    )
    if found.gain > 0:
        return Decision(promote=True, why=f"better: {said}", figures=figures)
    if found.verdict != "worse" and _trained_until(challenger) > _trained_until(champion):
        return Decision(promote=True, why=f"trained on later data and not significantly worse: {said}", figures=figures)
    return Decision(
        promote=False, why=f"{'worse' if found.verdict == 'worse' else 'no better'}: {said}", figures=figures
    )


def _figure(task: Task, rows: pa.Table, predictions: Mapping[str, np.ndarray]) -> Figure:
    """The task's METRIC as a function of how often each row was drawn; NaN for a draw that does not define it, such as
    one of a single class. Sequences are left out: no metric reads them."""
    kinds = {name: kind_of(rows.schema.field(name).type) for name in rows.column_names}
    plain = rows.select([name for name, kind in kinds.items() if kind != "list" or name in task.LABELS])

    def figure(draws: np.ndarray) -> float:
        index = np.repeat(np.arange(len(draws)), draws.astype(np.int64))
        drawn = {name: values[index] for name, values in predictions.items()}
        try:
            return float(task.score(plain.take(index), drawn)[task.METRIC])
        except NotEnoughDataError:
            return float("nan")

    return figure


def _against_rules(challenger: Bundle) -> Decision:
    """First version: better than every rule of thumb of its training, on test where both were measured there."""
    task, about = challenger.task, challenger.about
    winner, part = about["candidate"], "validation"
    own, baselines = about["metrics"][winner].get(task.METRIC), about["baselines"]
    if task.METRIC in about.get("test", {}) and about.get("test_baselines"):
        own, baselines, part = about["test"][task.METRIC], about["test_baselines"], "test"
    known = {name: figures[task.METRIC] for name, figures in baselines.items() if task.METRIC in figures}
    others = {name: figure for name, figure in known.items() if name != winner}
    figures = {"metric": task.METRIC, "part": part, "challenger": own, "baselines": known}
    sign = 1.0 if task.MODE == "max" else -1.0
    if own is None or not others:
        why = f"first version, {winner}: no rule of thumb with {task.METRIC} beside it"
        return Decision(promote=True, why=why, figures=figures)
    name = max(others, key=lambda key: sign * others[key])
    said = f"{task.METRIC} {own:.4f} on {part}, rule of thumb {name} {others[name]:.4f}"
    if sign * (own - others[name]) > 0:
        return Decision(promote=True, why=f"first version, beats its rules of thumb: {said}", figures=figures)
    return Decision(promote=False, why=f"does not beat its rules of thumb: {said}", figures=figures)


def _trained_until(bundle: Bundle) -> str:
    """ISO date of the last data behind a bundle; empty for an org without time."""
    return str((bundle.about["data"].get("as_of") or {}).get("now") or "")


# -- publish -----------------------------------------------------------------------------------------------------------


def publish(lake: Lake, task: Task, *, version: str | None = None, force: str | None = None) -> dict[str, Any]:
    """Compare a version (default: the current bundle) with the champion and write the ledger, or refuse.

    Returns {promoted, version, previous, why, figures, number}. force: a reason; promotes whatever the comparison says.
    """
    run = lake.run("bundles", task.NAME, version) if version else lake.latest("bundles", task.NAME)
    challenger = load_bundle(run, task)
    ledger = Ledger(lake, task.NAME)
    entries = ledger.refresh()
    previous = entries[-1]["version"] if entries else None
    head = {"version": challenger.version, "previous": previous}
    if previous == challenger.version:
        return {**head, "promoted": False, "why": "is the champion already", "figures": {}, "number": len(entries)}
    examples = lake.run("examples", task.NAME, challenger.about["data"]["run_id"])
    decision = _compare_now(lake, task, challenger, previous, examples)
    if not decision.promote and not force:
        log.warn("publish.refused", task=task.NAME, version=challenger.version, why=decision.why)
        return {**head, "promoted": False, "why": decision.why, "figures": decision.figures, "number": len(entries)}
    why = decision.why if decision.promote else f"forced: {force} (the comparison said: {decision.why})"
    rows = {"examples": examples.run_id, "part": decision.figures.get("part", "test")}
    entry = ledger.append(len(entries), **head, action="promote", compared_on=rows, figures=decision.figures, why=why)
    return {**entry, "promoted": True}


def _compare_now(lake: Lake, task: Task, challenger: Bundle, previous: str | None, examples: Run) -> Decision:
    if previous is None:
        return decide(challenger, None, pa.table({}))
    try:
        champion = load_bundle(lake.run("bundles", task.NAME, previous), task)
        champion.check_run(examples)
        rows = examples.read_table("test/*.parquet")
        champion.check(rows)
    except (BundleError, NotFoundError) as error:  # e.g. the meaning of the features changed with the code
        decision = decide(challenger, None, pa.table({}))
        why = f"{decision.why}; the champion {previous} cannot be compared: {error}"
        return Decision(promote=decision.promote, why=why, figures=decision.figures)
    return decide(challenger, champion, rows)


def rollback(lake: Lake, task: Task, *, why: str = "") -> dict[str, Any]:
    """Make the version before the present champion champion again; twice goes back two versions."""
    ledger = Ledger(lake, task.NAME)
    entries = ledger.refresh()
    present = ledger.champion()
    promotions = [entry for entry in entries if entry["version"] == present and entry["action"] == "promote"]
    target = promotions[-1]["previous"]
    if target is None:
        raise RegistryError(f"{task.NAME}: version {present} is the first one; there is nothing to go back to")
    load_bundle(lake.run("bundles", task.NAME, target), task)
    reason = f"rolled back from {present}" + (f": {why}" if why else "")
    entry = ledger.append(
        len(entries), version=target, previous=present, action="rollback", compared_on=None, figures={}, why=reason
    )
    return {**entry, "promoted": True}


def compare(lake: Lake, task: Task) -> list[dict[str, Any]]:
    """All versions of a task, newest first: figures on validation and, where the report has them, on test.

    One of another format is listed without figures.
    """
    entries = Ledger(lake, task.NAME).refresh()
    published = {entry["version"]: entry["when"] for entry in entries}
    champion = entries[-1]["version"] if entries else None
    rows = []
    for run in reversed(lake.runs("bundles", task.NAME)):
        try:
            about = about_of(run)
        except BundleError:
            about = {"candidate": "of another format", "metrics": {}, "features_version": None}
        rows.append(
            {
                "version": run.run_id,
                "champion": run.run_id == champion,
                "candidate": about["candidate"],
                "metric": task.METRIC,
                "validation": about["metrics"].get(about["candidate"], {}).get(task.METRIC),
                "test": about.get("test", {}).get(task.METRIC),
                "trained_at": run.manifest()["created_at"],
                "published_at": published.get(run.run_id),
                "features_version": about["features_version"],
            }
        )
    return rows
