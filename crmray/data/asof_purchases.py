"""As-of features of purchases and returns.

A purchase row has num_units > 0 and net_amount > 0 (a column that is missing does not speak against it); lines of one
order_id, or of one moment where there is none, are one order. Gaps are between days with a purchase.
Sources: recency, frequency, monetary value and inter-purchase time as in Fader, Hardie, Lee, "RFM and CLV" (2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.asof_rows import DAY_US, Rows, View, ratio, trend, windows

COLUMNS = ("order_id", "product_id", "num_units", "unit_price_amount", "net_amount", "channel")
HALF_LIVES_DAYS = (30, 90, 180)
YEAR_DAYS = 365.0


def is_purchase(transactions: pa.Table) -> np.ndarray:
    """(R,) bool: num_units > 0 and net_amount > 0, where these are known."""
    mask = np.ones(transactions.num_rows, bool)
    for column in ("num_units", "net_amount"):
        if column in transactions.column_names:
            mask &= pc.fill_null(pc.greater(transactions[column], 0.0), True).to_numpy()
    return mask


def is_return(lines: Rows) -> np.ndarray:
    """(R,) bool: num_units < 0 or net_amount < 0."""
    return (units(lines) < 0) | (amounts(lines) < 0)


@dataclass(frozen=True, kw_only=True)
class Orders:
    """Orders of all customers, sorted by customer, oldest first: the rows and their figures."""

    rows: Rows
    """one row per order, at the time of its oldest line"""
    amount: np.ndarray
    """net amount, currency; 0 where the org has no amounts"""
    units: np.ndarray
    """units; a line without a number counts as one"""
    lines: np.ndarray
    """number of lines"""


def orders(lines: Rows, mask: np.ndarray) -> Orders:
    """The orders made of the lines of the mask."""
    rows, index = lines.where(mask), np.flatnonzero(mask)
    key = rows.days if not lines.has("order_id") else _order_key(lines, index, rows.days)
    _, key = np.unique(key, return_inverse=True)
    width = int(key.max()) + 1 if len(key) else 1
    _, first, group = np.unique(rows.code * width + key, return_index=True, return_inverse=True)
    order = np.lexsort((-rows.days[first], rows.code[first]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    group, first = place[group], first[order]

    def total(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(group, weights, minlength=len(first)).astype(np.float64)

    return Orders(
        rows=Rows(code=rows.code[first], days=rows.days[first], table=pa.table({}), n=lines.n),
        amount=total(amounts(lines)[index]),
        units=total(units(lines)[index]),
        lines=total(),
    )


def _order_key(lines: Rows, index: np.ndarray, days: np.ndarray) -> np.ndarray:
    """A number per order: of its id, or a negative one of its moment where it has none."""
    key = lines.codes("order_id")[0][index]
    unknown = key < 0
    _, moment = np.unique(days[unknown], return_inverse=True)
    key[unknown] = -1 - moment
    return key


def amounts(lines: Rows) -> np.ndarray:
    """(R,) net amount of each line, 0 where not known."""
    return np.nan_to_num(lines.number("net_amount")) if lines.has("net_amount") else np.zeros(len(lines.code))


def units(lines: Rows) -> np.ndarray:
    """(R,) units of each line, 1 where not known."""
    return np.nan_to_num(lines.number("num_units"), nan=1.0) if lines.has("num_units") else np.ones(len(lines.code))


def features(view: View, lines: Rows, bought: Orders, returned: Orders, products: pa.Table | None) -> dict:
    """Columns by name, (N,) each."""
    purchase = is_purchase(lines.table)
    has_amounts = lines.has("net_amount")
    columns = {**_frequency(view, bought), **_gaps(view, bought), **_baskets(bought, has_amounts)}
    columns |= _returns(view, bought, returned, has_amounts)
    if has_amounts:
        columns |= _spend(view, lines, bought)
    if lines.has("product_id"):
        columns |= _assortment(lines, purchase, products)
    if has_amounts and lines.has("num_units"):
        columns |= _prices(lines, purchase, products)
    if lines.has("channel"):
        columns["basket_channel_last"] = _last_channel(lines, purchase)
    return columns


def _frequency(view: View, bought: Orders) -> dict:
    limits = windows(view.lookback_days)
    rows, counts = bought.rows, bought.rows.sums(limits)
    columns = {f"frequency_orders_{days:.0f}d": counts[:, i] for i, days in enumerate(limits)}
    total, since_first = rows.totals(), rows.first(rows.days)
    columns["recency_days"] = rows.last(rows.days)
    columns["tenure_purchase_days"] = since_first
    columns["frequency_orders_all"] = total
    # one order and 90 days more on each side keep the rate of a customer of yesterday within reason
    columns["frequency_orders_per_30d"] = 30.0 * (total + 0.5) / (np.nan_to_num(since_first) + 90.0)
    for half_life in HALF_LIVES_DAYS:
        columns[f"frequency_decayed_{half_life}d"] = rows.totals(np.exp2(-rows.days / half_life))
    at = {days: i for i, days in enumerate(limits)}
    for days in (30.0, 90.0):
        if days in at and 2 * days in at:
            columns[f"trend_orders_{days:.0f}d"] = trend(
                counts[:, at[days]], counts[:, at[2 * days]] - counts[:, at[days]]
            )
    if view.lookback_days >= YEAR_DAYS:
        season = _season(view, rows)
        columns["season_orders"] = rows.totals(season.astype(np.float64))
    return columns


def _season(view: View, rows: Rows) -> np.ndarray:
    """Mask of the rows in the label window's dates of a year ago."""
    return (rows.days <= YEAR_DAYS) & (rows.days > YEAR_DAYS - min(view.horizon_days, YEAR_DAYS))


