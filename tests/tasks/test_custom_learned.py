"""Predictions of one's own: numbers, classes, yes and no learned, decided, answered and served."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conformance import fit, planted, rows_of, same, settings_of, small

from crmray import config, tasks
from crmray.salesforce import fields
from crmray.tasks import custom
from serve.options import RootOptions

FLAT = {"method": "platt", "slope": 0.5, "intercept": 2.0}
"""a calibration that adds to the level"""
OWN = {
    "custom.spend": {"outcome": {"table": "transactions", "measure": "sum", "column": "net_amount"}},
    "custom.next_channel": {"outcome": {"table": "transactions", "measure": "first", "column": "channel"}},
}


def with_channel(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The planted org with a channel that follows from what a customer spends."""
    lines = tables["transactions"]
    channel = pc.if_else(pc.greater(lines["net_amount"], 50.0), "shop", "web")
    return {**tables, "transactions": lines.append_column("channel", channel)}


@pytest.mark.parametrize("name", OWN)
def test_numbers_and_classes_are_learned_decided_and_answered(name):
    task = tasks.task(name)
    settings = task.Settings.model_validate({**OWN[name], "horizon_days": 30, "lookback_days": 180})
    assert task.fixed(settings)["lightgbm.kind"] == settings.kind
    tables = with_channel(planted())
    dates = [datetime(2022, month, 1, tzinfo=timezone.utc) for month in (9, 10, 11, 12)]
    rows = [task.examples(tables, date, settings, labels=True) for date in dates]
    train, validation, test = pa.concat_tables(rows[:2]).combine_chunks(), rows[2], rows[3]
    models = {}
    for family, candidate in task.CANDIDATES.items():
        models[family] = fit(replace(small(candidate), kind=settings.kind), train, validation)
        again = candidate.load(models[family].save())
        assert same(models[family].predict(test), again.predict(test))
    reached = {family: task.score(validation, model.predict(validation))["skill"] for family, model in models.items()}
    assert max(reached.values()) > 0.6, reached
    blended = task.blend(models, validation)
    if blended is not None:
        figure = task.score(validation, blended.predict(validation))["skill"]
        assert figure > max(reached.values())
        assert same(task.BLEND.load(blended.save(), task.CANDIDATES).predict(test), blended.predict(test))
    model = models["lightgbm"]
    decision = json.loads(json.dumps(task.finalize(model, train, validation, settings), allow_nan=False))
    answers = task.predict(model, decision, test, explain=True)
    task.Response(version="v", predictions=answers.to_pylist())
    figures = task.evaluate(model, decision, test, settings)
    json.dumps(figures, allow_nan=False)
    if settings.kind == "number":
        inside = pc.and_(
            pc.less_equal(answers["number_low"], test["label"]), pc.less_equal(test["label"], answers["number_high"])
        )
        assert figures["coverage"]["0.8"] == pytest.approx(np.mean(inside.to_numpy()))
        assert answers["answer"].null_count == test.num_rows
    else:
        assert set(answers["answer"].to_pylist()) <= {"shop", "web"}
        assert answers["number"].null_count == test.num_rows
        assert figures["skill"] == figures["macro_f1"] > 0.8


def test_a_class_that_training_did_not_have_counts_as_missed():
    rows = pa.table({"label": ["a", "b", "new", "a"]})
    said = {"p:a": np.array([0.9, 0.2, 0.5, 0.8]), "p:b": np.array([0.1, 0.8, 0.5, 0.2])}
    figures = custom.score(rows, said)
    assert figures["accuracy"] == 0.75
    assert figures["skill"] == pytest.approx((0.8 + 1 + 0) / 3)  # f1 of a: 2·2/(2+3)


def test_yes_and_no_are_answered_at_the_threshold_that_was_chosen():
    rows, settings = rows_of(custom), settings_of(custom)
    model = fit(small(custom.CANDIDATES["linear"]), rows["train"], rows["validation"])
    chosen = settings.model_copy(update={"threshold": {"capacity": 40}})
    decision = custom.finalize(model, rows["train"], rows["validation"], chosen)
    answers = custom.predict(model, decision, rows["validation"])
    assert 0 < pc.sum(pc.equal(answers["answer"], "yes")).as_py() <= 40
    again = custom.shipped(model, {**decision, "calibration_refitted": FLAT}, rows["validation"])
    assert again == {**decision, "calibration": FLAT, "calibration_refitted": FLAT}
    assert custom.shipped(model, {"kind": "number"}, rows["validation"]) == {"kind": "number"}
    everyone = custom.predict(model, decision, rows["validation"], threshold=0.0)
    assert set(everyone["answer"].to_pylist()) == {"yes"}


def test_an_endpoint_and_fields_for_each(tmp_path):
    org = tmp_path / "org.yaml"
    org.write_text("name: mine\nstorage: lake\nsource: {kind: demo}\ntasks: {churn: {}, custom.repeat_case: {}}\n")
    found = RootOptions(org=str(org)).load_tasks()
    assert found["custom.repeat_case"].ROUTE == "/v1/custom/repeat_case"
    assert set(found) == {*tasks.TASKS, "custom.repeat_case"}
    names = [target.name for target in fields.targets("custom.repeat_case", custom.Prediction, config.Writeback())]
    assert "Crmray_Repeat_Case_Number_High__c" in names
    longest = fields.targets(f"custom.{'x' * 20}", custom.Prediction, config.Writeback())
    assert max(len(target.name.removesuffix("__c")) for target in longest) <= 40  # Salesforce's limit
