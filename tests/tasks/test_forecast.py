"""Weekly series by hand, figures, sums that add up, margins, dates, and the truth of the demo."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from weekly import MONDAY, of, rows_of, sold

from crmray import schema
from crmray.data import asof_series, demo_truth_forecast
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import World
from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import conformal, forecasts
from crmray.models.forecast_naive import SeasonalNaive
from crmray.models.forecast_panel import COLUMNS, week_of_year
from crmray.models.forecast_sums import SHARES, expected, sums
from crmray.tasks import forecast
from crmray.train.fit import _Work
from crmray.train.points import Fit, Point, Result


def test_weeks_begin_on_mondays():
    assert asof_series.monday(asof_series.week_of(MONDAY)) == MONDAY
    assert asof_series.week_of(MONDAY - timedelta(microseconds=1)) == asof_series.week_of(MONDAY) - 1
    assert asof_series.monday(0) == datetime(1969, 12, 29, tzinfo=timezone.utc)
    assert week_of_year(np.array([asof_series.week_of(MONDAY)])).tolist() == [1]  # ISO 8601: 2024-W01
    assert week_of_year(np.array([asof_series.week_of(datetime(2021, 1, 3, tzinfo=timezone.utc))])).tolist() == [53]


def test_sales_are_summed_by_week_and_level():
    lines = [("c", 0, "a", 5.0), ("d", 6, "a", 2.0), ("c", 7, "b", 3.0), ("c", 21, "a", -1.0), ("c", 22, "b", 4.0)]
    rows = rows_of(sold(*lines), 2)
    assert rows["entity_id"].to_pylist() == ["category:Pots", "category:Tea", "product:a", "product:b", "total"]
    assert of(rows, "product:a")["history"] == [7.0, 0.0]  # Sunday belongs to its week; a gap is a week without sales
    assert of(rows, "product:b")["history"] == [3.0]  # begins with its first sale
    assert of(rows, "total")["label"] == [0.0, 3.0]  # a return counts against sales
    assert of(rows, "total")["scale"] == 4.0  # |3 - 7|
    assert of(rows, "product:a")["parents"] == ["category:Tea", "total"]


def test_a_level_lies_within_another_only_if_all_of_it_does():
    tables = sold(("c", 0, "a", 1.0), ("d", 1, "a", 1.0), ("d", 8, "b", 1.0), regions={"c": "N", "d": "S"})
    rows = rows_of(tables, 2, labels=False, levels=["total", "region", "product", "customer"])
    assert of(rows, "product:a")["parents"] == ["total"]  # sold in both regions
    assert of(rows, "customer:d")["parents"] == ["region:S", "total"]
    assert rows["label"].null_count == rows.num_rows


def test_shards_add_up_to_the_whole():
    lines = [("c", 0, "a", 1.5), ("d", 1, "a", 2.5), ("d", 9, "b", 1.0), ("c", 9, "b", 4.0)]
    own = forecast.Settings(horizon_weeks=1)
    whole, parts = sold(*lines), [sold(*lines[:1], lines[3]), sold(*lines[1:3])]
    together = forecast.combine([forecast.gather(part, own) for part in parts], own)
    alone = forecast.combine([forecast.gather(whole, own)], own)
    assert {name: table.to_pylist() for name, table in together.items()} == {
        name: table.to_pylist() for name, table in alone.items()
    }


def test_a_level_may_be_cut_to_its_largest_series():
    lines = [("c", 0, "a", 1.0), ("c", 0, "b", 9.0), ("c", 0, "c", 5.0), ("c", 15, "a", 99.0)]
    rows = rows_of(sold(*lines), 2, levels=["total", "product"], top={"product": 2})
    assert rows["entity_id"].to_pylist() == ["product:b", "product:c", "total"]  # what a sells later is not known yet
    matching = rows_of(sold(*lines), 2, levels=["total", "product"], products_matching="^[ab]")
    assert matching["entity_id"].to_pylist() == ["product:a", "product:b", "total"]
    assert of(matching, "total")["history"] == [15.0, 0.0]


def test_events_known_ahead_and_weights_by_week():
    tables = sold(("c", 0, "a", 1.0), ("c", 8, "a", 1.0), ("c", 21, "a", 1.0))
    tables["campaigns"] = pa.table(
        {
            "campaign_id": ["x", "y"],
            "kind": ["holiday", "mail"],
            "started_at": pa.array([MONDAY + timedelta(days=16), MONDAY], schema.TIME),
            "ended_at": pa.array([MONDAY + timedelta(days=28), None], schema.TIME),
        }
    )
    asked = {"known_ahead": ["holiday"], "week_weights": {"holiday": 5.0}, "horizon_weeks": 2, "levels": ["total"]}
    rows = rows_of(tables, 2, **asked)
    assert of(rows, "total")["event_holiday"] == [0.0, 0.0, 1.0, 1.0]  # its end, a Monday midnight, is outside
    assert of(rows, "total")["label_weight"] == [5.0, 5.0]
    with pytest.raises(DataError, match="got kind 'sale', but no row of table campaigns"):
        rows_of(tables, 2, known_ahead=["sale"])


def test_what_is_not_known_is_not_zero():
    tables = sold(("c", 0, "a", 1.0), ("c", 14, "a", 3.0), ("c", 28, "a", 2.0))
    row = of(rows_of(tables, 3, gaps="unknown", levels=["total"]), "total")
    assert row["history"] == [1.0, None, 3.0]
    assert row["label"] == [None, 2.0]
    figures = forecasts.figures(
        np.array([[np.nan, 2.0]]), np.full((1, 2, 5), 1.0), weights=np.ones((1, 2)), scale=np.ones(1)
    )
    assert figures["wape"] == 0.5


def test_wrong_settings_and_levels_are_told():
    with pytest.raises(ValueError, match="expected the midnight"):
        forecast.Settings(as_of=MONDAY + timedelta(days=3))
    with pytest.raises(DataError, match="none of transactions, products, customers has a value in a column 'owner'"):
        rows_of(sold(("c", 0, "a", 1.0)), 1, levels=["owner"])


def test_dates_are_whole_weeks_one_horizon_apart():
    own = forecast.Settings(horizon_weeks=4, num_origins=3)
    last = MONDAY + timedelta(weeks=40, days=2)  # a Wednesday: its week is not whole
    dates = forecast.dates(own, (MONDAY, last))
    weeks = [(date - MONDAY).days / 7 for date in (*dates.train, dates.validation, dates.test, dates.now)]
    assert weeks == [26, 27, 28, 29, 30, 31, 32, 32, 36, 40]
    assert dates.horizon_days == 28
    closed = own.model_copy(update={"week_ends": "wednesday"})
    assert forecast.dates(closed, (MONDAY, last)).now == MONDAY + timedelta(weeks=41)
    with pytest.raises(NotEnoughDataError, match="bring more history"):
        forecast.dates(own, (MONDAY, MONDAY + timedelta(weeks=14)))
    with pytest.raises(DataError, match="so that what came is known"):
        forecast.dates(own.model_copy(update={"as_of": MONDAY + timedelta(weeks=38)}), (MONDAY, last))


def test_figures_by_hand():
    truth, quantiles = np.array([[10.0, 0.0]]), np.tile([0.0, 4.0, 8.0, 12.0, 16.0], (1, 2, 1))
    found = forecasts.figures(truth, quantiles, weights=np.array([[1.0, 3.0]]), scale=np.array([4.0]))
    assert found["wape"] == (2 + 3 * 8) / 10
    assert found["mae"] == (2 + 3 * 8) / 4
    assert found["mase"] == (2 + 8) / 2 / 4  # not weighted by week
    assert found["coverage_80"] == 1.0
    first = np.mean([0.1 * 10, 0.25 * 6, 0.5 * 2, 0.25 * 2, 0.1 * 6])
    second = np.mean([0.0, 0.75 * 4, 0.5 * 8, 0.25 * 12, 0.1 * 16])
    assert found["wql"] == pytest.approx(2 * (first + 3 * second) / 10)
    steady = forecasts.figures(truth, quantiles, weights=np.ones((1, 2)), scale=np.array([np.nan]))
    assert "mase" not in steady  # there is nothing to measure it by
    weeks = forecasts.by_horizon(truth, quantiles, weights=np.ones((1, 2)))
    assert [one["week"] for one in weeks] == [1]  # nothing was sold in the second: no error and no coverage to tell
    assert weeks[0]["wape"] == 2 / 10
    with pytest.raises(NotEnoughDataError, match="nothing was sold"):
        forecasts.figures(truth * 0, quantiles, weights=np.ones((1, 2)), scale=np.ones(1))


def test_margins_bring_intervals_to_their_share():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 1))
    narrow = np.tile([-0.5, -0.25, 0.0, 0.25, 0.5], (4000, 1, 1))
    scale = np.ones(4000)
    found = conformal.margins(truth[:2000], narrow[:2000], scale[:2000])
    assert found["0.1"][0] == pytest.approx(1.2816 - 0.5, abs=0.06)  # the normal quantile
    wide = conformal.widened(narrow[2000:], found, scale[2000:])
    inside = (truth[2000:] >= wide[:, :, 0]) & (truth[2000:] <= wide[:, :, -1])
    assert 0.77 < inside.mean() < 0.83


def test_half_of_the_margins_is_added():
    margins = {"": {"0.1": [0.1, 0.2], "0.25": [0.0, -0.05]}}
    quantiles = np.tile([6.0, 8.0, 10.0, 12.0, 16.0], (1, 2, 1))  # 10 wide
    found = conformal.calibrated(margins, ["total"], quantiles)
    assert found[0].tolist() == [[5.5, 8.0, 10.0, 12.0, 16.5], [5.0, 8.25, 10.0, 11.75, 17.0]]


def test_expected_is_the_mean_of_the_quantiles():
    assert SHARES.sum() == pytest.approx(1.0)
    assert expected(np.array([[[1.0, 2.5, 5.0, 7.5, 9.0]]])) == pytest.approx(5.0)  # uniform on 0 … 10


def test_expected_sales_add_up_and_a_row_is_answered_alike_alone():
    rng = np.random.default_rng(1)
    lines = [("cd"[i % 2], 7 * w, p, float(rng.gamma(3, 4))) for w in range(40) for i, p in enumerate("abcde")]
    settings = {"horizon_weeks": 3, "levels": ["total", "category", "product", "customer"]}
    train, now = rows_of(sold(*lines), 30, **settings), rows_of(sold(*lines), 37, **settings)
    model = SeasonalNaive().fit(train, None, seed=0)
    decision = forecast.finalize(model, train, train, forecast.Settings(**settings))
    rows = forecast.together(model, decision, now)
    answers = forecast.predict(model, decision, rows)
    by_level = {}
    for level, values in zip(answers["level"].to_pylist(), answers["expected"].to_pylist(), strict=True):
        by_level[level] = by_level.get(level, 0.0) + np.array(values)
    for level in ("category", "product", "customer"):
        np.testing.assert_allclose(by_level[level], by_level["total"], rtol=1e-9)
    alone = forecast.predict(model, decision, rows.slice(4, 1))
    np.testing.assert_allclose(alone["expected"].to_pylist(), answers["expected"].slice(4, 1).to_pylist(), atol=1e-9)
    assert sums(now).shape[0] == 7  # the total of three levels; two categories and two customers of their products
    cut = rows_of(sold(*lines), 37, **settings, top={"product": 2})
    assert sums(cut).shape[0] == 3  # the total of two levels; of the products a alone still makes up its category


def test_a_later_origin_within_the_validation_window_knows_more():
    rows = rows_of(sold(*[("c", 7 * w, "a", float(w + 1)) for w in range(12)]), 6, horizon_weeks=3, levels=["total"])
    moved = conformal.rolled(rows, 2).to_pylist()[0]
    assert moved["as_of"] == MONDAY + timedelta(weeks=8)
    assert moved["history"] == [float(w + 1) for w in range(8)]
    assert moved["label"] == [9.0, None, None]


def test_the_winner_and_a_blend_are_chosen_on_more_than_the_weeks_after_one_date():
    class Fixed:
        """Says one thing of the total at first, another later, and a third of products."""

        def __init__(self, first: float, later: float, product: float):
            self.total, self.product = {MONDAY + timedelta(weeks=6): first}, product
            self.later = later

        def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
            rows = zip(examples["level"].to_pylist(), examples["as_of"].to_pylist(), strict=True)
            said = [self.total.get(day, self.later) if level == "total" else self.product for level, day in rows]
            return {name: np.tile(np.array(said)[:, None], 8) for name in COLUMNS}

    sales = sold(*[("c", 7 * week, "a", 10.0) for week in range(14)])
    rows = rows_of(sales, 6, horizon_weeks=8, levels=["total", "product"])
    tests = forecast.backtests(rows)
    found = forecast.blend({"lucky": Fixed(10.0, 30.0, 10.0), "steady": Fixed(11.0, 11.0, 99.0)}, tests)
    assert found.of_level == {"product": ["lucky"], "total": ["steady"]}
    models = {"lucky": Fixed(10.0, 30.0, 11.9), "steady": Fixed(11.0, 11.0, 11.0)}
    figures = {name: forecast.score(rows, model.predict(rows)) for name, model in models.items()}
    assert figures["lucky"]["wql"] < figures["steady"]["wql"]  # from the first origin
    fit = Fit(point=Point(candidate="ets", settings={}), rows="selection", key="k")
    best = {name: Result(fit=fit, figures=one) for name, one in figures.items()}
    winner, model, compared = _Work._winner(SimpleNamespace(task=forecast), best, models, rows)
    assert (winner, model) == ("steady", models["steady"])  # best in both levels on the origins: no blend of one
    assert compared["steady"] == pytest.approx(forecast.score(tests, models["steady"].predict(tests)))
    assert compared["steady"]["wql"] < compared["lucky"]["wql"]


def test_a_level_of_few_series_is_whole_in_every_backtest(monkeypatch):
    class Fixed:
        """Says one thing of the total and another of products."""

        def __init__(self, total: float, product: float):
            self.total, self.product = total, product

        def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
            said = [self.total if level == "total" else self.product for level in examples["level"].to_pylist()]
            return {name: np.tile(np.array(said)[:, None], 8) for name in COLUMNS}

    names = "abcdefghijklmnopqrstuvwxyz"
    sales = sold(*[("c", 7 * week, name, 10.0) for week in range(14) for name in names])
    rows = rows_of(sales, 6, horizon_weeks=8, levels=["total", "category", "product"])
    assert rows.num_rows == 29
    monkeypatch.setattr(conformal, "ORIGIN_SERIES", 3)
    parts = conformal.origins(rows)
    for part in parts:
        levels = part["level"].to_pylist()
        assert {name: levels.count(name) for name in set(levels)} == {"total": 1, "category": 2, "product": 3}
    assert len({tuple(part["entity_id"].to_pylist()) for part in parts}) > 1  # other products each time
    assert all(one.equals(other) for one, other in zip(parts, conformal.origins(rows), strict=True))
    found = forecast.blend({"large": Fixed(260.0, 0.0), "small": Fixed(0.0, 10.0)}, forecast.backtests(rows))
    assert found.of_level["total"] == ["large"]
    assert found.of_level["product"] == ["small"]


def test_the_truth_of_the_demo_org_is_calibrated_and_adds_up(monkeypatch):
    monkeypatch.setattr(demo_truth_forecast, "NUM_DRAWS", 40)
    monkeypatch.setattr(demo_truth_forecast, "CUSTOMERS", (1, 2_000))
    world = World(customers=400, seed=3)
    rows = demo_truth_forecast.of_block(world, simulate(world, 0), [], 90)
    label = {
        name: np.array(values)
        for name, values in zip(rows["entity_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    }
    for level in ("region", "category"):
        np.testing.assert_allclose(sum(v for n, v in label.items() if n.startswith(level)), label["total"], rtol=1e-9)
    truth = np.array(rows["label"].to_pylist())
    low, high = np.array(rows["q10"].to_pylist()), np.array(rows["q90"].to_pylist())
    assert 0.7 < ((truth >= low) & (truth <= high)).mean() < 0.9
    assert rows["as_of"][0].as_py().weekday() == 0
