"""Snapshot dates and splits: which rows may be seen when.

An example is a customer at an `as_of`. Features read strictly before it, labels read [as_of, as_of + horizon). While
candidates are compared, training rows end their label window before the *validation* as_of; for the refit, before the
*test* as_of. Beside the split by time, every customer belongs to one part (train, validation or test, 70/15/15 by a
salted hash), which is the split where there is no time. A mapped `split` column is honoured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from crmray import schema
from crmray.config import Part
from crmray.errors import DataError, NotEnoughDataError

PARTS = ("train", "validation", "test")
TRAIN_PERCENT, VALIDATION_PERCENT = 70, 15
_SALT = "crmray-part:"


def utc(moment: datetime) -> datetime:
    """A moment in UTC; one without a zone is taken as UTC."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


class TimeSettings(Part):
    """The dates of a task. Left out, they follow from the span of the data."""

    horizon_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """length of the label window [as_of, as_of + horizon_days), in days"""
    lookback_days: Annotated[int, Field(ge=1, le=3650)] = 365
    """history that the population and the longest feature window look at, in days"""
    as_of: datetime | None = None
    """test date; default: the last one whose label window the data covers"""
    validation_as_of: datetime | None = None
    """date on which candidates are compared; default: one horizon before the test date"""
    train_as_of: list[datetime] | None = None
    """training dates; default: num_snapshots of them, the last one horizon before validation, and those in between"""
    num_snapshots: Annotated[int, Field(ge=1, le=120)] = 6
    """training dates whose label window ends before the validation date"""
    snapshot_every_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """distance of two training dates, in days"""

    @field_validator("as_of", "validation_as_of")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else utc(value)

    @field_validator("train_as_of")
    @classmethod
    def _in_order(cls, value: list[datetime] | None) -> list[datetime] | None:
        return None if value is None else sorted(set(map(utc, value)))

    @model_validator(mode="after")
    def _order(self) -> TimeSettings:
        if self.train_as_of is not None and not self.train_as_of:
            raise ValueError("train_as_of: got an empty list, expected at least one date; leave it out for the default")
        return self

    @property
    def uses_time(self) -> bool:
        """False where these settings split by part although the data has a clock."""
        return True


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """The dates of one examples run; all None and empty for an org without time."""

    train: tuple[datetime, ...] = ()
    """training dates, ascending; those whose label window passes the validation date serve the refit only"""
    validation: datetime | None = None
    """date on which candidates are compared"""
    test: datetime | None = None
    """date of the report"""
    now: datetime | None = None
    """first midnight after the last event: the date of the rows that are scored and served"""
    horizon_days: int = 0
    """length of the label window, in days"""

    @property
    def has_time(self) -> bool:
        """False: split by part, not by date."""
        return self.test is not None

    @property
    def past(self) -> tuple[datetime, ...]:
        """The dates that have labels, ascending, each once; none without time."""
        return tuple(sorted({date for date in (*self.train, self.validation, self.test) if date is not None}))

    def to_json(self) -> dict[str, Any]:
        """The manifest's `as_of`: ISO strings."""
        return {
            "train": [date.isoformat() for date in self.train],
            **{name: _iso(getattr(self, name)) for name in ("validation", "test", "now")},
        }

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Snapshots:
        """The snapshots of an examples run, from its manifest."""
        dates = manifest["as_of"]
        return Snapshots(
            train=tuple(datetime.fromisoformat(text) for text in dates["train"]),
            validation=_parse(dates["validation"]),
            test=_parse(dates["test"]),
            now=_parse(dates["now"]),
            horizon_days=manifest["horizon_days"],
        )


def _iso(date: datetime | None) -> str | None:
    return None if date is None else date.isoformat()


