"""What is to be fitted, and what came of it: points of the candidates' grids, and their results in the lake.

A finished fit is kept under the lake's working folder by a key of everything that determines it. So a rerun after a
crash repeats none, whatever died: a worker, the driver or the node.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from crmray import log, storage
from crmray.errors import ConfigError, CrmrayError, DataError, NotEnoughDataError, NotFoundError, TrainingError
from crmray.storage import Lake
from crmray.tasks.contract import Candidate, Fitted, Task
from crmray.train.engine import EngineSettings

FORMAT = 5
MAX_STEPS = 100
"""points of a learning curve that are kept"""
OWN_FAULT = (ConfigError, DataError, TrainingError, ValueError)
"""errors that a fit meets again whenever it is run: they are kept as its result; all others are tried again"""
ENGINE = "engine."
Rows = Literal["selection", "refit", "hash"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate with its hyper-parameters."""

    candidate: str
    """name of the family"""
    settings: Mapping[str, Any]
    """all hyper-parameters, JSON-able"""

    def make(self, task: Task) -> Candidate:
        """The candidate itself."""
        return task.CANDIDATES[self.candidate](**self.settings)

    def label(self, task: Task) -> str:
        """Name and what differs from the defaults."""
        defaults = _fields(task.CANDIDATES[self.candidate])
        changed = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                   for key, value in self.settings.items() if value != defaults[key].default]  # fmt: skip
        return " ".join([self.candidate, *changed])


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One fit of a point: on which rows, for how long."""

    point: Point
    """what is fitted"""
    rows: Rows
    """selection: training rows, early stopping on validation; refit: all rows before the test; hash: those of them
    whose customers are in the training part"""
    rounds: int | None = None
    """fixed number of epochs or boosting rounds; None: early stopping"""
    key: str
    """hash of everything that determines the result"""

    def __str__(self) -> str:
        return f"{self.point.candidate} ({self.rows})"  # in events

    @staticmethod
    def of(
        point: Point, rows: Rows, *, examples: str, seed: int, engine: EngineSettings, rounds: int | None = None,
        share: float = 1.0,
    ) -> Fit:  # fmt: skip
        """A fit with its key. examples: run_id of the rows; share: of their customers that it sees."""
        settings = {**dataclasses.asdict(point), "rows": rows, "rounds": rounds, "engine": dataclasses.asdict(engine)}
        settings |= {"share": share}
        key = storage.run_id("fit", inputs={"examples": examples}, settings=settings, seed=seed, format=FORMAT)
        return Fit(point=point, rows=rows, rounds=rounds, key=key)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a fit came to."""

    fit: Fit
    """what was fitted"""
    figures: Mapping[str, float] = field(default_factory=dict)
    """the task's figures on validation; empty for a refit or when it failed"""
    rounds: int | None = None
    """epochs or boosting rounds that it took or chose"""
    seconds: float = 0.0
    """of training"""
    failed: str | None = None
    """why there is no model: it diverged, was refused, crashed, or was stopped by the scheduler"""
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """learning curve: `step` (epoch or boosting round) and figures at it, as `curve` gives them; empty without steps"""


