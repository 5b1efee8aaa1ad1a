"""The plain Ray of the house: connect, map over shards, pre-flight, watchdog, metrics.

Everything that talks to Ray without Train, Tune, Data or Serve goes through here, so that each of them waits, retries,
reports and fails in the same way.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import AuthenticationError, RayActorError, RayTaskError, TaskCancelledError, WorkerCrashedError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list, _internal_kv_put

from crmray import log
from crmray.errors import AuthError, CapacityError, ClusterError, CrmrayError, WatchdogError
from crmray.head import local_head, token_file

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 5.0
TOKEN_PATHS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Modin imports pandas in workers while tasks arrive; without this the two imports race (modin-project/modin#4603).
WORKER_ENV = {"__MODIN_AUTOIMPORT_PANDAS__": "1"}
# Set unless the caller did: keep GPUs visible as Ray 3 will, no telemetry, no nagging lines.
DRIVER_ENV = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the first error is raised; the others would only be printed
}


# ------------------------------------------------------------------------------------------------------- connect


def use_auth(mode: str, token_path: str | Path | None = None) -> None:
    """Set Ray's auth mode ("token" or "disabled") for this process and its children; Ray's own default depends on who
    starts the cluster, so it is never left to chance."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

    os.environ["RAY_AUTH_MODE"] = mode
    if token_path is not None and not any(os.environ.get(name) for name in TOKEN_PATHS):
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)
    Config.initialize("")  # Ray read the environment when it was imported


def stay_on_loopback() -> None:
    """Make Ray of this process and its children use 127.0.0.1 as the node's address, so that nothing listens outside.

    Ray knows this mode as the one for systems where it supports one node only; that is what a local head is.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # read from the environment when Ray was imported


def authenticate(address: str | None) -> None:
    """Choose the auth mode for joining `address` (None: a cluster of our own). A mode that is set already stays."""
    if os.environ.get("RAY_AUTH_MODE"):
        use_auth(os.environ["RAY_AUTH_MODE"], None if address else token_file())
    elif address is None:
        use_auth("token", token_file())
    elif any(os.environ.get(name) for name in TOKEN_PATHS) or (Path.home() / ".ray" / "auth_token").exists():
        use_auth("token")
    else:
        log.warn(
            "cluster.open",
            address=address,
            why="no RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set: joining without a token",
        )
        use_auth("disabled")


def connect(address: str | None = None, **local: Any) -> None:
    """Join the Ray cluster, once: `address`, else RAY_ADDRESS, else the head of `crmray up`, else a new local one.

    `local` (num_cpus, object_store_memory, _temp_dir, …) goes to `ray.init` when a local cluster is started.
    Raises ClusterError or AuthError when the cluster cannot be joined.
    """
    if ray.is_initialized():
        return
    for name, value in DRIVER_ENV.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address and "://" in address and not address.startswith("ray://"):
        raise ClusterError(f"got cluster address {address!r}, expected host:port of the Ray head (6379 by default)")
    if address and address not in ("local", "auto"):
        _check_reachable(address)
    here = None if local else local_head()
    head = here if here and address in (None, here.address) else None
    if head:
        address = head.address
        use_auth("token", head.token_path)
    else:
        authenticate(None if address in (None, "local") else address)
    if head or address in (None, "local"):
        stay_on_loopback()
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": WORKER_ENV},
    }
    if address in (None, "local"):
        options |= {"include_dashboard": False, **local}
    try:
        ray.init(address=address or "local", **options)
    except AuthenticationError as error:
        raise AuthError(
            f"Ray at {address}: {_first_line(error)}; set RAY_AUTH_TOKEN_PATH to the cluster's token file"
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray cluster joined at {address or 'local'}: {_first_line(error)}; `crmray doctor` looks closer"
        ) from error
    log.event(
        "cluster.joined", address=address or "local", cpus=resources().get("CPU", 0), gpus=resources().get("GPU", 0)
    )


def _check_reachable(address: str) -> None:
    """ClusterError when nobody listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"got cluster address {address!r}, expected host:port of the Ray head (6379 by default)")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray head answers at {address} ({error.strerror or error}); expected the host:port of a running one: "
            "correct RAY_ADDRESS or --address, or unset it to run on this machine"
        ) from None


