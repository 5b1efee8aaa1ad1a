"""Segmentation: groups of customers by recency, frequency, spend and behaviour, named by what sets them apart.

The segments are fitted on the rows at `as_of`; spend in the horizon after it is read only by the report, to show
whether they differ in what they go on to do. Customers of later dates are assigned to the nearest centre. Each row also
holds the features as they stood one horizon earlier, so a segment comes with the one before it: who climbs, who falls.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from crmray.data import asof, splits
from crmray.data.splits import Snapshots, TimeSettings
from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import segment_words
from crmray.evaluate.plots import bar_chart, dendrogram
from crmray.evaluate.segment_words import WORDS
from crmray.models.events import EVENT_COLUMNS
from crmray.models.hierarchy import Ward, centers, linkage, sample
from crmray.models.kmeans import KMeans, silhouette
from crmray.models.lifecycle import NUM_WEEKS, WEEK_DAYS
from crmray.models.rfm import RFMRules
from crmray.models.segment_transformer import SegmentTransformer
from crmray.models.segments import BEFORE, nearest
from crmray.schema import KEYS
from crmray.tasks.contract import EntityRequest, Needs

NAME, ROUTE, ENTITY = "segmentation", "/v1/segment", "customer"
FEATURES_VERSION = f"4.{asof.FEATURES_VERSION}"
LABELS = ("later_amount",)
METRIC: str = "stable_silhouette"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {candidate.NAME: candidate for candidate in (KMeans, Ward, SegmentTransformer, RFMRules)}
SUBSEGMENT_ROWS = 2_000
NUM_SUBSEGMENTS = 3
MIN_SUBSEGMENT_ROWS = 30
DENDROGRAM_ROWS = 300
"""customers of the tree in the report"""
UNLIKE = 0.99
"""anomaly from which on a customer is listed as unlike all others"""
NEW, STAYS, CLIMBS, FALLS = "new", "stays", "climbs", "falls"
"""movements from the segment one horizon earlier; segments are ordered by spend"""


class Settings(TimeSettings):
    """Business facts of the segmentation."""

    features: Literal["behaviour", "rfm"] = "behaviour"
    """what customers are grouped by: recency, frequency and spend alone, or behaviour as well"""
    num_segments: Annotated[int, Field(ge=2, le=20)] | None = None
    """fixed number of segments; default: chosen by silhouette and stability"""


class Request(EntityRequest):
    """Body of POST /v1/segment."""


class Prediction(BaseModel):
    """One customer's segment."""

    entity_id: str
    as_of: datetime | None
    segment: int = Field(description="0 is the one that spends most")
    segment_name: str = Field(description="by the features in which its customers stand out, the strongest first")
    subsegment: int
    subsegment_name: str
    distance: float = Field(description="standard deviations from the middle of the segment")
    previous_segment: str | None = Field(None, description="the segment one horizon earlier; null: bought nothing then")
    movement: Literal["new", "stays", "climbs", "falls"] = Field(description="from it; up is towards segment 0")
    anomaly: float | None = Field(None, description="0 to 1: how unlike all others")
    unlike: bool = Field(description=f"whether that is at least {UNLIKE}")
    reasons: list[str] | None = Field(
        None,
        description="what speaks for the segment against the others, strongest first: a word, and the customer's value "
        "beside the typical one of all customers; null unless `explain` is true",
    )


