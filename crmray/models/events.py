"""A customer's events as arrays: what the recurrent and the attention models read.

Events come from the list columns `event_kind`, `event_days_before` (> 0) and `event_value`, oldest first.

Shape suffixes: B rows, T steps of time (events, right-padded), C numbers per event, N rows of a table, E events of a
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from crmray.data.sequences import COLUMNS as EVENT_COLUMNS
from crmray.errors import SchemaError

NUM_EVENT_NUMBERS = 3  # log gap, log days before, signed log value
PADDING, FIRST_KIND = 0, 2  # kinds: 0 padding, 1 unseen in training, then the vocabulary


def vocabulary(train: pa.Table) -> dict[str, Any]:
    """`kinds` of the training rows, sorted, and `value_scales` by their codes; both empty without event columns."""
    if not all(name in train.column_names for name in EVENT_COLUMNS):
        return {"kinds": [], "value_scales": []}
    kind_E = _flat(train["event_kind"])
    kinds = sorted(pc.unique(kind_E.drop_null()).to_pylist())
    values = _signed_log(_numbers(_flat(train["event_value"])))
    return {"kinds": kinds, "value_scales": _scales(_codes(kind_E, kinds), values, len(kinds))}


def padded(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of ragged arrays right-padded to the longest of them: their lengths (B,), which steps are real (B, T), and
    the places of the real ones in the arrays. Row i owns the places offsets[i]:offsets[i + 1]."""
    first_B = offsets[rows]
    length_B = offsets[rows + 1] - first_B
    steps_T = np.arange(max(1, int(length_B.max(initial=0))))
    real_BT = steps_T < length_B[:, None]
    return length_B, real_BT, (first_B[:, None] + steps_T)[real_BT]


def batch(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
    """kinds_BT, events_BTC, length_B of these rows, right-padded to the longest of them. arrays: what `encode` gave."""
    length_B, real_BT, place = padded(arrays["offsets"], rows)
    kinds_BT = np.full(real_BT.shape, PADDING)
    events_BTC = np.zeros((*real_BT.shape, NUM_EVENT_NUMBERS), np.float32)
    kinds_BT[real_BT], events_BTC[real_BT] = arrays["kinds"][place], arrays["events"][place]
    return {
        "kinds_BT": torch.from_numpy(kinds_BT),
        "events_BTC": torch.from_numpy(events_BTC),
        "length_B": torch.from_numpy(length_B),
    }


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64, 0 where null, as is all of a column without a type."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64)
    return pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """All elements of a list column, in order; dictionaries decoded."""
    values = column.combine_chunks().flatten()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _numbers(values: pa.Array) -> np.ndarray:
    """float64, 0 where missing or not finite."""
    numbers = pc.cast(values, pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(numbers), numbers, 0.0)


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


def _codes(kind_E: pa.Array, vocabulary: list[str | int]) -> np.ndarray:
    """(E,) int64: place in the vocabulary after FIRST_KIND, FIRST_KIND - 1 for kinds that training did not have."""
    known = pc.index_in(kind_E, value_set=pa.array(vocabulary, kind_E.type)).fill_null(-1)
    return np.maximum(known.to_numpy(zero_copy_only=False).astype(np.int64) + FIRST_KIND, FIRST_KIND - 1)


def _scales(codes: np.ndarray, values: np.ndarray, num_kinds: int) -> list[list[float]]:
    """[mean, standard deviation] of the values by code: an order's amount and a rating share no scale."""
    scales = [[0.0, 1.0] for _ in range(num_kinds + FIRST_KIND)]
    for code in range(FIRST_KIND, num_kinds + FIRST_KIND):
        own = values[codes == code]
        scales[code] = [float(own.mean()), float(own.std()) or 1.0]
    return scales


def encode(examples: pa.Table, state: Mapping[str, Any], max_events: int) -> dict[str, np.ndarray]:
    """offsets (N + 1,) int64, kinds (E,) int64, events (E, C) float32; no events where training or all rows have none.

    Row i owns the events offsets[i]:offsets[i + 1], oldest first, at most max_events of them. state: what `vocabulary`
    gave. SchemaError for a missing column or lists of unequal length.
    """
    empty = {
        "offsets": np.zeros(examples.num_rows + 1, np.int64), "kinds": np.zeros(0, np.int64),
        "events": np.zeros((0, NUM_EVENT_NUMBERS), np.float32),
    }  # fmt: skip
    if not state["kinds"]:
        return empty
    missing = [name for name in EVENT_COLUMNS if name not in examples.column_names]
    if missing:
        raise SchemaError(f"column {missing[0]!r} is missing; expected it as a sequence, as in training")
    counts = _lengths(examples["event_kind"])
    for name in EVENT_COLUMNS[1:]:
        if not np.array_equal(_lengths(examples[name]), counts):
            raise SchemaError(f"column {name!r}: its lists differ in length from those of 'event_kind'")
    if not counts.any():
        return empty
    kinds = _codes(_flat(examples["event_kind"]), state["kinds"])
    days = _numbers(_flat(examples["event_days_before"]))
    mean_std = np.array(state["value_scales"])[kinds]
    value = (_signed_log(_numbers(_flat(examples["event_value"]))) - mean_std[:, 0]) / mean_std[:, 1]
    ends = np.cumsum(counts)
    gap = np.zeros_like(days)
    gap[1:] = np.maximum(days[:-1] - days[1:], 0.0)
    gap[(ends - counts)[counts > 0]] = 0.0  # a row's first event follows nothing
    from_end = np.repeat(ends, counts) - np.arange(len(days))
    kept = from_end <= max_events
    # Days reach into the thousands: a third of the log brings all three numbers near 1.
    events = np.stack([np.log1p(gap) / 3, np.log1p(np.maximum(days, 0.0)) / 3, value], axis=1)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, max_events))])
    return {"offsets": offsets, "kinds": kinds[kept], "events": events[kept].astype(np.float32)}
