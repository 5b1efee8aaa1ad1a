"""The Ray Serve applications: `build` for one task, `root` for /. Their `args` are the fields of serve.options.

The model, the rows and the HTTP side live in one deployment per task: a second hop would halve the rate.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatus
from ray.util.metrics import Counter, Histogram

from crmray import log
from crmray.config import explain
from crmray.errors import AuthError, ConfigError, CrmrayError, NoChampionError, NotFoundError, PrivacyError
from crmray.keys import KeyFile
from crmray.privacy import Pseudonyms
from crmray.registry import Ledger
from crmray.storage import Lake
from crmray.tasks.contract import Task
from serve.answers import Answers
from serve.champion import Champion
from serve.http import root_app, task_app
from serve.known import Dated
from serve.options import RootOptions, TaskOptions

Options = TypeVar("Options", bound=RootOptions)
_LATENCY_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]


def build(args: dict[str, Any]) -> Application:
    """The application of one task; `args.task` says which. ConfigError for wrong args or a wrong org file."""
    options = _checked(TaskOptions, args)
    if options.task not in options.load_tasks():
        raise ConfigError(f"args.task: got {options.task!r}, expected one of {', '.join(options.load_tasks())}")
    return Predict.bind(options.model_dump())


def root(args: dict[str, Any]) -> Application:
    """The application at /."""
    return Root.bind(_checked(RootOptions, args).model_dump())


def _checked(kind: type[Options], args: dict[str, Any]) -> Options:
    """The args with the org file's path made absolute: replicas may run in another folder."""
    try:
        options = kind.model_validate(args)
    except ValidationError as error:
        raise ConfigError(f"args of the application: {explain(error)}") from None
    return options.model_copy(update={"org": options.load_org().path})


@serve.deployment(name="Predict")
@serve.ingress()
class Predict:
    """Answers for one task with its champion, which it swaps when the ledger says so."""

    async def __init__(self, values: dict[str, Any]):
        log.setup(json=True)
        self.options = TaskOptions(**values)
        _limit_threads(self.options.num_threads)
        self.task: Task = self.options.load_tasks()[self.options.task]
        self.keys = _keys(self.options)
        self.org = self.options.load_org()
        self.champion = Champion(Lake(self.org.root), self.task, self.org)
        await asyncio.to_thread(self.champion.poll)
        self._watch = asyncio.create_task(_watch(self.options.poll_s, self.champion.poll, self.keys))

    def __serve_build_asgi_app__(self) -> Any:
        answers = Answers(
            self.champion, max_batch_rows=self.options.max_batch_rows, batch_wait_s=self.options.batch_wait_s
        )
        return task_app(self.task, answers, options=self.options, keys=self.keys, observe=_observer(self.task.NAME))

    def status(self) -> dict[str, Any]:
        """What this replica answers with, and for whom; `serve.fleet` asks all replicas."""
        lake = Lake.address_of(self.champion.lake.root)
        return {"pid": os.getpid(), "org": self.org.name, "lake": lake, **self.champion.status()}

    def check_health(self) -> None:
        """A replica that no longer looks at the ledger is replaced."""
        if self._watch.done():
            raise RuntimeError(f"the watch of {self.task.NAME} ended: {self._watch.exception()!r}")


