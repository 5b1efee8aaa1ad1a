"""Reasons of models whose workings are known."""

import json

import numpy as np
import pyarrow as pa
import pytest

from crmray.errors import SchemaError
from crmray.evaluate import card, reasons

TRAIN = pa.table(
    {
        "entity_id": ["a", "b", "c", "d", "e"],
        "label": [0, 1, 0, 1, 0],
        "recency_days": [10, 20, 30, 40, 50],
        "num_orders": [1.0, 2.0, 2.0, 2.0, None],
        "plan": pa.array(["basic", "basic", "pro", "pro", "basic"]).dictionary_encode(),
        "event_days_before": pa.array(
            [[9.0, 3.0], [1.0], [5.0, 4.0], [7.0, 4.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32())
        ),
        "event_kind": [["x", "x"], ["y"], ["x", "y"], ["y", "y"], ["x"] * 3],
    }
)
GROUPS = {"time since the last order": ("recency_days",), "orders": ("num_orders",), "not there": ("gone",)}


def model(examples: pa.Table) -> np.ndarray:
    """0.01 per day of recency, 0.1 for pro, 0.02 per event; orders count for nothing."""
    days = examples["recency_days"].to_numpy().astype(float)
    pro = np.array([plan == "pro" for plan in examples["plan"].to_pylist()])
    events = np.array([len(kinds) for kinds in examples["event_kind"].to_pylist()])
    return 0.01 * days + 0.1 * pro + 0.02 * events


def test_groups_take_in_every_feature():
    assert reasons.groups_of(TRAIN.schema, GROUPS) == {
        "time since the last order": ("recency_days",),
        "orders": ("num_orders",),
        "plan": ("plan",),
        "order of events": ("event_days_before", "event_kind"),
    }


def test_reference_is_the_typical_training_row():
    found = reasons.reference(TRAIN, reasons.groups_of(TRAIN.schema, GROUPS))
    assert found["values"]["recency_days"] == 30
    assert found["values"]["num_orders"] == 2
    assert found["values"]["plan"] == "basic"
    # median length 2: rows a, c, d with mean days 6, 4.5, 5.5; d is the median
    assert found["values"]["event_days_before"] == [7.0, 4.0]
    assert found["values"]["event_kind"] == ["y", "y"]
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(SchemaError, match="'gone' is missing"):
        reasons.reference(TRAIN, GROUPS)


def test_effects_and_words_by_hand():
    groups = reasons.groups_of(TRAIN.schema, GROUPS)
    reference = reasons.reference(TRAIN, groups)
    matrix = reasons.effects(model, TRAIN, reference, groups)
    assert matrix[:, 0] == pytest.approx([-0.2, -0.1, 0, 0.1, 0.2])
    assert matrix[:, 1] == pytest.approx(0)
    assert matrix[:, 2] == pytest.approx([0, 0, 0.1, 0.1, 0])
    assert matrix[:, 3] == pytest.approx([0, -0.02, 0, 0, 0.02])
    said = reasons.explain(model, TRAIN, reference, groups, top=2)
    assert said[4] == ["time since the last order: recency days 50, typically 30 (+0.20)", "order of events (+0.02)"]
    assert said[2] == ["plan: pro, typically basic (+0.10)"]
    assert said[0] == ["time since the last order: recency days 10, typically 30 (-0.20)"]


def test_few_rows_share_one_call_and_many_rows_give_the_same(monkeypatch):
    groups = reasons.groups_of(TRAIN.schema, GROUPS)
    reference = reasons.reference(TRAIN, groups)
    calls = []

    def counted(examples):
        calls.append(examples.num_rows)
        return model(examples)

    together = reasons.effects(counted, TRAIN, reference, groups)
    assert calls == [5, 20]
    monkeypatch.setattr(reasons, "ROWS_PER_CALL", 1)
    calls.clear()
    assert np.array_equal(reasons.effects(counted, TRAIN, reference, groups), together)
    assert calls == [5, 5, 5, 5, 5]
    assert reasons.explain(model, TRAIN.slice(0, 0), reference, groups) == []


def test_card_shows_the_champion_first_and_the_ceiling():
    bundle = {"task": "churn", "candidate": "lstm", "features_version": "1", "seed": 7}
    bundle |= {
        "metrics": {"tree": {"auc": 0.7}, "lstm": {"auc": 0.81234, "rows": 1200}},
        "best_possible": {"auc": 0.85},
    }
    bundle |= {"data": {"rows": {"train": 10}, "as_of": None}}
    text = card.render(bundle)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| model | ROC-AUC | rows |"
    assert lines[2] == "| lstm | 0.8123 | 1,200 |"
    assert lines[-1] == "| best possible | 0.85 |  |"
    assert "  - train: 10" in text
