"""The search: every point is one Ray Tune trial in a process of its own; torch candidates train there with DeepSpeed.

A trial's process is used again for the next trial, so that starting Python and importing torch is paid once per slot
and not once per point. Whatever a trial finishes is kept in the lake, and the search itself by Tune: after kill -9 a
rerun goes on with what is left. TensorBoard logs and Tune's tables lie in the folder that the event `search` names.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from ray import tune

from crmray import cluster, log
from crmray.errors import ConfigError, TrainingError
from crmray.tasks.contract import Fitted, Task
from crmray.train import engine, loop, trainer
from crmray.train.engine import EngineSettings
from crmray.train.points import OWN_FAULT, Fit, Point, Result, Results, Rows, curve, figures_of, reason, seconds_since
from crmray.train.trials import TrialTable

MAX_SAMPLES = 30
"""trials of a search by Optuna, where the grid is not smaller"""
ASHA_GRACE_EPOCHS = 3
"""epochs that every trial gets"""
CPUS_PER_TRIAL = 1
"""of a trial that trains in its own process"""
CRASHES = 2
"""times that a trial is run again when its process dies"""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What all trials of a search share. Picklable."""

    task: Task
    """module of the task"""
    results: Results
    """where finished trials are kept"""
    examples: str
    """run_id of the examples"""
    seed: int
    """of every fit"""
    engine: EngineSettings
    """settings of the DeepSpeed engine"""
    device: str
    """cpu or cuda, for torch candidates"""
    points: tuple[Point, ...]
    """the grid"""
    by_optuna: bool
    """whether Optuna proposes the points; the grid then says between which values"""
    share: float = 1.0
    """of the customers of the examples that fits see"""

    def fit_on(self, point: Point, rows: Rows, rounds: int | None = None) -> Fit:
        """The fit of a point on these rows."""
        return Fit.of(
            point, rows, examples=self.examples, seed=self.seed, engine=self.engine, rounds=rounds, share=self.share
        )

    def fit_of(self, config: Mapping[str, Any]) -> Fit:
        """The fit that a trial's config asks for."""
        point = self._proposed(config) if self.by_optuna else self.points[config["point"]]
        return self.fit_on(point, "selection")

    def over_workers(self, fit: Fit) -> bool:
        """Whether a trial of this fit trains on workers of its own."""
        return self.engine.workers_per_trial > 1 and self.task.CANDIDATES[fit.point.candidate].KIND == "torch"

    def _proposed(self, config: Mapping[str, Any]) -> Point:
        name = config["candidate"]
        first = next(point for point in self.points if point.candidate == name)
        space = _space(self.points)[name]
        given = {}
        for field, values in space.items():
            value = config[f"{name}.{field}"]
            given[field] = value if _is_continuous(values) else values[value]
        return Point(candidate=name, settings={**first.settings, **given})


def _space(points: Sequence[Point]) -> dict[str, dict[str, list[Any]]]:
    """candidate -> field -> the distinct values that the grid has, fields with one value left out."""
    space: dict[str, dict[str, list[Any]]] = {}
    for point in points:
        fields = space.setdefault(point.candidate, {})
        for field, value in point.settings.items():
            values = fields.setdefault(field, [])
            if value not in values:
                values.append(value)
    return {name: {f: v for f, v in fields.items() if len(v) > 1} for name, fields in space.items()}


def _is_continuous(values: Sequence[Any]) -> bool:
    return all(isinstance(value, float) for value in values)


def fit_here(
    task: Task, fit: Fit, train: pa.Table, validation: pa.Table | None, *, seed: int, settings: EngineSettings,
    device: str, report: loop.Report | None = None,
) -> tuple[Fitted, int | None, dict[str, list[float]]]:  # fmt: skip
    """Fit in this process: the model, its number of rounds and its learning curve.

    Torch candidates go through the engine in a process group of one.
    """
    candidate: Any = fit.point.make(task)
    if candidate.KIND != "torch":
        model = candidate.fit(train, validation, seed=seed, rounds=fit.rounds)
        return model, getattr(model, "rounds", None), curve(getattr(model, "history", {}))
    state = candidate.prepare(train)
    data = trainer.encoded(task, candidate, state, train, validation)
    with engine.single_process_group(device):
        outcome = loop.train(
            candidate, state, data, seed=seed, device=device, rounds=fit.rounds, settings=settings, report=report
        )
    return candidate.fitted(state, outcome.weights, outcome.rounds), outcome.rounds, curve(outcome.curve(task.METRIC))


