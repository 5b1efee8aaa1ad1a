"""What the demo org knows of its customers' value: the labels as written, and what could be expected of them."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from crmray.data import demo, demo_sales, demo_truth, demo_truth_value
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import World
from crmray.evaluate import amounts

SCENE = World(customers=1500, months=24, seed=3)
HORIZON_DAYS = 90


@pytest.fixture(scope="module")
def block():
    return simulate(SCENE, 0)


@pytest.fixture(scope="module")
def truth(block):
    return demo_truth_value.of_block(SCENE, block, demo.default_dates(SCENE), HORIZON_DAYS)


def test_labels_are_the_orders_as_they_were_written(block, truth):
    orders, items = demo.tables(SCENE, block, 0)["Order"], demo.tables(SCENE, block, 0)["OrderItem"]
    date = demo.default_dates(SCENE)[0]
    start, end = (demo_sales.moments(SCENE, np.array([(date.date() - SCENE.epoch).days + d]))[0] for d in (0, 90))

    def inside(rows, column):
        return rows.filter(pc.and_(pc.greater_equal(rows[column], start), pc.less(rows[column], end)))

    rows = truth.filter(pc.equal(truth["as_of"], date))
    lines, heads = inside(items, "Order.EffectiveDate"), inside(orders, "EffectiveDate")
    for i in range(0, rows.num_rows, 97):
        who = rows["entity_id"][i].as_py()
        own = heads.filter(pc.and_(pc.equal(heads["AccountId"], who), pc.invert(heads["IsReductionOrder"])))
        net = pc.sum(lines.filter(pc.equal(lines["Order.AccountId"], who))["TotalPrice"]).as_py() or 0.0
        assert rows["label_purchases"][i].as_py() == own.num_rows
        assert rows["label_spend"][i].as_py() == pytest.approx(max(0.0, net) if own.num_rows else 0.0)
    last = truth.filter(pc.equal(truth["as_of"], demo.default_dates(SCENE)[-1]))
    assert last["label_spend"].null_count == last.num_rows > 0  # the history ends there


def test_what_was_expected_came_on_average_in_every_tenth(truth, block):
    known = truth.filter(pc.is_valid(truth["label_spend"]))
    columns = ("label_spend", "label_purchases", "spend", "purchases", "p_purchase")
    spend, purchases, expected, orders, p = (known[name].to_numpy() for name in columns)
    assert (orders >= p).all()
    assert ((expected > 0) == (p > 0)).all()
    order = np.argsort(-expected)
    for tenth in np.array_split(order, 10):
        error = np.hypot(spend[tenth].std() / len(tenth) ** 0.5, 0.03 * spend[tenth].mean())
        assert abs(expected[tenth].mean() - spend[tenth].mean()) < 4 * error
        assert abs(orders[tenth].mean() - purchases[tenth].mean()) < 0.12 * purchases[tenth].mean() + 0.06
    assert abs(amounts.amount(spend, expected)["bias"]) < 0.05
    leaving = demo_truth.of_block(SCENE, block, demo.default_dates(SCENE), HORIZON_DAYS)
    assert p == pytest.approx(1 - leaving["score"].to_numpy()[: len(p)])
    assert ((purchases == 0) == (leaving["label"].to_numpy()[: len(p)] == 1)).all()
