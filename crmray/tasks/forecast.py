"""Forecast: the sales of the next weeks, by product, category, region, owner, any pair of them, and in total.

A row is a series at a Monday: its weekly sales before it, and the horizon_weeks after it as label. Every week ahead
gets quantiles, with conformal margins measured on rolling origins within the validation window, and the expected sales,
which add up over the levels. Since that takes all series at once, it is done for the `now` rows as a whole
(`together`), by batch scoring and by an endpoint when it takes up a version; a row then carries its adjustment with it,
so that it is answered alike alone and among others. The quantiles are moved by as much; a sum of quantiles is no
quantile of the sum, so they do not add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from crmray import schema
from crmray.config import Part
from crmray.data import asof_series
from crmray.data.splits import Snapshots, utc
from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import conformal, forecasts
from crmray.models.forecast_blend import ForecastBlend, best_blend
from crmray.models.forecast_direct import Direct
from crmray.models.forecast_ets import ETS
from crmray.models.forecast_harmonic import Harmonic
from crmray.models.forecast_lags import Lags, YearlyLags
from crmray.models.forecast_naive import SeasonalNaive
from crmray.models.forecast_panel import COLUMNS, Panel, stacked
from crmray.models.forecast_sums import adjustments, expected
from crmray.models.forecast_transformer import PatchTransformer
from crmray.tasks.contract import EntityRequest, Fitted, Needs, NoReasons

NAME, ROUTE, ENTITY = "forecast", "/v1/forecast", "series"
FEATURES_VERSION = "2"
LABELS = ("label", "label_weight")
METRIC: str = "wql"
MODE: Literal["max", "min"] = "min"
CANDIDATES = {one.NAME: one for one in (PatchTransformer, Lags, YearlyLags, ETS, Harmonic, Direct, SeasonalNaive)}
BLEND = ForecastBlend
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
VALUES = {"amount": "net_amount", "units": "num_units"}


class Settings(Part):
    """Business facts of the forecast. All dates are Mondays."""

    measure: Literal["amount", "units"] = "amount"
    """what is added up: net amounts (returns count against sales) or units"""
    levels: list[str] | None = None
    """total, product, customer, or a column of transactions, products or customers such as category, region, owner; two
    joined by a comma for each pair ("customer,product"); default: total, region, owner, category and product, as far as
    the org has them"""
    top: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """level -> number of series that are forecast, the largest by sales so far; default: all"""
    products_matching: str | None = None
    """regular expression that a product id has to match from its beginning or, without ^, anywhere; default: all.
    Levels without products count all sales"""
    horizon_weeks: Annotated[int, Field(ge=1, le=104)] = 12
    """weeks to forecast"""
    history_weeks: Annotated[int, Field(ge=8, le=520)] = 156
    """newest weeks of each series that a forecast sees"""
    week_ends: Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"] = "sunday"
    """weekday of the last sales of a week: data that ends on it ends with a whole week"""
    gaps: Literal["zero", "unknown"] = "zero"
    """what a week without a row means: nothing was sold, or it is not known"""
    known_ahead: list[str] = Field(default_factory=list)
    """kinds of campaigns that are planned ahead (holidays, promotions): models see them in the weeks to come"""
    week_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """kind of campaign -> weight of its weeks in the figures and in training; all other weeks count 1"""
    as_of: datetime | None = None
    """test date; default: the last one whose horizon the data covers"""
    validation_as_of: datetime | None = None
    """date on which candidates are compared; default: one horizon before the test date"""
    num_origins: Annotated[int, Field(ge=1, le=500)] = 40
    """training dates whose horizon ends before the validation date, at most"""
    origin_every_weeks: Annotated[int, Field(ge=1, le=52)] = 1
    """distance of two training dates, in weeks"""

    @field_validator("as_of", "validation_as_of")
    @classmethod
    def _a_monday(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        found = utc(value)
        if found != asof_series.monday(asof_series.week_of(found)):
            raise ValueError(f"got {found:%A %Y-%m-%d %H:%M}, expected the midnight (UTC) before a Monday")
        return found

    @property
    def horizon_days(self) -> int:
        """Length of the label window, in days."""
        return 7 * self.horizon_weeks

    @property
    def uses_time(self) -> bool:
        """Always."""
        return True


class Request(EntityRequest):
    """Body of POST /v1/forecast; GET /v1/forecast/{series} asks for one, such as `product:85123A` or `total`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["total", "product:85123A"]}]})
    SUBJECTS = ("id", "ids")
    customer: None = Field(None, exclude=True, description="not used: a series is made of all customers' rows")
    recent_events: None = Field(None, exclude=True, description="not used: a series is made of all customers' rows")
    explain: NoReasons = False