class Response(BaseModel):
    """Answer of POST /v1/segment."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """Transactions; the rest makes the segments richer."""
    rich = settings.features == "behaviour"
    useful: dict[str, tuple[str, ...]] = {"engagement": ("kind",), "products": ("price_amount",)} if rich else {}
    return Needs(required={"transactions": ("entity_id", "occurred_at", "net_amount")}, useful=useful)


def dates(settings: Settings, span: tuple[datetime, datetime]) -> Snapshots:
    """One date for all: nothing is predicted, so nothing is held back; later spend is read by the report alone."""
    found = splits.snapshots(settings.model_copy(update={"num_snapshots": 1}), span)
    assert found.test is not None
    return replace(found, train=(found.test,), validation=found.test, horizon_days=0)


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per customer with a purchase in the lookback: features of WORDS that the org has and the events, the same
    one horizon earlier (`before_`, null for who had bought nothing then), and later_amount."""
    if as_of is None:
        raise DataError("segmentation: got data without time, expected transactions with a clock; map occurred_at")
    entities = asof.buyers(tables, as_of, settings.lookback_days)
    now = _features(tables, as_of, entities, settings)
    earlier = as_of - timedelta(days=settings.horizon_days)
    past = asof.buyers(tables, earlier, settings.lookback_days)
    then = _features(tables, earlier, past, settings).take(pc.index_in(entities, value_set=past))
    told = [name for name in now.column_names if name not in KEYS]
    columns = dict(zip(now.column_names, now.columns, strict=True)) | {BEFORE + name: then[name] for name in told}
    later = (
        asof.later_amount(tables, entities, as_of, settings.horizon_days)
        if labels
        else pa.nulls(len(entities), pa.float64())
    )
    return pa.table(columns | {"later_amount": later})


def _features(tables: Mapping[str, pa.Table], as_of: datetime, entities: pa.Array, settings: Settings) -> pa.Table:
    """KEYS, what these customers are grouped by, and the event lists."""
    rich = settings.features == "behaviour"
    read = ("transactions", "products", "engagement") if rich else ("transactions",)
    given = {name: tables[name] for name in read if name in tables}
    frame = asof.frame(
        given, as_of, lookback_days=settings.lookback_days, horizon_days=settings.horizon_days, entities=entities,
        events=True,
    )  # fmt: skip
    window = f"{settings.lookback_days:.0f}d"
    columns = {name: frame[name] for name in KEYS} | {
        "spend_amount": np.maximum(frame[f"spend_net_{window}_amount"].to_numpy(), 0.0),
        "frequency_orders": frame["frequency_orders_per_30d" if rich else f"frequency_orders_{window}"],
        "recency_days": pc.floor(frame["recency_days"]),
    }
    if rich:
        columns |= {name: frame[name] for name in WORDS if name in frame.column_names and name not in columns}
    return pa.table(columns | {name: frame[name] for name in EVENT_COLUMNS})


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Silhouette and stability; stable_silhouette is their product.

    Of a model that has a teacher also accuracy, precision, recall and F1 (macro) against the teacher's segments, on the
    customers of the test part.
    """
    from sklearn.metrics import calinski_harabasz_score

    segment, position = predictions["segment"], predictions["position"]
    if len(np.unique(segment)) < 2:
        raise NotEnoughDataError(
            f"segmentation: all {len(segment)} customers fell into one segment, expected at least 2"
        )
    (clear, _), steady = silhouette(position, segment), float(predictions["stability"][0])
    agreement = _agreement(examples, predictions) if "teacher" in predictions else {}
    return agreement | {
        "stable_silhouette": clear * steady,
        "silhouette": clear,
        "stability": steady,
        "calinski_harabasz": float(calinski_harabasz_score(position, segment)),
        "num_segments": float(len(np.unique(segment))),
    }


def _agreement(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    mine = pc.equal(examples["part"], "test").to_numpy()
    truth, found = predictions["teacher"][mine], predictions["segment"][mine]
    precision, recall, f1, _ = precision_recall_fscore_support(truth, found, average="macro", zero_division=0.0)
    return {
        "accuracy": float((truth == found).mean()), "macro_precision": float(precision), "macro_recall": float(recall),
        "macro_f1": float(f1),
    }  # fmt: skip


def finalize(model: Any, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """Names, profiles and sub-segments of the segments: what `predict` and the report need beside the model."""
    predictions = model.predict(train)
    segment, position = predictions["segment"], predictions["position"]
    columns = _axes(model)
    train = model.with_lifecycle(train) if hasattr(model, "with_lifecycle") else train
    spend = train["spend_amount"].to_numpy()
    numbers = np.unique(segment)
    middles = [position[segment == k].mean(axis=0) for k in numbers]
    segments = []
    for name, k, center in zip(segment_words.names(middles, columns), numbers.tolist(), middles, strict=True):
        inside = segment == k
        segments.append(
            {
                "segment": k,
                "name": name,
                "center": center.tolist(),
                "share_of_customers": float(inside.mean()),
                "share_of_sales": float(spend[inside].sum() / max(spend.sum(), 1e-9)),
                "medians": {column: _median(train[column], inside) for column in columns},
                "subsegments": _subsegments(position[inside], columns),
            }
        )
    return {
        "columns": list(columns),
        "segments": segments,
        "typical": {column: _median(train[column], np.full(len(segment), True)) for column in columns},
        "date": max(train["as_of"].to_pylist()).isoformat(),
        "tree": linkage(sample(position, DENDROGRAM_ROWS, 0)).tolist(),
    }


def _axes(model: Any) -> tuple[str, ...]:
    return getattr(model, "columns", RFMRules.COLUMNS)


def _median(values: pa.ChunkedArray, inside: np.ndarray) -> float | None:
    known = values.filter(pa.array(inside)).drop_null()
    return float(np.median(known.to_numpy())) if len(known) else None


def _subsegments(position: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Names and centres of a Ward hierarchy inside one segment, on a sample; one for a small segment."""
    if len(position) < NUM_SUBSEGMENTS * MIN_SUBSEGMENT_ROWS:
        return [{"name": "all of it", "center": position.mean(axis=0).tolist()}]
    rows = np.random.default_rng(0).permutation(len(position))[:SUBSEGMENT_ROWS]
    found = sorted(centers(position[rows], NUM_SUBSEGMENTS), key=lambda center: -center[0])
    deviations = [center - position.mean(axis=0) for center in found]
    names = segment_words.names(deviations, columns, segment_words.WITHIN)
    return [{"name": name, "center": center.tolist()} for name, center in zip(names, found, strict=True)]


