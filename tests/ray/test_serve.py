"""The endpoints as a client sees them: real Serve, real HTTP, two replicas, a task whose answers are known by hand."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import toy_task as toy
import yaml
from ray import serve as ray_serve
from ray.serve.schema import ServeDeploySchema

from crmray import config, registry, tasks
from crmray.commands.serving import serve_config
from crmray.errors import ClusterError, ConfigError, WatchdogError
from crmray.keys import KeyFile
from crmray.storage import Lake
from serve import app, fleet
from serve.options import RootOptions, TaskOptions

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST, SECOND = "a" * 16, "b" * 16
MAX_IN_FLIGHT = 8
"""of each of the two replicas"""


def probability(orders: int, bias: float = 2.5) -> float:
    return 1 / (1 + math.exp(-(bias - orders)))


@dataclass(kw_only=True)
class Service:
    url: str
    lake: Lake
    keys: KeyFile
    key: str
    log_folder: Path

    def post(self, body=None, *, key: str | None = None, **options) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.post(f"{self.url}/v1/toy", headers=headers, timeout=30, trust_env=False, json=body, **options)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def service(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    org = toy.write_org(folder)
    lake = Lake(config.load(org).root)
    toy.write_examples(lake)
    keys = KeyFile(folder / "keys.json")
    key = keys.add("test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 30})
        options = {"org": org, "keys": str(keys.path), "tasks": "toy_task:TASKS", "poll_s": 0.3, "timeout_s": 8}
        values = TaskOptions(**options, task="toy", max_in_flight=MAX_IN_FLIGHT).model_dump()
        task = app.Predict.options(num_replicas=2, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
        ray_serve.run(app.root(options), name="root", route_prefix="/")
        ray_serve.run(task.bind(values), name="toy", route_prefix="/v1/toy")
        yield Service(url=f"http://127.0.0.1:{port}", lake=lake, keys=keys, key=key, log_folder=ray_folder)
    finally:
        ray_serve.shutdown()


@pytest.fixture(scope="module")
def published(service: Service) -> Service:
    """The service with FIRST published; before that it says what is missing."""
    nothing = service.post({"id": "c00007"})
    assert nothing.status_code == 503
    assert nothing.json()["error"]["code"] == "no_champion"
    ready = service.get("/readyz")
    assert ready.status_code == 503
    assert "toy: nothing is published yet" in ready.json()["error"]["message"]
    toy.write_bundle(service.lake, FIRST, bias=2.5, weight=-1.0)
    assert registry.publish(service.lake, toy.module())["promoted"]
    assert fleet.wait_for("toy", FIRST, timeout_s=20) == 2
    assert service.get("/readyz").status_code == 200
    return service


def test_one_known_customer(published):
    answer = published.post({"id": "c00007"})
    assert answer.status_code == 200
    body = answer.json()
    assert body["version"] == FIRST
    assert body["as_of"] == "2026-10-01T00:00:00Z"
    assert body["unknown"] == []
    assert body["data_age_days"] == pytest.approx((time.time() - toy.NOW.timestamp()) / 86_400, abs=0.02)
    row = {"entity_id": "c00007", "probability": pytest.approx(probability(2)), "leaves": True, "reasons": None}
    assert body["predictions"] == [row]
    explained = published.post({"id": "c00007", "explain": True, "threshold": 0.9}).json()["predictions"][0]
    assert explained["reasons"] == ["orders"]
    assert explained["leaves"] is False


def test_a_known_one_by_get(published):
    def get(path: str) -> dict:
        return published.get(f"/v1/toy/{path}", authorization=f"Bearer {published.key}").json()

    body, posted = get("c00007?threshold=0.9&explain=true"), {"id": "c00007", "threshold": 0.9, "explain": True}
    assert body == {**published.post(posted).json(), "data_age_days": body["data_age_days"]}
    assert body["predictions"][0]["leaves"] is False
    assert get("nobody")["error"]["code"] == "unknown_customer"
    wrong = get("c00007?threshold=high")["error"]
    assert (wrong["code"], wrong["field"]) == ("invalid_field", "threshold")
    assert get("c00007?id=c00008")["error"]["field"] == "id"
    assert published.get("/v1/toy/c00007").status_code == 401


def test_a_thousand_ids_in_their_order(published):
    ids = [f"c{number:05d}" for number in reversed(range(999))]
    body = published.post({"ids": [*ids, "nobody"]}).json()
    assert [row["entity_id"] for row in body["predictions"]] == ids
    assert body["unknown"] == ["nobody"]
    expected = [probability(int(key[1:]) % 5) for key in ids]
    assert [row["probability"] for row in body["predictions"]] == pytest.approx(expected)
    assert published.post({"ids": [*ids, "x", "y"]}).json()["error"]["field"] == "ids"


def test_described_inline_equals_known_and_recent_events_count(published):
    times = ["2026-09-30T00:00:00Z", "2026-09-29T00:00:00Z"]
    inline = {"transactions": [{"occurred_at": at} for at in times], "customers": [{"country": "DE"}]}
    known = published.post({"id": "c00007"}).json()
    described = published.post({"customer": inline}).json()
    assert described["predictions"][0]["probability"] == known["predictions"][0]["probability"]
    assert described["as_of"] == known["as_of"]
    recent = {"transactions": [{"occurred_at": "2026-10-02T10:00:00+02:00", "net_amount": 12}]}
    later = published.post({"id": "c00007", "recent_events": recent}).json()
    assert later["predictions"][0]["probability"] == pytest.approx(probability(3))
    assert later["as_of"] == "2026-10-02T08:00:00.000001Z"


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"id": "nobody"}, 404, "unknown_customer", "id"),
        ({"ids": ["x", "y"]}, 404, "unknown_customer", "ids"),
        ({"id": "nobody", "recent_events": {}}, 404, "unknown_customer", "id"),
        ({"id": 7}, 422, "invalid_field", "id"),
        ({"idd": "c00007"}, 422, "invalid_field", "idd"),
        ({"id": "c00007", "threshold": 2}, 422, "invalid_field", "threshold"),
        ({"id": "c00007", "ids": ["c00001"]}, 422, "invalid_field", "ids"),
        ({"ids": ["c00007"], "recent_events": {}}, 422, "invalid_field", "recent_events"),
        ({}, 422, "invalid_field", None),
        ({"customer": {"orders": []}}, 422, "invalid_field", "customer.orders"),
        ({"customer": {"transactions": [{}]}}, 422, "invalid_field", "customer.transactions.0.occurred_at"),
        (
            {"customer": {"transactions": [{"occurred_at": "2026-09-30", "net_amount": "12"}]}},
            422,
            "invalid_field",
            "customer.transactions.0.net_amount",
        ),
        ({"customer": {"customers": [{}, {}]}}, 422, "not_eligible", "customer"),
        ({"id": "x" * (2 << 20)}, 413, "body_too_large", None),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(published, body, status, code, field):
    answer = published.post(body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (status, code, field)
    assert error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"id": "\\ud800"}',
        b'{"id": NaN}',
        b"[" * 50_000,
        b'{"id": "a\\u0000b"}',
        b"1" * 9_000,
    ],
)
def test_whatever_a_client_sends_is_its_own_mistake(published, content):
    answer = published.post(content=content)
    assert answer.status_code in (404, 422)
    assert answer.json()["error"]["code"]


def test_addresses_and_methods(published):
    assert (
        published.get("/v1/toy", authorization=f"Bearer {published.key}").json()["error"]["code"]
        == "method_not_allowed"
    )
    assert published.get("/nowhere", authorization=f"Bearer {published.key}").json()["error"]["code"] == "not_found"
    assert published.get("/healthz").json() == {"status": "ok"}
    assert published.get("/").json()["tasks"] == {"toy": "/v1/toy"}
    document = published.get("/openapi.json").json()
    assert document["paths"]["/v1/toy"]["post"]["responses"].keys() >= {
        "200",
        "401",
        "404",
        "413",
        "422",
        "429",
        "503",
        "504",
    }
    models = published.get("/v1/models", authorization=f"Bearer {published.key}").json()["models"]
    assert [(entry["task"], entry["route"], entry["version"]) for entry in models] == [("toy", "/v1/toy", FIRST)]
    assert models[0]["as_of"] == "2026-10-01T00:00:00Z"


def test_keys_open_and_close_while_it_runs(published):
    for answer in (published.post({"id": "c00007"}, key="wrong"), published.get("/v1/models")):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    key = published.keys.add("other")
    _until(lambda: published.post({"id": "c00007"}, key=key).status_code == 200)
    published.keys.revoke("other")
    _until(lambda: published.post({"id": "c00007"}, key=key).status_code == 401)


def test_too_slow_is_504_and_too_many_are_429(published, tmp_path):
    slow = published.post({"id": "c00007", "sleep_s": 9})
    assert slow.status_code == 504
    assert slow.json()["error"]["code"] == "timeout"
    time.sleep(1.5)  # the model's thread is still asleep
    # Which replica gets how many is Serve's choice: one at least is full, and only a full one refuses.
    answers = _together(published, 40, tmp_path / "go on")
    counts = Counter(answer.status_code for answer in answers)
    assert counts.keys() == {200, 429}
    assert MAX_IN_FLIGHT <= counts[200] <= 2 * MAX_IN_FLIGHT
    for refused in (answer for answer in answers if answer.status_code == 429):
        assert refused.headers["retry-after"] == "1"
        error = refused.json()["error"]
        assert error["code"] == "overloaded"
        assert error["message"].startswith(f"{MAX_IN_FLIGHT} requests are in work")


def _together(service: Service, count: int, release: Path) -> list[httpx.Response]:
    """Answers to requests that are all there at once: none is answered before those beyond the limit are refused."""
    headers, limits = {"Authorization": f"Bearer {service.key}"}, httpx.Limits(max_connections=count)
    client = httpx.Client(headers=headers, limits=limits, timeout=30, trust_env=False)  # one: it loads certificates
    body = {"id": "c00007", "hold": str(release)}
    with client, ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(client.post, f"{service.url}/v1/toy", json=body) for _ in range(count)]
        _until(lambda: sum(answer.done() for answer in answers) >= count - 2 * MAX_IN_FLIGHT)
        release.touch()
        return [answer.result() for answer in answers]


def test_publish_and_rollback_under_load_lose_no_request(published):
    stop, seen = threading.Event(), []

    def load() -> None:
        with httpx.Client(trust_env=False, timeout=10, headers={"Authorization": f"Bearer {published.key}"}) as client:
            while not stop.is_set():
                answer = client.post(f"{published.url}/v1/toy", json={"id": "c00007"})
                body = answer.json()
                seen.append((answer.status_code, body.get("version"), round(body["predictions"][0]["probability"], 6)))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        toy.write_bundle(published.lake, SECOND, bias=2.6, weight=-1.0)
        registry.publish(published.lake, toy.module(), force="rehearsal")
        assert fleet.wait_for("toy", SECOND, timeout_s=20) == 2
        after = {published.post({"id": "c00007"}).json()["version"] for _ in range(20)}
        assert after == {SECOND}
        registry.rollback(published.lake, toy.module())
        assert fleet.wait_for("toy", FIRST, timeout_s=20) == 2
        assert {published.post({"id": "c00007"}).json()["version"] for _ in range(20)} == {FIRST}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # 0 errors, and every answer is wholly of one version
    one, other = round(probability(2), 6), round(probability(2, bias=2.6), 6)
    assert len(seen) > 50
    assert set(seen) == {(200, FIRST, one), (200, SECOND, other)}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(published):
    ledger = registry.Ledger(published.lake, "toy")
    fields = {"version": "d" * 16, "previous": FIRST, "action": "promote", "why": "a mistake"}
    ledger.append(len(ledger.refresh()), **fields)
    with pytest.raises(WatchdogError, match=rf"2 of 2 replicas still answer with {FIRST} .*manifest.json: no such"):
        fleet.wait_for("toy", "d" * 16, timeout_s=2)
    assert published.post({"id": "c00007"}).json()["version"] == FIRST
    registry.rollback(published.lake, toy.module())
    _until(lambda: {state["problem"] for state in fleet.states("toy")} == {""})
    assert fleet.wait_for("toy", FIRST, timeout_s=20) == 2


def test_new_examples_are_swapped_in(published):
    assert published.post({"id": "c01550"}).status_code == 404
    toy.write_examples(published.lake, 1_600)
    run_id = published.lake.latest("examples", "toy").run_id
    _until(lambda: {state["examples"] for state in fleet.states("toy")} == {run_id})
    assert published.post({"id": "c01550"}).json()["predictions"][0]["probability"] == pytest.approx(probability(0))


def test_replicas_say_for_whom_they_answer(published, tmp_path):
    fleet.check_org("toy", "toy", published.lake)
    with pytest.raises(ClusterError, match=r"answers for org 'toy', from another lake, so nothing was promoted"):
        fleet.check_org("toy", "shop", Lake(tmp_path / "lake"))


def test_models_are_listed_without_their_examples(published):
    def models() -> dict:
        return published.get("/v1/models", authorization=f"Bearer {published.key}").json()["models"][0]

    folder = Path(published.lake.root) / "examples" / "toy"
    aside, whole = folder.with_name("aside"), models()
    folder.rename(aside)
    try:
        assert {**whole, "as_of": None, "data_age_days": None} == models()
        assert published.post({"id": "c00007"}).status_code == 200
    finally:
        aside.rename(folder)
    assert models()["as_of"] == "2026-10-01T00:00:00Z"


def _until(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_logs_hold_no_ids(published):
    logs = list((published.log_folder).glob("session_*/logs/serve/*"))
    assert logs
    assert not [path for path in logs if path.is_file() and b"c00007" in path.read_bytes()]


def test_the_config_is_deployable_and_serves_every_task_of_an_org(tmp_path):
    written = yaml.safe_load((REPOSITORY / "serve" / "config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(written)
    org = config.load(toy.write_org(tmp_path)).model_copy(update={"tasks": {name: {} for name in tasks.TASKS}})
    made = ServeDeploySchema.model_validate(serve_config(org))
    planned = [
        one["ray_actor_options"]["num_cpus"]
        for app_ in serve_config(org)["applications"]
        for one in app_["deployments"]
    ]
    assert sum(planned) <= 1.01, "on a machine of two CPUs one is left to train with"
    routes = {entry.name: entry.route_prefix for entry in made.applications}
    assert routes == {"root": "/", **{name: task.ROUTE for name, task in tasks.TASKS.items()}}
    for entry in [*schema.applications, *made.applications]:
        module, _, function = entry.import_path.partition(":")
        assert module == "serve.app"
        assert callable(getattr(app, function))
        (TaskOptions if function == "build" else RootOptions).model_validate(entry.args)
    with pytest.raises(ConfigError, match=r"args\.task: got 'chrun', expected one of"):
        app.build({"task": "chrun", "org": toy.write_org(tmp_path)})
    with pytest.raises(ConfigError, match="args of the application: timeout_s: got -1"):
        app.root({"timeout_s": -1})