def resources() -> dict[str, float]:
    """Total resources of the live nodes: CPU, GPU, memory (bytes), ….  Also without a connection's dashboard."""
    return ray.cluster_resources()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---------------------------------------------------------------------------------------------------- pre-flight


def preflight(num_workers: int, cpus_per_worker: float, gpus_per_worker: float = 0) -> None:
    """Raise CapacityError when that many workers can never be placed, counting what the autoscaler may add.

    A worker does not span nodes, so places are counted node by node.
    """
    need = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
    groups = _node_groups()
    places = sum(count * _fits(node, need) for node, count in groups)
    if places >= num_workers:
        return
    have = "; ".join(f"{count} × ({node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU)" for node, count in groups)
    raise CapacityError(
        f"got a cluster with {have or 'no nodes'}, which has room for {places} workers of {cpus_per_worker:g} CPU and "
        f"{gpus_per_worker:g} GPU, expected room for {num_workers}; ask for fewer or smaller workers, or add nodes"
    )


def _fits(node: dict[str, float], need: dict[str, float]) -> int:
    return int(min((node.get(key, 0.0) / amount + 1e-9 for key, amount in need.items() if amount > 0), default=1e9))


def _node_groups() -> list[tuple[dict[str, float], int]]:
    """(resources of one node, number of such nodes), live ones or, with an autoscaler, as many as it may start."""
    live = [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]
    config = ray._private.state.state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return live
    scaled = [(dict(group.resources), max(group.max_count, 0)) for group in config.node_group_configs]
    return max(live, scaled, key=lambda groups: sum(node.get("CPU", 0) * count for node, count in groups))


# ---------------------------------------------------------------------------------------------------- map shards


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """A user's mistake found in a task: travels as a value, so that Ray neither retries it nor prints a traceback."""

    error: CrmrayError
    """what to raise in the driver"""


@ray.remote(max_retries=3)
def _call(fn: Callable[[Any], Any], item: Any, mark: str) -> Any:
    _internal_kv_put(mark, b"1")
    try:
        return fn(item)
    except CrmrayError as error:
        return _Failure(error=error)


