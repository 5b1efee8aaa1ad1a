"""What only the evaluation may read: the hidden classes, and the probability of leaving given all that is observable.

The probability is exact. A forward filter over (class c = (v, s, a), engagement z) weighs every event strictly before
`as_of`, the cut week included; taste enters through the marginal likelihood of the products given (v, s). A backward
recursion gives P(no order in [as_of, as_of + horizon) | c, z), with future mails, price rises and cases summed out. So
its ranking is the best that any model of the same data can reach.

Symbols as in demo_world; shapes: N customers, C = 12 classes, 3 engagement states, T tastes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_sales
from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import FOLLOW, NUM_TASTES
from crmray.data.demo_world import Block, World
from crmray.errors import DataError
from crmray.salesforce import ids
from crmray.schema import TIME

C = 12
V, S, A = np.arange(C) // 6, np.arange(C) // 3 % 2, np.arange(C) % 3
P_VALUE = np.array([1 - dw.P_LOYAL, dw.P_LOYAL])
P_CLASS = P_VALUE[V] * np.where(S == 1, dw.P_SENSITIVE[V], 1 - dw.P_SENSITIVE[V]) * dw.P_ACTIVITY[A]
"""(C,) of a customer of whom nothing is known"""
ORDER_RATES = (dw.PURCHASES[V] * dw.ACTIVITY[A])[:, None] * dw.PURCHASES_BY_STATE
VISIT_RATES = (dw.VISITS[S] * dw.ACTIVITY[A])[:, None] * dw.VISITS_BY_STATE
"""(C, 3) a week, before the season"""
BAD_RATES = dw.CASE_RATES[0] + dw.CASE_RATES[len(dw.TONES)]
"""(3,) cases with a negative tone a week"""
POPULATION_DAYS = 365
"""a customer counts at as_of if it ordered in so many days before"""


def of_block(world: World, block: Block, as_of: Sequence[datetime], horizon_days: int) -> pa.Table:
    """A row per (as_of, customer of the block that existed then).

    entity_id string (18-character Account id), as_of timestamp, score float64 = P(no order in [as_of, as_of +
    horizon) | all before as_of), label int8 (1 = no order came; null where the history ends earlier), in_population
    bool (an order in the 365 days before), segment string and engagement string (both at as_of), taste int64,
    price_sensitive bool. Raises DataError for an as_of that is not a midnight UTC within the history.
    """
    days = [day_of(world, date) for date in as_of]
    probabilities = p_leave(world, block, days, horizon_days)
    return pa.concat_tables(
        _rows(world, block, day, p, horizon_days) for day, p in zip(days, probabilities, strict=True)
    )


def day_of(world: World, as_of: datetime) -> int:
    """Days from the epoch to a date. DataError where it is no midnight UTC of the history."""
    moment = as_of.replace(tzinfo=timezone.utc) if as_of.tzinfo is None else as_of.astimezone(timezone.utc)
    first, last = world.epoch + timedelta(days=1), world.end
    if moment.time() != datetime.min.time() or not first <= moment.date() <= last:
        raise DataError(f"got as_of {as_of.isoformat()}, expected a midnight UTC from {first} to {last}")
    return (moment.date() - world.epoch).days


def moment_of(world: World, day: int) -> datetime:
    """The midnight UTC so many days after the epoch."""
    return datetime.combine(world.epoch + timedelta(days=day), datetime.min.time(), timezone.utc)


def days_of(world: World, times: pa.ChunkedArray) -> np.ndarray:
    """(L,) days since the epoch, with fractions; NaN where there is none."""
    epoch = pa.scalar(moment_of(world, 0), TIME)
    since = pc.cast(pc.subtract(times.cast(TIME), epoch), pa.int64())
    return since.cast(pa.float64(), safe=False).to_numpy() / (demo_sales.DAY_S * 1e6)


def _rows(world: World, block: Block, day: int, p: np.ndarray, horizon_days: int) -> pa.Table:
    kept = block.first_week <= day // 7
    before = has_order(block, day - POPULATION_DAYS, day)
    after = has_order(block, day, day + horizon_days)
    known = day + horizon_days <= world.num_days
    z = block.z[:, : day // 7 + 1]
    count = int(kept.sum())
    return pa.table(
        {
            "entity_id": ids.make("001", block.first + np.flatnonzero(kept)),
            "as_of": pa.repeat(pa.scalar(moment_of(world, day), TIME), count),
            "score": p[kept],
            "label": pa.array((~after[kept]).astype(np.int8)) if known else pa.nulls(count, pa.int8()),
            "in_population": before[kept],
            "segment": pa.array(dw.SEGMENTS).take(pa.array(dw.segments(block.v, block.s, z)[kept])),
            "taste": block.t[kept],
            "price_sensitive": block.s[kept] == 1,
            "engagement": pa.array(dw.ENGAGEMENT).take(pa.array(z[kept, -1])),
        }
    )


def has_order(block: Block, first_day: int, end_day: int) -> np.ndarray:
    """(N,) whether there is an order in [first, end)."""
    chosen = (block.order_day >= first_day) & (block.order_day < end_day)
    return np.bincount(block.order_customer[chosen], minlength=len(block)) > 0


# -- forward: what the past says -------------------------------------------------------------------------------------


def p_leave(world: World, block: Block, days: Sequence[int], horizon_days: int) -> np.ndarray:
    """(len(days), N) P(no order in [day, day + horizon) | all before the day); NaN before a customer's first week."""
    result = np.full((len(days), len(block)), np.nan)
    seasons = world.seasons(max(days) // 7 + horizon_days // 7 + 3)
    for k, live, posterior in posteriors(world, block, days):
        result[k, live] = _no_order(block, posterior, days[k], horizon_days, seasons)[live]
    return result


def posteriors(world: World, block: Block, days: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of each day: its place in `days`, the customers that exist (N,) bool, and P(class, engagement in the week of the
    day | all before the day), (N, C, 3)."""
    alpha = _prior(block)
    seasons = world.seasons(max(days) // 7 + 1)
    counts = weekly(block, world.num_weeks)
    for w in range(max(days) // 7 + 1):
        live = block.first_week <= w
        for k, day in enumerate(days):
            if day // 7 == w:
                yield k, live, _posterior(world, block, alpha, day, seasons[w])
        if w >= world.num_weeks:
            break
        features = np.column_stack([columns[:, w] for columns in counts])
        logs = features @ _log_likelihood(seasons[w], 1.0, 1.0)
        likelihood = np.exp(logs - logs.max(1, keepdims=True)).reshape(alpha.shape)
        bad = (features[:, 7] + features[:, 7 + len(dw.TONES)]) > 0
        moved = _move(alpha * likelihood, bad, block.rise[:, w])
        alpha = np.where(live[:, None, None], moved / moved.sum((1, 2), keepdims=True), alpha)


def _prior(block: Block) -> np.ndarray:
    """(N, C, 3) P(class, first engagement | attributes)."""
    seen = dw.P_INDUSTRY.T[block.industry] * dw.P_SIZE.T[block.size]
    weights = P_CLASS * seen[:, V]
    return (weights / weights.sum(1, keepdims=True))[:, :, None] * dw.P_START


def weekly(block: Block, weeks: int, before_day: int | None = None) -> list[np.ndarray]:
    """What a week shows, (N, W) each: orders, orders when treated, treated, visits, opened, not opened, clicked, the
    six cells of cases, one. With `before_day`: only what came before that day, for its week alone (W = 1)."""
    only = None if before_day is None else before_day // 7
    span = slice(0, weeks) if only is None else slice(only, only + 1)
    width = weeks if only is None else 1

    def count(customer: np.ndarray, day: np.ndarray) -> np.ndarray:
        kept = day < 7 * weeks if only is None else (day >= 7 * only) & (day < before_day)
        cell = customer[kept] * width + day[kept] // 7 - span.start
        return np.bincount(cell, minlength=len(block) * width).reshape(len(block), width).astype(float)

    shown = 0.0 if before_day is not None and before_day % 7 == 0 else 1.0
    treated, opened = (block.arm[:, span] == 1) * shown, block.opened[:, span] * shown
    orders = count(block.order_customer, block.order_day)
    cells = [
        count(block.case_customer[block.case_cell == cell], block.case_day[block.case_cell == cell])
        for cell in range(6)
    ]
    visits, clicked = count(block.visit_customer, block.visit_day), block.clicked[:, span] * shown
    mail = [opened, treated - opened, clicked]
    return [orders, orders * treated, treated, visits, *mail, *cells, np.ones_like(orders)]


def _log_likelihood(season: float, share: float, case_share: float) -> np.ndarray:
    """(features, C · 3) weights by which the columns of `weekly` add up to the log-likelihood of a week, or of the
    part of it that has these shares of its orders and visits and of its days."""
    uplift, opening, clicking = dw.UPLIFT[S][:, None], dw.P_OPEN[:, S].T, dw.P_CLICK[S][:, None]
    expected = (ORDER_RATES + VISIT_RATES) * season * share + dw.CASE_RATES.sum(0) * case_share
    rows = [
        np.log(ORDER_RATES),
        np.log1p(uplift),
        -ORDER_RATES * uplift * season * share,
        np.log(VISIT_RATES),
        np.log(opening * (1 - clicking)),
        np.log(1 - opening),
        np.log(clicking / (1 - clicking)),
        *np.log(dw.CASE_RATES),
        -expected,
    ]
    return np.stack([np.broadcast_to(row, (C, 3)) for row in rows]).reshape(len(rows), C * 3)


def _move(alpha: np.ndarray, bad: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """One week on: (N, C, 3) times the transitions, which differ by s, bad case and price rise."""
    result = np.empty_like(alpha)
    for s in range(2):
        rates = dw.transitions(np.full(len(alpha), s), bad, rise)
        result[:, s == S] = alpha[:, s == S] @ rates
    return result


def _posterior(world: World, block: Block, alpha: np.ndarray, day: int, season: float) -> np.ndarray:
    """(N, C, 3) given the weeks before (alpha), the days of the cut week, and all that tells of the class alone."""
    logs = _log_for_life(world, block, day)[:, :, None] + np.log(np.maximum(alpha, np.finfo(float).tiny))
    cut = day % 7
    if cut:
        features = np.column_stack(weekly(block, world.num_weeks, before_day=day))
        logs += (features @ _log_likelihood(season, dw.DAYS_BEFORE[cut], cut / 7)).reshape(alpha.shape)
    weights = np.exp(logs - logs.max((1, 2), keepdims=True))
    return weights / weights.sum((1, 2), keepdims=True)


def _log_for_life(world: World, block: Block, day: int) -> np.ndarray:
    """(N, C) log-likelihood of lines, units, discounts and products before the day: they tell of the class alone."""
    count = len(block)
    ordered, lined = block.order_day < day, block.order_day[block.line_order] < day
    buyer = block.order_customer[block.line_order]

    def total(customer: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(customer, weights, minlength=count)[:, None]

    orders, lines = total(block.order_customer[ordered]), total(buyer[lined])
    units = total(buyer[lined], block.units[lined])
    cheap = total(block.order_customer[ordered & block.discounted])
    result = (lines - orders) * np.log(dw.EXTRA_LINES)[V] - orders * dw.EXTRA_LINES[V]
    result += (units - lines) * np.log(dw.EXTRA_UNITS)[V] - lines * dw.EXTRA_UNITS[V]
    result += cheap * np.log(dw.P_DISCOUNT)[S] + (orders - cheap) * np.log(1 - dw.P_DISCOUNT)[S]
    by_segment = taste_logs(world, block, day)
    peak = by_segment.max(1)
    return result + peak + np.log(np.exp(by_segment - peak[:, None]).sum(1))


def taste_logs(world: World, block: Block, day: int) -> np.ndarray:
    """(N, T, C) log of P(taste | class) times the likelihood of the products bought and viewed before the day."""
    lined, shown = block.order_day[block.line_order] < day, (block.visit_day < day) & (block.viewed >= 0)
    buyer = block.order_customer[block.line_order]
    products = np.zeros((len(block), NUM_TASTES * 2))
    _add_rows(products, buyer[lined], np.log(_line_probabilities(world, block, lined)))
    _add_rows(products, block.visit_customer[shown], np.log(_view_probabilities(world, block, shown)))
    return products.reshape(len(block), NUM_TASTES, 2)[:, :, S] + np.log(dw.taste_prior())[2 * V + S].T


def p_taste(world: World, block: Block, day: int) -> np.ndarray:
    """(N, T, C) P(taste | class, all before the day)."""
    logs = taste_logs(world, block, day)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _add_rows(totals: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    for column in range(totals.shape[1]):
        totals[:, column] += np.bincount(rows, values[:, column], minlength=len(totals))


def _line_probabilities(world: World, block: Block, chosen: np.ndarray) -> np.ndarray:
    """(chosen lines, T · 2) P(product | taste, s, the order before)."""
    catalogue = world.catalogue
    era = catalogue.era_of(block.order_day[block.line_order] // 7)
    base = catalogue.base[era[chosen], :, :, block.product[chosen]].reshape(-1, NUM_TASTES * 2)
    line, parent = block.pair_line, block.product[block.pair_parent]
    follow = np.bincount(line, catalogue.successors[era[line], parent, block.product[line]], minlength=len(era))
    width = np.bincount(line, minlength=len(era))
    mean = (follow / np.maximum(width, 1))[chosen, None]
    return np.where(width[chosen, None] > 0, FOLLOW * mean + (1 - FOLLOW) * base, base)


def _view_probabilities(world: World, block: Block, chosen: np.ndarray) -> np.ndarray:
    """(chosen visits, T · 2) P(product viewed | taste, s)."""
    era = world.catalogue.era_of(block.visit_day[chosen] // 7)
    return world.catalogue.base[era, :, :, block.viewed[chosen]].reshape(-1, NUM_TASTES * 2)


# -- backward: what the future may bring ------------------------------------------------------------------------------


def _no_order(block: Block, posterior: np.ndarray, day: int, horizon_days: int, seasons: np.ndarray) -> np.ndarray:
    """(N,) P(no order in [day, day + horizon)) under the posterior of (class, z) in the week of the day."""
    week, cut, end = day // 7, day % 7, day + horizon_days
    following = _no_order_from(week + 1, end, seasons)
    share = dw.DAYS_BEFORE[min(7, end - 7 * week)] - dw.DAYS_BEFORE[cut]
    opted = block.opted_in.astype(int)
    if cut == 0:  # nothing of this week is known yet: the same sum as for a week in the future
        return (posterior * _one_week(week, share, seasons[week], following)[opted]).sum((1, 2))
    seen = weekly(block, block.z.shape[1], before_day=day)
    bad = ((seen[7] + seen[7 + len(dw.TONES)])[:, 0] > 0).astype(int)
    rise = block.rise[:, week].astype(int)
    quiet = np.exp(-BAD_RATES * (1 - cut / 7))
    after = np.stack([[after_week(following, np.array([r]), quiet * (1 - b)) for b in (0, 1)] for r in (0.0, 1.0)])
    rates = ORDER_RATES[None] * (1 + dw.UPLIFT[S][:, None] * np.array([0, 1])[:, None, None]) * seasons[week] * share
    staying = np.exp(-rates)[seen[2][:, 0].astype(int)]
    return (posterior * staying * after[rise, bad, opted]).sum((1, 2))


def _no_order_from(week: int, end_day: int, seasons: np.ndarray) -> np.ndarray:
    """(2 opted in, C, 3) P(no order from the start of the week to end_day | z of the week)."""
    result = np.ones((2, C, 3))
    for w in range((end_day - 1) // 7, week - 1, -1):
        result = _one_week(w, dw.DAYS_BEFORE[min(7, end_day - 7 * w)], seasons[w], result)
    return result


def _one_week(week: int, share: float, season: float, following: np.ndarray) -> np.ndarray:
    """(2, C, 3) no order in the first `share` of an unseen week, and none after it."""
    rates = ORDER_RATES * season * share
    control, treated = np.exp(-rates), np.exp(-rates * (1 + dw.UPLIFT[S][:, None]))
    mailed = dw.P_TREATMENT if week % dw.MAIL_EVERY == 0 else 0.0
    staying = np.stack([control, mailed * treated + (1 - mailed) * control])
    rises = np.array([1 - dw.P_PRICE_RISE, dw.P_PRICE_RISE])
    quiet = np.exp(-BAD_RATES)
    return staying * sum(p * after_week(following, np.array([r]), quiet) for r, p in enumerate(rises))


def after_week(following: np.ndarray, rise: np.ndarray, quiet: np.ndarray) -> np.ndarray:
    """(2, C, 3) expectation of `following` (2, C, next z) over the transition, `quiet` (3,) = P(no bad case | z)."""
    result = np.empty_like(following)
    for s in range(2):
        calm, bad = (dw.transitions(np.array([s]), np.array([b]), rise)[0] for b in (0, 1))
        rates = quiet[:, None] * calm + (1 - quiet)[:, None] * bad
        result[:, s == S] = following[:, s == S] @ rates.T
    return result
