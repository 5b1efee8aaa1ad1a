"""Every task as a client asks for it over HTTP: the application that a replica serves, with the task's rule of thumb as
champion of the planted org, behind a real server. (Serve itself stands in tests/ray/test_serve.py.)"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

import httpx
import jsonschema
import pyarrow as pa
import pytest
import toy_task as toy
import uvicorn
from conformance import SETTINGS, baseline_of, fit, planted, rows_of, settings_of, small
from starlette.testclient import TestClient

from crmray import cli, registry, score
from crmray.bundle import write_bundle
from crmray.config import Writeback
from crmray.keys import KeyFile
from crmray.privacy import consent
from crmray.salesforce import fields, values
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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    lake = Lake(tmp_path_factory.mktemp("lake"))
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
    (model,) = get_args(task.Response.model_fields["predictions"].annotation)
    for one in body["predictions"]:
        assert set(one) <= set(model.model_fields)
    if document is not None:
        told = document["paths"][task.ROUTE]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, {**told, "components": document["components"]})
    return body["predictions"]


@EVERY_TASK
def test_known_ids_are_answered_by_post_and_by_get(service, task):
    one, other = first(service, task), first(service, task, 5)
    document = service.get("/openapi.json").json()
    (posted,) = checked(task, service.post(task, {"id": one}), document)
    assert posted["entity_id"] == one
    assert checked(task, service.get(f"{task.ROUTE}/{one}")) == [posted]
    both = (service.get(f"{task.ROUTE}/{one}?explain=true"), service.post(task, {"id": one, "explain": True}))
    if "reasons" in posted:
        assert [checked(task, answer, document) for answer in both] == [checked(task, both[0])] * 2
        assert checked(task, both[0])[0]["reasons"] is not None
    else:
        assert [(answer.status_code, answer.json()["error"]["field"]) for answer in both] == [(422, "explain")] * 2
    several = service.post(task, {"ids": [other, "nobody", one]})
    assert [row["entity_id"] for row in checked(task, several)] == [other, one]
    assert several.json()["unknown"] == ["nobody"]


def test_the_page_of_the_endpoints_opens_without_key_or_network_and_has_what_is_served(tmp_path):
    app = root_app(
        {"churn": TASKS["churn"]},
        options=RootOptions(),
        keys=KeyFile(tmp_path / "keys.json"),
        models=list,
        missing=list,
    )
    client = TestClient(app)
    page = client.get("/docs")
    assert page.status_code == 200
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    for path in files:  # all of this server's
        assert client.get(path).status_code == 200, path
    assert "://" not in page.text
    assert '"validatorUrl": null' in page.text  # which would show the address to a server elsewhere
    paths = client.get("/openapi.json").json()["paths"]
    assert [path for path in paths if path.startswith("/v1/")] == ["/v1/models", "/v1/churn", "/v1/churn/{id}"]
    assert client.get("/v1/models").status_code == 401
    assert client.get("/").json()["tasks"] == {"churn": "/v1/churn"}


@EVERY_TASK
def test_what_is_not_in_the_data_can_be_described(service, task):
    body = DESCRIBED.get(task.ENTITY)
    if body is None:
        refused = service.post(task, {"customer": BUYER})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_field")
        return
    rows = checked(task, service.post(task, body))
    assert len(rows) == len(body.get("texts", "1"))
    assert checked(task, service.post(task, {**body, "explain": "reasons" in rows[0]}))


def test_what_a_task_takes_of_its_own_is_heeded(service):
    churn, recommendation, response, leads = (EACH[name] for name in ("churn", "recommendation", "response", "leads"))
    known = {"id": "c0003"}
    assert [checked(churn, service.post(churn, {**known, "threshold": at}))[0]["will_churn"] for at in (0, 1)] == [1, 0]
    (similar,) = checked(recommendation, service.post(recommendation, {"similar_to": "p01", "num_products": 3}))
    assert len(set(similar["products"]) - {"p01"}) == 3
    assert (similar["entity_id"], similar["source"]) == ("p01", "similar")
    (one,) = checked(recommendation, service.get(f"{recommendation.ROUTE}/c0003?num_products=2&max_per_category=1"))
    assert len(one["products"]) == 2
    assert checked(response, service.post(response, {**known, "worth": 0.99}))[0]["band"] != "persuadable"
    visits = {"engagement": [{"occurred_at": "2023-06-21", "kind": "visit", "seconds": 5}]}
    assert checked(leads, service.post(leads, {**DESCRIBED["lead"], "events": visits}))
    wrong = service.post(leads, {"lead": {"source": 7}}).json()["error"]
    assert wrong["field"] == "lead.leads.0.source"
    for option, body in (("similar_to", {}), ("for_product", known)):
        wrong = service.post(recommendation, {**body, option: "gone"}).json()["error"]
        assert (wrong["field"], wrong["message"][:30]) == (option, f"{option}: got product 'gone', expected"[:30])
        assert "did you mean" not in wrong["message"]
        assert "customer" not in wrong["message"]
        near = service.post(recommendation, {**body, option: "pp07"}).json()["error"]["message"]
        assert near.endswith("products table; did you mean 'p07'?")
    long = service.post(EACH["sentiment"], {"texts": ["never again " * 80_000]})
    assert checked(EACH["sentiment"], long)


def test_the_documented_examples_of_bodies_are_answered(service):
    churn = EACH["churn"]
    document = churn.Request.model_json_schema()
    (described,), (recent,) = (document["properties"][name]["examples"] for name in ("customer", "recent_events"))
    (body,) = document["examples"]
    assert body == {"id": "C00042", "explain": True}
    (known,) = checked(churn, service.post(churn, {**body, "id": "c0003"}))
    (later,) = checked(churn, service.post(churn, {**body, "id": "c0003", "recent_events": recent}))
    assert later["as_of"] > known["as_of"]
    assert checked(churn, service.post(churn, {"customer": described}))


@EVERY_TASK
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 422, "malformed_json"),
        (b"{}", 422, "invalid_field"),
        (b'{"id": 7}', 422, "invalid_field"),
        (b'{"idd": "x"}', 422, "invalid_field"),
        (b'{"id": ""}', 404, None),
        (b'{"id": "nobody"}', 404, None),
        (b'{"texts": [""]}', 422, "invalid_field"),
        (b'{"lead": {"source": 7}}', 422, "invalid_field"),
        (b'{"customer": {"transactions": [{}]}}', 422, "invalid_field"),
    ],
)
def test_what_cannot_be_answered_is_told(service, task, content, status, code):
    answer = service.post(task, content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code or f"unknown_{task.ENTITY}")
    assert 0 < len(error["message"]) < 400


@EVERY_TASK
def test_nobody_is_unknown_by_get_too(service, task):
    answer = service.get(f"{task.ROUTE}/nobody")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, f"unknown_{task.ENTITY}")


@EVERY_TASK
def test_an_unknown_id_is_told_in_the_tasks_own_words_and_what_to_run(service, task):
    def message(body: dict[str, Any]) -> str:
        return service.post(task, body).json()["error"]["message"]

    here = f"among those that {task.NAME} answers for in the current data of 2023-06-"
    assert message({"id": "nobody"}).startswith(f"this {task.ENTITY} is not {here}")
    assert message({"ids": ["nobody", "none"]}).startswith(f"none of the 2 ids is {here}")
    for told in (message({"id": "nobody"}), message({"ids": ["nobody", "none"]})):
        assert "; `crmray run ORG.yaml` takes up newer data" in told
        assert ("customer" in told) == (task.ENTITY == "customer" or "levels here" in told)
        assert ("/docs says how to ask about one" in told) == (task.ENTITY in DESCRIBED)


def test_a_series_is_told_one_like_it_unless_it_names_a_customer(service):
    def message(series: str) -> str:
        answer = service.get(f"{forecast.ROUTE}/{series}")
        assert answer.json()["error"]["code"] == "unknown_series"
        return answer.json()["error"]["message"]

    levels = "; series are named `level:value` or `total`, levels here are category, customer, customer,category, total"
    assert f"; did you mean 'category:even'?{levels}; `crmray run" in message("category:evn")
    assert "; did you mean 'category:even'?" in message("even")
    assert "did you mean" not in message("customer:c003")


def test_rows_outside_the_lookback_are_told_the_dates_and_what_to_send(service):
    old = {"transactions": [{**BUYER["transactions"][0], "occurred_at": "2019-05-01"}]}
    for name, field, body in (
        ("churn", "customer", {"customer": old}),
        ("leads", "lead", {"lead": {"source": "fair", "created_at": "2019-05-01"}}),
    ):
        task, time_ = EACH[name], "leads.created_at" if name == "leads" else "transactions.occurred_at"
        as_of = service.champions[name].current().known.as_of
        error = service.post(task, body).json()["error"]
        first_day = as_of - timedelta(days=SETTINGS["lookback_days"])
        assert (error["code"], error["field"]) == ("not_eligible", field)
        assert error["message"] == (
            f"{field}: from these rows no {task.ENTITY} follows that {name}, as the org file sets it, answers for: it "
            f"looks back from {as_of:%Y-%m-%d} (as_of) to {first_day:%Y-%m-%d}; send rows with {time_} between these, "
            "or later"
        )


def test_products_that_are_not_in_the_table_count_and_are_told(service):
    churn, recommendation = EACH["churn"], EACH["recommendation"]
    rows = {"transactions": [{**BUYER["transactions"][0], "product_id": one} for one in ("p01", "p99", "p98", "p99")]}
    for task in (churn, recommendation):
        for body in ({"id": "c0003", "recent_events": rows}, {"customer": rows}):
            answer = service.post(task, body)
            assert checked(task, answer)
            assert answer.json()["unknown"] == ["p98", "p99"]
    assert service.post(churn, {"customer": BUYER}).json()["unknown"] == []


def test_the_root_says_without_a_key_what_is_where(service):
    found = service.get("/").json()
    assert found["tasks"] == {name: task.ROUTE for name, task in EACH.items()}
    for page in ("docs", "openapi", "health", "ready", "models"):
        assert service.get(found[page]).status_code == 200


def test_the_command_line_says_what_to_run(service, monkeypatch, capsys):
    monkeypatch.setenv("CRMRAY_KEY", "any")

    def predict(*arguments: str) -> str:
        assert cli.main(["predict", *arguments, "--url", service.url]) == 2
        return capsys.readouterr().err

    told = predict("custom.other", "c0003")
    assert "/v1/custom/other: no task is served there; `crmray status` lists what is, `crmray deploy ORG.yaml`" in told
    told = predict("churn", "nobody")
    assert "404 this customer is not among those that churn answers for" in told
    assert "`crmray run ORG.yaml` takes up newer data" in told
    assert "explain: got true, expected false" in predict("forecast", "total", "--explain")


@EVERY_TASK
def test_bands_and_reasons_are_explained_in_the_document(service, task):
    (answer,) = get_args(task.Response.model_fields["predictions"].annotation)
    for name in {"band", "reasons"} & set(answer.model_fields):
        assert len(answer.model_fields[name].description) > 40, name


@EVERY_TASK
def test_predictions_have_what_write_back_writes(service, task):
    served = service.champions[task.NAME.split(".")[0]].current()
    table = score.predictions(served.bundle, served.known.rows.slice(0, 20), explain=True)
    assert consent.whom(table).equals(consent.whom(served.known.rows.slice(0, 20)))  # whose wish counts
    (answer,) = get_args(task.Response.model_fields["predictions"].annotation)
    for target in fields.targets(task.NAME, answer, Writeback()):
        if target.column == "run_id":  # of the run, which write-back adds
            continue
        entry = {"name": target.name, "type": fields._ACCEPTED[target.kind][0], "scale": 6, "length": 32768}
        told = values.spelled(table[target.column], entry)
        assert fields.fitting(target.name, entry, told) == ""
        assert not any("{" in value for value in told if value), target.column  # a text for people


def test_a_withdrawal_holds_at_once_for_whatever_is_about_the_customer(service):
    """A customer, its texts, and the series of its sales, alone or by category; series of several go on."""
    gone = "c0003"
    run = service.lake.run("raw", consent.NAME, "c" * 16)
    run.write_table("part-00000.parquet", pa.table([[gone], [True], [False], [[]]], schema=consent.SCHEMA))
    run.commit()
    try:
        for champion in service.champions.values():
            champion.poll()
        about = {"churn": gone, "forecast": f"customer:{gone}"}
        texts = service.champions["sentiment"].current().known.rows
        about |= {"sentiment": next(row["entity_id"] for row in texts.to_pylist() if row["customer_id"] == gone)}
        for name, entity_id in [*about.items(), ("forecast", f"customer,category:{gone},odd")]:
            refused = service.post(EACH[name], {"id": entity_id})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "consent_withdrawn")
            person = "this customer" if name == "churn" else f"the customer whom this {EACH[name].ENTITY} is about"
            assert refused.json()["error"]["message"].startswith(f"{person} withdrew the consent")
        for entity_id in ("customer:c0004", "category:odd", "total"):
            checked(forecast, service.get(f"{forecast.ROUTE}/{entity_id}"))
        for name, entity_id in about.items():  # batch scoring looks by the same mask
            rows = service.champions[name].current().known.rows
            assert entity_id in rows["entity_id"].filter(consent.Withheld.of(service.lake).mask(rows)).to_pylist()
    finally:
        service.lake.fs.rm(f"{service.lake.base}/raw", recursive=True)
        for champion in service.champions.values():
            champion.poll()


def test_the_audience_of_a_product_is_who_may_be_shown_it_best_first(service, tmp_path, capsys):
    path = tmp_path / "org.yaml"
    content = {"name": "toy", "storage": str(service.lake.root), "source": {"kind": "demo"}}
    path.write_text(json.dumps({**content, "tasks": {"recommendation": {}}}))
    rows = service.champions["recommendation"].current().known.rows.to_pylist()
    owners = {row["entity_id"] for row in rows if "p01" in row["history"]}

    def audience(*more: str) -> list[list[str]]:
        assert cli.main(["audience", "p01", "--org", str(path), *more]) == 0
        head, *lines = (line.split(",") for line in capsys.readouterr().out.splitlines())
        assert head == ["entity_id", "place"]
        return lines

    everybody = audience("--top", "1000")
    assert {who for who, _ in everybody} == {row["entity_id"] for row in rows} - owners
    places = [int(place) for _, place in everybody]
    assert places == sorted(places)
    assert audience("--top", "3") == everybody[:3]
    gone = everybody[0][0]
    run = service.lake.run("raw", consent.NAME, "d" * 16)
    run.write_table("part-00000.parquet", pa.table([[gone], [True], [False], [[]]], schema=consent.SCHEMA))
    run.commit()
    try:
        assert audience("--top", "1000") == everybody[1:]
    finally:
        service.lake.fs.rm(f"{service.lake.base}/raw", recursive=True)
    assert cli.main(["audience", "nothing", "--org", str(path)]) == 2
    told = capsys.readouterr().err
    assert "got product 'nothing', expected the id" in told
    assert "for_product" not in told  # as a request names it
    run = service.lake.run("raw", consent.NAME, "e" * 16)
    who = [row["entity_id"] for row in rows]
    run.write_table(
        "part-00000.parquet",
        pa.table([who, [True] * len(who), [False] * len(who), [[]] * len(who)], schema=consent.SCHEMA),
    )
    run.commit()
    try:
        assert cli.main(["audience", "p01", "--org", str(path)]) == 0
    finally:
        service.lake.fs.rm(f"{service.lake.base}/raw", recursive=True)
    printed = capsys.readouterr()
    assert printed.out == "entity_id,place\n"
    assert printed.err.startswith("nobody may be shown p01: ")