def map_shards(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    label: str,
    num_cpus: float = 1,
    max_in_flight: int | None = None,
    give_up_s: float = 1800,
) -> Iterator[tuple[Item, Result]]:
    """Run `fn(item)` as Ray tasks and yield (item, result) as they complete, in any order.

    A task whose worker dies is tried three times more. The first CrmrayError raised by `fn` is raised here as it is and
    the rest is cancelled; any other exception keeps its remote traceback. At most `max_in_flight` tasks (default: twice
    as many as the cluster runs at once) are handed in, which bounds the results that wait in the object store.
    When nothing starts, an event names what is waited for; after `give_up_s` seconds of that, WatchdogError.
    """
    todo = list(items)
    if not todo:
        return
    connect()
    preflight(1, num_cpus)
    limit = max_in_flight or 2 * max(1, int(resources().get("CPU", 1) // max(num_cpus, 0.01)))
    call = _call.options(num_cpus=num_cpus, scheduling_strategy="SPREAD", name=label)
    shared_fn, prefix = ray.put(fn), f"crmray-{label}-{secrets.token_hex(4)}-"
    watchdog = _Watchdog(label, prefix, num_cpus, give_up_s)
    pending: dict[ray.ObjectRef, int] = {}
    upcoming = iter(range(len(todo)))
    try:
        with log.progress(label, total=len(todo), unit="parts") as bar:
            while True:
                while len(pending) < limit and (index := next(upcoming, None)) is not None:
                    pending[call.remote(shared_fn, todo[index], f"{prefix}{index}")] = index
                if not pending:
                    return
                done, _ = ray.wait(list(pending), num_returns=1, timeout=watchdog.tick_s)
                if not done:
                    watchdog.look({index: todo[index] for index in pending.values()})
                    continue
                watchdog.fed()
                index = pending.pop(done[0])
                result = _fetch(done[0], label, todo[index])
                bar.advance()
                yield todo[index], result
    finally:
        for ref in pending:
            ray.cancel(ref, force=False)
        _internal_kv_del(prefix, del_by_prefix=True)


def _fetch(ref: ray.ObjectRef, label: str, item: Any) -> Any:
    try:
        result = ray.get(ref)
    except RayTaskError:
        raise
    except (WorkerCrashedError, RayActorError, ray.exceptions.OutOfMemoryError, TaskCancelledError) as error:
        raise ClusterError(
            f"{label} {_short(item)}: its worker died four times ({_first_line(error)}); most often the node is out of "
            "memory: lower memory_gib in the org file or use more shards"
        ) from error
    if isinstance(result, _Failure):
        raise result.error
    return result


def _short(item: Any) -> str:
    text = str(item)
    return text if len(text) <= 80 else text[:77] + "..."


TICK_S = 5.0
"""how often a map that gets no result looks why"""


class _Watchdog:
    """Says what a map waits for, after 2, 4, 8, … ticks without a result, and ends a wait that has no end."""

    def __init__(self, label: str, prefix: str, num_cpus: float, give_up_s: float):
        self.label, self.prefix, self.num_cpus, self.give_up_s = label, prefix, num_cpus, give_up_s
        self.tick_s = min(TICK_S, give_up_s)
        self.fed()

    def fed(self) -> None:
        """A result came: start counting anew."""
        self.since, self.next_word_s, self.idle_since = time.monotonic(), 2 * self.tick_s, time.monotonic()

    def look(self, pending: dict[int, Any]) -> None:
        """Nothing came for a tick: tell whether tasks run or wait; WatchdogError when none has run for too long."""
        now = time.monotonic()
        started = {int(key.decode().rsplit("-", 1)[1]) for key in _internal_kv_list(self.prefix)}
        running = [item for index, item in pending.items() if index in started]
        if running:
            self.idle_since = now
        waited_s = now - self.since
        if now - self.idle_since >= self.give_up_s:
            raise WatchdogError(f"{self.label}: waited {waited_s:.0f} s for {self._need()}; {self._held()}")
        if waited_s < self.next_word_s:
            return
        self.next_word_s *= 2
        if running:
            log.event(f"{self.label}.running", seconds=round(waited_s), parts=[_short(item) for item in running[:8]])
        else:
            log.warn(f"{self.label}.waiting", seconds=round(waited_s), waits_for=self._need(), because=self._held())

    def _need(self) -> str:
        return f"{self.num_cpus:g} free CPU on one node"

    def _held(self) -> str:
        free, total = ray.available_resources().get("CPU", 0), resources().get("CPU", 0)
        holders = ", ".join(f"{name} {cpus:g}" for name, cpus in sorted(_holders().items()))
        return f"{free:g} of {total:g} CPUs are free" + (f", held by actors: {holders}" if holders else "")


def _holders() -> dict[str, float]:
    """CPUs that live actors hold, by class name; empty where the cluster runs without a dashboard to ask."""
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    try:
        actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True, timeout=5, raise_on_missing_output=False)
    except (RayStateApiException, ConnectionError, AssertionError, ValueError):
        return {}
    held: dict[str, float] = {}
    for actor in actors:
        cpus = (actor.required_resources or {}).get("CPU", 0)
        if cpus:
            held[actor.class_name] = held.get(actor.class_name, 0) + cpus
    return held


# ------------------------------------------------------------------------------------------------------- metrics

# name -> (kind, description, tags). Ray adds the prefix ray_ and exports them at every node's Prometheus endpoint.
# Those of requests are made where they are answered, in serve/app.py.
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "crmray_rows_total": ("counter", "rows that the tasks of a stage gave", ("stage", "name")),
    "crmray_loss": ("gauge", "last loss", ("task", "candidate", "part")),
    "crmray_trials_total": ("counter", "trials ended", ("task", "candidate", "state")),
    "crmray_examples_per_s": ("gauge", "training examples per second", ("task", "candidate")),
}
_metrics: dict[str, Any] = {}


def record(metric: str, value: float, /, **tags: str) -> None:
    """Add to a counter or set a gauge of METRICS. Outside a Ray process nothing is exported."""
    from ray.util import metrics

    if not ray.is_initialized():
        return
    kind, description, keys = METRICS[metric]
    assert set(tags) == set(keys), f"{metric}: got tags {sorted(tags)}, expected {sorted(keys)}"
    if metric not in _metrics:
        make = metrics.Counter if kind == "counter" else metrics.Gauge
        _metrics[metric] = make(metric, description, tag_keys=keys)
    if kind == "gauge":
        _metrics[metric].set(value, tags=tags)
    elif value:  # Ray refuses to add 0
        _metrics[metric].inc(value, tags=tags)
