"""How the answers of one task go with those of another on the same customers: they are not to contradict each other.

A task names whom it is held against in AGREES: other task -> function(own answers, the other's answers on the same rows
in the same order, own settings, the other's settings) -> figures, or None where the two mean different things.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from crmray import tasks
from crmray.errors import NoChampionError
from crmray.registry import Bundle, Ledger, load_bundle
from crmray.storage import Lake
from crmray.train import rows

KEYS = ["entity_id", "as_of"]


def of(lake: Lake, bundle: Bundle, test: pa.Table) -> dict[str, Any]:
    """Other task -> figures of a bundle's answers on these rows beside those of the other's champion on its test rows;
    for tasks that have a champion, rows of the present features, and some of the same customers on the same date."""
    found = {}
    for name, compare in getattr(bundle.task, "AGREES", {}).items():
        theirs = _answers(lake, name)
        if theirs is None:
            continue
        other, answers = theirs
        own, both = _matched(bundle.predict(test), answers)
        figures = compare(own, both, bundle.settings, other.settings) if own.num_rows else None
        if figures is not None:
            found[name] = {"version": other.version, "rows": own.num_rows, **figures}
    return found


def _answers(lake: Lake, name: str) -> tuple[Bundle, pa.Table] | None:
    """The champion of a task, and its answers on the test rows of the current examples."""
    task = tasks.task(name)
    try:
        version = Ledger(lake, name).champion()
    except NoChampionError:
        return None
    examples = lake.latest("examples", name)
    if examples.manifest()["features_version"] != task.FEATURES_VERSION:
        return None
    rows.check_consent(examples, lake)
    bundle = load_bundle(lake, lake.run("bundles", name, version), task)
    return bundle, bundle.predict(bundle.check(rows.test(examples)))


def _matched(own: pa.Table, theirs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that both have, in one order."""
    numbered = (
        table.select(KEYS).append_column(place, pa.array(range(table.num_rows)))
        for table, place in ((own, "own"), (theirs, "theirs"))
    )
    places = next(numbered).join(next(numbered), KEYS, join_type="inner").sort_by("own")
    return own.take(places["own"]), theirs.take(places["theirs"])
