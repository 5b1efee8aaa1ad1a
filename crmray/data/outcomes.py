"""Given labels of the outcomes table: a value by entity, with a date or without, and the part where it is mapped."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import asof
from crmray.errors import DataError


def named(outcomes: pa.Table, name: str) -> pa.Table:
    """The rows of one name."""
    return outcomes.filter(pc.fill_null(pc.equal(outcomes["name"], name), False))


def yes_no(
    outcomes: pa.Table, name: str, as_of: datetime | None, horizon_days: int
) -> tuple[pa.Array, np.ndarray, pa.Array | None]:
    """Entities with a label of that name (sorted), their labels (N,) bool, and their mapped part where there is one.

    With as_of those labelled in [as_of, as_of + horizon_days); of several labels one yes is enough. DataError for a
    value other than 0 and 1.
    """
    given = named(outcomes, name)
    if as_of is not None:
        start, end = (pa.scalar(at, schema.TIME) for at in (as_of, as_of + timedelta(days=horizon_days)))
        given = given.filter(pc.and_(pc.greater_equal(given["as_of"], start), pc.less(given["as_of"], end)))
    wrong = pc.invert(pc.is_in(given["value"], value_set=pa.array([0.0, 1.0])))
    if pc.any(wrong).as_py():
        value = given["value"].filter(wrong)[0].as_py()
        raise DataError(f"table outcomes: column 'value' holds {value:g} for {name!r}, expected 0 or 1")
    entities = asof.distinct(given["entity_id"])
    label = pc.is_in(entities, value_set=given["entity_id"].filter(pc.equal(given["value"], 1.0)))
    if "split" not in given.column_names:
        return entities, label.to_numpy(zero_copy_only=False), None
    first = pc.index_in(entities, value_set=given["entity_id"].combine_chunks())
    return entities, label.to_numpy(zero_copy_only=False), given["split"].combine_chunks().take(first)
