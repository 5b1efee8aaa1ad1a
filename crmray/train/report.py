"""The figures of a fit and its bundle. The only place that reads the test rows, once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from crmray import log
from crmray.errors import CrmrayError
from crmray.evaluate import card
from crmray.registry import write_bundle
from crmray.storage import Lake, Run
from crmray.tasks.contract import Fitted, Task
from crmray.train import rows
from crmray.train.points import Result


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
    best: Mapping[str, Result]
    """family -> best trial"""
    models: Mapping[str, Fitted]
    """family -> model of the best trial"""
    winner: str
    """family, or blend"""
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
    decision = task.finalize(outcome.selected, seen.selection, seen.validation, outcome.settings)
    test = rows.test(outcome.examples)
    figures = _metrics(outcome, test)
    # The decision was fitted on validation with the model that had not seen it, and is applied with the refitted one.
    evaluated = task.evaluate(outcome.champion, decision, test, outcome.settings)
    facts: dict[str, Any] = {
        "metrics": figures["validation"],
        "baselines": {name: figures["validation"][name] for name in baselines(task, outcome.best)},
        "test": evaluated,
        "test_candidates": figures["test"],
        "test_baselines": {name: figures["test"][name]["plain"] for name in baselines(task, outcome.best)},
        "test_by_customer": _by_customer(outcome, test),
        "best_possible": best_possible(lake, task, test),
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
    shown = {**head, **facts, "metrics": _shown(figures["test"]), "baselines": {}}
    text = card.render({**shown, "settings": outcome.settings.model_dump(mode="json"), "decision": None})
    write_bundle(
        run, task, candidate=outcome.winner, model=outcome.champion, settings=outcome.settings, decision=decision,
        examples=seen.selection, card=text, **facts,
    )  # fmt: skip
    for name, content in (task.files(decision, evaluated) if hasattr(task, "files") else {}).items():
        run.write_bytes(name, content)
    seconds = {"report": round(time.perf_counter() - started, 2), "trials": sum(r.seconds for r in outcome.results)}
    run.commit(
        task=task.NAME, candidate=outcome.winner, metric=task.METRIC, validation=figures["validation"][outcome.winner],
        test=evaluated.get(task.METRIC), inputs={"examples": outcome.examples.run_id}, facts={"seconds": seconds},
    )  # fmt: skip
    told: dict[str, Any] = {"version": run.run_id, "candidate": outcome.winner, "test": evaluated.get(task.METRIC)}
    log.event("bundle", task=task.NAME, metric=task.METRIC, **told)


def baselines(task: Task, best: Mapping[str, Result]) -> list[str]:
    """Families that have nothing to tune: rules of thumb."""
    return [name for name in best if not task.CANDIDATES[name].GRID]


def _score(task: Task, table: pa.Table, model: Fitted) -> dict[str, float]:
    return {name: float(value) for name, value in task.score(table, model.predict(table)).items()}


def _metrics(outcome: Outcome, test: pa.Table) -> dict[str, dict[str, Any]]:
    """Figures of every family's best: on validation, and on test as compared ("plain") and as refitted ("refit")."""
    task = outcome.task
    validation = {name: dict(result.figures) for name, result in outcome.best.items()}
    on_test = {name: {"plain": _score(task, test, model)} for name, model in outcome.models.items()}
    for name, model in outcome.refitted.items():
        on_test[name]["refit"] = _score(task, test, model)
    if outcome.winner not in validation:
        validation[outcome.winner] = _score(task, outcome.seen.validation, outcome.selected)
        on_test[outcome.winner] = {"plain": _score(task, test, outcome.selected)}
        if outcome.refitted:
            on_test[outcome.winner]["refit"] = _score(task, test, outcome.champion)
    return {"validation": validation, "test": on_test}


def _by_customer(outcome: Outcome, test: pa.Table) -> dict[str, Any] | None:
    """The winner on customers it never saw: trained on the training part, tested on the test part of the customers."""
    if outcome.hash_model is None:
        return None
    others = test.filter(pc.equal(test["part"], "test"))
    if others.num_rows == 0:
        return None
    try:
        return {**_score(outcome.task, others, outcome.hash_model), "rows": others.num_rows}
    except CrmrayError as error:  # too few rows of a class in this part: the headline stands without it
        log.warn("report.by_customer", why=str(error))
        return {"rows": others.num_rows, "why_not": str(error)}


def best_possible(lake: Lake, task: Task, test: pa.Table) -> dict[str, float] | None:
    """Figures of the true probabilities `p_leave`, where the generator of the org is known (truth/); None elsewhere.

    The truth may be about something else than the task's label, or other dates: it counts only if it covers the test
    rows and what came (`left`) is their label.
    """
    if task.LABELS != ("label",) or not lake.has("truth", "demo"):
        return None
    keys, date = ["entity_id", "as_of"], pc.min(test["as_of"])
    truth = lake.latest("truth", "demo").read_table(
        "leaving-*.parquet", columns=[*keys, "p_leave", "left"], filters=pc.field("as_of") == date
    )
    numbered = test.select([*keys, "label"]).append_column("row", pa.array(range(test.num_rows)))
    both = numbered.join(truth, keys, join_type="inner").sort_by("row")
    same = pc.equal(both["label"].cast(pa.bool_()), both["left"])
    if both.num_rows != test.num_rows or not pc.all(same).as_py():
        log.event("report.no_ceiling", task=task.NAME, rows=test.num_rows, known=both.num_rows)
        return None
    return {name: float(value) for name, value in task.score(test, {"score": both["p_leave"].to_numpy()}).items()}


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
