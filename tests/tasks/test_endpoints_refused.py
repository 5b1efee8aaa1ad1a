"""What an endpoint refuses, and in which words: every task over HTTP, as in test_endpoints.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from conformance import SETTINGS
from endpoints import BUYER, DESCRIBED, EACH, EVERY_TASK

from crmray import cli
from crmray.tasks import forecast


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
        assert "customer" not in told or task.ENTITY == "customer" or "levels here" in told
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
