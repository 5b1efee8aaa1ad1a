"""Bundles, versions and the ledger: what was trained, which version is champion, and why.

    bundles/<task>/<run_id>/        manifest.json (with SHA-256 of every file), bundle.json, model/<files>, card.md
    registry/<task>/ledger/NNNNNN.json   one entry per change of champion, each created exclusively; the last one holds

A version is the run_id of its bundle. Batch scoring and Serve load bundles through `load_bundle` alone.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from crmray import log, tasks
from crmray.errors import BundleError, CorruptError, NoChampionError, NotFoundError, RegistryError
from crmray.evaluate.compare import paired_bootstrap
from crmray.evaluate.metrics import Figure
from crmray.storage import Lake, Run
from crmray.tasks.contract import Fitted, Task

BUNDLE_FORMAT = 1
NUM_RESAMPLES, MIN_RESAMPLES = 1_000, 100
COMPARE_BUDGET_S = 60.0
"""of bootstrap; a metric that is slow gets fewer resamples, down to MIN_RESAMPLES, and the ledger says how many"""
MAX_COMPARED_ROWS = 50_000
"""test rows of a comparison; more would not change the decision, only its cost"""


# -- bundles -----------------------------------------------------------------------------------------------------------


def column_kinds(examples: pa.Table, labels: tuple[str, ...]) -> dict[str, str]:
    """Column -> numeric, text, time or list, for every column that a model may read (no keys, no labels)."""
    skip = {"entity_id", "part", *labels}
    return {name: _kind(examples.schema.field(name).type) for name in examples.column_names if name not in skip}


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return "list"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "time"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_):
        return "numeric"
    return "empty" if pa.types.is_null(type_) else str(type_)


def write_bundle(
    run: Run, task: Task, *, candidate: str, model: Fitted, settings: BaseModel, decision: Mapping[str, Any],
    examples: pa.Table, card: str, **facts: Any,
) -> None:  # fmt: skip
    """Write the files of a bundle into a run that is not yet complete; the caller commits it.

    examples: any rows of the training examples (their columns are what the bundle will ask for). facts: JSON fields of
    bundle.json beside those named here, among them metrics {candidate: figures on validation}, baselines {name:
    figures}, test and test_baselines where they were measured, data (manifest of the examples), seed.
    """
    for name, content in model.save().items():
        run.write_bytes(f"model/{name}", content)
    about = {
        "format": BUNDLE_FORMAT,
        "task": task.NAME,
        "candidate": candidate,
        "features_version": task.FEATURES_VERSION,
        "settings": settings.model_dump(mode="json"),
        "schema": column_kinds(examples, task.LABELS),
        "decision": decision,
        **facts,
    }
    run.write_bytes("bundle.json", json.dumps(about, indent=1, default=str).encode())
    run.write_bytes("card.md", card.encode())


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A fitted model with its decision, ready to predict."""

    task: Task
    """module of the task"""
    version: str
    """run_id of the bundle"""
    about: Mapping[str, Any]
    """content of bundle.json"""
    model: Fitted = field(repr=False)
    """the candidate that won, fitted"""

    @property
    def decision(self) -> Mapping[str, Any]:
        """Calibration, thresholds, reference values for reasons."""
        return self.about["decision"]

    @property
    def settings(self) -> BaseModel:
        """The task's settings under which it was trained."""
        return tasks.check_settings(self.task, self.about["settings"], where=f"bundle {self.version}")

    def check(self, examples: pa.Table) -> pa.Table:
        """The rows, if the bundle can read them; BundleError names the column that is missing or of another kind."""
        if "entity_id" not in examples.column_names:
            raise BundleError(f"bundle {self.version}: column 'entity_id' is missing, got {examples.column_names}")
        for name, expected in self.about["schema"].items():
            if name not in examples.column_names:
                raise BundleError(
                    f"bundle {self.version}: column {name!r} is missing, expected a {expected} column as in training"
                )
            got = _kind(examples.schema.field(name).type)
            if got not in (expected, "empty") and expected != "empty":
                raise BundleError(
                    f"bundle {self.version}: column {name!r} is {got}, expected {expected} as in training"
                )
        return examples

    def check_run(self, examples: Run) -> Mapping[str, Any]:
        """Manifest of an examples run whose rows this bundle may read; BundleError when its features differ."""
        manifest = examples.manifest()
        if manifest["features_version"] != self.about["features_version"]:
            raise BundleError(
                f"{examples!r} has features_version {manifest['features_version']!r}, expected "
                f"{self.about['features_version']!r} as in bundle {self.version}; make the examples or train again"
            )
        return manifest

    def together(self, rows: pa.Table) -> pa.Table:
        """All `now` rows with what follows from all of them at once, where the task has such a thing."""
        hook = getattr(self.task, "together", None)
        return rows if hook is None or not rows.num_rows else hook(self.model, self.decision, self.check(rows))

    def without(self, people: Collection[str]) -> Bundle:
        """The bundle but for what its decision quotes of these people, where the task has such a thing."""
        hook = getattr(self.task, "without", None)
        if hook is None or not people:
            return self
        return replace(self, about={**self.about, "decision": hook(self.decision, people)})

    def predict(self, examples: pa.Table, *, explain: bool = False, **options: Any) -> pa.Table:
        """The task's prediction columns, entity_id first, in the order of the rows."""
        answer = self.task.predict(self.model, self.decision, self.check(examples), explain=explain, **options)
        assert answer.num_rows == examples.num_rows, (answer.num_rows, examples.num_rows)
        return answer