@serve.deployment(name="Root")
@serve.ingress()
class Root:
    """Models, health, readiness, OpenAPI."""

    async def __init__(self, values: dict[str, Any]):
        log.setup(json=True)
        self.options = RootOptions(**values)
        self.org = self.options.load_org()
        self.lake = Lake(self.org.root)
        self.served = self.options.served or list(self.org.tasks)
        self.tasks = {name: task for name, task in self.options.load_tasks().items() if name in self.served}
        self.keys = _keys(self.options)
        self.ledgers = {name: Ledger(self.lake, name) for name in self.tasks}
        self._reading = threading.Lock()
        self._watch = asyncio.create_task(_watch(self.options.poll_s, lambda: False, self.keys))

    def __serve_build_asgi_app__(self) -> Any:
        observe = _observer("root")
        return root_app(
            self.tasks, options=self.options, keys=self.keys, models=self.models, missing=self.missing, observe=observe
        )

    def models(self) -> list[dict[str, Any]]:
        """The champions, from the ledger and the lake."""
        return [self._entry(task) for task in self.tasks.values()]

    def _entry(self, task: Task) -> dict[str, Any]:
        entry: dict[str, Any] = {"task": task.NAME, "route": task.ROUTE, "version": None, "metric": task.METRIC}
        try:
            published = self._published(task.NAME)
        except NoChampionError:
            return entry
        entry["version"] = published["version"]
        about = json.loads(self.lake.run("bundles", task.NAME, entry["version"]).read_bytes("bundle.json"))
        entry |= {"candidate": about["candidate"], "published_at": published["when"]}
        try:
            examples = Dated.of(self.lake.latest("examples", task.NAME))
            return {**entry, "as_of": examples.as_of, "data_age_days": examples.age_days}
        except NotFoundError:  # cleared away: replicas go on with what they have open
            return entry

    def _published(self, task: str) -> dict[str, Any]:
        """Last entry of the ledger; NoChampionError when there is none. One thread at a time reads on in a ledger."""
        with self._reading:
            self.ledgers[task].champion()
            return self.ledgers[task].refresh()[-1]

    def missing(self) -> list[str]:
        """Why not every task that the org file asks for can be answered."""
        applications = serve.status().applications
        running = {name for name, found in applications.items() if found.status == ApplicationStatus.RUNNING}
        reasons = []
        try:
            Pseudonyms.of_lake(self.org, self.lake)
            _ = self.lake.file_keys
        except PrivacyError as error:  # ids that clients send could not be found, or rows not be read
            reasons.append(str(error))
        for name in self.served:
            if name not in self.tasks:
                reasons.append(f"{name}: the org file of the endpoints does not ask for it, or there is no such task")
                continue
            try:
                self._published(name)
            except NoChampionError as error:
                reasons.append(str(error))
            if name not in running:
                reasons.append(f"{name}: the application is not running")
        return reasons

    def check_health(self) -> None:
        """A replica that no longer looks at the key file is replaced."""
        if self._watch.done():
            raise RuntimeError(f"the watch of the root ended: {self._watch.exception()!r}")


async def _watch(poll_s: float, poll: Callable[[], bool], keys: KeyFile | None) -> None:
    """Every `poll_s` seconds, off the loop: new versions, new rows, new keys. Ends with its replica alone."""
    steps: list[Callable[[], object]] = [poll] if keys is None else [poll, partial(_refresh, keys)]
    told: list[dict[str, str]] = [{}] * len(steps)
    while True:
        await asyncio.sleep(poll_s)
        for number, step in enumerate(steps):
            try:
                await asyncio.to_thread(step)
                fault = {}
            except CrmrayError as error:
                fault = {"kind": type(error).__name__, "why": str(error)}
            except Exception as error:  # noqa: BLE001  whatever a store raises, the next look may go well
                fault = {"kind": type(error).__name__}  # not the message, which may quote what was read
            if fault and fault != told[number]:
                log.warn("serve.watch_failed", **fault)
            told[number] = fault


def _keys(options: RootOptions) -> KeyFile | None:
    if not options.require_key:
        log.warn("serve.open", why="require_key is false: anybody who reaches the port is answered")
        return None
    keys, why = KeyFile(options.keys or None), "make one with `crmray keys add`"
    try:
        found = _refresh(keys)
    except AuthError as error:
        found, why = 0, str(error)
    if not found:
        log.warn("serve.no_keys", file=str(keys.path), why=f"every request is refused; {why}")
    return keys


def _refresh(keys: KeyFile) -> int:
    """Number of keys. A file that cannot be used closes the door, and what is wrong with it is raised."""
    try:
        return keys.refresh()
    except Exception:
        keys.close()
        raise


def _observer(task: str) -> Callable[[int, float], None]:
    """Counts requests and times them, by task; ids never become labels."""
    requests = Counter("crmray_requests", description="requests answered", tag_keys=("task", "status"))
    latency = Histogram(
        "crmray_request_seconds", description="time to the answer", boundaries=_LATENCY_S, tag_keys=("task",)
    )
    tags = {"task": task}

    def observe(status: int, seconds: float) -> None:
        requests.inc(tags={"task": task, "status": str(status)})
        latency.observe(seconds, tags=tags)

    return observe


def _limit_threads(count: int) -> None:
    """One replica keeps to its CPUs; set here because Ray does it for whole CPUs only."""
    import pyarrow as pa
    import torch

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
    pa.set_cpu_count(count)