def _parse(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def snapshots(settings: TimeSettings, span: tuple[datetime, datetime]) -> Snapshots:
    """The dates for data whose first and last events are `span`.

    Raises DataError for a date whose label window the data does not cover or for dates out of order, NotEnoughDataError
    when no training window fits before the validation date.
    """
    start, last = span
    now = last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    horizon, every = timedelta(days=settings.horizon_days), timedelta(days=settings.snapshot_every_days)
    test = settings.as_of or now - horizon
    if test + horizon > now:
        raise DataError(
            f"got as_of {_day(test)} with horizon_days {settings.horizon_days}, but the data ends on {_day(last)};"
            f" expected as_of at most {_day(now - horizon)}, so that the outcome is known: choose an earlier date or"
            " leave as_of out"
        )
    validation = settings.validation_as_of or test - horizon
    if validation + horizon > test:
        raise DataError(
            f"got validation_as_of {_day(validation)}, expected at most {_day(test - horizon)}: its label window of"
            f" {settings.horizon_days} days has to end before the test date {_day(test)}"
        )
    if settings.train_as_of is not None:
        train = _given_train(settings, validation, test)
    else:
        train = _default_train(settings, start, validation, every)
    if train[0] <= start:
        raise NotEnoughDataError(
            f"got training date {_day(train[0])}, but the data begins on {_day(start)}; expected history before it:"
            " choose a later date"
        )
    return Snapshots(train=train, validation=validation, test=test, now=now, horizon_days=settings.horizon_days)


def _given_train(settings: TimeSettings, validation: datetime, test: datetime) -> tuple[datetime, ...]:
    assert settings.train_as_of is not None
    horizon = timedelta(days=settings.horizon_days)
    late = [date for date in settings.train_as_of if date + horizon > test]
    if late:
        raise DataError(
            f"got training date {_day(late[0])}, expected at most {_day(test - horizon)}: its label window has to end"
            f" before the test date {_day(test)}"
        )
    if settings.train_as_of[0] + horizon > validation:
        raise NotEnoughDataError(
            f"got training dates from {_day(settings.train_as_of[0])} on, expected one at or before"
            f" {_day(validation - horizon)}, so that its label window ends before validation, {_day(validation)}"
        )
    return tuple(settings.train_as_of)


def _default_train(
    settings: TimeSettings, start: datetime, validation: datetime, every: timedelta
) -> tuple[datetime, ...]:
    """Back from one horizon before validation, and forward from there up to validation (these serve the refit).

    Dates with less history than lookback_days are left out, unless all would be: then those with one horizon of history
    are taken, and the young customers are flagged in their rows.
    """
    horizon = timedelta(days=settings.horizon_days)
    start = start.replace(hour=0, minute=0, second=0, microsecond=0)
    newest = validation - horizon
    if newest < start + horizon:
        needed = timedelta(days=4 * settings.horizon_days)
        raise NotEnoughDataError(
            f"the data begins on {_day(start)}; with horizon_days {settings.horizon_days} the newest training date"
            f" would be {_day(newest)} (validation {_day(validation)}), expected at least {settings.horizon_days} days"
            f" of history before it: {needed.days} days of data in all; bring more history or choose a shorter"
            " horizon_days"
        )
    back = [newest - every * index for index in range(settings.num_snapshots)]
    enough = [date for date in back if date - timedelta(days=settings.lookback_days) >= start]
    chosen = enough or [date for date in back if date - horizon >= start]
    between = [newest + every * index for index in range(1, int(horizon / every) + 1)]
    return tuple(sorted(chosen) + [date for date in between if date < validation])


def _day(date: datetime) -> str:
    return date.strftime("%Y-%m-%d")


def micros(date: datetime) -> int:
    """Microseconds since 1970 UTC, exact."""
    return (date - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def selection(as_of: pa.ChunkedArray | pa.Array, dates: Snapshots) -> np.ndarray:
    """Mask of the rows of train/ that may be seen while candidates are compared. Without time: all of them."""
    return _ends_before(as_of, dates, dates.validation)


def refit(as_of: pa.ChunkedArray | pa.Array, dates: Snapshots) -> np.ndarray:
    """Mask of the rows of train/ and validation/ that may be seen by the refit. Without time: all of them."""
    return _ends_before(as_of, dates, dates.test)


def _ends_before(as_of: pa.ChunkedArray | pa.Array, dates: Snapshots, limit: datetime | None) -> np.ndarray:
    if limit is None:
        return np.ones(len(as_of), bool)
    latest_us = micros(limit - timedelta(days=dates.horizon_days))
    times_us = pc.cast(as_of.cast(schema.TIME), pa.int64()).to_numpy(zero_copy_only=False)
    return times_us <= latest_us


def keys(entities: pa.Array, as_of: datetime | None) -> dict[str, pa.Array]:
    """schema.KEYS of a row for each entity at a date, its part by hash; as_of is null without a date."""
    dates = pa.repeat(pa.scalar(as_of, schema.TIME), len(entities))
    return {"entity_id": entities, "as_of": dates, "part": part(entities)}


def with_labels(rows: pa.Table, labels: Mapping[str, pa.Array], mapped: pa.Array | None = None) -> pa.Table:
    """The rows with these columns, (N,) each, right after `part`, which honours the mapped ones."""
    at = rows.schema.get_field_index("part")
    if mapped is not None:
        rows = rows.set_column(at, "part", part(rows["entity_id"], mapped))
    for place, (name, values) in enumerate(labels.items(), start=at + 1):
        rows = rows.add_column(place, name, values)
    return rows


def part(entity_ids: pa.ChunkedArray | pa.Array, mapped: pa.ChunkedArray | pa.Array | None = None) -> pa.Array:
    """The part of each row's customer (string): `mapped` where it has a value, else by hash, 70/15/15.

    The hash is salted, so it is independent of the one that shards. DataError for another value than PARTS in `mapped`.
    """
    if isinstance(entity_ids, pa.ChunkedArray):
        entity_ids = entity_ids.combine_chunks()
    codes = entity_ids.dictionary_encode()
    limits = (TRAIN_PERCENT, TRAIN_PERCENT + VALIDATION_PERCENT)
    digests = (hashlib.md5((_SALT + key).encode(), usedforsecurity=False) for key in codes.dictionary.to_pylist())
    percents = np.fromiter((int.from_bytes(digest.digest()[:8], "big") % 100 for digest in digests), np.int64)
    names = pa.array(PARTS).take(pa.array(np.searchsorted(limits, percents, side="right")))
    parts = names.take(codes.indices)
    if mapped is None:
        return parts
    if isinstance(mapped, pa.ChunkedArray):
        mapped = mapped.combine_chunks()
    unknown = pc.invert(pc.is_in(mapped, value_set=pa.array([*PARTS, None], pa.string())))
    if pc.any(unknown).as_py():
        bad = mapped.filter(unknown)[0].as_py()
        raise DataError(f"table outcomes: column 'split' holds {bad!r}, expected one of {', '.join(PARTS)} or nothing")
    return pc.coalesce(mapped, parts)