def load_bundle(lake: Lake, run: Run, task: Task | None = None) -> Bundle:
    """Load a bundle after comparing every file with its SHA-256.

    CorruptError for changed bytes, NotFoundError for missing ones; BundleError when it was trained on other features
    than this code makes.
    task: the module, where it is not among TASKS.
    """
    which = task or tasks.task(run.name)
    files = run.read_verified()
    if "bundle.json" not in files:
        raise CorruptError(f"{run!r}: the manifest lists no bundle.json; train again")
    about = json.loads(files["bundle.json"])
    if about["features_version"] != which.FEATURES_VERSION:
        raise BundleError(
            f"bundle {run.run_id} was trained on features_version {about['features_version']!r}, this code makes "
            f"{which.FEATURES_VERSION!r}; train again"
        )
    own = {name.removeprefix("model/"): data for name, data in files.items() if name.startswith("model/")}
    return Bundle(task=which, version=run.run_id, about=about, model=_load_model(which, about["candidate"], own))


def _load_model(task: Task, candidate: str, files: Mapping[str, bytes]) -> Fitted:
    if candidate in task.CANDIDATES:
        return task.CANDIDATES[candidate].load(files)
    blend = getattr(task, "BLEND", None)
    if blend is not None and candidate == blend.NAME:
        return blend.load(files, task.CANDIDATES)
    raise BundleError(f"got candidate {candidate!r}, expected one of {', '.join(task.CANDIDATES)} or a blend of them")


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

    champion: None when there is none or when it cannot be compared; then the challenger has to beat its own baselines.
    """
    task = challenger.task
    if champion is None:
        return _against_baselines(challenger)
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
    """The task's METRIC as a function of how often each row was drawn. Sequences are left out: no metric reads them."""
    kinds = {name: _kind(rows.schema.field(name).type) for name in rows.column_names}
    plain = rows.select([name for name, kind in kinds.items() if kind != "list" or name in task.LABELS])

    def figure(draws: np.ndarray) -> float:
        index = np.repeat(np.arange(len(draws)), draws.astype(np.int64))
        drawn = {name: values[index] for name, values in predictions.items()}
        return float(task.score(plain.take(index), drawn)[task.METRIC])

    return figure


def _against_baselines(challenger: Bundle) -> Decision:
    """First version: better than every baseline of its training, on test where both were measured there."""
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
        why = f"first version, {winner}: no baseline with {task.METRIC} beside it"
        return Decision(promote=True, why=why, figures=figures)
    name = max(others, key=lambda key: sign * others[key])
    said = f"{task.METRIC} {own:.4f} on {part}, baseline {name} {others[name]:.4f}"
    if sign * (own - others[name]) > 0:
        return Decision(promote=True, why=f"first version, beats its baseline: {said}", figures=figures)
    return Decision(promote=False, why=f"does not beat its baseline: {said}", figures=figures)


def _trained_until(bundle: Bundle) -> str:
    """ISO date of the last data behind a bundle; empty for an org without time."""
    return str((bundle.about["data"].get("as_of") or {}).get("now") or "")


# -- publish -----------------------------------------------------------------------------------------------------------


def publish(lake: Lake, task: Task, *, version: str | None = None, force: str | None = None) -> dict[str, Any]:
    """Compare a version (default: the current bundle) with the champion and write the ledger, or refuse.

    Returns {promoted, version, previous, why, figures, number}. force: a reason; promotes whatever the comparison says.
    """
    run = lake.run("bundles", task.NAME, version) if version else lake.latest("bundles", task.NAME)
    challenger = load_bundle(lake, run, task)
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
        champion = load_bundle(lake, lake.run("bundles", task.NAME, previous), task)
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
    load_bundle(lake, lake.run("bundles", task.NAME, target), task)
    reason = f"rolled back from {present}" + (f": {why}" if why else "")
    entry = ledger.append(
        len(entries), version=target, previous=present, action="rollback", compared_on=None, figures={}, why=reason
    )
    return {**entry, "promoted": True}


def compare(lake: Lake, task: Task) -> list[dict[str, Any]]:
    """All versions of a task, newest first: figures on validation and, where the report has them, on test."""
    entries = Ledger(lake, task.NAME).refresh()
    published = {entry["version"]: entry["when"] for entry in entries}
    champion = entries[-1]["version"] if entries else None
    rows = []
    for run in reversed(lake.runs("bundles", task.NAME)):
        about = json.loads(run.read_bytes("bundle.json"))
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
