"""What only the evaluation may read: the quantiles of weekly sales of the demo org that nobody can forecast better.

Futures are drawn from the world itself: class, engagement and taste of each customer from the posterior given all
before the date (demo_truth), customers who are still to come from the prior; then orders, lines, products, price rises,
discounts and returns week by week as demo_world describes them. The quantiles of a series are those of its draws.

Shapes: N customers, H weeks, R draws, S series; symbols as in demo_world.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_sales, demo_truth
from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import CATEGORIES, FOLLOW, NUM_TASTES, SUCCESSOR_WEIGHTS, Catalogue
from crmray.data.demo_simulate import simulate
from crmray.data.demo_truth import BAD_RATES, ORDER_RATES, P_CLASS, C, S, V
from crmray.data.demo_world import Block, World
from crmray.schema import TIME

HORIZON_WEEKS = 12
LEVELS = {"q10": 0.1, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9}
"""raw predictions of the forecast task"""
NUM_DRAWS = 200
CUSTOMERS = (2_000, 30_000)
"""worlds of which it is told: smaller ones sell too little of a product, larger ones take too long"""
DRAW_STREAM = 99


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per series (total, region:…, category:…, product:…), of all blocks together: block 0 tells it all.

    Its date is the forecast's test date under default settings, whatever as_of and horizon_days: the last Monday whose
    HORIZON_WEEKS the history covers. entity_id, as_of, label and label_weight (lists of H), and a list of H for each of
    LEVELS. No rows for the other blocks, nor for a world of fewer or more customers than CUSTOMERS.
    """
    week = (world.num_days - 1) // 7 + (world.num_days % 7 == 0) - HORIZON_WEEKS
    if block.first > 0 or not CUSTOMERS[0] <= world.customers <= CUSTOMERS[1] or week < 1:
        return _table(world, [], np.zeros((0, HORIZON_WEEKS)), np.zeros((len(LEVELS), 0, HORIZON_WEEKS)), week)
    num_products = len(world.catalogue.price)
    came = np.zeros((len(demo_sales.REGIONS) * num_products, HORIZON_WEEKS))
    draws = np.zeros((NUM_DRAWS, *came.shape), np.float32)
    for number, other in enumerate([block, *(simulate(world, index) for index in range(1, world.num_blocks))]):
        known = _Past.of(world, other, number, week)
        came += known.came
        for draw in range(NUM_DRAWS):
            draws[draw] += _draw(world, known, np.random.default_rng([world.seed, DRAW_STREAM, number, draw]))
    names, sums = _series(world)
    label = sums @ came
    sold = np.flatnonzero(_sold_before(world, week))
    by_series = np.stack([sums[sold] @ draw for draw in draws])
    quantiles = np.quantile(by_series, list(LEVELS.values()), axis=0)
    return _table(world, [names[place] for place in sold], label[sold], quantiles, week)


def _table(world: World, names: list[str], label_SH: np.ndarray, quantiles_QSH: np.ndarray, week: int) -> pa.Table:
    lists = pa.list_(pa.float64())
    columns = {
        "entity_id": pa.array(names, pa.string()),
        "as_of": pa.repeat(pa.scalar(demo_truth.moment_of(world, 7 * week), TIME), len(names)),
        "label": pa.array(label_SH.tolist(), lists),
        "label_weight": pa.array(np.ones_like(label_SH).tolist(), lists),
    }
    return pa.table(
        columns | {name: pa.array(rows.tolist(), lists) for name, rows in zip(LEVELS, quantiles_QSH, strict=True)}
    )


