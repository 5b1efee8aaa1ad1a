"""Requests per second and latency of one churn endpoint: Serve with its Python proxy, Serve with HAProxy, bare uvicorn.

    python -m tests.benchmarks.endpoint                    all three, one after the other, on the same cores
    python -m tests.benchmarks.endpoint --org org.yaml     with the champion of that org instead of a made-up one

The bare server is FastAPI and uvicorn with the same bundle, the same rows and the same batching, without keys, limits,
figures or hot swap. The client is a process of its own with raw sockets; it takes its share of the same cores. The
maximum is measured closed-loop (each connection sends when it was answered), the latency open-loop: requests are sent
at fixed times at half of that maximum, and the time runs from when a request was due, so that waiting counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crmray import config, registry, schema
from crmray.bundle import write_bundle
from crmray.keys import KeyFile
from crmray.storage import Lake

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("bare", "proxy", "haproxy")
CONNECTIONS, WARM_S, MEASURE_S = 32, 3.0, 8.0
BARS = {"haproxy": 0.8, "proxy": 0.15}
P99_BAR_MS = 100.0


# -- a lake with a published LSTM --------------------------------------------------------------------------------------


def make_org(folder: Path, num_customers: int = 4_000) -> str:
    """An org with purchases and visits and an untrained LSTM as champion: its weights do not change its speed."""
    from crmray.tasks import churn

    path = folder / "org.yaml"
    path.write_text("name: bench\nstorage: lake\nsource: {kind: demo}\ntasks: {churn: {}}\n")
    lake, settings, now = Lake(config.load(path).root), churn.Settings(), datetime(2026, 10, 1, tzinfo=timezone.utc)
    tables, inputs = _tables(num_customers, now), {}
    for name, table in tables.items():
        run = lake.run("tables", name, "0" * 16)
        run.write_table("shard-00000.parquet", table)
        about = {"rows": table.num_rows, "columns": table.column_names, "num_shards": 1, "clock": "utc"}
        missing = {column: table[column].null_count for column in table.column_names}
        inputs[name] = run.commit(**about, missing=missing, earliest=None, latest=None).run_id
    train = churn.examples(tables, now - timedelta(days=settings.horizon_days), settings, labels=True)
    run = lake.run("examples", "churn", "1" * 16)
    known = churn.examples(tables, now, settings, labels=False)
    with run.open_output("now.arrow") as sink, pa.ipc.new_file(sink, known.schema) as writer:
        writer.write_table(known)
    dates = {"train": [], "validation": None, "test": None, "now": now.isoformat()}
    run.commit(
        features_version=churn.FEATURES_VERSION,
        settings=settings.model_dump(mode="json"),
        as_of=dates,
        horizon_days=settings.horizon_days,
        inputs=inputs,
        num_shards=1,
    )
    candidate = churn.CANDIDATES["lstm"]()
    state = candidate.prepare(train)
    model = candidate.fitted(state, candidate.module(state).state_dict(), 1)
    bundle = lake.run("bundles", "churn", "2" * 16)
    write_bundle(
        bundle,
        churn,
        candidate="lstm",
        model=model,
        settings=settings,
        decision=churn.finalize(model, train, train, settings),
        examples=train,
        card="",
        metrics={"lstm": {}},
        baselines={},
        data=run.manifest(),
    )
    bundle.commit()
    registry.publish(lake, churn, force="benchmark")
    return str(path)


def _tables(num_customers: int, now: datetime) -> dict[str, pa.Table]:
    """Per customer about 20 purchases and 40 visits over two years."""
    draw = np.random.default_rng(0)
    ids = np.array([f"C{number:06d}" for number in range(num_customers)])

    def events(mean: float) -> tuple[np.ndarray, np.ndarray]:
        counts = draw.poisson(mean, num_customers) + 1
        seconds = draw.integers(1, 730 * 86_400, counts.sum())
        who = np.repeat(np.arange(num_customers), counts)
        order = np.lexsort((-seconds, who))
        return ids[who[order]], np.datetime64(now.replace(tzinfo=None), "us") - seconds[order].astype("m8[s]")

    buyers, bought = events(20)
    visitors, visited = events(40)
    transactions = {
        "entity_id": buyers,
        "occurred_at": bought,
        "order_id": [f"o{n}" for n in range(len(buyers))],
        "num_units": np.ones(len(buyers)),
        "net_amount": draw.gamma(2.0, 30.0, len(buyers)).round(2),
    }
    engagement = {"entity_id": visitors, "occurred_at": visited, "kind": ["visit"] * len(visitors)}
    customers = {"entity_id": ids, "country": draw.choice(["NL", "DE", "FR"], num_customers)}
    made = {"transactions": transactions, "engagement": engagement, "customers": customers}
    return {name: schema.check(name, pa.table(columns)) for name, columns in made.items()}


# -- the servers, each a process ---------------------------------------------------------------------------------------


def serve_bare(org: str, port: int) -> None:
    """FastAPI and uvicorn, one process."""
    import torch
    import uvicorn
    from fastapi import FastAPI, Response

    from crmray import tasks
    from serve.answers import Answers
    from serve.champion import Champion

    torch.set_num_threads(1)
    task: Any = tasks.task("churn")
    champion = Champion(Lake(config.load(org).root), task)
    champion.poll()
    answers = Answers(champion, max_batch_rows=256)
    app = FastAPI()

    async def predict(request: Any) -> Response:
        return Response(await answers.answer(request), media_type="application/json")

    predict.__annotations__["request"] = task.Request
    app.post("/v1/churn")(predict)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def serve_ray(org: str, port: int, keys: str) -> None:
    """The deployment of serve/config.yaml with one replica, on a Ray of its own; the environment chooses the proxy."""
    import ray
    from ray import serve

    from serve import app
    from serve.options import TaskOptions

    folder = tempfile.mkdtemp(prefix="be", dir="/tmp")
    path = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _temp_dir=folder,
        object_store_memory=200 << 20,
        log_to_driver=False,
        runtime_env=path,
    )
    try:
        logs = {"encoding": "JSON", "enable_access_log": False}
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 30}, logging_config=logs)
        values = TaskOptions(org=org, task="churn", keys=keys).model_dump()
        options = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 1}}
        serve.run(app.Predict.options(**options).bind(values), name="churn", route_prefix="/v1/churn")
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def server(kind: str, org: str, keys: str) -> Iterator[int]:
    """A running server; gives its port."""
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    if kind == "haproxy":
        environment |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.endpoint", "--serve", kind, "--org", org, "--keys", keys]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE)
    try:
        wait_until_open(port, process)
        yield port
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if kind == "bare":
            process.terminate()
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_open(port: int, process: subprocess.Popen, timeout_s: float = 120.0) -> None:
    """Wait for the first answer that is neither refused nor a missing route."""
    request = b"POST /v1/churn HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    deadline = time.monotonic() + timeout_s
    while True:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as probe:
            probe.sendall(request)
            if probe.recv(64).split(b" ")[1:2] in ([b"401"], [b"422"]):
                return
        assert time.monotonic() < deadline, f"no answer on port {port} within {timeout_s:.0f} s"
        time.sleep(0.2)


# -- the client, a process ---------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        if len(body) >= int(lower[at : at + 10].split(b"\r\n")[0]) and self.answer is not None:
            self.buffer = b""
            self.answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("closed"))

    async def ask(self, request: bytes) -> int:
        """Send a request and wait for its status."""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


async def closed_loop(port: int, requests: list[bytes], seconds: float) -> dict[str, Any]:
    """CONNECTIONS connections, each sending as soon as it was answered."""
    loop, statuses, latencies = asyncio.get_running_loop(), Counter(), []
    end = time.perf_counter() + seconds

    async def work() -> None:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            statuses[await connection.ask(random.choice(requests))] += 1
            latencies.append(time.perf_counter() - started)
        connection.transport.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return {"rate": len(latencies) / seconds, "statuses": dict(statuses), **percentiles(latencies)}


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Requests due every 1/rate seconds over at most 256 connections; latency runs from the time a request was due."""
    loop, statuses, latencies = asyncio.get_running_loop(), Counter(), []
    idle: deque[Connection] = deque()
    waiting: set[asyncio.Task[None]] = set()
    slots = asyncio.Semaphore(256)

    async def send(due: float) -> None:
        async with slots:
            connection = idle.popleft() if idle else (await loop.create_connection(Connection, "127.0.0.1", port))[1]
            statuses[await connection.ask(random.choice(requests))] += 1
            latencies.append(time.perf_counter() - due)
            idle.append(connection)

    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(send(due))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    for connection in idle:
        connection.transport.close()
    return {"rate": rate, "statuses": dict(statuses), **percentiles(latencies)}