def curve(history: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """A learning curve from figures of every step, step 1 first; of many steps MAX_STEPS, the first and last too."""
    num_steps = min((len(values) for values in history.values()), default=0)
    if not num_steps:
        return {}
    kept = sorted({round(1 + i * (num_steps - 1) / (MAX_STEPS - 1)) for i in range(MAX_STEPS)})
    figures = {name: [float(f"{values[step - 1]:.6g}") for step in kept] for name, values in history.items()}
    return {"step": [float(step) for step in kept], **figures}


def reason(error: Exception) -> str:
    """Why a fit failed, for logs and reports: our own message, of other errors only their kind and where they arose.

    Messages of libraries may quote cells of the data.
    """
    kind = type(error).__name__
    if isinstance(error, CrmrayError):
        return f"{kind}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{kind} at {'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else kind


def figures_of(task: Task, rows: pa.Table, model: Fitted) -> dict[str, float]:
    """The task's figures of a model's predictions on these rows."""
    return {name: float(value) for name, value in task.score(rows, model.predict(rows)).items()}


def seconds_since(started: float) -> float:
    """Seconds since a `time.perf_counter()`, to the millisecond."""
    return round(time.perf_counter() - started, 3)


_KEPT = ("figures", "rounds", "seconds", "failed", "history")


class Results:
    """Finished fits of one task in the lake. Picklable: workers write to it directly."""

    def __init__(self, lake: Lake, task: Task):
        self.lake, self.folder = lake, f"_work/fits/{task.NAME}"

    def write(self, result: Result, model: Fitted | None) -> None:
        """Keep a result; its model's files first, so that a result stands for a whole model."""
        files = {} if model is None else model.save()
        for name, content in files.items():
            self.lake.write(f"{self.folder}/{result.fit.key}/model/{name}", content)
        about = {key: value for key, value in dataclasses.asdict(result).items() if key != "fit"}
        about |= {"files": sorted(files), "point": dataclasses.asdict(result.fit.point), "rows": result.fit.rows}
        content = json.dumps(about, indent=1, default=str).encode()
        self.lake.write(f"{self.folder}/{result.fit.key}/result.json", content)

    def read(self, fit: Fit) -> Result | None:
        """The result of a fit, None when it is not finished."""
        try:
            about = json.loads(self.lake.read(f"{self.folder}/{fit.key}/result.json"))
        except NotFoundError:
            return None
        return Result(fit=fit, **{name: about[name] for name in _KEPT})

    def of(self, fit: Fit) -> Result:
        """The result of a fit that is known to be finished."""
        result = self.read(fit)
        assert result is not None, fit
        return result

    def model(self, task: Task, fit: Fit) -> Fitted:
        """The fitted model of a finished fit."""
        folder = f"{self.folder}/{fit.key}"
        names = json.loads(self.lake.read(f"{folder}/result.json"))["files"]
        files = {name: self.lake.read(f"{folder}/model/{name}") for name in names}
        return task.CANDIDATES[fit.point.candidate].load(files)


def _fields(candidate: type) -> dict[str, dataclasses.Field]:
    return {item.name: item for item in dataclasses.fields(candidate)}


def engine_settings(overrides: Mapping[str, Any]) -> EngineSettings:
    """Settings of the engine among the overrides: `engine.zero_stage=2`."""
    own = {key.removeprefix(ENGINE): value for key, value in overrides.items() if key.startswith(ENGINE)}
    known = {item.name for item in dataclasses.fields(EngineSettings)}
    unknown = sorted(set(own) - known)
    if unknown:
        raise ConfigError(f"--set {ENGINE}{unknown[0]}: no such setting, expected one of {', '.join(sorted(known))}")
    try:
        return EngineSettings(**own)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from None


def choose(
    task: Task, columns: Sequence[str], num_rows: int, *, candidates: Sequence[str] | None,
    overrides: Mapping[str, Any], grid: bool, memory_gib: float,
) -> list[Point]:  # fmt: skip
    """One point per candidate (its defaults), or every point of its GRID; overrides fix a field in all of them.

    An override is `field` for every candidate that has it, or `candidate.field` for one. A candidate's `for_rows` gives
    defaults that depend on the number of training rows. ConfigError for a name that
    nothing has; NotEnoughDataError when no candidate applies to the columns.
    """
    names = list(candidates or task.CANDIDATES)
    for name in names:
        if name not in task.CANDIDATES:
            raise ConfigError(f"got candidate {name!r}, expected one of {', '.join(task.CANDIDATES)}")
    used: set[str] = set()
    points, refused = [], skipped(task, columns, names)
    for name in names:
        family = task.CANDIDATES[name]
        fixed = _overrides_of(name, family, overrides, used)
        if name in refused:
            log.event("candidate.skipped", candidate=name, why=refused[name])
            continue
        free = {key: values for key, values in family.GRID.items() if key not in fixed} if grid else {}
        usual = family.for_rows(num_rows) if hasattr(family, "for_rows") else {}
        if "memory_gib" in _fields(family):
            usual = {**usual, "memory_gib": memory_gib}
        fixed = {**usual, **fixed}
        for values in itertools.product(*free.values()):
            points.append(_point(name, family, {**fixed, **dict(zip(free, values, strict=True))}))
    unused = [key for key in overrides if key not in used and not key.startswith(ENGINE)]
    if unused:
        known = sorted({key for name in names for key in _fields(task.CANDIDATES[name])})
        raise ConfigError(f"--set {unused[0]}: none of {', '.join(names)} has it; expected one of {', '.join(known)}")
    if not points:
        raise NotEnoughDataError(f"{task.NAME}: no candidate can run on these examples: {refused}")
    return points


def skipped(task: Task, columns: Sequence[str], candidates: Sequence[str] | None) -> dict[str, str]:
    """Candidate (of those named, default all) -> why it cannot be fitted on examples with these columns."""
    families = {name: task.CANDIDATES[name] for name in candidates or task.CANDIDATES}
    told = {name: one.applies(columns) for name, one in families.items() if hasattr(one, "applies")}
    return {name: why for name, why in told.items() if why is not None}


def _overrides_of(name: str, family: type, overrides: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """The overrides that concern one family, those that name it last so that they win; remembers them as used."""
    types_of, own = typing.get_type_hints(family), _fields(family)
    general = {key: key for key in overrides if key in own}
    special = {key: key.removeprefix(f"{name}.") for key in overrides if key.removeprefix(f"{name}.") in own}
    used.update(general, special)
    named = {**general, **{key: item for key, item in special.items() if key != item}}
    return {item: _checked(key, overrides[key], types_of[item]) for key, item in named.items()}


def _checked(key: str, value: Any, kind: Any) -> Any:
    """The value if its type fits the field's, numbers as the field has them."""
    allowed: list[Any] = []
    for part in typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,):
        allowed += [type(item) for item in typing.get_args(part)] if typing.get_origin(part) is Literal else [part]
    plain = [typing.get_origin(part) or part for part in allowed]
    if float in plain and type(value) is int:
        return float(value)
    if type(value) not in plain and not (isinstance(value, list) and tuple in plain):
        names = " or ".join(getattr(part, "__name__", str(part)) for part in plain)
        raise ConfigError(f"--set {key}: got {value!r}, expected {names}")
    return tuple(value) if isinstance(value, list) else value


def _point(name: str, family: type, given: Mapping[str, Any]) -> Point:
    try:
        made = family(**given)
    except ValueError as error:
        raise ConfigError(f"candidate {name}: {error}") from None
    return Point(candidate=name, settings=dataclasses.asdict(made))
