"""The best ranking of the demo org's next products: what came and weights by hand, and better than any shortcut."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import numpy as np
import pytest

from crmray.data import demo_truth_recommendation as truth
from crmray.data import demo_world as dw
from crmray.data.demo_simulate import simulate
from crmray.data.demo_truth import C
from crmray.data.demo_world import World
from crmray.evaluate import metrics
from crmray.salesforce import ids

WORLD = World(customers=1_500, months=14, end=date(2026, 10, 1))
AS_OF = datetime(2026, 9, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def block():
    return simulate(WORLD, 0)


@pytest.fixture(scope="module")
def rows(block):
    return truth.of_block(WORLD, block, [AS_OF, AS_OF + timedelta(days=30)], 30)


def test_what_came_is_what_was_bought_for_the_first_time(block, rows):
    day = (AS_OF.date() - WORLD.epoch).days
    names = ids.make("01t", np.arange(len(WORLD.catalogue.price))).to_pylist()
    for row in rows.slice(0, 200).to_pylist():
        customer = ids.make("001", np.arange(len(block))).to_pylist().index(row["entity_id"])
        own = [n for n in range(len(block.product)) if block.order_customer[block.line_order[n]] == customer]
        days = {n: block.order_day[block.line_order[n]] for n in own}
        before = {names[block.product[n]] for n in own if days[n] < day}
        came = {names[block.product[n]] for n in own if day <= days[n] < day + 30}
        assert row["target"] == sorted(came - before)
        assert not before & set(row["products"])
        if customer > 20:
            break
    ahead = rows.slice(len(block))
    assert ahead["target"].null_count == ahead["audience"].null_count == len(block)  # not known yet


def test_order_weights_add_up_to_the_expectation_over_all_orders():
    posterior, expected = np.zeros((1, C, 3)), np.full((1, C, 3), 0.4)
    posterior[0, 0, 0] = 1.0  # class 0 is occasional: pair 0
    found = truth._order_weights(posterior, expected)
    rng = np.random.default_rng(0)
    orders = rng.poisson(0.4, 400_000)
    lines = orders + rng.poisson(orders * dw.EXTRA_LINES[0])
    ideal = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(10) + 2.0))])
    assert found[0, 0].sum() == pytest.approx((lines / ideal[np.minimum(lines, 10)]).mean(), rel=0.01)
    assert found[0, 1:].sum() == 0
    assert (np.diff(found[0, 0]) <= 0).all()


def test_the_best_ranking_beats_every_shortcut(block, rows):
    test = [row for row in rows.slice(0, len(block)).to_pylist() if row["target"] and row["audience"] == "active"]
    wanted = [row["target"] for row in test]
    best = metrics.ranking_rows(np.array([row["products"] for row in test], dtype=object), wanted)["ndcg"]
    names = np.array(ids.make("01t", np.arange(len(WORLD.catalogue.price))).to_pylist(), dtype=object)
    customer = [ids.make("001", np.arange(len(block))).to_pylist().index(row["entity_id"]) for row in test]
    owned = truth._bought(WORLD, block, 0, (AS_OF.date() - WORLD.epoch).days)[customer]
    popular = np.tile(WORLD.catalogue.base[-1].mean((0, 1)), (len(test), 1))
    last = truth._last_order(WORLD, block, (AS_OF.date() - WORLD.epoch).days)[customer]
    for weights in (popular, popular * 1e-3 + last @ WORLD.catalogue.successors[-1]):
        ranked = names[np.argsort(np.where(owned, 9.0, -weights), axis=1, kind="stable")[:, :10]]
        assert best.mean() > metrics.ranking_rows(ranked, wanted)["ndcg"].mean() + 0.02
