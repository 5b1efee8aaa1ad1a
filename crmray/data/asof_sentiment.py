"""What customers' texts said, as features of other tasks: predictions of `sentiment` joined to their interactions.

A prediction belongs to the interaction that it is about, so it is known as soon as that is: features read the
interactions strictly before as_of, those that were scored. (The model that scored them may have learned from later
ratings of others; it says nothing of what a customer did later.)
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.asof_rows import Rows, trend
from crmray.storage import Run

TASK = "sentiment"
"""whose predictions are read"""
SCORE = "sentiment_score"
"""column of the interactions: P(positive) - P(negative), null where an interaction was not scored"""
BAD = -1 / 3
"""score below which a text counts as negative"""
WINDOWS_DAYS = (30, 90, 365)


def joined(interactions: pa.Table, predictions: Run) -> pa.Table:
    """The interactions, in their order, with SCORE from a run of predictions; as they are where they have no ids."""
    if "interaction_id" not in interactions.column_names:
        return interactions
    told = predictions.read_table(columns=["entity_id", "score"])
    at = pc.index_in(interactions["interaction_id"].combine_chunks(), value_set=told["entity_id"].combine_chunks())
    return interactions.append_column(SCORE, told["score"].combine_chunks().take(at))


def features(rows: Rows) -> dict[str, np.ndarray]:
    """float64 (N,) each, of a customer's scored interactions before as_of; NaN where there are none.

    sentiment_mean, sentiment_mean_90d, sentiment_last, sentiment_recency_days, and per window of days how many were
    scored and how many of them were negative; sentiment_trend_90d: negative ones lately against the year before.
    """
    score = rows.number(SCORE)
    known = ~np.isnan(score)
    scored, values = rows.where(known), score[known]
    recent = scored.days <= 90
    bad = scored.sums(WINDOWS_DAYS, (values < BAD).astype(np.float64))
    counts = scored.sums(WINDOWS_DAYS)
    columns = {
        "sentiment_mean": scored.means(values),
        "sentiment_mean_90d": scored.where(recent).means(values[recent]),
        "sentiment_last": scored.last(values),
        "sentiment_recency_days": scored.last(scored.days),
        "sentiment_trend_90d": trend(bad[:, 1], (bad[:, 2] - bad[:, 1]) / 3),
    }
    for column, days in enumerate(WINDOWS_DAYS):
        columns[f"sentiment_num_{days}d"] = counts[:, column]
        columns[f"sentiment_negative_num_{days}d"] = bad[:, column]
    return columns
