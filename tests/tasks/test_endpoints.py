"""Every task as a client asks for it over HTTP: the application that a replica serves, with the task's rule of thumb as
champion of the planted org, behind a real server. (Serve itself stands in tests/ray/test_serve.py.)"""

from __future__ import annotations

import json
import re
from typing import get_args

import pyarrow as pa
from endpoints import BUYER, DESCRIBED, EACH, EVERY_TASK, checked, first
from starlette.testclient import TestClient

from crmray import cli, score
from crmray.config import Writeback
from crmray.keys import KeyFile
from crmray.privacy import consent
from crmray.salesforce import fields, values
from crmray.tasks import TASKS, forecast
from serve.http import root_app
from serve.options import RootOptions


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
    assert (several.json()["unknown"], several.json()["unlisted"]) == (["nobody"], [])


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


def test_products_that_are_not_in_the_table_count_and_are_told(service):
    churn, recommendation = EACH["churn"], EACH["recommendation"]
    rows = {"transactions": [{**BUYER["transactions"][0], "product_id": one} for one in ("p01", "p99", "p98", "p99")]}
    for task in (churn, recommendation):
        for body in ({"id": "c0003", "recent_events": rows}, {"customer": rows}):
            answer = service.post(task, body)
            assert checked(task, answer)
            assert answer.json()["unlisted"] == ["p98", "p99"]
            assert answer.json()["unknown"] == []  # which says for whom there is no prediction
    assert service.post(churn, {"customer": BUYER}).json()["unlisted"] == []


def test_the_root_says_without_a_key_what_is_where(service):
    found = service.get("/").json()
    assert found["tasks"] == {name: task.ROUTE for name, task in EACH.items()}
    for page in ("docs", "openapi", "health", "ready", "models"):
        assert service.get(found[page]).status_code == 200


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
    assert printed.err == (
        "nobody may be shown p01: everybody owns it, it is excluded or out of stock, nobody had bought it when the "
        "model was fitted, or those it fits withdrew consent\n"
    )