def _series(world: World) -> tuple[list[str], np.ndarray]:
    """Names of the series, and (S, regions · products) 1 where a cell belongs to one."""
    catalogue = world.catalogue
    num_products = len(catalogue.price)
    region, product = (axis.ravel() for axis in np.indices((len(demo_sales.REGIONS), num_products)))
    ids = demo_sales.product_ids(world, np.arange(num_products)).to_pylist()
    names, rows = ["total"], [np.ones(len(region))]
    for index, name in enumerate(demo_sales.REGIONS):
        names, rows = [*names, f"region:{name}"], [*rows, region == index]
    for index, name in enumerate(CATEGORIES):
        names, rows = [*names, f"category:{name}"], [*rows, catalogue.category[product] == index]
    for index, name in enumerate(ids):
        names, rows = [*names, f"product:{name}"], [*rows, product == index]
    return names, np.stack(rows).astype(np.float64)


def _sold_before(world: World, week: int) -> np.ndarray:
    """(S,) bool: the products on sale by then, and all sums. A product that sells is known by its first sale."""
    launched = world.catalogue.era_weeks[world.catalogue.launch_era] < week
    return np.concatenate([np.ones(1 + len(demo_sales.REGIONS) + len(CATEGORIES), bool), launched])


@dataclass(frozen=True, kw_only=True)
class _Mix:
    """What is bought in a week, for drawing."""

    liked: np.ndarray
    """(T, 2, M) running sums of P(product | taste, price-sensitive)"""
    following: np.ndarray
    """(M, successors) products that follow a product"""
    shares: np.ndarray
    """(M, successors) running sums of their probabilities"""

    @staticmethod
    def of(catalogue: Catalogue, week: int) -> _Mix:
        era = int(catalogue.era_of(np.array([week]))[0])
        best = np.argsort(-catalogue.successors[era], axis=1, kind="stable")[:, : len(SUCCESSOR_WEIGHTS)]
        shares = np.take_along_axis(catalogue.successors[era], best, axis=1).cumsum(1)
        return _Mix(liked=catalogue.base[era].cumsum(-1), following=best, shares=shares)


@dataclass(frozen=True, kw_only=True)
class _Past:
    """What is known of one block's customers before the first week to forecast."""

    week: int
    """first week to forecast"""
    posterior: np.ndarray
    """(N, C · 3) running sums of P(class, engagement in that week), of the prior for those who are still to come"""
    taste: np.ndarray
    """(N, T, C) running sums over tastes of P(taste | class)"""
    to_come: np.ndarray
    """(N,) bool: without a week before"""
    opted_in: np.ndarray
    region: np.ndarray
    level: np.ndarray
    """(N,) price level before that week"""
    last: np.ndarray
    """(N, lines) products of the last order, -1 where there are fewer lines"""
    back_day: np.ndarray
    back_cell: np.ndarray
    back_amount: np.ndarray
    """lines of the last three weeks that may still come back: day of the order, cell, amount"""
    came: np.ndarray
    """(cells, H) what came"""
    mix: tuple[_Mix, ...]
    """(H,) of the weeks to forecast"""

    @staticmethod
    def of(world: World, block: Block, number: int, week: int) -> _Past:
        day, num_products = 7 * week, len(world.catalogue.price)
        _, live, posterior_NCZ = next(demo_truth.posteriors(world, block, [day]))
        unknown_CZ = P_CLASS[:, None] * dw.P_START  # of a customer of whom nothing is known
        posterior = np.where(live[:, None], posterior_NCZ.reshape(len(block), -1), unknown_CZ.ravel())
        created = demo_sales.created_days(block, world.rng(number, dw.STREAMS["created"]))
        accounts = demo_sales.accounts(world, block, created, world.rng(number, dw.STREAMS["accounts"]))
        region = pc.index_in(accounts["BillingState"], value_set=pa.array(demo_sales.REGIONS)).to_numpy()
        buyer, line_day, product, amount = _lines(world, block, number)
        cell = region[buyer] * num_products + product
        ahead = line_day // 7 - week
        inside = (ahead >= 0) & (ahead < HORIZON_WEEKS) & (line_day < world.num_days)
        flat = np.bincount(
            cell[inside] * HORIZON_WEEKS + ahead[inside], amount[inside],
            minlength=len(demo_sales.REGIONS) * num_products * HORIZON_WEEKS,
        )  # fmt: skip
        recent = (line_day < day) & (line_day > day - demo_sales.RETURN_DAYS[1]) & (amount > 0)
        return _Past(
            week=week,
            posterior=posterior.cumsum(1),
            taste=demo_truth.p_taste(world, block, day).cumsum(1),
            to_come=~live,
            opted_in=block.opted_in,
            region=region,
            level=(1 + dw.PRICE_RISE) ** block.rise[:, :week].sum(1),
            last=_last_orders(block, day),
            back_day=line_day[recent], back_cell=cell[recent], back_amount=amount[recent],
            came=flat.reshape(-1, HORIZON_WEEKS),
            mix=tuple(_Mix.of(world.catalogue, week + step) for step in range(HORIZON_WEEKS)),
        )  # fmt: skip


