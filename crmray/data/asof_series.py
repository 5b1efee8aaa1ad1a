"""Weekly sales as series: by product, category, region, owner, customer, any pair of them, and in total.

    gather    one shard's transactions -> sales by series and week, which series lie within which, and whose they are
    combine   the parts of all shards -> the same for the org
    frame     one row per series known at a date: what was sold each week before it, and what came after it

Weeks begin on Mondays, UTC; week 0 is that of 1 January 1970. A level is "total" or columns joined by commas
("category", "customer,product"); a series is named by its level and its values ("category:Tea",
"customer,product:1,5"). Columns of products and customers are taken as they stand today.

Shapes: S series, W weeks, H weeks to forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data.asof_rows import DAY_US, micros_of
from crmray.errors import DataError

TOTAL, UNKNOWN = "total", "unknown"
USUAL = (TOTAL, "region", "owner", "category", "product")
"""levels where none are asked for; those that the org has"""
CUSTOMER = "customer"
IDS = {"product": ("transactions", "product_id"), CUSTOMER: ("transactions", "entity_id")}
"""names of ids as levels; every other name is a column of one of TABLES"""
TABLES = ("transactions", "products", "customers")
FIRST_MONDAY_DAYS = 3  # 1 January 1970 was a Thursday


def week_of(moment: datetime) -> int:
    """Number of the week that a moment lies in."""
    return ((moment - datetime(1970, 1, 1, tzinfo=timezone.utc)).days + FIRST_MONDAY_DAYS) // 7


def monday(week: int) -> datetime:
    """First moment of a week."""
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(days=7 * week - FIRST_MONDAY_DAYS)


def weeks(times: pa.ChunkedArray) -> np.ndarray:
    """(R,) int64 number of the week of each moment."""
    return (micros_of(times) // DAY_US + FIRST_MONDAY_DAYS) // 7


def levels_of(tables: Mapping[str, pa.Table], asked: Sequence[str] | None) -> list[str]:
    """The levels asked for, or the usual ones that these tables have. DataError for one that no table has."""
    if asked is None:
        return [level for level in USUAL if level == TOTAL or _place(tables, level)]
    for level in asked:
        for name in level.split(",") if level != TOTAL else ():
            if not _place(tables, name):
                raise DataError(
                    f"forecast: got level {level!r}, but none of {', '.join(TABLES)} has a value in a column {name!r};"
                    " map it in the org file, or take it out of levels"
                )
    return list(asked)


def _place(tables: Mapping[str, pa.Table], name: str) -> tuple[str, str] | None:
    """Table and column of a level's name; None where the org has none."""
    if name in IDS:
        table, column = IDS[name]
        return IDS[name] if column in tables[table].column_names else None
    for table in TABLES:
        if table in tables and name in tables[table].column_names:
            return table, name
    return None


def _values(tables: Mapping[str, pa.Table], name: str) -> pa.Array:
    """(R,) text of each transaction row: its own column, or that of its product or customer; UNKNOWN where missing."""
    place = _place(tables, name)
    assert place is not None, name
    table, column = place
    found = tables[table][column].combine_chunks()
    if table != "transactions":
        key = schema.TABLES[table].entity
        own = tables["transactions"]["product_id" if table == "products" else "entity_id"].combine_chunks()
        found = found.take(pc.index_in(own, value_set=tables[table][key].combine_chunks()))
    return pc.fill_null(found.cast(pa.string()), UNKNOWN)


def gather(
    tables: Mapping[str, pa.Table], *, value: str, levels: Sequence[str] | None, products_matching: str | None
) -> dict[str, pa.Table]:
    """Sales of one shard. value: column of transactions that is added up; a missing one counts as 0.

    "sales": level, series, week (int64), value (float64). "within": series, parent: pairs with a sale in common.
    "owners": series, parent: of each series that is named after a customer, this customer.
    """
    transactions = tables["transactions"]
    week_R, value_R = (
        weeks(transactions["occurred_at"]),
        np.nan_to_num(transactions[value].cast(pa.float64()).to_numpy()),
    )
    found: dict[str, pa.DictionaryArray] = {}
    asked = levels_of(tables, levels)
    for level in asked:
        found[level] = _series(tables, level, products_matching).dictionary_encode()
    sales = pa.concat_tables([_sums(level, codes, week_R, value_R) for level, codes in found.items()])
    pairs = [_pairs(found[child], found[parent]) for child in asked for parent in asked if child != parent]
    customers = transactions["entity_id"].combine_chunks().cast(pa.string()).dictionary_encode()
    owners = [_pairs(found[level], customers) for level in asked if CUSTOMER in level.split(",")]
    none = _WITHIN.empty_table()
    return {
        "sales": sales,
        "within": pa.concat_tables([none, *pairs]),
        "owners": pa.concat_tables([none, *owners]),
    }


