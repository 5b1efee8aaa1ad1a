"""What only the evaluation may read: how likely an open lead of the demo org is to convert, given all that is known.

demo_sales.leads draws whether a lead converts from its source and rating. One that does is converted on the day its
account is created, which is uniform over the weeks in which accounts begin, after a gamma time of AGE_DAYS; one that
does not begins at any time. Industry and country are those of the account, or drawn evenly. So for a lead that began at
s and is open at age x, with G the distribution of the time to conversion and D the last day on which accounts begin,

    P(converts in [x, x + h)) = c [G(min(x + h, D - s)) - G(x)] / (c [G(D - s) - G(x)] + d)

with c = P(converts | source, rating) P(industry, country | converts) / D and d the same of those that do not, over the
whole history. The number of employees says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_sales, demo_truth
from crmray.data import demo_world as dw
from crmray.data.demo_world import Block, World
from crmray.schema import TIME

AGE_DAYS = 8.0
"""scale of the gamma time to conversion, whose shape is 2"""
LAST_WEEKS = 5
"""accounts begin before the last so many weeks"""


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per (as_of, lead of the block that was open then).

    entity_id string (18-character Lead id), as_of timestamp, label int8 (converted in [as_of, as_of + horizon); null
    where the history ends earlier), score float64 (the probability of it). Raises DataError as demo_truth.of_block.
    """
    index = block.first // dw.BLOCK
    created = demo_sales.created_days(block, world.rng(index, dw.STREAMS["created"]))
    leads = demo_sales.leads(world, block, created, world.rng(index, dw.STREAMS["leads"]))
    start, converted = (demo_truth.days_of(world, leads[name]) for name in ("CreatedDate", "ConvertedDate"))
    tables = []
    for day in (demo_truth.day_of(world, date) for date in as_of):
        is_open = (start < day) & ~(converted < day)
        label = pa.array(((converted >= day) & (converted < day + horizon_days))[is_open].astype(np.int8))
        count = int(is_open.sum())
        tables.append(
            pa.table(
                {
                    "entity_id": leads["Id"].filter(pa.array(is_open)),
                    "as_of": pa.repeat(pa.scalar(demo_truth.moment_of(world, day), TIME), count),
                    "label": label if day + horizon_days <= world.num_days else pa.nulls(count, pa.int8()),
                    "score": p_convert(world, leads, start, day, horizon_days)[is_open],
                }
            )
        )
    return pa.concat_tables(tables)


def p_convert(world: World, leads: pa.Table, start: np.ndarray, day: int, horizon_days: int) -> np.ndarray:
    """(L,) P(converted in [day, day + horizon) | not before, attributes, day of creation)."""
    source, rating = (_index(leads[name], names) for name, names in _NAMED.items())
    odds = np.exp(demo_sales.LEAD_LOGIT + demo_sales.SOURCE_EFFECT[source] + demo_sales.RATING_EFFECT[rating])
    industry, country = _index(leads["Industry"], dw.INDUSTRIES), _index(leads["Country"], dw.COUNTRIES)
    last = 7.0 * (world.num_weeks - LAST_WEEKS)
    converting = odds * (demo_truth.P_VALUE @ dw.P_INDUSTRY)[industry] * dw.P_COUNTRY[country] / last
    others = 1.0 / (len(dw.INDUSTRIES) * len(dw.COUNTRIES) * world.num_days)
    age = day - start
    rest = np.maximum(_before(last - start) - _before(age), 0.0)
    soon = np.maximum(_before(np.minimum(age + horizon_days, last - start)) - _before(age), 0.0)
    return converting * soon / (converting * rest + others)


_NAMED = {"LeadSource": demo_sales.LEAD_SOURCES, "Rating": demo_sales.RATINGS}


def _index(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    return pc.index_in(column, value_set=pa.array(names)).to_numpy()


def _before(age_days: np.ndarray) -> np.ndarray:
    """Share of those that convert which do so before an age; 0 for ages below 0."""
    scaled = np.maximum(age_days, 0.0) / AGE_DAYS
    return 1.0 - np.exp(-scaled) * (1.0 + scaled)