def _gaps(view: View, bought: Orders) -> dict:
    """Time between days with a purchase, and how the time since the last one compares with it."""
    rows = bought.rows
    day = np.floor((view.as_of_us / DAY_US) - rows.days)
    new_day = np.ones(len(day), bool)
    new_day[1:] = (np.diff(rows.code) > 0) | (np.diff(day) > 0)
    code, day = rows.code[new_day], day[new_day]
    same = np.diff(code) == 0
    gaps = Rows(code=code[1:][same], days=np.diff(day)[same], table=pa.table({}), n=view.n)
    mean = gaps.means(gaps.days)
    variance = np.maximum(gaps.means(gaps.days**2) - mean**2, 0.0)
    last, recency = gaps.last(gaps.days), rows.last(rows.days)
    return {
        "frequency_purchase_days": np.bincount(code, minlength=view.n).astype(np.float64),
        "gap_mean_days": mean,
        "gap_std_days": np.sqrt(variance),
        "gap_last_days": last,
        "gap_last_per_mean": ratio(last, mean),
        "gap_recency_per_mean": ratio(recency, mean),
        "gap_recency_excess": ratio(recency - mean, np.sqrt(variance) + 7.0),
    }


def _baskets(bought: Orders, has_amounts: bool) -> dict:
    rows = bought.rows
    columns = {"basket_lines_mean": rows.means(bought.lines), "basket_units_mean": rows.means(bought.units)}
    columns["basket_lines_last"] = rows.last(bought.lines)
    if has_amounts:
        mean, last = rows.means(bought.amount), rows.last(bought.amount)
        columns |= {"basket_amount_mean": mean, "basket_amount_last": last, "basket_last_per_mean": ratio(last, mean)}
    return columns


def _spend(view: View, lines: Rows, bought: Orders) -> dict:
    limits = windows(view.lookback_days)
    rows, gross, net = bought.rows, bought.rows.sums(limits, bought.amount), lines.sums(limits, amounts(lines))
    columns = {f"spend_gross_{days:.0f}d_amount": gross[:, i] for i, days in enumerate(limits)}
    columns |= {f"spend_net_{days:.0f}d_amount": net[:, i] for i, days in enumerate(limits)}
    columns["spend_net_all_amount"] = lines.totals(amounts(lines))
    columns["spend_decayed_90d_amount"] = rows.totals(bought.amount * np.exp2(-rows.days / 90.0))
    at = {days: i for i, days in enumerate(limits)}
    if 180.0 in at and 90.0 in at:
        columns["trend_spend_90d"] = trend(gross[:, at[90.0]], gross[:, at[180.0]] - gross[:, at[90.0]])
    if view.lookback_days >= YEAR_DAYS:
        columns["season_spend_amount"] = rows.totals(bought.amount * _season(view, rows))
    return columns


