"""Features of what customers' texts said, worked out by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa

from crmray import schema
from crmray.data import asof_sentiment
from crmray.data.asof_rows import View
from crmray.data.splits import micros
from crmray.storage import Lake

NOW = datetime(2025, 1, 1, tzinfo=timezone.utc)


def test_scores_are_those_of_the_interactions_before_the_date(tmp_path):
    days = {"a": (200, 40, 10, -1), "b": (5,)}
    rows = [(entity, NOW - timedelta(days=day)) for entity, own in days.items() for day in own]
    table = pa.table(
        {
            "entity_id": [entity for entity, _ in rows],
            "occurred_at": pa.array([at for _, at in rows], schema.TIME),
            "interaction_id": ["i0", "i1", "i2", "i3", "i4"],
        }
    )
    run = Lake(tmp_path).run("predictions", asof_sentiment.TASK, "0" * 16)
    told = pa.table({"entity_id": ["i3", "i2", "i0"], "score": [-0.9, -0.5, 0.5]})  # i1, i4: not scored
    run.write_table("part-00000.parquet", told)
    run.commit()
    table = asof_sentiment.joined(table, run)
    assert table[asof_sentiment.SCORE].to_pylist() == [0.5, None, -0.5, -0.9, None]
    view = View(entities=pa.array(["a", "b"]), as_of_us=micros(NOW), lookback_days=365, horizon_days=30)
    found = asof_sentiment.features(view.rows(table, "occurred_at", (asof_sentiment.SCORE,)))
    assert found["sentiment_mean"][0] == 0.0  # i0 and i2; i3 came a day after the date
    assert found["sentiment_last"][0] == found["sentiment_mean_90d"][0] == -0.5
    assert found["sentiment_recency_days"][0] == 10
    assert found["sentiment_num_365d"].tolist() == [2, 0]
    assert found["sentiment_negative_num_30d"].tolist() == [1, 0]
    assert found["sentiment_trend_90d"][0] == 1.0  # log2((1 + 1) / (0 + 1))
    assert np.isnan(found["sentiment_mean"][1])
