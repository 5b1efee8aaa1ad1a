"""Reports of bundles: one page for each, one that compares all tasks.

    evaluations/<task>/<run_id>/   report.html, report.json, card.md
    evaluations/all/<run_id>/      report.html, report.json

A bundle keeps what its training measured (bundle.json), and stays small. A report is made of it afterwards, for the
champion or any version, on the test rows of the *current* examples: right after training these are the rows that the
training's figures are of; once newer examples are there the page shows how the model fares on data that came later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray import log, storage, tasks
from crmray.bundle import Bundle, about_of, load_bundle
from crmray.config import Org
from crmray.errors import NoChampionError, NotFoundError
from crmray.evaluate import card, pages
from crmray.evaluate.words import is_figure
from crmray.registry import Ledger
from crmray.storage import Lake, Run
from crmray.tasks.contract import Task
from crmray.train import agreement, report, rows

FORMAT = 4
ALL = "all"
"""name of the comparison among the evaluations"""
MAX_PICTURE_BYTES = 300_000
"""of a drawing in a page"""


def evaluate(org: Org, lake: Lake, task: Task, *, version: str | None = None) -> Run:
    """Report of a version (default: the champion) on the test rows of the current examples, or the one that is there.

    NoChampionError before the first publish; BundleError when rows and bundle do not fit; PrivacyError when somebody
    may have withdrawn since the rows were made.
    """
    champion = _champion(lake, task)
    if version is None and champion is None:
        raise NoChampionError(
            f"{task.NAME}: nothing is published yet; run the 'publish' job after training, or name a version"
        )
    which = version or str(champion)
    examples = lake.latest("examples", task.NAME)
    inputs = {"bundles": which, "examples": examples.run_id}
    for name, (champion_of_it, its_examples) in agreement.others(lake, task).items():
        inputs |= {f"{name} bundles": champion_of_it, f"{name} examples": its_examples.run_id}
    own = {"task": task.NAME, "is_champion": which == champion}
    number = storage.run_id("evaluate", inputs=inputs, settings=own, seed=org.seed, format=FORMAT)
    run = lake.run("evaluations", task.NAME, number)
    with run.claim("evaluate") as mine:
        if mine:
            bundle = load_bundle(lake.run("bundles", task.NAME, which), task)
            found = _measured(lake, bundle, examples, which == champion)
            run.write_bytes("report.html", pages.bundle_page(found, _pictures(lake.run("bundles", task.NAME, which))))
            run.write_bytes("card.md", card.render(_for_card(found)).encode())
            _finish(run, found, task=task.NAME, version=which, inputs=inputs)
    return run


def evaluate_all(org: Org, lake: Lake) -> Run:
    """The comparison of all tasks of the org file that have a bundle: the champion, or the current one before it.

    NotFoundError when no task has one.
    """
    found = {name: _of_training(lake, tasks.task(name)) for name in org.tasks}
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        raise NotFoundError(f"{org.name}: no task has a bundle yet; run the 'train' job first")
    inputs = {name: one["version"] for name, one in known.items()}
    own = {"champions": {name: one["is_champion"] for name, one in known.items()}}
    number = storage.run_id("evaluate", inputs=inputs, settings=own, seed=org.seed, format=FORMAT)
    run = lake.run("evaluations", ALL, number)
    with run.claim("evaluate") as mine:
        if mine:
            told = {"tasks": known, "neural": neural(known)}
            run.write_bytes("report.html", pages.all_page(told))
            _finish(run, told, tasks=list(known), inputs=inputs)
    return run


def _finish(run: Run, found: Mapping[str, Any], **about: Any) -> None:
    run.write_bytes("report.json", json.dumps(found, indent=1, default=str).encode())
    run.commit(**about)
    log.event("evaluation", page=f"{run.path}/report.html", **{key: about[key] for key in about if key != "inputs"})


def _champion(lake: Lake, task: Task) -> str | None:
    try:
        return Ledger(lake, task.NAME).champion()
    except NoChampionError:
        return None


def _measured(lake: Lake, bundle: Bundle, examples: Run, is_champion: bool) -> dict[str, Any]:
    """The report of a bundle with its figures on the test rows of these examples."""
    task = bundle.task
    bundle.check_run(examples)
    rows.check_consent(examples, lake)
    test = bundle.check(rows.test(examples))
    found = _report(task, bundle.about, _trained_at(lake, task, bundle.version), bundle.version, is_champion)
    found["test"] = _without_texts(task.evaluate(bundle.model, bundle.decision, test, bundle.settings))
    found["agreement"] = agreement.of(lake, bundle, test)
    found["evaluated"] = {"examples": examples.run_id, "rows": test.num_rows, "as_of": _dates(test)}
    if examples.run_id != bundle.about["data"]["run_id"]:
        before = {name: value for name, value in bundle.about["test"].items() if is_figure(value)}
        found |= {"at_training": before, "best_possible": report.best_possible(lake, task, test)}
    return found


def _of_training(lake: Lake, task: Task) -> dict[str, Any] | None:
    """The report of a task's champion (before the first: its current bundle) as its training measured it."""
    champion = _champion(lake, task)
    if champion is None and not lake.has("bundles", task.NAME):
        return None
    run = lake.run("bundles", task.NAME, champion) if champion else lake.latest("bundles", task.NAME)
    about = about_of(run)
    return _report(task, about, _trained_at(lake, task, run.run_id), run.run_id, champion is not None)