_WITHIN = pa.schema([("series", pa.string()), ("parent", pa.string())])


def _series(tables: Mapping[str, pa.Table], level: str, products_matching: str | None) -> pa.Array:
    """(R,) name of each transaction row's series; null for a product that is left out."""
    num_rows = tables["transactions"].num_rows
    if level == TOTAL:
        return pa.repeat(pa.scalar(TOTAL), num_rows)
    names = level.split(",")
    values = [_values(tables, name) for name in names]
    joined = pc.binary_join_element_wise(*values, ",") if len(values) > 1 else values[0]
    result = pc.binary_join_element_wise(pa.scalar(f"{level}:"), joined, "")
    if products_matching is not None and "product" in names:
        kept = pc.match_substring_regex(values[names.index("product")], products_matching)
        result = pc.if_else(kept, result, None)
    return result


def _sums(level: str, codes: pa.DictionaryArray, week_R: np.ndarray, value_R: np.ndarray) -> pa.Table:
    """Sales by series and week of one level."""
    series_R = codes.indices.fill_null(-1).to_numpy().astype(np.int64)
    some = series_R >= 0
    first = int(week_R.min(initial=0))
    width = int(week_R.max(initial=0)) - first + 1
    cell, place = np.unique(series_R[some] * width + week_R[some] - first, return_inverse=True)
    return pa.table(
        {
            "level": pa.repeat(pa.scalar(level), len(cell)),
            "series": codes.dictionary.cast(pa.string()).take(pa.array(cell // width)),
            "week": cell % width + first,
            "value": np.bincount(place, value_R[some], minlength=len(cell)).astype(np.float64),
        }
    )


def _pairs(child: pa.DictionaryArray, parent: pa.DictionaryArray) -> pa.Table:
    """Distinct pairs of series of two levels."""
    codes = pa.table({"child": child.indices, "parent": parent.indices})
    pairs = (
        codes.filter(pc.and_(pc.is_valid(codes["child"]), pc.is_valid(codes["parent"])))
        .group_by(["child", "parent"])
        .aggregate([])
    )
    names = [
        side.dictionary.take(pairs[name].combine_chunks()) for name, side in (("child", child), ("parent", parent))
    ]
    return pa.table(names, schema=_WITHIN)


def combine(parts: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """Sales of the whole org, sorted by series and week; in "within" only pairs that always hold.

    A series lies within another if all of it does and the same is true of every series of its level. "owners": also of
    the series that lie within one of a customer.
    """
    sales = pa.concat_tables([part["sales"] for part in parts])
    sales = sales.group_by(["level", "series", "week"], use_threads=False).aggregate([("value", "sum")])
    sales = sales.rename_columns(["level", "series", "week", "value"]).sort_by(
        [("series", "ascending"), ("week", "ascending")]
    )
    within = (
        pa.concat_tables([part["within"] for part in parts])
        .group_by(["series", "parent"], use_threads=False)
        .aggregate([])
    )
    within = _nested(within).sort_by([("series", "ascending"), ("parent", "ascending")])
    named = pa.concat_tables([part["owners"] for part in parts]).combine_chunks()
    place = pc.index_in(within["parent"], value_set=named["series"].combine_chunks())
    parts_of_one = pa.table([within["series"], named["parent"].take(place)], schema=_WITHIN).filter(place.is_valid())
    return {"sales": sales, "within": within, "owners": pa.concat_tables([named, parts_of_one])}


def _nested(within: pa.Table) -> pa.Table:
    """The pairs of those levels of which the first lies wholly within the second."""
    child, parent = (pc.list_element(pc.split_pattern(within[name], ":"), 0) for name in ("series", "parent"))
    told = within.append_column("level", child).append_column("over", parent)
    counts = told.group_by(["series", "level", "over"], use_threads=False).aggregate([("parent", "count")])
    split = counts.filter(pc.greater(counts["parent_count"], 1))
    broken = set(zip(split["level"].to_pylist(), split["over"].to_pylist(), strict=True))
    kept = [pair not in broken for pair in zip(child.to_pylist(), parent.to_pylist(), strict=True)]
    return within.filter(pa.array(kept, pa.bool_()))


def frame(
    tables: Mapping[str, pa.Table],
    as_of: datetime,
    *,
    horizon_weeks: int,
    history_weeks: int,
    top: Mapping[str, int],
    gaps: Literal["zero", "unknown"],
    kinds: Sequence[str],
    weights: Mapping[str, float],
    labels: bool,
) -> pa.Table:
    """One row per series with a sale before as_of, sorted by name.

    entity_id; label and label_weight, lists of H float64 (null without `labels`; a week that is not known has a null
    label); level; history, list of float64: sales of the weeks before as_of from the series' first one on, oldest
    first; event_<kind>: list of float64, as long as history and label together, 1 in the weeks of a campaign of it;
    scale: mean absolute difference of neighbouring weeks; parents: the series that it is a part of; customer_id: the
    one customer whose sales they are, null for a series of several.
    top: level -> number of series kept, the largest by their sales before as_of.
    """
    now = week_of(as_of)
    sales = tables["sales"]
    past = sales.filter(pc.less(sales["week"], now))
    names, first_S, level_S = _known(past, top)
    start = int(first_S.min(initial=now))
    sold_SW = _matrix(sales, names, start, now + horizon_weeks, gaps)
    known = _last_week(sales) + 1
    before = now - start
    events = {
        kind: _weeks_of(tables.get("campaigns"), kind, start, now + horizon_weeks)
        for kind in sorted({*kinds, *weights})
    }
    begin_S = np.maximum(first_S, now - history_weeks) - start
    columns: dict[str, pa.Array] = {"entity_id": names}
    if labels:
        label_SH = sold_SW[:, before:].copy()
        label_SH[:, max(0, known - now) :] = np.nan
        weight_H = np.ones(horizon_weeks)
        for kind, weight in weights.items():
            weight_H = np.where(events[kind][before:] > 0, weight, weight_H)
        columns["label"] = _lists(label_SH)
        columns["label_weight"] = _lists(np.broadcast_to(weight_H, label_SH.shape))
    else:
        columns |= {name: pa.nulls(len(names), pa.list_(pa.float64())) for name in ("label", "label_weight")}
    columns["level"] = level_S
    columns["history"] = _lists(sold_SW[:, :before], begin_S)
    for kind in kinds:
        columns[f"event_{kind}"] = _lists(np.broadcast_to(events[kind], (len(names), len(events[kind]))), begin_S)
    columns["scale"] = pa.array(_scale(sold_SW[:, :before], first_S - start), pa.float64(), from_pandas=True)
    columns["parents"] = _parents(tables["within"], names)
    owners = tables["owners"]
    columns["customer_id"] = owners["parent"].take(pc.index_in(names, value_set=owners["series"].combine_chunks()))
    return pa.table(columns)


def in_lake(name: str, lake_id: Callable[[str], str]) -> str:
    """A series' name as it stands in the lake, where it is named after a customer whose id the lake has as `lake_id`
    gives it. In a pair the customer's id holds no comma."""
    level, _, values = name.partition(":")
    if level == CUSTOMER:
        return f"{level}:{lake_id(values)}"
    if level.startswith(f"{CUSTOMER},"):
        customer, comma, other = values.partition(",")
        return f"{level}:{lake_id(customer)}{comma}{other}"
    if level.endswith(f",{CUSTOMER}"):
        other, comma, customer = values.rpartition(",")
        return f"{level}:{other}{comma}{lake_id(customer)}"
    return name


def _known(past: pa.Table, top: Mapping[str, int]) -> tuple[pa.Array, np.ndarray, pa.Array]:
    """Series with a sale that is not 0, sorted by name: names, first week of such a sale (S,), level."""
    sold = past.filter(pc.not_equal(past["value"], 0.0))
    found = sold.group_by(["level", "series"], use_threads=False).aggregate([("week", "min"), ("value", "sum")])
    kept = []
    for level in pc.unique(found["level"]).to_pylist():
        own = found.filter(pc.equal(found["level"], level))
        if level in top:
            size = pc.round(own["value_sum"], 2)  # sums of cents in another order must not decide between equals
            order = [("size", "descending"), ("series", "ascending")]
            own = own.append_column("size", size).sort_by(order).slice(0, top[level]).drop_columns(["size"])
        kept.append(own)
    together = pa.concat_tables([found.slice(0, 0), *kept]).sort_by("series").combine_chunks()
    first = together["week_min"].to_numpy()
    return together["series"].combine_chunks(), first, together["level"].combine_chunks()


def _last_week(sales: pa.Table) -> int:
    last = pc.max(sales["week"]).as_py()
    return -1 if last is None else last


def _matrix(sales: pa.Table, names: pa.Array, start: int, end: int, gaps: str) -> np.ndarray:
    """(S, end - start) sales; weeks without a row are 0 or NaN."""
    row = pc.index_in(sales["series"], value_set=names).fill_null(-1).to_numpy()
    week = sales["week"].to_numpy() - start
    inside = (row >= 0) & (week >= 0) & (week < end - start)
    sold = np.full((len(names), end - start), 0.0 if gaps == "zero" else np.nan)
    sold[row[inside], week[inside]] = sales["value"].to_numpy()[inside]
    return sold


def _weeks_of(campaigns: pa.Table | None, kind: str, start: int, end: int) -> np.ndarray:
    """(end - start,) 1.0 in the weeks in which a campaign of this kind runs. DataError when there is none."""
    own = campaigns.filter(pc.equal(campaigns["kind"], kind)) if campaigns is not None else None
    if own is None or not own.num_rows:
        raise DataError(
            f"forecast: got kind {kind!r}, but no row of table campaigns is of it; map campaigns with kind and"
            " started_at, or take it out of known_ahead and week_weights"
        )
    began = own.filter(pc.is_valid(own["started_at"]))
    first = weeks(began["started_at"])
    last = (
        weeks(pc.coalesce(pc.subtract(began["ended_at"], timedelta(microseconds=1)), began["started_at"]))
        if "ended_at" in own.column_names
        else first
    )
    flags = np.zeros(end - start)
    for low, high in zip(first - start, last - start, strict=True):
        flags[max(0, low) : max(0, max(low, high) + 1)] = 1.0
    return flags


def _lists(values_SW: np.ndarray, begin_S: np.ndarray | None = None) -> pa.Array:
    """A list of float64 a row, from its first column on; NaN becomes null."""
    width = values_SW.shape[1]
    begin_S = np.zeros(len(values_SW), np.int64) if begin_S is None else begin_S
    kept = np.arange(width) >= begin_S[:, None]
    flat = np.ascontiguousarray(values_SW)[kept]
    offsets = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float64(), from_pandas=True))


def _scale(sold_SW: np.ndarray, first_S: np.ndarray) -> np.ndarray:
    """(S,) mean |difference of neighbouring weeks| from the first week on; NaN where there are none, or it is 0."""
    step_SW = np.abs(np.diff(sold_SW, axis=1))
    step_SW[np.arange(step_SW.shape[1]) < first_S[:, None]] = np.nan
    known_S = np.isfinite(step_SW).sum(1)
    mean_S = np.nansum(step_SW, axis=1) / np.maximum(known_S, 1)
    return np.where(mean_S > 0, mean_S, np.nan)


def _parents(within: pa.Table, names: pa.Array) -> pa.Array:
    """(S,) list<string>: series that each one is a part of, among those that are known."""
    both = pc.and_(pc.is_in(within["series"], value_set=names), pc.is_in(within["parent"], value_set=names))
    kept = within.filter(both)
    row = pc.index_in(kept["series"], value_set=names).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(names)))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), kept["parent"].combine_chunks())
