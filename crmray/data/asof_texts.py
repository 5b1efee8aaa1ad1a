"""Rows of texts: what customers wrote to the org, one row an interaction, for the tasks that put texts into classes.

With time an example at `as_of` is an interaction of the window [as_of - window_days, as_of); windows follow each other
without a gap: the last is the test, the one before it the validation, those before it are for training. Without (no
usable clock, or `by: part`) rows are split by a mapped attribute `split` of the interactions, else by the hash of the
customer, so that what one customer writes is on one side.

Columns: entity_id (the interaction's id), as_of, part, label (string), customer_id (no feature), text (subject and
cleaned body).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from crmray import schema
from crmray.config import Part
from crmray.data import outcomes, splits, text
from crmray.data.asof_rows import DAY_US
from crmray.data.splits import Snapshots
from crmray.errors import DataError, NotEnoughDataError

SPLIT = "split"
"""attribute of the interactions that says the part of a row, where it is mapped"""
NOTES = ("call", "task", "meeting")
"""channels whose texts are notes for the org itself: none of them is an answer"""
MOST_PASSED_OVER = 5
"""outbound texts about something else that are looked past for an answer"""
_REPLY = r"^\s*(?:(?:re|aw|fw|fwd|wg|sv|rv|tr)\s*:\s*)+"


class TextSettings(Part):
    """What is common to the tasks on texts."""

    by: Literal["time", "part"] = "time"
    """split by time, or by the rows' part (for texts without a usable clock)"""
    window_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """length of the windows whose interactions are the rows of one date, in days"""
    num_windows: Annotated[int, Field(ge=1, le=120)] = 24
    """windows before the validation window that are trained on, at most"""
    as_of: datetime | None = None
    """end of the test window; default: the first midnight after the last interaction"""
    scored_days: Annotated[int, Field(ge=1, le=36500)] = 1095
    """interactions of so many days before the present are scored and served by id, in days"""
    encoder: str = ""
    """BERT for embeddings: a hub id, or a local folder in the transformers format; empty: none"""

    @field_validator("as_of")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else splits.utc(value)

    @property
    def horizon_days(self) -> int:
        """The windows are the horizon: a row's class is known when the next window begins."""
        return self.window_days

    @property
    def uses_time(self) -> bool:
        """False where these settings split by part although the data has a clock."""
        return self.by == "time"


def dates(settings: TextSettings, span: tuple[datetime, datetime]) -> Snapshots:
    """The ends of the windows. DataError for an as_of after the data, NotEnoughDataError for fewer than three windows
    with data."""
    start, last = span
    now = last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    window, test = timedelta(days=settings.window_days), settings.as_of or now
    if test > now:
        raise DataError(
            f"got as_of {test:%Y-%m-%d}, but the data ends on {last:%Y-%m-%d}; expected as_of at most {now:%Y-%m-%d}:"
            " choose an earlier date or leave as_of out"
        )
    ends = [test - window * number for number in range(2, settings.num_windows + 2)]
    train = tuple(sorted(end for end in ends if end > start))
    if not train:
        raise NotEnoughDataError(
            f"got interactions from {start:%Y-%m-%d} to {test:%Y-%m-%d}, expected more than two windows of"
            f" {settings.window_days} days: choose shorter window_days, or by: part"
        )
    return Snapshots(train=train, validation=test - window, test=test, now=now, horizon_days=settings.window_days)


