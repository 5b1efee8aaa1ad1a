"""The figures of a fit and its bundle. The only place that reads the test rows, once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from crmray import log
from crmray.bundle import write_bundle
from crmray.errors import CrmrayError
from crmray.evaluate import card
from crmray.evaluate.words import is_figure
from crmray.models import selection
from crmray.storage import Lake, Run
from crmray.tasks.contract import Fitted, Task
from crmray.train import rows
from crmray.train.points import Result, figures_of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the fit came to, before the test rows are read."""

    task: Task
    """module of the task"""
    settings: BaseModel
    """its section of the org file"""
    seed: int
    """of every fit"""
    examples: Run
    """the rows"""
    seen: rows.Rows
    """training and validation rows"""
    results: Sequence[Result]
    """every trial"""
    skipped: Mapping[str, str]
    """candidate -> why it cannot be fitted on these rows"""
    best: Mapping[str, Result]
    """family -> best trial"""
    models: Mapping[str, Fitted]
    """family -> model of the best trial"""
    winner: str
    """family, or blend"""
    compared: Mapping[str, Mapping[str, float]]
    """family, and a blend that won -> the figures on which the winner was chosen"""
    selected: Any
    """the winner as it was compared on validation"""
    champion: Any
    """the winner as it is shipped: refitted on all rows before the test"""
    refitted: Mapping[str, Fitted]
    """family -> model refitted on all rows before the test"""
    hash_model: Any | None
    """the winner fitted on the customers of the training part only"""


def write(outcome: Outcome, run: Run, lake: Lake) -> None:
    """Evaluate on the test rows, write the bundle's files and complete the run."""
    started = time.perf_counter()
    task, seen = outcome.task, outcome.seen
    decision = _decision(outcome, outcome.selected, outcome.champion)
    test = rows.test(outcome.examples)
    on_test = _on_test(outcome, test)
    evaluated = task.evaluate(outcome.champion, decision, test, outcome.settings)
    facts: dict[str, Any] = {
        "metrics": outcome.compared,
        "baselines": {name: outcome.compared[name] for name in baselines(task, outcome.best)},
        "test": evaluated,
        "test_candidates": on_test,
        "test_baselines": {name: on_test[name]["plain"] for name in baselines(task, outcome.best)},
        "test_by_customer": _by_customer(outcome, test),
        "test_neural": _neural(outcome, test, evaluated),
        "families": {name: family(task, name) for name in outcome.best},
        "learning": {name: learning(task, result) for name, result in outcome.best.items() if result.history},
        "removed": {name or outcome.winner: why for name, why in selection.removed_of(outcome.champion).items()},
        "suspects": selection.suspects(seen.selection, seen.validation, task.LABELS),
        "best_possible": best_possible(lake, task, test),
        "not_fitted": not_fitted(outcome),
        "hyperparameters": {name: dict(result.fit.point.settings) for name, result in outcome.best.items()},
        "trials": [_trial(outcome.task, result) for result in outcome.results],
        "data": {key: value for key, value in outcome.examples.manifest().items() if key != "files"},
        "seed": outcome.seed,
        "rounds": getattr(outcome.champion, "rounds", None),
    }
    head = {
        "task": task.NAME,
        "candidate": outcome.winner,
        "features_version": task.FEATURES_VERSION,
        "version": run.run_id,
    }
    if facts["suspects"]:
        log.warn("report.suspects", task=task.NAME, features=list(facts["suspects"]))
    shown = {**head, **facts, "metrics": _shown(on_test), "about": about(task)}
    shown |= {"entity": task.ENTITY, "data": data_of(facts["data"])}
    text = card.render({**shown, "settings": outcome.settings.model_dump(mode="json"), "decision": None})
    write_bundle(
        run, task, candidate=outcome.winner, model=outcome.champion, settings=outcome.settings, decision=decision,
        examples=seen.selection, card=text, **facts,
    )  # fmt: skip
    for name, content in (task.files(decision, evaluated) if hasattr(task, "files") else {}).items():
        run.write_bytes(name, content)
    for name, content in pictures({**outcome.models, **outcome.refitted}).items():
        run.write_bytes(name, content)
    seconds = {"report": round(time.perf_counter() - started, 2), "trials": sum(r.seconds for r in outcome.results)}
    run.commit(
        task=task.NAME, candidate=outcome.winner, metric=task.METRIC, validation=outcome.compared[outcome.winner],
        test=evaluated.get(task.METRIC), inputs={"examples": outcome.examples.run_id}, facts={"seconds": seconds},
    )  # fmt: skip
    told: dict[str, Any] = {"version": run.run_id, "candidate": outcome.winner, "test": evaluated.get(task.METRIC)}
    log.event("bundle", task=task.NAME, metric=task.METRIC, **told)


