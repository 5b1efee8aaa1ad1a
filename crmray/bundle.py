"""Bundles: what a training leaves behind, written by one function and loaded by one.

    bundles/<task>/<run_id>/   manifest.json (with SHA-256 of every file), bundle.json, model/<files>, card.md

A version is the run_id of its bundle. Batch scoring and Serve load bundles through `load_bundle` alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from crmray import tasks
from crmray.errors import BundleError, CorruptError
from crmray.storage import Run
from crmray.tasks.contract import Fitted, Task

FORMAT = 3
"""of bundle.json and of the names of the files beside it; raised when this code can no longer read older ones"""


def column_kinds(examples: pa.Table, labels: tuple[str, ...]) -> dict[str, str]:
    """Column -> numeric, text, time or list, for every column that a model may read (no keys, no labels)."""
    skip = {"entity_id", "part", *labels}
    return {name: kind_of(examples.schema.field(name).type) for name in examples.column_names if name not in skip}


def kind_of(type_: pa.DataType) -> str:
    """numeric, text, time, list or empty (all null); of another type its own name."""
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
    figures} of the rules of thumb, test and test_baselines where they were measured, data (manifest of the examples),
    seed.
    """
    for name, content in model.save().items():
        run.write_bytes(f"model/{name}", content)
    about = {
        "format": FORMAT,
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
            got = kind_of(examples.schema.field(name).type)
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


def about_of(run: Run) -> dict[str, Any]:
    """Content of bundle.json, without its model; BundleError when it is of another format, NotFoundError without it."""
    return _parsed(run, run.read_bytes("bundle.json"))


def _parsed(run: Run, content: bytes) -> dict[str, Any]:
    about = json.loads(content)
    if (found := about.get("format")) != FORMAT:
        raise BundleError(
            f"bundle {run.run_id}: got format {found!r}, expected {FORMAT}: another version of crmray wrote it; train "
            "again and publish, or read it with that version"
        )
    return about


def load_bundle(run: Run, task: Task | None = None) -> Bundle:
    """Load a bundle after comparing every file with its SHA-256.

    CorruptError for changed bytes, NotFoundError for missing ones; BundleError when it is of another format, or was
    trained on other features than this code makes.
    task: the module, where it is not among TASKS.
    """
    which = task or tasks.task(run.name)
    files = run.read_verified()
    if "bundle.json" not in files:
        raise CorruptError(f"{run!r}: the manifest lists no bundle.json; train again")
    about = _parsed(run, files["bundle.json"])
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