def rows(
    tables: Mapping[str, pa.Table],
    as_of: datetime | None,
    settings: TextSettings,
    label_of: Callable[[pa.Table], pa.Array] | None,
) -> pa.Table:
    """The rows of one date, sorted by entity_id; `place` (int64) is the row of the interaction in its table.

    label_of: inbound interactions -> their class, null where it is not known: then the rows of the window whose class
    is known; None: all rows of scored_days, their class null.
    """
    table = tables["interactions"]
    days = settings.window_days if label_of else settings.scored_days
    place = np.flatnonzero(inbound(table) & _within(table, as_of, days))
    chosen = table.take(pa.array(place))
    label = pa.nulls(len(place), pa.string()) if label_of is None else label_of(chosen)
    if label_of is not None:
        known = pc.is_valid(label).to_numpy(zero_copy_only=False)
        place, chosen, label = place[known], chosen.filter(pa.array(known)), label.filter(pa.array(known))
    written = words(chosen)
    made = pa.table(
        {
            "entity_id": _ids(table).take(pa.array(place)),
            "as_of": pa.array([as_of] * len(place), schema.TIME),
            "part": splits.part(chosen["entity_id"], chosen[SPLIT] if SPLIT in chosen.column_names else None),
            "label": label,
            "customer_id": chosen["entity_id"].cast(pa.string()),
            "text": written,
            "place": pa.array(place, pa.int64()),
        }
    )
    return made.filter(pc.is_valid(made["text"])).sort_by("entity_id").combine_chunks()


def inbound(table: pa.Table) -> np.ndarray:
    """Mask of what customers wrote: not marked as outbound, with a text."""
    mask = pc.is_valid(table["text"]).to_numpy() if "text" in table.column_names else np.zeros(table.num_rows, bool)
    if "direction" in table.column_names:
        mask &= pc.not_equal(pc.utf8_lower(table["direction"]), "outbound").fill_null(True).to_numpy()
    return mask


def words(table: pa.Table) -> pa.Array:
    """Subject and cleaned body of interactions as one text; null where nothing was said.

    Without a body a subject says nothing of its own: it may be the subject of what is replied to.
    """
    body = text.clean(table["text"])
    if "subject" not in table.column_names:
        return body
    subject = pc.replace_substring_regex(text.clean(table["subject"]), pattern=f"(?i){_REPLY}", replacement="")
    return text.joined(pc.if_else(pc.is_valid(body), subject, None), body)


def attribute(name: str) -> Callable[[pa.Table], pa.Array]:
    """Class = an attribute of the interaction, as text."""

    def label_of(table: pa.Table) -> pa.Array:
        if name not in table.column_names:
            raise DataError(f"table interactions: column {name!r} is missing, expected it as the label: map it")
        values = table[name].combine_chunks().cast(pa.string())
        values = pc.utf8_trim_whitespace(values)
        return pc.if_else(pc.equal(values, ""), None, values)

    return label_of


def known_by(as_of: datetime | None, settings: TextSettings) -> pa.Scalar | None:
    """When the class of a row of this date has to be known, so that those who train at the next date may know it."""
    return None if as_of is None else pa.scalar(as_of + timedelta(days=settings.horizon_days), schema.TIME)


def outcome(
    name: str, table: pa.Table, until: pa.Scalar | None, class_of: Callable[[pa.Array], pa.Array]
) -> Callable[[pa.Table], pa.Array]:
    """Class = that of the customer's last outcome of that name before `until`: for texts labelled one a customer."""
    given = outcomes.named(table, name)
    if until is not None and "as_of" in given.column_names:
        given = given.filter(pc.fill_null(pc.less(given["as_of"], until), True)).sort_by([("as_of", "descending")])

    def label_of(table: pa.Table) -> pa.Array:
        at = pc.index_in(table["entity_id"], value_set=given["entity_id"].combine_chunks())
        return class_of(given["value"].combine_chunks().take(at.combine_chunks()))

    return label_of


def solved(table: pa.Table, as_of: datetime | None) -> np.ndarray:
    """Mask of the interactions that may count as solved: a case only once it is closed, before as_of."""
    if "closed_at" not in table.column_names:
        return np.ones(table.num_rows, bool)
    closed = pc.is_valid(table["closed_at"])
    if as_of is not None:
        closed = pc.and_(closed, pc.less(table["closed_at"], pa.scalar(as_of, schema.TIME)).fill_null(False))
    return closed.to_numpy() | ~_in_channel(table, ("case",))


