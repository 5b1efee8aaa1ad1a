"""Forecasters on plain cases, and how they are blended."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from conformance import fit
from weekly import panel_rows

from crmray import log
from crmray.errors import SchemaError
from crmray.models import forecast_ets
from crmray.models.forecast_blend import best_blend
from crmray.models.forecast_direct import Direct, _smoothed
from crmray.models.forecast_ets import ETSModel
from crmray.models.forecast_features import Known
from crmray.models.forecast_harmonic import Harmonic
from crmray.models.forecast_lags import Lags
from crmray.models.forecast_naive import SeasonalNaive, year_ago
from crmray.models.forecast_panel import COLUMNS, Panel, finish, stacked
from crmray.models.forecast_transformer import PatchTransformer


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


def test_growth_is_measured_at_the_horizon():
    """Sales of a level that grew by 1 % a week, but for the newest quarter of a year: its slope is not carried on."""
    noise = np.random.default_rng(0).normal(0, 0.05, (60, 150))
    trend = np.minimum(0.01 * np.arange(150), 1.37)
    sales = 100 * np.exp(trend + noise)
    rows = panel_rows(sales[:, :138].tolist(), sales[:, 138:].tolist(), horizon=12)
    known = panel_rows(sales.tolist(), horizon=12)
    model = Direct().fit(rows, None, seed=0)
    assert model.growth["product"].by_week[11] / model.growth["product"].by_week[0] == pytest.approx(1.11, abs=0.03)
    steady = panel_rows((100 * np.exp(0.01 * np.arange(150) + noise)).tolist(), horizon=12)
    middle = model.predict(steady)["q50"].mean(0)
    np.testing.assert_allclose(middle, 100 * np.exp(0.01 * np.arange(150, 162)), rtol=0.06)
    again = Direct.load(model.save())
    np.testing.assert_array_equal(again.predict(known)["q50"], model.predict(known)["q50"])


def test_smoothing_begins_with_the_mean_of_what_is_known():
    values = np.array([2.0, 4.0, 6.0, 8.0])
    assert _smoothed(values, np.array([0.1, 0.4]))[0].tolist() == [2.0, 3.0, 4.0, 5.0]  # 1/4 is more than 0.1
    assert _smoothed(values, np.array([0.1, 0.4]))[1].tolist() == pytest.approx([2.0, 3.0, 4.2, 5.72])


def test_spread_of_a_level_that_grows_is_that_of_its_present_size():
    """Poisson counts whose mean doubled each year: neither this growth nor the small past is an error of today."""
    mean = 50 * 2 ** (np.arange(150) / 52)
    sales = np.random.default_rng(0).poisson(mean, (60, 150)).astype(float)
    rows = panel_rows(sales[:, :138].tolist(), sales[:, 138:].tolist(), horizon=12)
    found = stacked(Direct().fit(rows, None, seed=0).predict(rows))
    spread = ((found[:, :, -1] - found[:, :, 0]) / 2 / 1.2816).mean(0)
    np.testing.assert_allclose(spread, np.sqrt(mean[138:]), rtol=0.06)


def test_a_series_of_two_weeks_has_the_season_and_the_spread_of_its_level():
    weeks = Panel.of(panel_rows([[1.0]])).week[0] + np.arange(-138, 12)
    mean = 40 * np.exp(0.5 * np.sin(2 * np.pi * weeks * 7 / 365.25))
    sales = np.random.default_rng(0).poisson(mean, (30, 150)).astype(float)
    model = Direct().fit(panel_rows(sales[:, :138].tolist(), sales[:, 138:].tolist(), horizon=12), None, seed=0)
    found = stacked(model.predict(panel_rows([mean[136:138].tolist()], horizon=12)))[0]
    np.testing.assert_allclose(found[:, 2], mean[138:], rtol=0.05)
    np.testing.assert_allclose((found[:, -1] - found[:, 0]) / 2 / 1.2816, np.sqrt(mean[138:]), rtol=0.15)


def test_levels_that_tell_no_growth_are_forecast_by_harmonic_regression():
    rng = np.random.default_rng(0)
    short = panel_rows(rng.gamma(2.0, 3.0, (3, 20)).tolist(), [[5.0] * 12] * 3, horizon=12)
    returned = panel_rows((-rng.gamma(2.0, 3.0, (3, 90))).tolist(), [[-5.0] * 12] * 3, horizon=12)
    for rows in (short, returned):
        model = Direct().fit(rows, None, seed=0)
        assert model.growth == {}
        np.testing.assert_array_equal(
            stacked(model.predict(rows)), stacked(Harmonic().fit(rows, None, seed=0).predict(rows))
        )


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

    found = best_blend({"a": Fixed(3.0), "b": Fixed(5.0), "c": Fixed(10.0)}, rows, error)
    assert found.of_level == {"product": ["a", "b"], "total": ["c"]}
    assert found.predict(rows)["q50"].tolist() == [[4.0, 4.0], [10.0, 10.0]]
    assert best_blend({"a": Fixed(3.0), "c": Fixed(99.0)}, rows, error) is None
    too_low = {"a": Fixed(3.4), "b": Fixed(3.0)}  # the second best errs as the best does; c, the worst, does not
    other = best_blend({**too_low, "c": Fixed(5.2)}, rows.slice(0, 1), error, most=2)
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
    for candidate in (Lags(num_rounds=5, spread_rounds=5, min_rows_leaf=5), Harmonic(), Direct(), small):
        model = fit(candidate, rows, rows)
        found, told = stacked(model.predict(rows)), stacked(model.predict(rows.slice(3)))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[3:], told, rtol=1e-6)


def test_attention_forecasts_from_the_last_quarter_or_the_week_a_year_ago_as_its_gate_says():
    rows = panel_rows([list(np.arange(60.0)), list(np.arange(1.0, 9.0))], [[8.0, 9.0], [8.0, 8.0]])
    candidate = PatchTransformer(hidden=8, num_layers=1)
    state = candidate.prepare(rows)
    arrays, module = candidate.encode(state, rows), candidate.module(state).eval()
    answer, quarter = module.head[-1], arrays["size"] * arrays["row"][:, 1]
    np.testing.assert_allclose(quarter, [53.0, 4.5], rtol=1e-6)  # means of weeks 47 to 59, and of 1 to 8
    for logit, first in ((30.0, [8.0, 9.0]), (-30.0, [53.0, 53.0]), (0.0, [30.5, 31.0])):
        with torch.no_grad():
            answer.weight.zero_()
            answer.bias.copy_(torch.tensor([0.0] * 5 + [logit]))
        found = candidate.outputs(module, candidate.batch(arrays, np.arange(2)))["q50"].detach()
        np.testing.assert_allclose(found, [first, [4.5, 4.5]], rtol=1e-5)  # the short series has no year


def test_another_horizon_of_events_is_refused():
    rows = panel_rows([[1.0] * 8], [[1.0, 1.0]])
    rows = rows.append_column("event_x", pa.array([[0.0] * 10], pa.list_(pa.float64())))
    with pytest.raises(SchemaError, match="got 2 weeks ahead, expected 3"):
        Panel.of(rows).event_weeks(3)
