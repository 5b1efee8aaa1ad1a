"""Dates and parts, computed by hand."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest

from crmray import schema
from crmray.data.splits import Snapshots, TimeSettings, part, refit, selection, snapshots
from crmray.errors import DataError, NotEnoughDataError


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


SPAN = (day("2022-01-01T08:00"), day("2023-12-31T23:00"))


def test_default_dates_follow_from_the_end_of_the_data():
    settings = TimeSettings(horizon_days=30, lookback_days=365, num_snapshots=3, snapshot_every_days=10)
    dates = snapshots(settings, SPAN)
    assert dates.now == day("2024-01-01")
    assert dates.test == day("2023-12-02")
    assert dates.validation == day("2023-11-02")
    # three whose windows end by validation, then two between them and validation for the refit
    assert dates.train == tuple(
        day(text) for text in ("2023-09-13", "2023-09-23", "2023-10-03", "2023-10-13", "2023-10-23")
    )


def test_selection_and_refit_see_only_ended_windows():
    settings = TimeSettings(horizon_days=30, num_snapshots=3, snapshot_every_days=10)
    dates = snapshots(settings, SPAN)
    as_of = pa.array([*dates.train, dates.validation, dates.test], schema.TIME)
    assert selection(as_of, dates).tolist() == [True, True, True, False, False, False, False]
    assert refit(as_of, dates).tolist() == [True] * 6 + [False]
    assert selection(pa.array([None, None], schema.TIME), Snapshots()).tolist() == [True, True]


def test_a_training_date_without_full_lookback_is_left_out():
    dates = snapshots(TimeSettings(horizon_days=30, lookback_days=630, snapshot_every_days=10), SPAN)
    assert dates.train[0] == day("2023-09-23")  # 630 days after 2022-01-01


def test_the_manifest_brings_the_dates_back():
    dates = snapshots(TimeSettings(), SPAN)
    assert Snapshots.of({"as_of": dates.to_json(), "horizon_days": 90}) == dates
    assert not Snapshots.of({"as_of": Snapshots().to_json(), "horizon_days": 90}).has_time


def test_given_dates_are_read_as_utc_and_sorted():
    settings = TimeSettings(as_of="2023-09-01", train_as_of=["2023-05-01", "2023-01-01T01:00:00+01:00"])
    assert settings.as_of == day("2023-09-01")
    assert settings.train_as_of == [day("2023-01-01"), day("2023-05-01")]
    assert snapshots(settings, SPAN).train == (day("2023-01-01"), day("2023-05-01"))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"as_of": "2023-12-01"}, DataError, "got as_of 2023-12-01 .* at most 2023-10-03"),
        ({"as_of": "2030-01-01"}, DataError, "the data ends on 2023-12-31"),
        ({"as_of": "2023-09-01", "validation_as_of": "2023-07-01"}, DataError, "at most 2023-06-03"),
        ({"as_of": "2023-09-01", "train_as_of": ["2023-01-01", "2023-08-01"]}, DataError, "training date 2023-08-01"),
        ({"as_of": "2023-09-01", "train_as_of": ["2023-05-01"]}, NotEnoughDataError, "one at or before 2023-03-05"),
        ({"as_of": "2022-12-01", "train_as_of": ["2021-01-01"]}, NotEnoughDataError, "data begins on 2022-01-01"),
        ({"horizon_days": 200}, NotEnoughDataError, "newest training date would be 2022-05-11.* 800 days of data"),
    ],
)
def test_dates_the_data_cannot_carry_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        snapshots(TimeSettings(**values), SPAN)


def test_parts_are_70_15_15_and_stay():
    ids = pa.array([f"c{i}" for i in range(20_000)])
    parts = np.array(part(ids).to_pylist())
    shares = [float((parts == name).mean()) for name in ("train", "validation", "test")]
    assert np.allclose(shares, [0.70, 0.15, 0.15], atol=0.01)
    percent = int(hashlib.md5(b"crmray-part:c7").hexdigest()[:16], 16) % 100
    assert parts[7] == ("train" if percent < 70 else "validation" if percent < 85 else "test")
    assert part(ids.slice(5_000, 10)).to_pylist() == parts[5_000:5_010].tolist()


def test_a_mapped_split_is_honoured_and_checked():
    ids = pa.array(["a", "b", "c"])
    own = part(ids).to_pylist()
    assert part(ids, pa.array(["test", None, "validation"])).to_pylist() == ["test", own[1], "validation"]
    with pytest.raises(DataError, match="column 'split' holds 'dev', expected one of train, validation, test"):
        part(ids, pa.array(["test", "dev", None]))
