"""How the answers of one task go with those of another on the same customers: they are not to contradict each other.

A task names whom it is held against in AGREES: other task -> function(own answers, the other's answers on the same rows
in the same order, own settings, the other's settings) -> figures, or None where the two mean different things.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from crmray import tasks
from crmray.bundle import Bundle, load_bundle
from crmray.errors import NoChampionError
from crmray.registry import Ledger
from crmray.storage import Lake, Run
from crmray.tasks.contract import Task
from crmray.train import rows


def others(lake: Lake, task: Task) -> dict[str, tuple[str, Run]]:
    """Other task -> version of its champion and its current examples, of those that have both, of present features."""
    found = {}
    for name in getattr(task, "AGREES", {}):
        try:
            version = Ledger(lake, name).champion()
        except NoChampionError:
            continue
        examples = lake.latest("examples", name)
        if examples.manifest()["features_version"] == tasks.task(name).FEATURES_VERSION:
            found[name] = version, examples
    return found


def of(lake: Lake, bundle: Bundle, test: pa.Table) -> dict[str, Any]:
    """Other task -> figures of a bundle's answers on these rows beside those of the other's champion on its test rows;
    for tasks of `others`, with some of the same customers on the same date."""
    found, compare = {}, getattr(bundle.task, "AGREES", {})
    for name, (version, examples) in others(lake, bundle.task).items():
        other, answers = _answers(lake, name, version, examples)
        own, both = rows.matched(bundle.predict(test), answers)
        figures = compare[name](own, both, bundle.settings, other.settings) if own.num_rows else None
        if figures is not None:
            found[name] = {"version": other.version, "rows": own.num_rows, **figures}
    return found


def _answers(lake: Lake, name: str, version: str, examples: Run) -> tuple[Bundle, pa.Table]:
    """A version of a task, and its answers on the test rows of these examples."""
    rows.check_consent(examples, lake)
    bundle = load_bundle(lake.run("bundles", name, version), tasks.task(name))
    return bundle, bundle.predict(bundle.check(rows.test(examples)))
