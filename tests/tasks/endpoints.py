"""A real server with the applications of all tasks, each with its rule of thumb as champion of the planted org."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
import jsonschema
import pyarrow as pa
import pytest
import toy_task as toy
import uvicorn
from conformance import baseline_of, fit, planted, rows_of, settings_of, small

from crmray import registry
from crmray.bundle import write_bundle
from crmray.storage import Lake, Run, run_id
from crmray.tasks import TASKS, custom, forecast
from serve.answers import Answers
from serve.champion import Champion
from serve.http import answer_model, root_app, task_app
from serve.options import RootOptions, TaskOptions

EACH = {**TASKS, "custom": custom.named("custom.again")}
EVERY_TASK = pytest.mark.parametrize("task", list(EACH.values()), ids=list(EACH))
BUYER = {"transactions": [{"occurred_at": f"2023-0{month}-05", "order_id": f"o{month}", "product_id": "p01",
                           "num_units": 1, "net_amount": 10.0} for month in (3, 4, 5)]}  # fmt: skip
DESCRIBED = {
    "customer": {"customer": BUYER},
    "lead": {"lead": {"source": "fair", "created_at": "2023-06-20"}},
    "interaction": {"texts": ["The parcel is late, never again!", "we love it"]},
}
"""what a request may describe, by what a task is about; series are known by name alone"""


@dataclass(kw_only=True)
class Service:
    """The applications of all tasks and the root behind one server."""

    url: str
    lake: Lake
    champions: dict[str, Champion]

    def post(self, task: Any, body: Any = None, **options: Any) -> httpx.Response:
        return httpx.post(self.url + task.ROUTE, json=body, timeout=60, trust_env=False, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, trust_env=False)


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    """The service, with its lake in a folder."""
    lake = Lake(folder)
    inputs = {name: write(lake.run("tables", name, "0" * 16), name, table) for name, table in planted().items()}
    champions = {name: published(lake, task, inputs) for name, task in EACH.items()}
    options = {"require_key": False, "timeout_s": 50}
    apps = {"": root_app(EACH, options=RootOptions(**options), keys=None, models=list, missing=list)}
    for name, task in EACH.items():
        answers = Answers(champions[name], max_batch_rows=256)
        apps[task.ROUTE] = task_app(task, answers, options=TaskOptions(task=name, **options), keys=None)

    async def as_serve_does(scope, receive, send):
        """Each application under its route."""
        route = next((one for one in apps if one and f"{scope['path']}/".startswith(f"{one}/")), "")
        await apps[route]({**scope, "root_path": route}, receive, send)

    server = uvicorn.Server(uvicorn.Config(as_serve_does, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(url=f"http://127.0.0.1:{port}", lake=lake, champions=champions)
    finally:
        server.should_exit = True
        thread.join()


def write(run: Run, name: str, table: pa.Table) -> str:
    run.write_table("shard-00000.parquet", table)
    return run.commit(**toy.table_manifest(name, table)).run_id


def published(lake: Lake, task: Any, inputs: dict[str, str]) -> Champion:
    """The rule of thumb as champion, over the `now` rows; of forecasts also by customer."""
    seen, settings = rows_of(task), settings_of(task)
    model = fit(small(task.CANDIDATES[baseline_of(task)]), seen["train"], seen["validation"])
    decision = task.finalize(model, seen["train"], seen["validation"], settings)
    now = seen["now"]
    if task.NAME == forecast.NAME:
        settings = settings.model_copy(update={"levels": ["total", "category", "customer", "customer,category"]})
        weekly = task.combine([task.gather(planted(), settings)], settings)
        now = task.examples(weekly, now["as_of"][0].as_py(), settings, labels=False)
    own = settings.model_dump(mode="json")
    run = lake.run("examples", task.NAME, run_id("examples", inputs=inputs, settings=own, seed=0, format=1))
    run.write_table("test/shard-00000.parquet", seen["test"])
    with run.open_output("now.arrow") as sink, pa.ipc.new_file(sink, now.schema) as writer:
        writer.write_table(now.sort_by("entity_id").combine_chunks())
    dates = {"train": [], "validation": None, "test": None, "now": now["as_of"][0].as_py().isoformat()}
    about = {"task": task.NAME, "features_version": task.FEATURES_VERSION, "settings": own, "inputs": inputs}
    run.commit(as_of=dates, horizon_days=30, num_shards=1, **about)
    bundle = lake.run("bundles", task.NAME, "a" * 16)
    write_bundle(
        bundle, task, candidate=baseline_of(task), model=model, settings=settings, decision=decision,
        examples=seen["test"], card="# planted", metrics={baseline_of(task): {}}, baselines={}, data=run.manifest(),
        seed=0,
    )  # fmt: skip
    bundle.commit()
    registry.publish(lake, task, force="the only one")
    champion = Champion(lake, task)
    assert champion.poll(), champion.problem
    return champion


def first(service: Service, task: Any, row: int = 3) -> str:
    return service.champions[task.NAME.split(".")[0]].current().known.rows["entity_id"][row].as_py()


def checked(task: Any, answer: httpx.Response, document: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The predictions of an answer that is what the OpenAPI document says, and has no field beyond it."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    answer_model(task).model_validate(body)
    assert set(body) == set(answer_model(task).model_fields)
    (model,) = get_args(task.Response.model_fields["predictions"].annotation)
    for one in body["predictions"]:
        assert set(one) <= set(model.model_fields)
    if document is not None:
        told = document["paths"][task.ROUTE]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, {**told, "components": document["components"]})
    return body["predictions"]