def replies(table: pa.Table, place: np.ndarray, as_of: datetime | None, within_days: int) -> tuple[pa.Array, pa.Array]:
    """What the org answered to the interactions at these rows of the table, and the answer's interaction_id: strings,
    null where it did not, not yet, or where the matter is open (see `solved`).

    The answer is the customer's first outbound text after it, before as_of and within so many days, under the same
    subject where both have one; without greeting and end, which name two people. The table is sorted by customer and
    time.
    """
    number, customer = np.arange(table.num_rows), _codes(table["entity_id"])
    times_us = pc.cast(table["occurred_at"], pa.int64()).to_numpy()
    out = ~inbound(table) & pc.is_valid(table["text"]).to_numpy() & ~_in_channel(table, NOTES)
    if as_of is not None:
        out &= times_us < splits.micros(as_of)
    topic = _codes(pc.utf8_lower(_topics(table)))
    sent = np.append(number[out], len(number))
    found = np.full(len(place), -1)
    first = np.searchsorted(sent, place, side="right")
    limit_us = within_days * DAY_US
    for step in range(MOST_PASSED_OVER):
        row = sent[np.minimum(first + step, len(sent) - 1)]
        there = row < len(number)
        at = np.where(there, row, 0)
        near = there & (customer[at] == customer[place]) & (times_us[at] - times_us[place] <= limit_us)
        same = (topic[at] == topic[place]) | (topic[at] < 0) | (topic[place] < 0)
        found = np.where((found < 0) & near & same, at, found)
    row = pa.array(found, mask=(found < 0) | ~solved(table, as_of)[place])
    return text.clean(table["text"].take(row), anonymous=True), _ids(table).take(row)


def _in_channel(table: pa.Table, channels: tuple[str, ...]) -> np.ndarray:
    """Mask of the interactions in one of these channels."""
    if "channel" not in table.column_names:
        return np.zeros(table.num_rows, bool)
    return pc.is_in(pc.utf8_lower(table["channel"]), value_set=pa.array(channels)).to_numpy()


def _topics(table: pa.Table) -> pa.ChunkedArray:
    if "subject" not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    plain = pc.replace_substring_regex(table["subject"], pattern=f"(?i){_REPLY}", replacement="")
    return pc.utf8_trim_whitespace(plain)


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """int64 number of each value, -1 for null."""
    encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _within(table: pa.Table, as_of: datetime | None, days: int) -> np.ndarray:
    if as_of is None:
        return np.ones(table.num_rows, bool)
    start, end = (pa.scalar(moment, schema.TIME) for moment in (as_of - timedelta(days=days), as_of))
    inside = pc.and_(pc.greater_equal(table["occurred_at"], start), pc.less(table["occurred_at"], end))
    return inside.to_numpy()


def _ids(table: pa.Table) -> pa.Array:
    """interaction_id; where there is none, the customer and the number of the interaction among the customer's: enough
    to tell rows apart, not to ask for one."""
    code = _codes(table["entity_id"])
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], code[order], side="left")
    number = np.empty(len(code), np.int64)
    number[order] = np.arange(len(code)) - starts
    customers = table["entity_id"].cast(pa.string()).combine_chunks()
    serial = pc.utf8_lpad(pa.array(number).cast(pa.string()), 9, "0")
    own = pc.binary_join_element_wise(customers, serial, "#")
    if "interaction_id" not in table.column_names:
        return own
    return pc.coalesce(table["interaction_id"].cast(pa.string()).combine_chunks(), own)


def inline(texts: list[str], moment: datetime) -> dict[str, list[dict[str, Any]]]:
    """Texts that are not in the data as rows of canonical tables, in their order."""
    times = (moment + timedelta(microseconds=number) for number in range(len(texts)))
    return {
        "interactions": [{"occurred_at": at.isoformat(), "text": one} for at, one in zip(times, texts, strict=True)]
    }
