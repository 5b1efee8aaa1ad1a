"""Churn: the three labels by hand, calibrated probabilities, bands and reasons."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from by_hand import AS_OF, at, table
from conformance import fit, rows_of, settings_of, small

from crmray import schema
from crmray.evaluate import calibration, metrics
from crmray.tasks import churn


def labels(tables: dict[str, pa.Table], as_of: datetime | None = AS_OF, **settings) -> dict[str, int]:
    rows = churn.examples(tables, as_of, churn.Settings(**settings), labels=True)
    return dict(zip(rows["entity_id"].to_pylist(), rows["label"].to_pylist(), strict=True))


def test_no_purchase_in_the_half_open_window():
    days = {"early": 0, "last": 89.999, "after": 90, "returns": 10, "gift": 10, "old": None, "gone": 10}
    before = {"old": -366, "gone": None}
    rows = []
    for name, day in days.items():
        first = before.get(name, -365)
        if first is not None:
            rows.append((name, at(first), 1.0, 10.0))
        if day is not None:
            rows.append(
                (name, at(day), -1.0 if name == "returns" else 1.0, {"returns": -10.0, "gift": 0.0}.get(name, 10.0))
            )
    names = ("entity_id", "occurred_at", "num_units", "net_amount")
    tables = {"transactions": table("transactions", names, *rows)}
    # `old` bought too long ago, `gone` never before: neither is in the population
    assert labels(tables) == {"after": 1, "early": 0, "gift": 1, "last": 0, "returns": 1}


def test_cancelled_means_no_subscription_left_at_the_end_of_the_horizon():
    rows = [
        ("stays", "1", at(-100), None), ("leaves", "1", at(-100), at(89)), ("later", "1", at(-100), at(90)),
        ("switches", "1", at(-100), at(30)), ("switches", "2", at(30), None), ("ended", "1", at(-100), at(-1)),
        ("ends now", "1", at(-100), at(0)), ("new", "1", at(0), None),
    ]  # fmt: skip
    names = ("entity_id", "subscription_id", "started_at", "ended_at")
    tables = {"subscriptions": table("subscriptions", names, *rows)}
    assert labels(tables, label="cancelled") == {"ends now": 1, "later": 0, "leaves": 1, "stays": 0, "switches": 0}


def test_given_outcomes_with_and_without_time():
    outcomes = pa.table(
        {
            "entity_id": ["a", "b", "c", "d"],
            "name": ["left", "left", "left", "other"],
            "value": [1.0, 0.0, 1.0, 1.0],
            "as_of": [at(5), at(0), at(90), at(5)],
            "split": ["test", None, "train", "test"],
        }
    )
    tables = {"outcomes": schema.check("outcomes", outcomes)}
    assert labels(tables, label="outcome:left") == {"a": 1, "b": 0}
    assert labels(tables, None, label="outcome:left") == {"a": 1, "b": 0, "c": 1}
    parts = churn.examples(tables, None, churn.Settings(label="outcome:left"), labels=True)["part"].to_pylist()
    assert (parts[0], parts[2]) == ("test", "train")


def test_a_wrong_label_setting_is_refused():
    with pytest.raises(ValueError, match="String should match pattern"):
        churn.Settings(label="gone")


@pytest.fixture(scope="module")
def model_and_decision():
    rows = rows_of(churn)
    model = fit(small(churn.CANDIDATES["logistic"]), rows["train"], rows["validation"])
    return model, churn.finalize(model, rows["train"], rows["validation"], settings_of(churn))


def test_probabilities_are_calibrated_and_keep_the_order_of_the_scores(model_and_decision):
    model, decision = model_and_decision
    rows = rows_of(churn)["validation"]
    answers = churn.predict(model, decision, rows)
    probability, label = answers["probability"].to_numpy(), rows["label"].to_numpy()
    assert metrics.expected_calibration_error(label, probability) < 0.06
    assert metrics.auc(label, probability) == pytest.approx(metrics.auc(label, model.predict(rows)["score"]))
    assert answers["reasons"].null_count == rows.num_rows


def test_bands_rise_with_probability_and_the_threshold_can_be_chosen(model_and_decision):
    model, decision = model_and_decision
    rows = rows_of(churn)["test"]
    answers = churn.predict(model, decision, rows)
    probability, band = answers["probability"].to_numpy(), answers["band"].to_numpy(zero_copy_only=False)
    assert probability[band == "high"].min() >= decision["bands"]["high"] > probability[band != "high"].max()
    assert answers["will_churn"].to_numpy().tolist() == (probability >= decision["threshold"]).tolist()
    everyone = churn.predict(model, decision, rows, threshold=0.0)
    assert pc.all(everyone["will_churn"]).as_py()
    figures = churn.evaluate(model, decision, rows, settings_of(churn))
    assert sum(figures["bands"][name]["rows"] for name in calibration.BANDS) == rows.num_rows
    assert figures["bands"]["high"]["rate"] > figures["bands"]["low"]["rate"]
    assert figures["auc_interval"][0] < figures["auc"] < figures["auc_interval"][1]


def test_reasons_name_the_planted_cause(model_and_decision):
    model, decision = model_and_decision
    rows = rows_of(churn)["test"]
    fresh = pc.and_(pc.greater(rows["contact_case_num_30d"], 0), pc.less(rows["recency_days"], 15))
    told = churn.predict(model, decision, rows.filter(fresh), explain=True)["reasons"].to_pylist()
    assert told
    named = [any("contacts and cases" in reason for reason in reasons) for reasons in told]
    assert np.mean(named) > 0.5
    assert all(len(reasons) <= 3 for reasons in told)


def test_a_blend_averages_the_best_families():
    rows = rows_of(churn)
    models = {
        name: fit(small(churn.CANDIDATES[name]), rows["train"], rows["validation"])
        for name in ("logistic", "random_forest")
    }
    both = churn.blend(models, rows["validation"])
    single = max(churn.score(rows["validation"], model.predict(rows["validation"]))["auc"] for model in models.values())
    if both is not None:
        assert churn.score(rows["validation"], both.predict(rows["validation"]))["auc"] > single
    assert churn.blend({}, rows["validation"]) is None
