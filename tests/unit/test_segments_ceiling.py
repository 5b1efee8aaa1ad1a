"""What the generator of the demo org knows of its segments: probabilities that are true on average."""

from __future__ import annotations

from datetime import date, datetime, timezone

import numpy as np
import pytest

from crmray.data import demo_world as dw
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import World
from tests.benchmarks import segments_ceiling

WORLD = World(customers=3_000, months=14, end=date(2026, 10, 1))
AS_OF = datetime(2026, 9, 2, tzinfo=timezone.utc)


def test_probabilities_of_segments_are_true_on_average():
    block = simulate(WORLD, 0)
    found = segments_ceiling.probabilities(WORLD, block, AS_OF)
    week = (AS_OF.date() - WORLD.epoch).days // 7
    here = block.first_week <= week
    planted = dw.segments(block.v, block.s, block.z[:, : week + 1])[here]
    found = found[here]
    assert found.sum(1) == pytest.approx(np.ones(len(found)))
    assert found.min() >= 0
    for k in range(len(dw.SEGMENTS)):
        error = np.sqrt((found[:, k] * (1 - found[:, k])).sum())
        assert abs(found[:, k].sum() - (planted == k).sum()) < 3 * error
    best = found.argmax(1)
    error = np.sqrt((found.max(1) * (1 - found.max(1))).sum())
    assert abs(found.max(1).sum() - (best == planted).sum()) < 3 * error
    assert (best == planted).mean() > 0.9
