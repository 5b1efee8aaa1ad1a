"""Exposures of customers to a campaign as examples: who was in which arm from a date on, and what came of it.

For a date D the exposures in [D, D + exposure_days) count, of each customer the first one; its outcome is looked for in
the outcome_days from the exposure on. Features are those before D, so nothing that the campaign did is among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import asof, outcomes
from crmray.data.asof_purchases import is_purchase
from crmray.data.asof_rows import DAY_US, micros_of
from crmray.data.splits import micros

VISITS = {"visit": "visit", "open": "open", "click": "click"}
"""outcome -> kind of engagement"""


def first_exposures(
    exposures: pa.Table, as_of: datetime | None, exposure_days: int, *, campaign: str | None,
    treated: Sequence[str], control: Sequence[str],
) -> tuple[pa.Array, np.ndarray, np.ndarray]:  # fmt: skip
    """Customers (sorted), whether their first exposure in the window was in a treated arm (N,) bool, and when, in µs.

    Arms are compared without regard to case; exposures in other arms do not count. Without as_of all exposures do.
    """
    arm = pc.utf8_lower(exposures["arm"].cast(pa.string()))
    is_treated = pc.is_in(arm, value_set=pa.array([name.lower() for name in treated])).to_numpy()
    kept = is_treated | pc.is_in(arm, value_set=pa.array([name.lower() for name in control])).to_numpy()
    if campaign is not None:
        kept &= pc.fill_null(pc.equal(exposures["campaign_id"], campaign), False).to_numpy()
    times = micros_of(exposures["occurred_at"])
    if as_of is not None:
        kept &= (times >= micros(as_of)) & (times < micros(as_of + timedelta(days=exposure_days)))
    entities = asof.distinct(exposures["entity_id"].filter(pa.array(kept)))
    code = pc.index_in(exposures["entity_id"], value_set=entities).fill_null(-1).to_numpy()
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((times[rows], code[rows]))]
    first = rows[np.unique(code[rows], return_index=True)[1]]
    return entities, is_treated[first], times[first]


def responded(
    tables: Mapping[str, pa.Table], outcome: str, entities: pa.Array, exposed_us: np.ndarray, outcome_days: int
) -> np.ndarray:
    """(N,) bool: whether the outcome came in the outcome_days from each customer's exposure on.

    outcome: purchase | visit | open | click | outcome:<name> (a given label 1 with a date in that time).
    """
    rows, time = _events(tables, outcome)
    code = pc.index_in(rows["entity_id"], value_set=entities).fill_null(-1).to_numpy()
    times = micros_of(rows[time])
    code, times = code[code >= 0], times[code >= 0]
    late = times - exposed_us[code]
    inside = (late >= 0) & (late < outcome_days * DAY_US)
    return np.bincount(code[inside], minlength=len(entities)) > 0


def _events(tables: Mapping[str, pa.Table], outcome: str) -> tuple[pa.Table, str]:
    if outcome == "purchase":
        transactions = tables["transactions"]
        return transactions.filter(pa.array(is_purchase(transactions))), "occurred_at"
    if outcome in VISITS:
        engagement = tables["engagement"]
        return engagement.filter(pc.equal(engagement["kind"], VISITS[outcome])), "occurred_at"
    given = outcomes.named(tables["outcomes"], outcome.removeprefix("outcome:"))
    return given.filter(pc.equal(given["value"], 1.0)), "as_of"
