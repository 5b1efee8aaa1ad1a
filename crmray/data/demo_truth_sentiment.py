"""What only the evaluation may read: what can be said of the rating of a case of the demo org from its text.

The wording gives the tone of a case away (demo_text), and nothing else says more of its rating, so the best possible
probabilities are those of the rating given the tone (demo_service.P_RATING).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa

from crmray.data import demo_service, demo_truth
from crmray.data import demo_world as dw
from crmray.data.demo_world import Block, World
from crmray.schema import TIME

CLASSES = ("negative", "neutral", "positive")
P_CLASS = np.stack([demo_service.P_RATING[:, part].sum(1) for part in (slice(0, 2), slice(2, 3), slice(3, 5))], axis=1)
"""(tone, class): ratings 1 and 2, 3, 4 and 5"""


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per (as_of, case of the block that was rated, of the horizon_days before as_of).

    entity_id string (18-character Case id), as_of timestamp, label string, and `p:<class>` float64 for each class.
    Raises DataError as demo_truth.of_block.
    """
    cases, about = demo_service.cases_of(world, block, world.rng(block.first // dw.BLOCK, dw.STREAMS["service"]))
    rating = cases["Rating__c"].to_numpy()
    label = np.searchsorted([3.0, 4.0], rating, side="right")
    return windows(
        world, cases, about, as_of, horizon_days, np.isfinite(rating), label, CLASSES, P_CLASS[about["tone"]]
    )


def windows(
    world: World,
    cases: pa.Table,
    about: pa.Table,
    as_of: Sequence[datetime],
    horizon_days: int,
    known: np.ndarray,
    label: np.ndarray,
    classes: Sequence[str],
    probability: np.ndarray,
) -> pa.Table:
    """Rows of the cases whose class is known, by the windows that end at the dates."""
    day, tables = about["day"].to_numpy(), []
    for moment in as_of:
        end = demo_truth.day_of(world, moment)
        rows = np.flatnonzero(known & (day >= end - horizon_days) & (day < end))
        tables.append(
            pa.table(
                {
                    "entity_id": cases["Id"].take(pa.array(rows)),
                    "as_of": pa.array([moment] * len(rows), TIME),
                    "label": pa.array(classes).take(pa.array(label[rows])),
                    **{f"p:{name}": probability[rows, k] for k, name in enumerate(classes)},
                }
            )
        )
    return pa.concat_tables(tables)