class Prediction(BaseModel):
    """The weeks ahead of one series."""

    entity_id: str
    as_of: datetime
    level: str
    weeks: list[datetime] = Field(description="Mondays")
    expected: list[float] = Field(description="mean sales of each week; these add up over the levels")
    q10: list[float]
    q25: list[float]
    q50: list[float]
    q75: list[float]
    q90: list[float]


class Response(BaseModel):
    """Answer of POST and GET /v1/forecast."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """Transactions with what is added up; where the levels stand; campaigns where some are known ahead."""
    useful: dict[str, tuple[str, ...]] = {
        "transactions": ("product_id",), "products": ("category",), "customers": ("region",),
    }  # fmt: skip
    required: dict[str, tuple[str, ...]] = {"transactions": ("entity_id", "occurred_at", VALUES[settings.measure])}
    if settings.known_ahead or settings.week_weights:
        useful["campaigns"] = ("kind", "started_at", "ended_at")
    return Needs(required=required, useful=useful)


def dates(settings: Settings, span: tuple[datetime, datetime]) -> Snapshots:
    """Mondays: test and validation one horizon apart, training origins every origin_every_weeks before them.

    DataError for a date whose horizon the data does not cover, NotEnoughDataError when no training date is left.
    """
    start, last = (asof_series.week_of(moment) for moment in span)
    now = last + (span[1].weekday() >= WEEKDAYS.index(settings.week_ends))
    horizon = settings.horizon_weeks
    test = now - horizon if settings.as_of is None else asof_series.week_of(settings.as_of)
    validation = test - horizon if settings.validation_as_of is None else asof_series.week_of(settings.validation_as_of)
    if test + horizon > now or validation + horizon > test:
        which, got, most = ("as_of", test, now) if test + horizon > now else ("validation_as_of", validation, test)
        raise DataError(
            f"got {which} {_day(got)} with horizon_weeks {horizon}, expected at most {_day(most - horizon)}, so that"
            " what came is known; choose an earlier date or leave it out"
        )
    newest = validation - horizon
    first = max(start + min(horizon, 8), newest - (settings.num_origins - 1) * settings.origin_every_weeks)
    train = list(range(newest, first - 1, -settings.origin_every_weeks))[::-1]
    if not train:
        raise NotEnoughDataError(
            f"the data begins on {_day(start)}; with horizon_weeks {horizon} the newest training date would be"
            f" {_day(newest)}, expected {min(horizon, 8)} weeks of history before it; bring more history or choose a"
            " shorter horizon_weeks"
        )
    train += range(newest + settings.origin_every_weeks, test - horizon + 1, settings.origin_every_weeks)
    if test - horizon not in train:
        train.append(test - horizon)
    at = {name: asof_series.monday(week) for name, week in (("validation", validation), ("test", test), ("now", now))}
    moments = tuple(asof_series.monday(week) for week in train)
    return Snapshots(train=moments, horizon_days=settings.horizon_days, **at)


def _day(week: int) -> str:
    return asof_series.monday(week).strftime("%Y-%m-%d")


def gather(tables: Mapping[str, pa.Table], settings: Settings) -> dict[str, pa.Table]:
    """One shard's weekly sales by series; campaigns as they are."""
    found = asof_series.gather(
        tables, value=VALUES[settings.measure], levels=settings.levels, products_matching=settings.products_matching
    )
    return {**found, **{name: table for name, table in tables.items() if name == "campaigns"}}