def _pictures(bundle: Run) -> dict[str, bytes]:
    """The drawings of a bundle that a page can carry: name -> SVG."""
    drawn = {name: bundle.read_bytes(name) for name in (*bundle.files("*.svg"), *bundle.files("pictures/*.svg"))}
    return {Path(name).stem: content for name, content in drawn.items() if len(content) <= MAX_PICTURE_BYTES}


def _trained_at(lake: Lake, task: Task, version: str) -> str:
    return lake.run("bundles", task.NAME, version).manifest()["created_at"]


def _without_texts(value: Any) -> Any:
    """A task's results without texts that are no names: a report goes to more people than a bundle."""
    if isinstance(value, Mapping):
        named = ("names", *pages.LABELLED)
        return {
            key: one if key in named else _without_texts(one)
            for key, one in value.items()
            if key in named or not isinstance(one, str)
        }
    if isinstance(value, (list, tuple)):
        return [_without_texts(one) for one in value if not isinstance(one, str)]
    return value


def _dates(test: pa.Table) -> list[str]:
    """The dates of the rows, as many as are worth telling."""
    days = sorted({moment.date().isoformat() for moment in pc.unique(test["as_of"]).to_pylist() if moment is not None})
    return days if len(days) <= 3 else [f"{days[0]} to {days[-1]}"]


def _report(task: Task, about: Mapping[str, Any], trained_at: str, version: str, is_champion: bool) -> dict[str, Any]:
    """What the page and the card are made of, from what bundle.json holds."""
    winner = about["candidate"]
    members = about["hyperparameters"]
    trials = about["trials"]
    return {
        "task": task.NAME,
        "about": report.about(task),
        "entity": task.ENTITY,
        "metric": task.METRIC,
        "mode": task.MODE,
        "version": version,
        "candidate": winner,
        "is_champion": is_champion,
        "trained_at": trained_at,
        "features_version": about["features_version"],
        "seed": about["seed"],
        "rounds": about["rounds"],
        "test": _without_texts(about["test"]),
        "at_training": None,
        "best_possible": about["best_possible"],
        "models": {name: _model(name, about) for name in _best_first(task, about["metrics"])},
        "baselines": list(about["baselines"]),
        "test_by_customer": about["test_by_customer"],
        "test_neural": about["test_neural"],
        "learning": about["learning"],
        "settings": about["settings"],
        "hyperparameters": {winner: members[winner]} if winner in members else members,
        "removed": about["removed"],
        "suspects": about["suspects"],
        "not_fitted": about["not_fitted"],
        "data": report.data_of(about["data"]),
        "training": {
            "trials": len(trials),
            "failed": sum("failed" in trial for trial in trials),
            "seconds": round(sum(trial["seconds"] for trial in trials), 1),
        },
    }


def _best_first(task: Task, metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    sign = 1 if task.MODE == "max" else -1
    return sorted(metrics, key=lambda name: -sign * metrics[name][task.METRIC])


def _model(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """A family's figures on validation and on test, where it is known the refitted model's."""
    on_test = about["test_candidates"][name]
    family = about["families"].get(name, {"neural": False, "architecture": None})
    return {
        "validation": about["metrics"][name],
        "test": on_test.get("refit", on_test["plain"]),
        "test_before_refit": on_test["plain"] if "refit" in on_test else None,
        **family,
    }


def _for_card(found: Mapping[str, Any]) -> dict[str, Any]:
    table = {name: one["test"] for name, one in found["models"].items()}
    return {**found, "metrics": table}


def neural(known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A line per neural model that says yes or no, or one of several classes: kind, accuracy, precision, recall, F1."""
    lines = {}
    for task, one in known.items():
        for name, figures in one["test_neural"].items():
            told = {
                figure: figures.get(figure, figures.get(f"macro_{figure}"))
                for figure in ("accuracy", "precision", "recall", "f1")
            }
            if any(value is None for value in told.values()):
                continue
            kind = one["models"][name]["architecture"] or "other"
            lines[f"{task}: {name}"] = {"kind": kind, "champion": name == one["candidate"], **told}
    return dict(sorted(lines.items(), key=lambda item: (item[1]["kind"], item[0])))