def predict(
    model: Any, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False, **options: Any
) -> pa.Table:
    """Segment, sub-segment and their names; reasons (null without `explain`): what speaks for the
    segment, by the features of its name."""
    predictions = model.predict(examples)
    entries = {entry["segment"]: entry for entry in decision["segments"]}
    segment, position = predictions["segment"], predictions["position"]
    segment, previous = (_nearest_known(values, entries) for values in (segment, predictions["previous"]))
    anomaly = predictions["anomaly"]
    subsegment = np.zeros(len(segment), np.int64)
    for k, entry in entries.items():
        inside = segment == k
        if inside.any():
            subsegment[inside] = nearest(position[inside], np.array([sub["center"] for sub in entry["subsegments"]]))
    columns = {
        "entity_id": examples["entity_id"],
        "as_of": examples["as_of"],
        "segment": segment,
        "segment_name": [entries[k]["name"] for k in segment.tolist()],
        "subsegment": subsegment,
        "subsegment_name": [
            entries[k]["subsegments"][j]["name"] for k, j in zip(segment.tolist(), subsegment.tolist(), strict=True)
        ],
        "distance": predictions["distance"],
        "previous_segment": pa.array([entries[k]["name"] if k >= 0 else None for k in previous.tolist()], pa.string()),
        "movement": _movement(segment, previous).tolist(),
        "anomaly": pa.array(anomaly, from_pandas=True),  # NaN of rules, which know none, becomes null
        "unlike": anomaly >= UNLIKE,
    }
    told: list[list[str]] | list[None] = [None] * examples.num_rows
    if explain:
        rows = model.with_lifecycle(examples) if hasattr(model, "with_lifecycle") else examples
        own = np.array([entries[k]["center"] for k in segment.tolist()]).reshape(position.shape)
        told = segment_words.reasons(rows, position, own, decision["columns"], decision["typical"])
    return pa.table({**columns, "reasons": pa.array(told, pa.list_(pa.string()))})


def _nearest_known(segment: np.ndarray, entries: Mapping[int, Any]) -> np.ndarray:
    """Segments that training rows did not have become the next one that they had; -1 stays."""
    known = np.array(sorted(entries))
    next_known = known[np.searchsorted(known, segment).clip(max=len(known) - 1)]
    return np.where(np.isin(segment, known) | (segment < 0), segment, next_known)


