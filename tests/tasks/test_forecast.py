"""Weekly series by hand, forecasters on plain cases, sums that add up, margins, dates, and the truth of the demo."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from conformance import fit

from crmray import log, schema
from crmray.data import asof_series, demo_truth_forecast
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import World
from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.evaluate import forecasts
from crmray.models import forecast_ets
from crmray.models.forecast_blend import best_blend
from crmray.models.forecast_ets import ETSModel
from crmray.models.forecast_features import Known
from crmray.models.forecast_harmonic import Harmonic
from crmray.models.forecast_lags import Lags
from crmray.models.forecast_naive import SeasonalNaive, year_ago
from crmray.models.forecast_panel import COLUMNS, QUANTILES, Panel, finish, stacked, week_of_year
from crmray.models.forecast_sums import SHARES, expected, sums
from crmray.models.forecast_transformer import PatchTransformer
from crmray.tasks import forecast

MONDAY = datetime(2024, 1, 1, tzinfo=timezone.utc)
"""a Monday"""


def sold(*lines: tuple[str, int, str, float], regions: dict[str, str] | None = None) -> dict[str, pa.Table]:
    """Transactions (customer, day since MONDAY, product, amount), products a… of category Tea, others of Pots."""
    customer, day, product, amount = zip(*lines, strict=True)
    names = sorted(set(product))
    tables = {
        "transactions": pa.table(
            {
                "entity_id": customer,
                "occurred_at": pa.array([MONDAY + timedelta(days=d) for d in day], schema.TIME),
                "product_id": product,
                "net_amount": pa.array(amount, pa.float64()),
            }
        ),
        "products": pa.table({"product_id": names, "category": ["Tea" if n < "b" else "Pots" for n in names]}),
    }
    if regions:
        tables["customers"] = pa.table({"entity_id": list(regions), "region": list(regions.values())})
    return tables


def rows_of(tables: dict[str, pa.Table], week: int, *, labels: bool = True, **settings) -> pa.Table:
    """The examples of a week counted from MONDAY."""
    own = forecast.Settings(**{"horizon_weeks": 2, **settings})
    whole = forecast.combine([forecast.gather(tables, own)], own)
    return forecast.examples(whole, MONDAY + timedelta(weeks=week), own, labels=labels)


def panel_rows(
    histories: list[list[float | None]], labels: list[list[float]] | None = None, horizon: int = 2
) -> pa.Table:
    """Rows of one level with these histories."""
    lists = pa.list_(pa.float64())
    ones = [[1.0] * horizon] * len(histories)
    return pa.table(
        {
            "entity_id": [f"product:{i}" for i in range(len(histories))],
            "as_of": pa.array([MONDAY] * len(histories), schema.TIME),
            "label": pa.array(labels, lists) if labels else pa.nulls(len(histories), lists),
            "label_weight": pa.array(ones, lists) if labels else pa.nulls(len(histories), lists),
            "level": ["product"] * len(histories),
            "history": pa.array(histories, lists),
            "parents": pa.array([[]] * len(histories), pa.list_(pa.string())),
        }
    )


def of(rows: pa.Table, name: str) -> dict:
    found = rows.filter(pa.array([value == name for value in rows["entity_id"].to_pylist()])).to_pylist()
    assert len(found) == 1
    return found[0]


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
        np.array([[np.nan, 2.0]]), np.full((1, 2, 5), 1.0), QUANTILES, weights=np.ones((1, 2)), scale=np.ones(1)
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


def test_seasonal_naive_repeats_the_year_or_the_last_week():
    long, short = list(np.arange(60.0)), [3.0, 8.0]
    rows = panel_rows([long, short], [[8.0, 9.0], [8.0, 8.0]])
    assert year_ago(Panel.of(rows), 2)[0].tolist() == [8.0, 9.0]  # weeks 60 and 61, less 52
    model = SeasonalNaive().fit(rows, None, seed=0)
    assert model.predict(rows)["q50"].tolist() == [[8.0, 9.0], [8.0, 8.0]]


def test_a_series_that_ended_is_forecast_as_nothing_and_one_without_returns_never_below_it():
    rows = panel_rows([[5.0] * 10 + [0.0] * 60, [5.0] * 60, [5.0, -2.0] * 30])
    found = stacked(finish(Panel.of(rows), np.full((3, 2, 5), -1.0)))
    assert found[:, 0, 0].tolist() == [0.0, 0.0, -1.0]
    fading = ETSModel(season=True, horizon=2).predict(panel_rows([[9.0] * 20 + [0.0] * 30]))
    assert fading["q50"].max() < 1.0


def test_series_of_two_points_gaps_and_negative_sales_get_finite_forecasts():
    rng = np.random.default_rng(0)
    histories = [
        [4.0, 6.0],
        [1.0, None, None, 2.0],
        [5.0, -3.0, 5.0, -4.0, 6.0],
        *rng.gamma(2.0, 3.0, (20, 30)).tolist(),
    ]
    rows = panel_rows(histories, [[5.0, 5.0]] * len(histories))
    models = [
        Lags(num_rounds=5, spread_rounds=5, min_rows_leaf=5).fit(rows, None, seed=0),
        ETSModel(season=True, horizon=2),
    ]
    for model in models:
        found = stacked(model.predict(rows))
        assert np.isfinite(found).all()
        assert (np.diff(found, axis=2) >= 0).all()
        assert np.abs(found[0] - 5.0).max() < 5.0


def test_harmonic_regression_finds_a_shared_season_and_an_event():
    rng, weeks = np.random.default_rng(0), np.arange(150)
    panel = Panel.of(panel_rows([[1.0] * 148]))
    angle = 2 * np.pi * (panel.week[0] - 148 + weeks) * 7 / 365.25
    sale = (weeks % 5 == 4).astype(float)
    sales = 100 * np.exp(0.3 * np.sin(angle) + np.log(1.5) * sale + rng.normal(0, 0.05, (8, 150)))
    rows = panel_rows(sales[:, :148].tolist(), sales[:, 148:].tolist())
    rows = rows.append_column("event_sale", pa.array([sale.tolist()] * 8, pa.list_(pa.float64())))
    model = Harmonic().fit(rows, None, seed=0)
    sine, cosine, _, event = model.effects["product"]
    assert sine == pytest.approx(0.3, abs=0.02)
    assert cosine == pytest.approx(0.0, abs=0.02)
    assert event == pytest.approx(np.log(1.5), abs=0.02)
    middle = model.predict(rows)["q50"]
    assert (middle[:, 1] / middle[:, 0]).mean() == pytest.approx(
        1.5 * np.exp(0.3 * np.diff(np.sin(angle[148:]))[0]), rel=0.03
    )


def test_with_a_year_known_ets_adds_what_changed_since_to_the_year_ago():
    year = 100 + 50 * np.sin(np.arange(52) * 2 * np.pi / 52)
    year[15] = 20.0  # a week that only the year ago can tell
    history = np.concatenate([year, year[:14] + 30.0])  # 14 weeks, each 30 above the one a year before
    middle = ETSModel(season=True, horizon=2).predict(panel_rows([history.tolist()]))["q50"]
    assert middle[0] == pytest.approx([year[14] + 30.0, 50.0], rel=1e-6)
    noise = 100 + np.random.default_rng(0).normal(0, 10, 66)  # differences of noise vary more than noise
    middle = ETSModel(season=True, horizon=2).predict(panel_rows([noise.tolist()]))["q50"]
    assert middle[0, 0] == middle[0, 1]


def test_a_series_that_ets_cannot_be_fitted_to_is_said(monkeypatch):
    told = []
    monkeypatch.setattr(log, "event", lambda name, *, level=20, **fields: told.append((name, fields)))
    monkeypatch.setattr(forecast_ets, "smoothed", lambda filled, horizon, *, season: np.full((horizon, 5), np.nan))
    middle = ETSModel(season=True, horizon=2).predict(panel_rows([[4.0, 6.0] * 10, [1.0, 3.0]]))["q50"]
    assert middle.tolist() == [[5.0, 5.0], [2.0, 2.0]]
    assert told == [("forecast.not_fitted", {"series": 1, "of": 2, "instead": "their mean"})]


def test_growth_is_that_of_all_series_of_a_level():
    rng, weeks = np.random.default_rng(0), np.arange(150)
    growing = 100 * 1.2 ** (weeks * 7 / 365.25) * np.exp(rng.normal(0, 0.2, (40, 150)))
    rows = panel_rows(growing[:, :138].tolist(), growing[:, 138:].tolist(), horizon=12)
    model = Harmonic().fit(rows, None, seed=0)
    sine, cosine, growth = model.effects["product"]
    assert growth == pytest.approx(np.log(1.2), abs=0.05)
    assert [sine, cosine] == pytest.approx([0.0, 0.0], abs=0.03)
    young = panel_rows([(50 + 20.0 * (np.arange(30) % 2)).tolist()], horizon=12)  # too short to tell its own
    middle = model.predict(young)["q50"][0]
    assert middle[11] / middle[0] == pytest.approx(np.exp(growth * 11 * 7 / 365.25), rel=0.02)


def test_noise_does_not_lower_the_level_of_a_harmonic_forecast():
    """Smoothed logarithms would: the mean logarithm of these is 0.29 below that of their mean."""
    sales = np.random.default_rng(0).gamma(2.0, 5.0, (30, 150)) + 0.01
    rows = panel_rows(sales[:, :148].tolist(), sales[:, 148:].tolist())
    middle = Harmonic().fit(rows, None, seed=0).predict(rows)["q50"]
    assert middle.mean() == pytest.approx(10.0, rel=0.1)


def test_each_level_has_the_forecasters_that_are_best_for_it():
    class Fixed:
        """Says the same of every row."""

        def __init__(self, value: float):
            self.value = value

        def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
            return {name: np.full((examples.num_rows, 2), self.value) for name in COLUMNS}

    rows = panel_rows([[1.0], [1.0]], [[4.0, 4.0], [10.0, 10.0]])
    rows = rows.set_column(rows.schema.get_field_index("level"), "level", pa.array(["product", "total"]))

    def error(part: pa.Table, told) -> float:
        return float(np.abs(np.array(part["label"].to_pylist()) - told["q50"]).sum())

    found = best_blend({"a": Fixed(3.0), "b": Fixed(5.0), "c": Fixed(10.0)}, rows, error, mode="min")
    assert found.of_level == {"product": ["a", "b"], "total": ["c"]}
    assert found.predict(rows)["q50"].tolist() == [[4.0, 4.0], [10.0, 10.0]]
    assert best_blend({"a": Fixed(3.0), "c": Fixed(99.0)}, rows, error, mode="min") is None
    too_low = {"a": Fixed(3.4), "b": Fixed(3.0)}  # the second best errs as the best does; c, the worst, does not
    other = best_blend({**too_low, "c": Fixed(5.2)}, rows.slice(0, 1), error, mode="min", most=2)
    assert other.of_level == {"product": ["a", "c"]}


def test_a_young_series_with_events_is_answered_alike_alone():
    """What lies before its first week is not known, whether it stands beside older series or not."""
    rng, weeks = np.random.default_rng(0), [120, 120, 120, 20]
    rows = panel_rows([rng.gamma(2.0, 3.0, n).tolist() for n in weeks], [[5.0, 6.0]] * len(weeks))
    sale = (np.arange(122) % 5 == 0).astype(float)
    flags = pa.array([sale[120 - n :].tolist() for n in weeks], pa.list_(pa.float64()))
    rows = rows.append_column("event_sale", flags)
    beside, alone = (Known.past(Panel.of(part), 2) for part in (rows, rows.slice(3)))
    one = np.array([1])
    np.testing.assert_array_equal(  # NaN for the event a year ago in both
        beside.features(3 * one, 120 * one, one, ["product"]), alone.features(0 * one, 20 * one, one, ["product"])
    )
    small = PatchTransformer(hidden=8, num_layers=1, max_epochs=1)
    for candidate in (Lags(num_rounds=5, spread_rounds=5, min_rows_leaf=5), Harmonic(), small):
        model = fit(candidate, rows, rows)
        found, told = stacked(model.predict(rows)), stacked(model.predict(rows.slice(3)))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[3:], told, rtol=1e-6)


def test_another_horizon_of_events_is_refused():
    rows = panel_rows([[1.0] * 8], [[1.0, 1.0]])
    rows = rows.append_column("event_x", pa.array([[0.0] * 10], pa.list_(pa.float64())))
    with pytest.raises(SchemaError, match="got 2 weeks ahead, expected 3"):
        Panel.of(rows).event_weeks(3)


def test_figures_by_hand():
    truth, quantiles = np.array([[10.0, 0.0]]), np.tile([0.0, 4.0, 8.0, 12.0, 16.0], (1, 2, 1))
    found = forecasts.figures(truth, quantiles, QUANTILES, weights=np.array([[1.0, 3.0]]), scale=np.array([4.0]))
    assert found["wape"] == (2 + 3 * 8) / 10
    assert found["mae"] == (2 + 3 * 8) / 4
    assert found["mase"] == (2 + 8) / 2 / 4  # not weighted by week
    assert found["coverage_80"] == 1.0
    first = np.mean([0.1 * 10, 0.25 * 6, 0.5 * 2, 0.25 * 2, 0.1 * 6])
    second = np.mean([0.0, 0.75 * 4, 0.5 * 8, 0.25 * 12, 0.1 * 16])
    assert found["wql"] == pytest.approx(2 * (first + 3 * second) / 10)
    steady = forecasts.figures(truth, quantiles, QUANTILES, weights=np.ones((1, 2)), scale=np.array([np.nan]))
    assert "mase" not in steady  # there is nothing to measure it by
    weeks = forecasts.by_horizon(truth, quantiles, QUANTILES, weights=np.ones((1, 2)))
    assert [one["week"] for one in weeks] == [1]  # nothing was sold in the second: no error and no coverage to tell
    assert weeks[0]["wape"] == 2 / 10
    with pytest.raises(NotEnoughDataError, match="nothing was sold"):
        forecasts.figures(truth * 0, quantiles, QUANTILES, weights=np.ones((1, 2)), scale=np.ones(1))


def test_margins_bring_intervals_to_their_share():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 1))
    narrow = np.tile([-0.5, -0.25, 0.0, 0.25, 0.5], (4000, 1, 1))
    scale = np.ones(4000)
    found = forecasts.margins(truth[:2000], narrow[:2000], QUANTILES, scale[:2000])
    assert found["0.1"][0] == pytest.approx(1.2816 - 0.5, abs=0.06)  # the normal quantile
    wide = forecasts.widened(narrow[2000:], QUANTILES, found, scale[2000:])
    inside = (truth[2000:] >= wide[:, :, 0]) & (truth[2000:] <= wide[:, :, -1])
    assert 0.77 < inside.mean() < 0.83


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
    moved = forecast._rolled(rows, 2).to_pylist()[0]
    assert moved["as_of"] == MONDAY + timedelta(weeks=8)
    assert moved["history"] == [float(w + 1) for w in range(8)]
    assert moved["label"] == [9.0, None, None]


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
