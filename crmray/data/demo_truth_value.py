"""What only the evaluation may read: the orders and the spend of a customer of the demo org that can be expected.

The posterior over (class c, engagement z) given all before as_of, and over taste given the class, is that of
demo_truth. A backward recursion gives E[orders in [as_of, as_of + horizon) | c, z], with future mails, price rises and
cases averaged over. An order is worth its expected lines, units and price for the class and the tastes, at the
customer's price level, less the expected discount and returns. Two things are averaged where the history tells a
little more, which moves no order of customers worth speaking of: a product follows from the order before (here: the mix
in the long run), and a return falls into the horizon after its order.

Symbols as in demo_world and demo_truth; shapes: N customers, C = 12 classes, 3 engagement states, T tastes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_sales, demo_truth
from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import FOLLOW, Catalogue
from crmray.data.demo_truth import ORDER_RATES, C, S, V
from crmray.data.demo_world import Block, World
from crmray.salesforce import ids
from crmray.schema import TIME


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per (as_of, customer of the block that existed then).

    entity_id string (18-character Account id), as_of timestamp; what came in [as_of, as_of + horizon), null where the
    history ends earlier: label_spend float64 (net, 0 at least) and label_purchases float64 (orders); what could be
    expected: p_purchase, purchases, spend float64. Raises DataError as demo_truth.of_block.
    """
    days = [demo_truth.day_of(world, date) for date in as_of]
    leaving = demo_truth.p_leave(world, block, days, horizon_days)
    buyer, day, amount, is_order = _lines(world, block)
    tables = []
    for k, live, posterior in demo_truth.posteriors(world, block, days):
        first, end = days[k], days[k] + horizon_days
        inside = (day >= first) & (day < end)
        orders = np.bincount(buyer[inside & is_order], minlength=len(block)).astype(float)
        net = np.bincount(buyer[inside], amount[inside], minlength=len(block))
        came = [np.where(orders > 0, np.maximum(net, 0.0), 0.0)[live], orders[live]]
        by_class = posterior * expected_orders(world, block, first, horizon_days)
        known = end <= world.num_days
        count = int(live.sum())
        tables.append(pa.table({
            "entity_id": ids.make("001", block.first + np.flatnonzero(live)),
            "as_of": pa.repeat(pa.scalar(demo_truth.moment_of(world, first), TIME), count),
            **{name: pa.array(values) if known else pa.nulls(count, pa.float64())
               for name, values in zip(("label_spend", "label_purchases"), came, strict=True)},
            "p_purchase": 1.0 - leaving[k, live],
            "purchases": by_class.sum((1, 2))[live],
            "spend": (by_class.sum(2) * _order_amounts(world, block, first)).sum(1)[live],
        }))  # fmt: skip
    return pa.concat_tables(tables)


def _lines(world: World, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Customer, day and amount of every line as it was written, returns below 0, and whether it opens an order."""
    orders, items = demo_sales.sales(world, block, world.rng(block.first // dw.BLOCK, dw.STREAMS["sales"]))
    place = pc.index_in(items["OrderId"], value_set=orders["Id"].combine_chunks()).to_numpy()
    buyer = pc.index_in(orders["AccountId"], value_set=demo_sales.account_ids(block)).to_numpy()[place]
    day = np.floor(demo_truth.days_of(world, orders["EffectiveDate"]))[place]
    opens = np.zeros(len(place), bool)
    opens[np.unique(place, return_index=True)[1]] = True
    amount = items["TotalPrice"].to_numpy()
    return buyer, day, amount, opens & (amount > 0)


def expected_orders(world: World, block: Block, day: int, horizon_days: int) -> np.ndarray:
    """(N, C, 3) E[orders in [day, day + horizon) | class, engagement in the week of the day, that week's events]."""
    week, cut, end = day // 7, day % 7, day + horizon_days
    seasons = world.seasons(end // 7 + 2)
    following = np.zeros((2, C, 3))
    for w in range((end - 1) // 7, week, -1):
        following = _one_week(w, dw.DAYS_BEFORE[min(7, end - 7 * w)], seasons[w], following)
    opted = block.opted_in.astype(int)
    share = dw.DAYS_BEFORE[min(7, end - 7 * week)] - dw.DAYS_BEFORE[cut]
    if cut == 0:
        return _one_week(week, share, seasons[week], following)[opted]
    seen = demo_truth.weekly(block, block.z.shape[1], before_day=day)
    bad = dw.bad_case(np.stack([cell[:, 0] for cell in seen[7:13]], axis=1)).astype(int)
    rise, treated = block.rise[:, week].astype(int), seen[2][:, 0].astype(int)
    quiet = np.exp(-demo_truth.BAD_RATES * (1 - cut / 7))
    after = np.stack(
        [[demo_truth.after_week(following, np.array([r]), quiet * (1 - b)) for b in (0, 1)] for r in (0.0, 1.0)]
    )
    uplift = 1 + dw.UPLIFT[S][:, None] * np.array([0, 1])[:, None, None]
    return (ORDER_RATES[None] * uplift * seasons[week] * share)[treated] + after[rise, bad, opted]


def _one_week(week: int, share: float, season: float, following: np.ndarray) -> np.ndarray:
    """(2 opted in, C, 3) orders in the first `share` of an unseen week, and those after it."""
    mailed = dw.P_TREATMENT if week % dw.MAIL_EVERY == 0 else 0.0
    uplift = 1 + dw.UPLIFT[S][:, None] * np.array([0.0, mailed])[:, None, None]
    rises = np.array([1 - dw.P_PRICE_RISE, dw.P_PRICE_RISE])
    quiet = np.exp(-demo_truth.BAD_RATES)
    after = sum(p * demo_truth.after_week(following, np.array([r]), quiet) for r, p in enumerate(rises))
    return ORDER_RATES * season * share * uplift + after


def _order_amounts(world: World, block: Block, day: int) -> np.ndarray:
    """(N, C) expected net amount of an order, in the org's currency."""
    taste_NTC = demo_truth.p_taste(world, block, day)
    price_TS = _mean_prices(world.catalogue, day // 7)
    level = (1 + dw.PRICE_RISE) ** block.rise[:, : day // 7 + 1].sum(1)
    discount = 1 - dw.P_DISCOUNT[S] * sum(dw.DISCOUNT) / 2
    units = (1 + dw.EXTRA_LINES[V]) * (1 + dw.EXTRA_UNITS[V])
    price_NC = np.einsum("ntc,tc->nc", taste_NTC, price_TS[:, S])
    return price_NC * level[:, None] * discount * units * (1 - demo_sales.RETURNED)


def _mean_prices(catalogue: Catalogue, week: int) -> np.ndarray:
    """(T, 2) mean list price of what is bought in the long run: q = (1 - FOLLOW) base + FOLLOW q successors."""
    era = int(catalogue.era_of(np.array([week]))[0])
    chain = np.eye(len(catalogue.price)) - FOLLOW * catalogue.successors[era]
    return (1 - FOLLOW) * catalogue.base[era] @ np.linalg.solve(chain, catalogue.price)
