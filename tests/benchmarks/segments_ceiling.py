"""The most likely planted segment of each customer of the demo org, given all that is observable before a date.

No clustering of the same data can agree with the planted segments better than by luck. Lapsing is having been leaving
in each of the last LAPSING_WEEKS weeks: the forward filter of demo_truth, kept beside itself for those who never
stopped leaving, says how likely that is. Symbols and shapes as in demo_truth: N customers, C classes, 3 engagements.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np

from crmray.data import demo_truth
from crmray.data import demo_world as dw
from crmray.data.demo_truth import C, S, V
from crmray.data.demo_world import Block, World

LEAVING = dw.ENGAGEMENT.index("leaving")


def probabilities(world: World, block: Block, as_of: datetime) -> np.ndarray:
    """(N, len(SEGMENTS)) P(segment | all before as_of). DataError as demo_truth.of_block."""
    day = demo_truth.day_of(world, as_of)
    ((_, _, posterior),) = demo_truth.posteriors(world, block, [day])
    lapsing = posterior[:, :, LEAVING] * _leaving_throughout(world, block, day // 7)
    others = posterior.sum(2) - lapsing
    result = np.zeros((len(block), len(dw.SEGMENTS)))
    for c in range(C):
        result[:, 2 * V[c] + S[c]] += others[:, c]
        result[:, 4 + V[c]] += lapsing[:, c]
    return result


def _leaving_throughout(world: World, block: Block, week: int) -> np.ndarray:
    """(N, C) P(leaving in all of the last LAPSING_WEEKS weeks | class, leaving in `week`, all before it)."""
    start = week - dw.LAPSING_WEEKS + 1
    if start < 0:
        return np.zeros((len(block), C))
    seasons, counts = world.seasons(week + 1), demo_truth.weekly(block, world.num_weeks)
    all_NC3, throughout_NC3 = demo_truth._prior(block), np.zeros((len(block), C, 3))
    for w in range(week):
        live = (block.first_week <= w)[:, None, None]
        if w == start:
            throughout_NC3[:, :, LEAVING] = np.where(live[:, :, 0], all_NC3[:, :, LEAVING], 0.0)
        features = np.column_stack([columns[:, w] for columns in counts])
        logs = features @ demo_truth._log_likelihood(seasons[w], 1.0, 1.0)
        likelihood = np.exp(logs - logs.max(1, keepdims=True)).reshape(all_NC3.shape)
        bad = dw.bad_case(features[:, 7:13])
        moved, stayed = (demo_truth._move(x * likelihood, bad, block.rise[:, w]) for x in (all_NC3, throughout_NC3))
        stayed[:, :, :LEAVING] = 0.0
        total = moved.sum((1, 2), keepdims=True)
        all_NC3 = np.where(live, moved / total, all_NC3)
        throughout_NC3 = np.where(live, stayed / total, throughout_NC3)
    whole = all_NC3[:, :, LEAVING]
    return np.divide(throughout_NC3[:, :, LEAVING], whole, out=np.zeros_like(whole), where=whole > 0)
