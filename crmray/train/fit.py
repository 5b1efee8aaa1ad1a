"""From an examples run to a bundle: search, winner, refit over all workers, report.

rows       selection (labels known at the validation date), validation, refit (labels known at the test date), test
search     every point of every candidate is fitted on `selection` and compared on `validation`
winner     the best family, or the task's blend of several; by their figures on `validation` or its backtests
refit      the winner, and the best neural family beside it, on `refit`; the winner on the hash-train customers too
report     the decision from the selection models, all figures, the test rows read once
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from crmray import cluster, log, storage
from crmray.config import Org
from crmray.errors import BundleError, ConfigError, TrainingError
from crmray.storage import Lake, Run
from crmray.tasks.contract import Fitted, Task
from crmray.train import points, refit, report, rows, shards
from crmray.train.points import Point, Result, Results
from crmray.train.search import Search, search

FORMAT = 6
"""raised when the choice of a model, or what is written of it, changes"""


def fit(
    org: Org, lake: Lake, task: Task, settings: BaseModel, *, grid: bool, candidates: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None, num_workers: int | None = None, scheduler: str | None = None,
    search: str | None = None, concurrency: int | None = None,
) -> Run:  # fmt: skip
    """Fit the candidates' defaults (or, with `grid`, all points of their grids) and write the winner's bundle.

    candidates: names, default all. overrides: `field`, `candidate.field` or `engine.field` -> value. num_workers: of
    the refit, default all GPUs or CPUs. scheduler: "asha" stops hopeless trials. search: "optuna" proposes points
    instead of taking the whole grid. concurrency: trials at the same time.

    The same call on the same rows gives the run that is there; a killed one goes on. ConfigError for unknown names,
    NotEnoughDataError, CapacityError, TrainingError when no candidate gave a model.
    """
    if search not in (None, "optuna"):
        raise ConfigError(f"got search {search!r}, expected 'optuna' or none")
    if (search or scheduler) and not grid:
        raise ConfigError("a scheduler or search needs a grid: use the 'tune' job")
    examples = lake.latest("examples", task.NAME)
    _check_features(examples, task)
    rows.check_consent(examples, lake)
    fixed = task.fixed(settings) if hasattr(task, "fixed") else {}
    asked = {key: value for key, value in fixed.items() if not candidates or key.split(".")[0] in candidates}
    overrides = {**asked, **(overrides or {})}
    how = {"grid": grid, "scheduler": scheduler, "search": search, "memory_gib": org.memory_gib}
    families = {name: {"defaults": vars(family()), "grid": family.GRID} for name, family in task.CANDIDATES.items()}
    plan = {**how, "candidates": candidates, "overrides": overrides, "task": settings.model_dump(mode="json")}
    plan["families"] = families  # what is fitted where nothing is asked for: other defaults give another bundle
    stage = "tune" if grid else "train"
    run_id = storage.run_id(stage, inputs={"examples": examples.run_id}, settings=plan, seed=org.seed, format=FORMAT)
    run = lake.run("bundles", task.NAME, run_id)
    with run.claim(stage) as mine:
        if mine:
            work = _Work(org=org, lake=lake, task=task, settings=settings, examples=examples, run=run)
            work.go(grid, candidates, overrides, num_workers, scheduler, search, concurrency)
    return run


def _check_features(examples: Run, task: Task) -> None:
    version = examples.manifest()["features_version"]
    if version != task.FEATURES_VERSION:
        raise BundleError(
            f"{examples!r} has features_version {version!r}, this code makes {task.FEATURES_VERSION!r}; "
            "run the 'examples' job again"
        )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One fit in progress: what its steps share."""

    org: Org
    lake: Lake
    task: Task
    settings: BaseModel
    examples: Run
    run: Run

    def go(
        self, grid: bool, candidates: Sequence[str] | None, overrides: dict[str, Any], num_workers: int | None,
        scheduler: str | None, how: str | None, concurrency: int | None,
    ) -> None:  # fmt: skip
        """All steps, each of which goes on where a killed run stopped."""
        org, task = self.org, self.task
        seen = rows.read(self.examples, memory_gib=org.memory_gib, seed=org.seed)
        log.event("rows", task=task.NAME, selection=seen.selection.num_rows, validation=seen.validation.num_rows,
                  refit=seen.refit.num_rows)  # fmt: skip
        chosen = points.choose(
            task, seen.selection.column_names, seen.selection.num_rows, candidates=candidates, overrides=overrides,
            grid=grid, memory_gib=org.memory_gib,
        )  # fmt: skip
        shared = Search(
            task=task, results=Results(self.lake, task), examples=self.examples.run_id, seed=org.seed,
            engine=points.engine_settings(overrides), device="cuda" if cluster.resources().get("GPU") else "cpu",
            points=tuple(p for p in chosen if task.CANDIDATES[p.candidate].KIND != "shards"), by_optuna=how == "optuna",
            share=seen.share,
        )  # fmt: skip
        results = self._compare(shared, chosen, seen, concurrency, scheduler)
        best = best_of(task, results)
        models = {name: shared.results.model(task, result.fit) for name, result in best.items()}
        winner, model, compared = self._winner(best, models, seen.validation)
        members = list(getattr(model, "members", {winner: model}))
        again = self._refit(shared, best, members, seen, num_workers)
        report.write(
            report.Outcome(
                task=task, settings=self.settings, seed=org.seed, examples=self.examples, seen=seen, results=results,
                skipped=points.skipped(task, seen.selection.column_names, candidates), best=best, models=models,
                winner=winner, selected=model, compared=compared,
                champion=_rebuilt(model, winner, again["refit"]), refitted=again["refit"],
                hash_model=_rebuilt(model, winner, again["hash"]) if again["hash"] else None,
            ),
            self.run, self.lake,
        )  # fmt: skip

    def _compare(
        self, shared: Search, chosen: Sequence[Point], seen: rows.Rows, concurrency: int | None, scheduler: str | None
    ) -> list[Result]:
        """Every point's result on validation, failed ones included; TrainingError when all failed."""
        results = []
        by_shard = [point for point in chosen if point not in shared.points]
        if by_shard:
            fits = [shared.fit_on(point, "selection") for point in by_shard]
            results += shards.fit(shared, fits, self.examples, seen)
        if shared.points:
            results += search(shared, seen.selection, seen.validation, name=self.run.run_id,
                              concurrency=concurrency, scheduler=scheduler)  # fmt: skip
        for result in results:
            if result.failed:
                log.warn("trial.failed", trial=result.fit.point.label(self.task), why=result.failed)
        if all(result.failed for result in results):
            reasons = sorted({f"{result.fit.point.candidate}: {result.failed}" for result in results})
            raise TrainingError(
                f"{self.task.NAME}: none of {len(results)} trials gave a model; {'; '.join(reasons[:5])}"
            )
        return results

    def _winner(
        self, best: Mapping[str, Result], models: Mapping[str, Fitted], validation: pa.Table
    ) -> tuple[str, Any, dict[str, dict[str, float]]]:
        """Name and selection model of the winner: the best family, or the task's blend if it is better; and the figures
        that say so, of the families and of a blend that wins.

        They are those on validation, or on what the task's `backtests` makes of it. A blend's members are chosen on
        these rows too.
        """
        task, rows = self.task, validation
        figures = {name: dict(result.figures) for name, result in best.items()}
        if hasattr(task, "backtests"):
            rows = task.backtests(validation)
            figures = {name: points.figures_of(task, rows, model) for name, model in models.items()}
        winner = max(figures, key=lambda name: _rank(task, figures[name]))
        model = models[winner]
        blend = task.blend(models, rows) if hasattr(task, "blend") and len(models) > 1 else None
        if blend is not None:
            blended = points.figures_of(task, rows, blend)
            told: dict[str, Any] = {task.METRIC: blended[task.METRIC], "best_single": figures[winner][task.METRIC]}
            log.event("blend", members=list(getattr(blend, "members", [])), **told)
            sign = 1 if task.MODE == "max" else -1
            if sign * (told[task.METRIC] - told["best_single"]) > 0:
                winner, model, figures = "blend", blend, {**figures, "blend": blended}
        chosen: dict[str, Any] = {"candidate": winner, task.METRIC: figures[winner][task.METRIC]}
        log.event("winner", task=task.NAME, **chosen)
        return winner, model, figures

    def _refit(
        self, shared: Search, best: Mapping[str, Result], members: Sequence[str], seen: rows.Rows,
        num_workers: int | None,
    ) -> dict[str, dict[str, Fitted]]:  # fmt: skip
        """family -> model fitted on `refit` rows (winner's members and the best neural family), and on `hash` rows."""
        task = self.task
        neural = sorted(
            (name for name in best if task.CANDIDATES[name].KIND == "torch"),
            key=lambda name: _rank(task, best[name].figures), reverse=True,
        )[:1]  # fmt: skip
        wanted: list[tuple[str, points.Rows]] = []
        if seen.refit_has_more:
            wanted += [(name, "refit") for name in dict.fromkeys([*members, *neural])]
            if rows.dates_of(self.examples).has_time and 0 < seen.hash_train.num_rows < seen.refit.num_rows:
                wanted += [(name, "hash") for name in members]
        fits = {}
        for name, which in wanted:
            rounds = refit.rounds_of(best[name], task.CANDIDATES[name].KIND)
            fits[name, which] = shared.fit_on(best[name].fit.point, which, rounds)
        by_shard = [one for (name, _), one in fits.items() if task.CANDIDATES[name].KIND == "shards"]
        if by_shard:
            shards.fit(shared, by_shard, self.examples, seen)
        tables = {"refit": seen.refit, "hash": seen.hash_train}
        others = [(one, tables[one.rows]) for one in fits.values() if one not in by_shard]
        if others:
            refit.refit(shared, others, name=self.run.run_id, num_workers=num_workers)
        out: dict[str, dict[str, Fitted]] = {"refit": {}, "hash": {}}
        for (name, which), one in fits.items():
            out[which][name] = shared.results.model(task, one)
        return out


def best_of(task: Task, results: Sequence[Result]) -> dict[str, Result]:
    """family -> its best result on validation; the first of equals, so that a rerun chooses the same."""
    best: dict[str, Result] = {}
    for result in results:
        name = result.fit.point.candidate
        if result.failed:
            continue
        if name not in best or _rank(task, result.figures) > _rank(task, best[name].figures):
            best[name] = result
    return best


def _rank(task: Task, figures: Mapping[str, float]) -> tuple[float, float]:
    """More is better: the task's metric; of equals, whose probabilities are the better ones (where it has any)."""
    sign = 1 if task.MODE == "max" else -1
    return sign * figures[task.METRIC], -figures.get("logloss", 0.0)


def _rebuilt(model: Any, winner: str, again: Mapping[str, Fitted]) -> Any:
    """The winner on more rows: itself refitted, or the same blend of its members refitted; as it was if nothing was."""
    if not again:
        return model
    if winner in again:
        return again[winner]
    return model.with_members({name: again[name] for name in model.members})