def _decision(outcome: Outcome, selected: Fitted, last: Fitted) -> dict[str, Any]:
    """What validation says of the model that had not seen it, for the one that is shipped, which may have."""
    task, seen = outcome.task, outcome.seen
    decision = task.finalize(selected, seen.selection, seen.validation, outcome.settings)
    if last is not selected and hasattr(task, "shipped"):
        return task.shipped(last, decision, seen.validation)
    return decision


def not_fitted(outcome: Outcome) -> dict[str, str]:
    """Candidate -> in one line why it gave no model: it cannot be fitted on these rows, or every trial of it failed."""
    failed: dict[str, list[str]] = {}
    for result in outcome.results:
        name = result.fit.point.candidate
        if name not in outcome.best and result.failed:
            failed.setdefault(name, []).append(" ".join(result.failed.split()))
    told = {name: whys[0] + (f" ({len(whys)} trials)" if len(whys) > 1 else "") for name, whys in failed.items()}
    return {**outcome.skipped, **told}


def data_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Period, population and dates of the examples as people read them, without schemas and counts by date.

    A horizon of 0 is left out: the task's rows have no label window.
    """
    names = ("run_id", "span", "as_of", "horizon_days", "rows", "excluded", "num_shards")
    kept_out = {name: one for name, one in (manifest.get("attributes") or {}).items() if one.get("used") == "kept out"}
    return {name: manifest[name] for name in names if manifest.get(name)} | ({"kept_out": kept_out} if kept_out else {})


def baselines(task: Task, best: Mapping[str, Result]) -> list[str]:
    """Families that have nothing to tune: rules of thumb."""
    return [name for name in best if not task.CANDIDATES[name].GRID]


def pictures(models: Mapping[str, Fitted]) -> dict[str, bytes]:
    """pictures/<family>-<name> -> content, of the families that can be drawn (a fitted model's `pictures`)."""
    drawn = {name: model.pictures() for name, model in models.items() if hasattr(model, "pictures")}
    return {f"pictures/{name}-{file}": content for name, files in drawn.items() for file, content in files.items()}


def about(task: Task) -> str:
    """What a task is, from the first paragraph of its module."""
    return " ".join((task.__doc__ or "").split("\n\n")[0].split())


def family(task: Task, name: str) -> dict[str, Any]:
    """Whether a family is a neural network, and of which kind (its ARCHITECTURE), for the comparison of them."""
    candidate = task.CANDIDATES[name]
    return {"neural": candidate.KIND == "torch", "architecture": getattr(candidate, "ARCHITECTURE", None)}


def learning(task: Task, result: Result) -> dict[str, Any]:
    """The learning curve of a fit, and what its steps are."""
    unit = "epoch" if task.CANDIDATES[result.fit.point.candidate].KIND == "torch" else "round"
    return {"unit": unit, **result.history}


def _neural(outcome: Outcome, test: pa.Table, champion: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Figures of the neural families as they would be shipped: each with the decision of its own validation rows."""
    task, found = outcome.task, {}
    for name, model in outcome.models.items():
        if task.CANDIDATES[name].KIND != "torch":
            continue
        figures = champion
        if name != outcome.winner:
            last = outcome.refitted.get(name, model)
            figures = task.evaluate(last, _decision(outcome, model, last), test, outcome.settings)
        found[name] = {figure: value for figure, value in figures.items() if is_figure(value)}
    return found


def _on_test(outcome: Outcome, test: pa.Table) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of every family's best on test, as compared ("plain") and as refitted ("refit")."""
    task = outcome.task
    on_test = {name: {"plain": figures_of(task, test, model)} for name, model in outcome.models.items()}
    for name, model in outcome.refitted.items():
        on_test[name]["refit"] = figures_of(task, test, model)
    if outcome.winner not in on_test:
        on_test[outcome.winner] = {"plain": figures_of(task, test, outcome.selected)}
        if outcome.refitted:
            on_test[outcome.winner]["refit"] = figures_of(task, test, outcome.champion)
    return on_test


def _by_customer(outcome: Outcome, test: pa.Table) -> dict[str, Any] | None:
    """The winner on customers it never saw: trained on the training part, tested on the test part of the customers."""
    if outcome.hash_model is None:
        return None
    others = test.filter(pc.equal(test["part"], "test"))
    if others.num_rows == 0:
        return None
    try:
        return {**figures_of(outcome.task, others, outcome.hash_model), "rows": others.num_rows}
    except CrmrayError as error:  # too few rows of a class in this part: the headline stands without it
        log.warn("report.by_customer", why=str(error))
        return {"rows": others.num_rows, "why_not": str(error)}


def best_possible(lake: Lake, task: Task, test: pa.Table) -> dict[str, float] | None:
    """Figures of the best predictions there can be, where the generator of the org is known (truth/); None elsewhere.

    The truth may be about something else than the task's label, or other dates: it counts only if it covers the test
    rows and what came is their label.
    """
    if not lake.has("truth", "demo"):
        return None
    hidden, pattern = lake.latest("truth", "demo"), f"{task.NAME}-*.parquet"
    if not hidden.files(pattern):
        return None
    truth = hidden.read_table(pattern, filters=pc.field("as_of").isin(pc.unique(test["as_of"])))
    _, found = rows.matched(test, truth)
    if found.num_rows != test.num_rows or not all(_same(test[name], found[name]) for name in task.LABELS):
        log.event("report.no_ceiling", task=task.NAME, rows=test.num_rows, known=found.num_rows)
        return None
    answers = {name: _array(found[name]) for name in found.column_names if name not in (*rows.KEYS, *task.LABELS)}
    return {name: float(value) for name, value in task.score(test, answers).items()}


def _same(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same values, numbers within 1e-6 of each other, whatever their types."""
    left, right = _array(ours), _array(theirs)
    if left.shape != right.shape:
        return False
    if left.dtype == object or right.dtype == object:
        return left.tolist() == right.tolist()
    return bool(np.isclose(left, right, rtol=1e-6, atol=1e-6, equal_nan=True).all())


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array: lists of one length as further axes, text and lists of several lengths as objects."""
    if not pa.types.is_list(column.type) and not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    rows = column.to_pylist()
    try:
        stacked = np.array(rows)
    except ValueError:  # lists of several lengths
        stacked = np.empty(len(rows), dtype=object)
        stacked[:] = rows
    return stacked.astype(object) if stacked.dtype.kind in "US" else stacked


def _trial(task: Task, result: Result) -> dict[str, Any]:
    about = {"candidate": result.fit.point.candidate, "point": result.fit.point.label(task), "seconds": result.seconds}
    about |= {task.METRIC: result.figures.get(task.METRIC), "rounds": result.rounds}
    return {**about, "failed": result.failed} if result.failed else about


def _shown(on_test: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the card's table: test figures, the refitted model's where there is one."""
    table = {}
    for name, figures in on_test.items():
        table[name] = figures.get("refit", figures["plain"])
        if "refit" in figures:
            table[f"{name}, before the refit"] = figures["plain"]
    return table