def _trial(config: Mapping[str, Any], shared: Search, train: pa.Table, validation: pa.Table) -> None:
    """One trial, in its own process. A candidate that diverges or refuses is a result too: it is not tried again."""
    log.setup(json=True)
    task, fit = shared.task, shared.fit_of(config)
    worst = -np.inf if task.MODE == "max" else np.inf
    result = shared.results.read(fit)
    epochs, label = 0, fit.point.label(task)

    def report(figures: dict[str, Any], save: Callable[..., None]) -> None:
        nonlocal epochs
        epochs = figures["epoch"]
        last = epochs >= fit.point.settings["max_epochs"]
        tags = {"task": task.NAME, "candidate": fit.point.candidate}
        cluster.record("crmray_loss", figures["train_loss"], **tags, part="train")
        cluster.record("crmray_examples_per_s", figures["rows_per_s"], **tags)
        if task.METRIC in figures and not last:  # a scheduler has nothing left to stop after the last epoch
            tune.report({**figures, "finished": False, "label": label})

    if result is None:
        started = time.perf_counter()
        try:
            if shared.over_workers(fit):
                model, rounds, history = _over_workers(shared, fit, train, validation)
            else:
                model, rounds, history = fit_here(
                    task, fit, train, validation, seed=shared.seed, settings=shared.engine, device=shared.device,
                    report=report,
                )  # fmt: skip
            figures = figures_of(task, validation, model)
            if not np.isfinite(figures[task.METRIC]):
                raise TrainingError(f"got {task.METRIC} {figures[task.METRIC]} on validation, expected a finite number")
        except OWN_FAULT as error:
            result = Result(fit=fit, seconds=seconds_since(started), failed=reason(error))
            shared.results.write(result, None)
        else:
            result = Result(fit=fit, figures=figures, rounds=rounds, seconds=seconds_since(started), history=history)
            shared.results.write(result, model)
    final = {
        "epoch": epochs,
        "finished": True,
        "label": label,
        "failed": result.failed or "",
        "seconds": result.seconds,
    }
    tune.report({task.METRIC: worst, **result.figures, **final})


def _over_workers(
    shared: Search, fit: Fit, train: pa.Table, validation: pa.Table
) -> tuple[Fitted, int | None, Mapping[str, Sequence[float]]]:
    """A TorchTrainer inside the trial. Its fit has a key of its own: the trial's is finished when it is scored."""
    inner = replace(fit, key=f"{fit.key}-workers")
    num_workers = shared.engine.workers_per_trial
    trainer.train(shared, [(inner, train, validation)], name=inner.key, num_workers=num_workers)
    found = shared.results.of(inner)
    return shared.results.model(shared.task, inner), found.rounds, found.history