def _returns(view: View, bought: Orders, returned: Orders, has_amounts: bool) -> dict:
    limits = windows(view.lookback_days)[-2:]
    counts = returned.rows.sums(limits)
    columns = {f"return_orders_{days:.0f}d": counts[:, i] for i, days in enumerate(limits)}
    columns["return_recency_days"] = returned.rows.last(returned.rows.days)
    columns["return_share_of_units"] = ratio(
        np.abs(returned.rows.totals(returned.units)), bought.rows.totals(bought.units)
    )
    if has_amounts:
        gross = bought.rows.totals(bought.amount)
        columns["return_share_of_spend"] = ratio(np.abs(returned.rows.totals(returned.amount)), gross)
    return columns


def _assortment(lines: Rows, purchase: np.ndarray, products: pa.Table | None) -> dict:
    """How many products and categories, how often again, and the category bought most."""
    product, names = lines.codes("product_id")
    mask = purchase & (product >= 0)
    code, product = lines.code[mask], product[mask]
    owner, _, count = _pairs(code, product, len(names))
    num_products = np.bincount(owner, minlength=lines.n).astype(np.float64)
    num_lines = np.bincount(code, minlength=lines.n)
    columns = {"product_num": num_products, "product_repeat_share": 1.0 - ratio(num_products, num_lines)}
    if products is None or "category" not in products.column_names:
        return columns
    categories = products["category"].combine_chunks().dictionary_encode()
    ordered = pc.sort_indices(categories.dictionary).to_numpy()
    rank = np.append(np.argsort(ordered), -1)
    row_of = pc.index_in(names, value_set=products["product_id"].combine_chunks()).fill_null(-1).to_numpy()
    category_of_row = np.append(rank[categories.indices.fill_null(-1).to_numpy(zero_copy_only=False)], -1)
    category = category_of_row[row_of][product]
    known = category >= 0
    owner, kind, count = _pairs(code[known], category[known], len(ordered))
    top = np.lexsort((-kind, count, owner))  # the commonest last; of equals the first in the alphabet
    best = Rows(code=owner[top], days=count[top], table=pa.table({}), n=lines.n)
    favourite = best.last(kind[top].astype(np.float64))
    taken = np.array([*categories.dictionary.take(pa.array(ordered)).to_pylist(), None], object)
    columns["product_num_categories"] = np.bincount(owner, minlength=lines.n).astype(np.float64)
    columns["product_category_share"] = ratio(best.last(count[top]), np.bincount(code[known], minlength=lines.n))
    columns["product_category_top"] = pa.array(taken[np.nan_to_num(favourite, nan=-1).astype(int)], pa.string())
    return columns


def _pairs(code: np.ndarray, value: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (code, value) pairs and how often each occurs, sorted."""
    pair, count = np.unique(code * max(width, 1) + value, return_counts=True)
    return pair // max(width, 1), pair % max(width, 1), count.astype(np.float64)


def _prices(lines: Rows, purchase: np.ndarray, products: pa.Table | None) -> dict:
    """Price per unit, and the discount on the list price where products have one."""
    rows = lines.where(purchase)
    price = amounts(lines)[purchase] / units(lines)[purchase]
    columns = {"price_mean_amount": rows.means(price)}
    listed = products is not None and "price_amount" in products.column_names and lines.has("product_id")
    if listed:
        assert products is not None
        row_of = pc.index_in(
            lines.table["product_id"].combine_chunks(), value_set=products["product_id"].combine_chunks()
        )
        list_price = products["price_amount"].combine_chunks().take(row_of).to_numpy(zero_copy_only=False)[purchase]
        discount = 1.0 - np.divide(price, list_price, out=np.full(len(price), np.nan), where=list_price > 0)
        columns["price_discount_mean"] = rows.means(discount)
        columns["price_discount_last"] = rows.last(discount)
    return columns


def _last_channel(lines: Rows, purchase: np.ndarray) -> pa.Array:
    code, names = lines.codes("channel")
    last = np.nan_to_num(lines.where(purchase).last(code[purchase].astype(np.float64)), nan=-1).astype(int)
    return pa.array(np.array([*names.to_pylist(), None], object)[last], pa.string())
