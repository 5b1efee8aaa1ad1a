"""Customer value by published models, and its season and lifetime: against the papers and by hand."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest
from by_hand import AS_OF, at

from crmray import schema
from crmray.models import value_bgnbd, value_season
from crmray.models.value_bgnbd import BGNBDModel
from crmray.models.value_season import Season, lifetime_factor, retention
from crmray.models.value_targets import PURCHASES, SPEND

FLAT = Season(factors=(1.0,) * 12)
YEAR = {"horizon_days": 90, "lookback_days": 365}


# -- BG/NBD and Gamma-Gamma against the papers ------------------------------------------------------------------------

PAPER = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426, "p": 6.25, "q": 3.74, "gamma": 15.44, "net_share": 1.0}


def test_expected_purchases_and_value_of_the_papers_customers():
    model = BGNBDModel(weeks=39.0, **PAPER)
    # Fader, Hardie and Lee (2005): x = 2, t_x = 30.43, T = 38.86 buys 1.226 times in the next 39 weeks
    one = (np.array([2.0]), np.array([30.43]), np.array([38.86]))
    assert model.purchase_days(*one)[0] == pytest.approx(1.226, abs=5e-4)
    # Fader and Hardie (2013): two purchases of 22.35 on average; by hand 6.25 (15.44 + 44.70) / (12.5 + 2.74)
    assert model.purchase_value(np.array([2.0]), np.array([22.35]))[0] == pytest.approx(24.664, abs=1e-3)
    assert model.alive(np.zeros(1), np.zeros(1), np.array([39.0]))[0] == 1.0
    assert 0 < model.alive(*one)[0] < 1


def test_who_bought_hundreds_of_times_is_expected_to_go_on():
    one = (np.array([365.0]), np.array([59.9]), np.array([60.0]))  # nearly every day of 60 weeks
    few, many = (BGNBDModel(weeks=weeks, **PAPER).purchase_days(*one)[0] for weeks in (52.0, 521.0))
    assert 200 < few < many < 365 / 60 * 521


def test_the_likelihood_finds_the_parameters_that_made_the_data():
    rng, n, weeks = np.random.default_rng(0), 4000, 60.0
    truth = np.array([0.8, 6.0, 0.7, 3.0])
    rate, leave = rng.gamma(truth[0], 1 / truth[1], n), rng.beta(truth[2], truth[3], n)
    x, t_x, now, here = np.zeros(n), np.zeros(n), np.zeros(n), np.ones(n, bool)
    while here.any():
        now = now + rng.exponential(1 / rate)
        here &= now < weeks
        x, t_x = x + here, np.where(here, now, t_x)
        here &= rng.random(n) >= leave
    found = value_bgnbd.minimise(lambda log: value_bgnbd.bgnbd_loss(np.exp(log), x, t_x, np.full(n, weeks)), 4, 0.0)
    assert found[:2] == pytest.approx(truth[:2], rel=0.25)
    assert found[2] / (found[2] + found[3]) == pytest.approx(0.7 / 3.7, abs=0.04)
    q, gamma = 3.0, 20.0
    count = rng.integers(1, 12, n).astype(float)
    mean = rng.gamma(5.0 * count, 1.0, n) / rng.gamma(q, 1 / gamma, n) / count
    p, own_q, own_gamma = value_bgnbd.minimise(
        lambda log: value_bgnbd.gammagamma_loss(np.exp(log), count, mean), 3, 0.0
    )
    assert own_q == pytest.approx(q, rel=0.1)
    assert p * own_gamma / (own_q - 1) == pytest.approx(5.0 * gamma / (q - 1), rel=0.05)  # the mean value


# -- season, retention, lifetime value --------------------------------------------------------------------------------


def snapshot(date: datetime, orders: np.ndarray, came: float, *, age_days: float = 400.0) -> pa.Table:
    """50 customers with these orders by month before the date, and orders after it, in total."""
    return pa.table({
        "as_of": pa.array([date] * 50, schema.TIME), "tenure_purchase_days": [age_days] * 50,
        "orders_by_month": pa.array([(orders / 50).tolist()] * 50, pa.list_(pa.float32())), PURCHASES: [came / 50] * 50,
    })  # fmt: skip


def test_a_season_is_believed_as_far_as_it_told_what_came():
    days = np.array([31, 28.25, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
    halves = np.repeat([1.5, 0.5], 6)
    dates = [datetime(2023, month, 1, tzinfo=timezone.utc) for month in (5, 6, 7, 8, 9)]
    orders = 1000 * halves * days
    rates = [Season(factors=tuple(halves)).mean(date, 90) for date in dates]
    for power in (1.0, 0.0):  # as a year before; as if there were no season
        *train, validation = [snapshot(d, orders, 50_000 * rate**power) for d, rate in zip(dates, rates, strict=True)]
        found = value_season.fit(pa.concat_tables(train), validation, **YEAR)
        assert np.array(found.factors) == pytest.approx(halves if power else np.ones(12), abs=0.01)
    assert found.mean(datetime(2024, 6, 16, tzinfo=timezone.utc), 30) == pytest.approx(1.0, abs=0.03)
    young = [snapshot(d, orders, 9000.0, age_days=300.0) for d in dates]
    assert value_season.fit(pa.concat_tables(young[:-1]), young[-1], **YEAR) == FLAT
    seasonal = [snapshot(d, orders, 50_000 * rate) for d, rate in zip(dates, rates, strict=True)]
    short = {**YEAR, "lookback_days": 180}  # who bought in the far months alone is not in the rows
    assert value_season.fit(pa.concat_tables(seasonal[:-1]), seasonal[-1], **short) == FLAT


def test_growth_is_no_season():
    """Orders grow by 1 % a month for ever; customers of any date buy alike."""
    level, dates = 1.01, [datetime(2023, month, 1, tzinfo=timezone.utc) for month in (1, 4, 7)]
    days = np.array([31, 28.25, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
    rows = []
    for date in dates:
        since = (np.arange(12) - date.month + 1) % 12  # months after the same date a year before
        orders = 1e4 * days * level ** (date.month - 1 + since)
        rows.append(snapshot(date, orders, 0.2 * orders.sum()))
    found = value_season.fit(pa.concat_tables(rows[:-1]), rows[-1], **YEAR)
    assert np.array(found.factors) == pytest.approx(np.ones(12), abs=0.01)


def test_retention_and_lifetime_value_by_hand():
    def rows(date: datetime, spend: dict[str, float]) -> pa.Table:
        dates = pa.array([date] * len(spend), schema.TIME)
        return pa.table({"entity_id": list(spend), "as_of": dates, SPEND: list(spend.values())})

    train = rows(at(-90), {"a": 60.0, "b": 40.0, "gone": 100.0})
    validation = rows(AS_OF, {"a": 30.0, "b": 50.0, "new": 500.0})
    assert retention(train, validation, FLAT, 90) == pytest.approx(0.4)  # 80 of 200, half in half the time
    assert retention(rows(at(-180), {"a": 320.0}), validation, FLAT, 90) == pytest.approx((30 / 320) ** 0.5)
    assert retention(rows(at(-30), {"a": 320.0}), validation, FLAT, 90) == 1.0  # too near to tell
    given = {"retention": 0.5, "horizon_days": 365, "lifetime_days": 912, "discount_rate": 0.25}
    assert lifetime_factor(FLAT, AS_OF, **given) == pytest.approx(1 + 0.4 + 0.16 * 182 / 365)
