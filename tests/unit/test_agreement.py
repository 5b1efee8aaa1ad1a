"""Answers of two tasks side by side: the same customers, in one order, or nothing."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace

import pyarrow as pa
import pytest

from crmray.storage import Lake
from crmray.tasks import TASKS
from crmray.train import agreement

AS_OF = datetime(2024, 1, 1, tzinfo=timezone.utc)


def answers(**values: float) -> pa.Table:
    return pa.table({"entity_id": list(values), "as_of": [AS_OF] * len(values), "x": list(values.values())})


def beside(own: pa.Table, theirs: pa.Table, settings: str, other: str) -> dict:
    return {"own": own["x"].to_pylist(), "theirs": theirs["x"].to_pylist(), "settings": [settings, other]}


def bundle(table: pa.Table, **agrees) -> SimpleNamespace:
    task = SimpleNamespace(AGREES=agrees) if agrees else SimpleNamespace()
    return SimpleNamespace(task=task, predict=lambda test: table, settings="mine", version="v1")


def test_the_shared_customers_are_compared_in_one_order(monkeypatch):
    theirs = bundle(answers()), answers(c=3.0, a=1.0, z=9.0)
    monkeypatch.setattr(
        agreement, "others", lambda lake, task: dict.fromkeys(getattr(task, "AGREES", {}), ("v1", None))
    )
    monkeypatch.setattr(agreement, "_answers", lambda lake, name, version, examples: theirs)
    found = agreement.of(None, bundle(answers(a=10.0, b=20.0, c=30.0), other=beside), None)
    assert found["other"] == {
        "version": "v1", "rows": 2, "own": [10.0, 30.0], "theirs": [1.0, 3.0], "settings": ["mine", "mine"],
    }  # fmt: skip
    assert agreement.of(None, bundle(answers(b=20.0), other=beside), None) == {}  # nobody in common
    assert agreement.of(None, bundle(answers(a=1.0), other=lambda *_: None), None) == {}  # they mean different things
    assert agreement.of(None, bundle(answers(a=1.0)), None) == {}


def test_without_a_champion_there_is_nothing_to_compare(tmp_path):
    assert agreement.of(Lake(tmp_path), bundle(answers(a=1.0), churn=beside), None) == {}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if hasattr(task, "AGREES")])
def test_tasks_are_held_against_tasks(name):
    assert set(TASKS[name].AGREES) <= set(TASKS)
