"""The truth of the demo org's leads: calibrated against what came, and no score ranks better."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray.data import demo_truth_leads
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import World
from crmray.evaluate import metrics

WORLD = World(customers=4000, months=18, end=date(2026, 1, 1), seed=3)
DATES = [datetime(2025, 2, 1, tzinfo=timezone.utc) + timedelta(days=30 * back) for back in range(8)]


@pytest.fixture(scope="module")
def truth() -> pa.Table:
    return demo_truth_leads.of_block(
        WORLD, simulate(WORLD, 0), [*DATES, datetime(2025, 12, 15, tzinfo=timezone.utc)], 60
    )


def test_probabilities_of_conversion_are_calibrated(truth):
    known = truth.filter(pc.is_valid(truth["label"]))
    label, score = known["label"].to_numpy().astype(float), known["score"].to_numpy()
    assert label.sum() > 200
    assert abs(label.sum() - score.sum()) < 4 * np.sqrt((score * (1 - score)).sum())
    high = score > 0.3
    assert high.sum() > 50
    assert abs(label[high].mean() - score[high].mean()) < 4 * np.sqrt(0.25 / high.sum())
    assert metrics.auc(label, score) > 0.9


def test_what_has_not_come_yet_is_unknown(truth):
    last = truth.filter(
        pc.equal(truth["as_of"], pa.scalar(datetime(2025, 12, 15, tzinfo=timezone.utc), truth["as_of"].type))
    )
    assert last["label"].null_count == last.num_rows > 0
    assert pc.min_max(truth["score"]).as_py()["max"] <= 1.0


def test_the_share_that_converts_before_an_age_is_the_gamma_distribution():
    # shape 2, scale 8: P(T <= 16) = 1 - e^-2 (1 + 2)
    assert demo_truth_leads._before(np.array([16.0, -1.0])) == pytest.approx([1 - np.exp(-2) * 3, 0.0])