def percentiles(latencies: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {f"p{q}_ms": round(1e3 * float(np.percentile(latencies, q)), 2) for q in (50, 95, 99)}


async def measure(port: int, ids: list[str], key: str) -> dict[str, Any]:
    """Warm up, the maximum, then the latency at half of it."""
    requests = []
    for entity_id in ids:
        body = json.dumps({"id": entity_id}).encode()
        head = f"POST /v1/churn HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    await closed_loop(port, requests, WARM_S)
    most = await closed_loop(port, requests, MEASURE_S)
    return {"max": most, "half": await open_loop(port, requests, most["rate"] / 2, MEASURE_S)}


# -- all of it ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """Print one line per server and whether the bars hold; exit code 1 when one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--org", help="an org with a published churn champion")
    parser.add_argument("--only", choices=KINDS, action="append", help="measure only this one (again for more)")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--client", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keys", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        if arguments.serve == "bare":
            serve_bare(arguments.org, arguments.port)
        else:
            serve_ray(arguments.org, arguments.port, arguments.keys)
        return 0
    if arguments.client:
        import uvloop

        order = json.load(sys.stdin)
        print(json.dumps(uvloop.run(measure(arguments.client, order["ids"], order["key"]))))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="crmray-endpoint-"))
    try:
        return compare(arguments.org or make_org(folder), folder, arguments.only or list(KINDS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(org: str, folder: Path, kinds: list[str]) -> int:
    """Measure the servers one after the other."""
    keys = KeyFile(folder / "keys.json")
    lake = Lake(config.load(org).root)
    rows = pa.ipc.open_file(pa.memory_map(str(lake.local(lake.latest("examples", "churn")) / "now.arrow"))).read_all()
    order = json.dumps({"ids": rows["entity_id"][:2_000].to_pylist(), "key": keys.add("benchmark")})
    champion = registry.Ledger(lake, "churn").champion()
    candidate = json.loads(lake.run("bundles", "churn", champion).read_bytes("bundle.json"))["candidate"]
    print(f"{_cpu()}, {os.cpu_count()} cores; churn, {candidate}, one id per request, client on the same cores")
    found = {}
    for kind in kinds:
        with server(kind, org, str(keys.path)) as port:
            command = [sys.executable, "-m", "tests.benchmarks.endpoint", "--client", str(port)]
            done = subprocess.run(command, input=order, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, check=True)
        found[kind] = json.loads(done.stdout)
    return table(found)


def table(found: dict[str, Any]) -> int:
    """Print the ratio table; 1 when a bar is missed."""
    missed = 0
    print(f"{'server':8} {'req/s':>7} {'ratio':>6} {'bar':>5}  {'at half: p50':>12} {'p95':>7} {'p99 ms':>7}  statuses")
    for kind, result in found.items():
        ratio = result["max"]["rate"] / found["bare"]["max"]["rate"] if "bare" in found else float("nan")
        bar, half = BARS.get(kind), result["half"]
        statuses = Counter(result["max"]["statuses"]) + Counter(half["statuses"])
        failed = bar is not None and (ratio < bar or half["p99_ms"] > P99_BAR_MS or set(statuses) != {"200"})
        missed |= failed
        line = f"{kind:8} {result['max']['rate']:7.0f} {ratio:6.2f} {bar or '':>5}  {half['p50_ms']:12.1f}"
        print(f"{line} {half['p95_ms']:7.1f} {half['p99_ms']:7.1f}  {dict(statuses)}{'  MISSED' if failed else ''}")
    return int(missed)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


if __name__ == "__main__":
    sys.exit(main())
