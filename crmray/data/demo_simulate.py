"""Draws from the model of demo_world: one block of customers at a time, whole columns at once. Symbols as there."""

from __future__ import annotations

import numpy as np

from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import FOLLOW, NUM_TASTES, Catalogue
from crmray.data.demo_world import Block, World


def _pick(rng: np.random.Generator, shares: np.ndarray, size: int | None = None) -> np.ndarray:
    """Draws from a distribution over the last axis: one per row of `shares` (N, K), or `size` from (K,)."""
    cumulative = np.cumsum(shares, -1)
    if shares.ndim == 1:
        assert size is not None
        return np.minimum(np.searchsorted(cumulative, rng.random(size), side="right"), len(shares) - 1)
    return np.minimum((rng.random((len(shares), 1)) >= cumulative).sum(1), shares.shape[1] - 1)


def simulate(world: World, index: int) -> Block:
    """Block `index` of the world's customers, with all they do."""
    first = index * dw.BLOCK
    count, rng = min(dw.BLOCK, world.customers - first), world.rng(index, 0)
    v = (rng.random(count) < dw.P_LOYAL).astype(np.int64)
    s = (rng.random(count) < dw.P_SENSITIVE[v]).astype(np.int64)
    a = _pick(rng, dw.P_ACTIVITY, count)
    t = _pick(rng, dw.taste_prior()[2 * v + s])
    attributes = {
        "industry": _pick(rng, dw.P_INDUSTRY[v]),
        "size": _pick(rng, dw.P_SIZE[v]),
        "country": _pick(rng, dw.P_COUNTRY, count),
        "opted_in": rng.random(count) < dw.P_OPT_IN,
    }
    weeks = world.num_weeks
    first_week = np.where(rng.random(count) < 0.45, 0, rng.integers(0, max(weeks - 4, 1), count))
    live = np.arange(weeks) >= first_week[:, None]
    rise = (rng.random((count, weeks)) < dw.P_PRICE_RISE) & live
    z, cells = _engagement(rng, s, first_week, rise)

    treated = rng.random((count, weeks)) < dw.P_TREATMENT
    mailed = live & attributes["opted_in"][:, None] & (np.arange(weeks) % dw.MAIL_EVERY == 0)
    arm = np.where(mailed, treated.astype(np.int8), np.int8(-1))
    opened = (rng.random((count, weeks)) < dw.P_OPEN[z, s[:, None]]) & (arm == 1)
    clicked = (rng.random((count, weeks)) < dw.P_CLICK[s][:, None]) & opened

    pace = dw.ACTIVITY[a][:, None] * world.seasons(weeks) * live
    buying = (dw.PURCHASES[v][:, None] * dw.PURCHASES_BY_STATE[z]) * pace * (1 + dw.UPLIFT[s][:, None] * (arm == 1))
    order_customer, order_day = _days(rng, rng.poisson(buying))
    discounted = rng.random(len(order_customer)) < dw.P_DISCOUNT[s[order_customer]]
    num_lines = 1 + rng.poisson(dw.EXTRA_LINES[v[order_customer]])
    line_order = np.repeat(np.arange(len(order_customer)), num_lines)
    buyer = order_customer[line_order]
    units = 1 + rng.poisson(dw.EXTRA_UNITS[v[buyer]])
    parents = _parents(order_customer, num_lines, line_order)
    line_era = world.catalogue.era_of(order_day[line_order] // 7)
    product = _products(rng, world.catalogue, line_era, t[buyer], s[buyer], parents)

    visit_customer, visit_day = _days(rng, rng.poisson(dw.VISITS[s][:, None] * dw.VISITS_BY_STATE[z] * pace))
    viewed = _views(rng, world.catalogue, visit_day // 7, t[visit_customer], s[visit_customer])
    case_customer, case_day, case_cell = _case_days(rng, cells)
    return Block(
        first=first, v=v, s=s, a=a, t=t, **attributes, first_week=first_week, z=z, rise=rise, arm=arm,
        opened=opened, clicked=clicked, order_customer=order_customer, order_day=order_day, discounted=discounted,
        line_order=line_order, product=product, units=units, pair_line=parents[0], pair_parent=parents[1],
        visit_customer=visit_customer, visit_day=visit_day, viewed=viewed,
        case_customer=case_customer, case_day=case_day, case_cell=case_cell,
    )  # fmt: skip


def _engagement(
    rng: np.random.Generator, s: np.ndarray, first_week: np.ndarray, rise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden weeks z (N, W) and the counts of cases that push them (N, W, 6)."""
    count, weeks = rise.shape
    z, cells = np.zeros((count, weeks), np.int8), np.zeros((count, weeks, len(dw.CASE_RATES)), np.int8)
    state = _pick(rng, dw.P_START, count).astype(np.int8)
    for w in range(weeks):
        live = first_week <= w
        z[:, w] = state
        cells[:, w] = rng.poisson(dw.CASE_RATES.T[state] * live[:, None])
        rates = dw.transitions(s, dw.bad_case(cells[:, w]), rise[:, w])
        moved = _pick(rng, rates[np.arange(count), state]).astype(np.int8)
        state = np.where(live, moved, state)
    return z, cells


def _days(rng: np.random.Generator, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Customer and day of each event of weekly counts (N, W), sorted by both."""
    customer, week = np.nonzero(counts)
    times = counts[customer, week]
    customer, week = np.repeat(customer, times), np.repeat(week, times)
    day = 7 * week + _pick(rng, dw.DAY_SHARES, len(week))
    order = np.lexsort((day, customer))
    return customer[order], day[order]


def _case_days(rng: np.random.Generator, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    customer, week, cell = np.nonzero(cells)
    times = cells[customer, week, cell]
    customer, week, cell = (np.repeat(column, times) for column in (customer, week, cell))
    day = 7 * week + rng.integers(0, 7, len(week))
    order = np.lexsort((day, customer))
    return customer[order], day[order], cell[order]


def _parents(
    order_customer: np.ndarray, num_lines: np.ndarray, line_order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (line, line of the customer's order before), and where the pairs of each line begin (L + 1,)."""
    starts = np.concatenate([[0], np.cumsum(num_lines)])
    has_before = np.zeros(len(order_customer), bool)
    has_before[1:] = order_customer[1:] == order_customer[:-1]
    before = line_order - 1
    width = np.where(has_before[line_order], num_lines[before], 0)
    pair_starts = np.concatenate([[0], np.cumsum(width)])
    line = np.repeat(np.arange(len(line_order)), width)
    offset = np.arange(len(line)) - pair_starts[line]
    return line, starts[before[line]] + offset, pair_starts


def _products(
    rng: np.random.Generator,
    catalogue: Catalogue,
    era: np.ndarray,
    t: np.ndarray,
    s: np.ndarray,
    parents: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Product of each line (L,). Lines that follow wait until the line they follow has its product."""
    _, parent, starts = parents
    width = np.diff(starts)
    follows = (rng.random(len(era)) < FOLLOW) & (width > 0)
    product = _from_base(rng, catalogue, era, t, s)
    chosen = np.minimum(starts[:-1] + (rng.random(len(era)) * width).astype(np.int64), max(len(parent) - 1, 0))
    leader = np.where(follows, parent[chosen] if len(parent) else 0, -1)
    uniform, done = rng.random(len(era)), ~follows
    cumulative = np.cumsum(catalogue.successors, -1)
    waiting = np.flatnonzero(follows)
    while len(waiting):
        ready = waiting[done[leader[waiting]]]
        for e in range(len(cumulative)):
            some = ready[era[ready] == e]
            product[some] = (uniform[some, None] >= cumulative[e][product[leader[some]]]).sum(1)
        done[ready] = True
        waiting = waiting[~done[waiting]]
    return np.minimum(product, len(catalogue.price) - 1)


def _from_base(
    rng: np.random.Generator, catalogue: Catalogue, era: np.ndarray, t: np.ndarray, s: np.ndarray
) -> np.ndarray:
    """One product per row from the taste, row by row of the same era, taste and price-sensitivity."""
    product = np.zeros(len(era), np.int64)
    group = (era * NUM_TASTES + t) * 2 + s
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(catalogue.base[..., 0].size + 1))
    for g, shares in enumerate(catalogue.base.reshape(-1, catalogue.base.shape[-1])):
        rows = order[edges[g] : edges[g + 1]]
        product[rows] = _pick(rng, shares, len(rows))
    return product


def _views(
    rng: np.random.Generator, catalogue: Catalogue, week: np.ndarray, t: np.ndarray, s: np.ndarray
) -> np.ndarray:
    """Product seen in each visit, -1 for none."""
    product = _from_base(rng, catalogue, catalogue.era_of(week), t, s)
    return np.where(rng.random(len(week)) < dw.P_VIEW, product, -1)