def _movement(segment: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """(N,) of NEW, STAYS, CLIMBS, FALLS. Segment 0 is the one that spends most."""
    return np.select([previous < 0, segment == previous, segment < previous], [NEW, STAYS, CLIMBS], FALLS)


def evaluate(model: Any, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Figures of the segments, and whether they differ in later spend (Kruskal-Wallis over customers)."""
    from scipy.stats import kruskal

    predictions = model.predict(test)
    segment, later = predictions["segment"], test["later_amount"].to_numpy(zero_copy_only=False)
    groups = [later[segment == k] for k in np.unique(segment)]
    figures = score(test, predictions)
    names = {entry["segment"]: entry["name"] for entry in decision["segments"]}
    p_value = 1.0 if np.ptp(later) == 0 else float(kruskal(*groups).pvalue)
    return {
        **figures,
        "later_amount_mean": {
            entry["name"]: _mean(later[segment == entry["segment"]]) for entry in decision["segments"]
        },
        "later_amount_p_value": p_value,
        "movements": _movements(names, *(_nearest_known(predictions[k], names) for k in ("segment", "previous"))),
        "anomalies": _anomalies(predictions, decision),
        "segments": [
            {key: entry[key] for key in ("name", "share_of_customers", "share_of_sales")}
            for entry in decision["segments"]
        ],
    }


def _movements(names: Mapping[int, str], segment: np.ndarray, previous: np.ndarray) -> dict[str, Any]:
    """How many customers came from which segment (rows) to which (columns) within one horizon, and the shares moved."""
    kinds = _movement(segment, previous)
    table = {
        names.get(before, NEW): {name: int(((previous == before) & (segment == k)).sum()) for k, name in names.items()}
        for before in (*names, -1)
    }
    return {"from_to": table, "shares": {kind: float((kinds == kind).mean()) for kind in (NEW, STAYS, CLIMBS, FALLS)}}


def _anomalies(predictions: Mapping[str, np.ndarray], decision: Mapping[str, Any]) -> dict[str, Any]:
    """How many customers are unlike all others, and in what: feature in words -> customers in whom it stands out."""
    unlike = predictions["anomaly"] >= UNLIKE
    strongest = np.abs(predictions["position"][unlike]).argmax(axis=1)
    words = [
        segment_words.word(decision["columns"][d], row[d])
        for d, row in zip(strongest, predictions["position"][unlike], strict=True)
    ]
    return {"customers": int(unlike.sum()), "stand_out_by": dict(Counter(words).most_common())}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def fixed(settings: Settings) -> dict[str, Any]:
    """Hyper-parameters that the org file sets.

    With behaviour, who did nothing for a horizon is dormant; features tell the same twice, so distances are adaptive.
    """
    given: dict[str, Any] = {} if settings.num_segments is None else {"num_segments": settings.num_segments}
    if settings.features == "behaviour":
        given |= {"adaptive": True, "dormant_weeks": min(max(1, round(settings.horizon_days / WEEK_DAYS)), NUM_WEEKS)}
    families = (KMeans, Ward, SegmentTransformer)
    return {f"{family.NAME}.{name}": value for family in families for name, value in given.items()}


def files(decision: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, bytes]:
    """The distribution of segments and their share of sales: a bar chart and its data; the tree of a sample."""
    names = [entry["name"] for entry in decision["segments"]]
    shares = {
        "share of customers": [entry["share_of_customers"] for entry in decision["segments"]],
        "share of sales": [entry["share_of_sales"] for entry in decision["segments"]],
    }
    chart = bar_chart(names, shares, title="Segments")
    tree = dendrogram(np.array(decision["tree"]), title=f"Hierarchy of {len(decision['tree']) + 1} customers (Ward)")
    about = {"segments": decision["segments"], "movements": figures["movements"]}
    return {"segments.svg": chart, "dendrogram.svg": tree, "segments.json": json.dumps(about, indent=1).encode()}