def search(
    shared: Search, train: pa.Table, validation: pa.Table, *, name: str, concurrency: int | None = None,
    scheduler: str | None = None,
) -> list[Result]:  # fmt: skip
    """Run the trials that are not finished yet; one result per trial, failed ones included.

    name: of the Tune experiment; the same name goes on where a killed one stopped.
    """
    task = shared.task
    gpus = 1 if shared.device == "cuda" else 0
    per_trial = shared.engine.workers_per_trial
    cluster.preflight(per_trial, CPUS_PER_TRIAL, gpus)
    total = cluster.resources()
    slots = int(total.get("GPU", 0)) if gpus else int(total.get("CPU", 1) / CPUS_PER_TRIAL)
    concurrency = min(concurrency or max(1, slots // per_trial), len(shared.points))
    fits = [shared.fit_on(point, "selection") for point in shared.points]
    todo = [fit for fit in fits if shared.results.read(fit) is None]
    folder = shared.results.lake.work_folder("search", task.NAME)
    told: dict[str, Any] = {"points": len(shared.points), "left": len(todo), "concurrency": concurrency}
    told |= {"scheduler": scheduler or "none", "search": "optuna" if shared.by_optuna else "grid"}
    log.event("search", task=task.NAME, **told, logs=f"{folder}/{name}")
    if not shared.by_optuna and not todo:
        return [shared.results.of(fit) for fit in fits]
    trainable = tune.with_resources(
        tune.with_parameters(_trial, shared=shared, train=train, validation=validation),
        lambda config: tune.PlacementGroupFactory([_resources(shared, config, gpus)]),
    )
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # what kill -9 may cost
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    path = f"{folder}/{name}"
    if tune.Tuner.can_restore(path):
        log.event("search.resumed", task=task.NAME, folder=path)
        tuner = tune.Tuner.restore(path, trainable=trainable, resume_errored=True)
    else:
        tuner = _tuner(shared, trainable, folder, name, concurrency, scheduler)
    grid = tuner.fit()
    return [_result(shared, grid, index) for index in range(len(grid))]


def _resources(shared: Search, config: Mapping[str, Any], gpus: float) -> dict[str, float]:
    """Of a trial's own process: next to nothing where workers of its own do the training."""
    if shared.over_workers(shared.fit_of(config)):
        return {"memory": 1_000_000}  # not even a part of a CPU: its workers may need them all
    return {"CPU": CPUS_PER_TRIAL, "GPU": gpus} if gpus else {"CPU": CPUS_PER_TRIAL}


def _tuner(
    shared: Search, trainable: Any, folder: str, name: str, concurrency: int, scheduler: str | None
) -> tune.Tuner:
    task, points = shared.task, shared.points
    options: dict[str, Any] = {"metric": task.METRIC, "mode": task.MODE}
    param_space: dict[str, Any] = {}
    num_trials = len(points)
    if shared.by_optuna:
        num_trials = min(len(points), MAX_SAMPLES)
        options |= {"search_alg": _optuna(shared), "num_samples": num_trials}
    else:
        param_space["point"] = tune.grid_search(list(range(len(points))))
    if scheduler == "asha":
        longest = max(point.settings.get("max_epochs", 1) for point in points)
        options["scheduler"] = tune.schedulers.ASHAScheduler(
            time_attr="epoch", max_t=longest + 1, grace_period=min(ASHA_GRACE_EPOCHS, longest), reduction_factor=3
        )
    elif scheduler is not None:
        raise ConfigError(f"got scheduler {scheduler!r}, expected 'asha' or none")
    table = TrialTable(task=task.NAME, metric=task.METRIC, mode=task.MODE, total=num_trials)
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(**options, max_concurrent_trials=concurrency, reuse_actors=True),
        run_config=tune.RunConfig(
            name=name,
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=CRASHES),
            callbacks=[table],
            verbose=0,
        ),
    )


def _optuna(shared: Search) -> Any:
    """A searcher over what the grids span: floats between their ends, everything else one of its values."""
    try:
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise ConfigError("search 'optuna': the package is not installed; pip install crmray[optuna]") from None
    return OptunaSearch(
        space=_Space(_space(shared.points)), metric=shared.task.METRIC, mode=shared.task.MODE, seed=shared.seed
    )


class _Space:
    """Asks Optuna for a candidate and its hyper-parameters. A class, since Tune pickles it with the search's state."""

    def __init__(self, families: dict[str, dict[str, list[Any]]]):
        self.families = families

    def __call__(self, trial: Any) -> None:
        name = trial.suggest_categorical("candidate", sorted(self.families))
        for field, values in self.families[name].items():
            if _is_continuous(values):
                low, high = min(values), max(values)
                trial.suggest_float(f"{name}.{field}", low, high, log=low > 0 and high / low >= 5)
            else:
                trial.suggest_int(f"{name}.{field}", 0, len(values) - 1)


def _result(shared: Search, grid: tune.ResultGrid, index: int) -> Result:
    """What a trial left in the lake, or why there is nothing. TrainingError for one whose process never began."""
    trial = grid[index]
    if trial.config is None:
        raise TrainingError(
            f"the process of trial {index} ended before it began: {_why(trial.error)}; run again, done trials are kept"
        )
    fit = shared.fit_of(trial.config)
    result = shared.results.read(fit)
    if result is not None:
        return result
    metrics = trial.metrics or {}
    figures = {shared.task.METRIC: metrics[shared.task.METRIC]} if shared.task.METRIC in metrics else {}
    why = "stopped early by the scheduler" if trial.error is None else _why(trial.error)
    return Result(fit=fit, figures=figures, failed=why)


_KIND = re.compile(r"((?:ray|crmray)\.[\w.]+|[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?:: (.*))?$")
"""the line of a traceback that begins its message; what the message goes on with may be a value"""


def _why(error: Exception | None) -> str:
    """The last line of a trial's traceback; of an error that is not ours only the kind, since it may quote the data."""
    lines = str(error or "").strip().splitlines()
    if not lines:
        return "it left no message"
    kinds = [found for line in lines if (found := _KIND.match(line))]
    if not kinds:
        return "an error without a kind; its log in the Ray dashboard has the message"
    kind, message = kinds[-1].groups()
    if kind.startswith("crmray.") and message:
        return message
    return f"{kind}; its log in the Ray dashboard has the message"
