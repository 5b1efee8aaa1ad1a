"""What only the evaluation may read: what can be said of the recorded reason of a case of the demo org from its text.

The wording gives away what a case is about; the record of it is wrong in a known share of the cases, and then any other
reason is as likely (demo_service.P_WRONG_REASON).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_service
from crmray.data import demo_world as dw
from crmray.data.demo_text import REASONS
from crmray.data.demo_truth_sentiment import windows
from crmray.data.demo_world import Block, World

_OTHER = demo_service.P_WRONG_REASON / (len(REASONS) - 1)
P_RECORDED = np.where(np.eye(len(REASONS), dtype=bool), 1 - demo_service.P_WRONG_REASON, _OTHER)
"""(reason, recorded reason)"""


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per (as_of, case of the block with a recorded reason, of the horizon_days before as_of).

    Columns as in demo_truth_sentiment.of_block.
    """
    cases, about = demo_service.cases_of(world, block, world.rng(block.first // dw.BLOCK, dw.STREAMS["service"]))
    recorded = pc.index_in(cases["Reason"], value_set=pa.array(REASONS)).fill_null(-1).to_numpy()
    best = P_RECORDED[about["reason"]]
    return windows(world, cases, about, as_of, horizon_days, recorded >= 0, recorded, REASONS, best)