def _lines(world: World, block: Block, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Customer, day, product and amount of every line as it was written, returns below 0."""
    _, items = demo_sales.sales(world, block, world.rng(number, dw.STREAMS["sales"]))
    buyer = pc.index_in(items["Order.AccountId"], value_set=demo_sales.account_ids(block)).to_numpy()
    ids = demo_sales.product_ids(world, np.arange(len(world.catalogue.price)))
    product = pc.index_in(items["Product2Id"], value_set=ids).to_numpy()
    day = np.floor(demo_truth.days_of(world, items["Order.EffectiveDate"])).astype(np.int64)
    return buyer, day, product, items["TotalPrice"].to_numpy()


def _last_orders(block: Block, day: int) -> np.ndarray:
    """(N, lines) products of each customer's last order before the day, -1 where there are fewer lines."""
    before = np.flatnonzero(block.order_day < day)
    last = np.full(len(block), -1)
    last[block.order_customer[before]] = before  # orders are sorted by customer and day: the last one stays
    order = block.line_order
    mine = last[block.order_customer[order]] == order
    buyer, product = block.order_customer[order][mine], block.product[mine]
    return _padded(len(block), buyer, product)


def _padded(count: int, owner: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(count, most) values of each owner (ascending), -1 after them."""
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    out = np.full((count, int(place.max(initial=0)) + 1), -1)
    out[owner, place] = values
    return out


def _draw(world: World, past: _Past, rng: np.random.Generator) -> np.ndarray:
    """(cells, H) sales of one future."""
    state = (rng.random(len(past.posterior))[:, None] * past.posterior[:, -1:] >= past.posterior).sum(1)
    kind, z = np.minimum(state, 3 * C - 1) // 3, np.minimum(state, 3 * C - 1) % 3
    taste_NT = past.taste[np.arange(len(kind)), :, kind]
    taste = np.minimum((rng.random(len(kind))[:, None] >= taste_NT).sum(1), NUM_TASTES - 1)
    last_first = max(world.num_weeks - 4, past.week + 2)  # who comes has a first week before this one
    first = np.where(past.to_come, rng.integers(past.week + 1, last_first, len(kind)), 0)
    sold = np.zeros(past.came.size)
    level, last = past.level.copy(), past.last
    for step in range(HORIZON_WEEKS):
        week = past.week + step
        live = first <= week
        rise = (rng.random(len(kind)) < dw.P_PRICE_RISE) & live
        level = level * (1 + dw.PRICE_RISE * rise)
        mailed = past.opted_in & (week % dw.MAIL_EVERY == 0) & (rng.random(len(kind)) < dw.P_TREATMENT)
        rate = ORDER_RATES[kind, z] * dw.season(world.epoch + timedelta(weeks=week))
        orders = rng.poisson(rate * (1 + dw.UPLIFT[S[kind]] * mailed) * live)
        for buyers in _in_turn(orders):
            owner, product, amount = _order(
                world.catalogue.price, past.mix[step], buyers, kind, taste, level, last, rng
            )
            last = _with_order(last, buyers, owner, product)
            cell = past.region[owner] * len(world.catalogue.price) + product
            sold += _booked(len(sold), cell, amount, step, rng)
        bad = rng.random(len(kind)) < 1 - np.exp(-BAD_RATES[z])
        moves = dw.transitions(S[kind], bad, rise)[np.arange(len(kind)), z].cumsum(1)
        z = np.where(live, np.minimum((rng.random(len(kind))[:, None] >= moves).sum(1), 2), z)
    return (sold + _late_returns(len(sold), past, rng)).reshape(past.came.shape)


def _in_turn(orders: np.ndarray) -> Iterator[np.ndarray]:
    """Customers with a first order in the week, then those with a second one, and so on."""
    for number in range(int(orders.max(initial=0))):
        yield np.flatnonzero(orders > number)


def _order(
    price: np.ndarray, mix: _Mix, buyers: np.ndarray, kind: np.ndarray, taste: np.ndarray, level: np.ndarray,
    last: np.ndarray, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Customer, product and amount of each line of one order of each buyer."""
    v, s = V[kind[buyers]], S[kind[buyers]]
    discounted = rng.random(len(buyers)) < dw.P_DISCOUNT[s]
    depth = np.where(discounted, rng.uniform(*dw.DISCOUNT, len(buyers)), 0.0)
    line = np.repeat(np.arange(len(buyers)), 1 + rng.poisson(dw.EXTRA_LINES[v]))
    owner = buyers[line]
    units = 1 + rng.poisson(dw.EXTRA_UNITS[v[line]])
    product, uniform = np.zeros(len(owner), np.int64), rng.random(len(owner))
    for t, sensitive in np.ndindex(NUM_TASTES, 2):
        mine = (taste[owner] == t) & (s[line] == sensitive)
        product[mine] = np.searchsorted(mix.liked[t, sensitive], uniform[mine], side="right")
    product = np.minimum(product, len(price) - 1)
    width = (last[owner] >= 0).sum(1)
    follows = (rng.random(len(owner)) < FOLLOW) & (width > 0)
    parent = last[owner, (rng.random(len(owner)) * width).astype(np.int64)][follows]
    place = (rng.random(len(parent))[:, None] >= mix.shares[parent]).sum(1)
    product[follows] = mix.following[parent, np.minimum(place, mix.following.shape[1] - 1)]
    listed = np.round(price[product] * level[owner], 2)
    return owner, product, np.round(np.round(listed * (1 - depth[line]), 2) * units, 2)


def _with_order(last: np.ndarray, buyers: np.ndarray, owner: np.ndarray, product: np.ndarray) -> np.ndarray:
    """The last orders after these."""
    new = _padded(len(last), owner, product)
    width = max(last.shape[1], new.shape[1])
    out = np.full((len(last), width), -1)
    out[:, : last.shape[1]] = last
    out[buyers] = -1
    out[buyers, : new.shape[1]] = new[buyers]
    return out


def _booked(size: int, cell: np.ndarray, amount: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) the lines in their week, and those of them that come back in theirs."""
    back = np.flatnonzero(rng.random(len(cell)) < demo_sales.RETURNED)
    day = rng.choice(7, len(back), p=dw.DAY_SHARES) + rng.integers(*demo_sales.RETURN_DAYS, len(back))
    week = step + day // 7
    kept = week < HORIZON_WEEKS
    place = np.concatenate([cell * HORIZON_WEEKS + step, cell[back][kept] * HORIZON_WEEKS + week[kept]])
    return np.bincount(place, np.concatenate([amount, -amount[back][kept]]), minlength=size)


def _late_returns(size: int, past: _Past, rng: np.random.Generator) -> np.ndarray:
    """(size,) lines ordered before the first week that come back in it or later."""
    back = past.back_day + rng.integers(*demo_sales.RETURN_DAYS, len(past.back_day)) - 7 * past.week
    chosen = (rng.random(len(back)) < demo_sales.RETURNED) & (back >= 0)
    place = past.back_cell[chosen] * HORIZON_WEEKS + back[chosen] // 7
    return np.bincount(place, -past.back_amount[chosen], minlength=size)