def combine(parts: Sequence[Mapping[str, pa.Table]], settings: Settings) -> dict[str, pa.Table]:
    """The weekly sales of the org."""
    return {**asof_series.combine(parts), **{name: parts[0][name] for name in parts[0] if name == "campaigns"}}


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per series with a sale before as_of: keys, labels, and the columns of asof_series.frame.

    tables: what `combine` gave. All series are in the part "train": weeks are what is held out. `adjustment` is null
    until `together` fills it.
    """
    assert as_of is not None
    rows = asof_series.frame(
        tables, as_of, horizon_weeks=settings.horizon_weeks, history_weeks=settings.history_weeks, top=settings.top,
        gaps=settings.gaps, kinds=settings.known_ahead, weights=settings.week_weights, labels=labels,
    )  # fmt: skip
    head = {
        "entity_id": rows["entity_id"],
        "as_of": pa.repeat(pa.scalar(as_of, schema.TIME), rows.num_rows),
        "part": pa.repeat(pa.scalar("train"), rows.num_rows),
    }
    body = {name: rows[name] for name in rows.column_names if name not in head}
    none = pa.nulls(rows.num_rows, pa.list_(pa.float64()))
    return pa.table({**head, **body, "adjustment": none}).combine_chunks()


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """forecasts.of_rows of a candidate's quantiles."""
    return forecasts.of_rows(examples, stacked(predictions))


def backtests(validation: pa.Table) -> pa.Table:
    """The rows on which families and their blend are compared: the validation window from each of its rolling origins.

    One origin alone is one draw of what a level does in a quarter.
    """
    return pa.concat_tables(conformal.origins(validation))


def blend(models: Mapping[str, Fitted], rows: pa.Table) -> Fitted | None:
    """For each level the best forecaster on these rows, or the average of the best few.

    On the same rows it is better than a single family wherever one is not best at every level: then it wins.
    """
    return best_blend(models, rows, lambda own, told: score(own, told)[METRIC])


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """{"margins": level -> conformal margins by horizon}, "" for levels with few series; from rolling origins."""
    told = [(rows, stacked(model.predict(rows))) for rows in conformal.origins(validation)]
    return {"margins": conformal.by_level(told)}


def together(model: Fitted, decision: Mapping[str, Any], rows: pa.Table) -> pa.Table:
    """All `now` rows, with the adjustments by which their expected sales add up over the levels."""
    quantiles = conformal.calibrated(decision["margins"], Panel.of(rows).level, stacked(model.predict(rows)))
    lists = pa.array(adjustments(rows, quantiles).tolist(), pa.list_(pa.float64()))
    return rows.set_column(rows.schema.get_field_index("adjustment"), "adjustment", lists)


def predict(model: Fitted, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False) -> pa.Table:
    """entity_id, as_of, level, weeks (Mondays), expected, q10 … q90 (lists by week). There are no reasons.

    expected is the mean of the quantiles' distribution, and adds up where the rows come from `together`; the quantiles
    are moved as much.
    """
    panel = Panel.of(examples)
    quantiles = conformal.calibrated(decision["margins"], panel.level, stacked(model.predict(examples)))
    lists = pa.list_(pa.float64())
    added = np.zeros(quantiles.shape[:2])
    for row, values in enumerate(examples["adjustment"].to_pylist()):
        added[row] = 0.0 if values is None else values
    means, quantiles = expected(quantiles) + added, conformal.moved(quantiles, added)
    weeks = [[asof_series.monday(int(week) + h) for h in range(quantiles.shape[1])] for week in panel.week]
    answers = {
        "entity_id": examples["entity_id"],
        "as_of": examples["as_of"],
        "level": pa.array(panel.level, pa.string()),
        "weeks": pa.array(weeks, pa.list_(schema.TIME)),
        "expected": pa.array(means.tolist(), lists),
    }
    told = {name: pa.array(quantiles[:, :, place].tolist(), lists) for place, name in enumerate(COLUMNS)}
    return pa.table({**answers, **told})


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures of the answers: over all series, by level, by week ahead; and how they came about.

    coverage_80 is that of the conformal intervals on weeks later than those that the margins come from. `steps` has the
    figures of the model's quantiles, with the margins added, and moved so that expected sales add up: the answers.
    """
    truth, how = forecasts.truth_of(test)
    level = test["level"].to_pylist()
    raw = stacked(model.predict(test))
    calibrated = conformal.calibrated(decision["margins"], level, raw)
    answers = conformal.moved(calibrated, adjustments(test, calibrated))
    steps = {"model": raw, "with_margins": calibrated, "adding_up": answers}
    return {
        **forecasts.of_rows(test, answers),
        "steps": {name: forecasts.of_rows(test, quantiles) for name, quantiles in steps.items()},
        "by_level": forecasts.by_group(truth, answers, level, **how),
        "by_horizon": forecasts.by_horizon(truth, answers, weights=how["weights"]),
        "backtest_origins": len(conformal.origin_weeks(settings.horizon_weeks)),
    }
