"""What only the evaluation may read: the best ten products to show a customer of the demo org.

NDCG is a sum over places, so the best ranking is that by w_i = E[1(i is bought) / ideal DCG of what is bought]. It
follows from P(class, engagement, taste | all before as_of) of demo_truth: in the k-th order of the horizon a line is
product i with probability q_k(i) = FOLLOW (q_{k-1} successors)(i) + (1 - FOLLOW) base(i), where q_0 is the last order
before as_of; the expected number of orders is that of demo_truth_value. Two things are averaged where a customer's
draws could tell a little more: the taste within a chain of orders, and how many of the lines are owned already.

Symbols as in demo_world and demo_truth; shapes: N customers, C = 12 classes, M products, G = 4 pairs (v, s).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import exp, factorial

import numpy as np
import pyarrow as pa

from crmray.data import demo_truth, demo_truth_value
from crmray.data import demo_world as dw
from crmray.data.baskets import ACTIVE, COLD, LAPSED
from crmray.data.demo_catalogue import FOLLOW
from crmray.data.demo_truth import C, V
from crmray.data.demo_world import Block, World
from crmray.salesforce import ids
from crmray.schema import TIME

MONTH_DAYS = 30
"""horizon of the recommendation task, in days"""
TOP_K = 10
MAX_ORDERS = 12
"""orders in the horizon that are told apart"""
MAX_LINES = 60


def of_month(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """`of_block` at the dates of the task's validation and test rows, two months and one before the last of the dates:
    its horizon is a month."""
    dates = [max(as_of) - timedelta(days=MONTH_DAYS * back) for back in (2, 1)]
    return of_block(world, block, [date for date in dates if date.date() > world.epoch], MONTH_DAYS)


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per (as_of, customer of the block).

    entity_id string (18-character Account id), as_of timestamp; target list<string> (products bought in [as_of, as_of +
    horizon) and never before, sorted) and audience string, both null where the history ends earlier; products
    list<string> (TOP_K, null where fewer are left), the best first. Raises DataError as demo_truth.of_block.
    """
    days = [demo_truth.day_of(world, date) for date in as_of]
    names = np.array(ids.make("01t", np.arange(len(world.catalogue.price))).to_pylist(), dtype=object)
    tables = []
    for k, _, posterior in demo_truth.posteriors(world, block, days):
        day, end = days[k], days[k] + horizon_days
        owned = _bought(world, block, 0, day)
        best = _best(_weights(world, block, posterior, day, horizon_days), owned)
        shown = [[names[i] if i >= 0 else None for i in row] for row in best]
        target = _bought(world, block, day, end) & ~owned
        known = end <= world.num_days
        listed = [sorted(names[row]) for row in target] if known else [None] * len(block)
        audience = np.select([demo_truth.has_order(block, day - demo_truth.POPULATION_DAYS, day), owned.any(1)],
                             [ACTIVE, LAPSED], COLD)  # fmt: skip
        tables.append(pa.table({
            "entity_id": ids.make("001", block.first + np.arange(len(block))),
            "as_of": pa.array([as_of[k]] * len(block), TIME),
            "target": pa.array(listed, pa.list_(pa.string())),
            "audience": pa.array(audience) if known else pa.nulls(len(block), pa.string()),
            "products": pa.array(shown, pa.list_(pa.string())),
        }))  # fmt: skip
    return pa.concat_tables(tables)


def _bought(world: World, block: Block, first_day: int, end_day: int) -> np.ndarray:
    """(N, M) whether a line of the days [first, end) has the product."""
    day = block.order_day[block.line_order]
    chosen = (day >= first_day) & (day < end_day)
    found = np.zeros((len(block), len(world.catalogue.price)), bool)
    found[block.order_customer[block.line_order][chosen], block.product[chosen]] = True
    return found


def _best(weights: np.ndarray, owned: np.ndarray) -> np.ndarray:
    """(N, TOP_K) products of the highest weights that are not owned, -1 where there are fewer."""
    open_NM = np.where(owned | (weights <= 0), -1.0, weights)
    best = np.argsort(-open_NM, axis=1, kind="stable")[:, :TOP_K]
    return np.where(np.take_along_axis(open_NM, best, axis=1) > 0, best, -1)


def _weights(world: World, block: Block, posterior: np.ndarray, day: int, horizon_days: int) -> np.ndarray:
    """(N, M) E[1(the product is bought) / ideal DCG of what is bought]."""
    catalogue = world.catalogue
    era = int(catalogue.era_of(np.array([day // 7]))[0])
    by_order_NGK = _order_weights(posterior, demo_truth_value.expected_orders(world, block, day, horizon_days))
    taste_NTC = demo_truth.p_taste(world, block, day)
    last_NM = _last_order(world, block, day)
    bought_before = last_NM.sum(1, keepdims=True) > 0
    total_NM = np.zeros_like(last_NM)
    for pair in range(4):
        drawn_NM = taste_NTC[:, :, 3 * pair] @ catalogue.base[era][:, pair % 2]
        line_NM = last_NM
        for order in range(by_order_NGK.shape[2]):
            followed_NM = FOLLOW * line_NM @ catalogue.successors[era] + (1 - FOLLOW) * drawn_NM
            line_NM = np.where(bought_before | (order > 0), followed_NM, drawn_NM)
            total_NM += by_order_NGK[:, pair, [order]] * line_NM
    return total_NM


def _order_weights(posterior: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(N, G, MAX_ORDERS): of the k-th order of the horizon, E[its lines / ideal DCG of all lines], which is 0 where it
    does not come; by pair (v, s), which is class // 3. posterior, expected orders: (N, C, 3)."""
    ideal = np.cumsum(1.0 / np.log2(np.arange(TOP_K) + 2.0))[np.minimum(np.arange(1, MAX_LINES + 1), TOP_K) - 1]
    result = np.zeros((len(posterior), 4, MAX_ORDERS))
    for c in range(C):
        mean = np.broadcast_to(expected, posterior.shape)[:, c]
        reached = np.zeros(len(posterior))
        for count in range(MAX_ORDERS, 0, -1):  # P(count orders) x lines of each of them, from the top down
            extra = count * dw.EXTRA_LINES[V[c]]
            lines = np.arange(count, MAX_LINES + 1)
            share = np.array([exp(-extra) * extra ** (t - count) / factorial(t - count) for t in lines])
            value = float((share * lines / count / ideal[lines - 1]).sum())
            chance = np.exp(-mean) * mean**count / factorial(count)
            reached += value * (posterior[:, c] * chance).sum(1)
            result[:, c // 3, count - 1] += reached
    return result


def _last_order(world: World, block: Block, day: int) -> np.ndarray:
    """(N, M) shares of the lines of each customer's last order before the day; 0 without any."""
    before = np.flatnonzero(block.order_day < day)
    last = np.full(len(block), -1)
    last[block.order_customer[before]] = before  # orders are sorted by day: the last one stays
    line = np.flatnonzero(last[block.order_customer[block.line_order]] == block.line_order)
    found = np.zeros((len(block), len(world.catalogue.price)))
    np.add.at(found, (block.order_customer[block.line_order[line]], block.product[line]), 1.0)
    return found / np.maximum(found.sum(1, keepdims=True), 1.0)
