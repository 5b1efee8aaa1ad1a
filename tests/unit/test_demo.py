"""The demo org: equal settings give equal bytes, ids are real ones, rows refer to rows, and the truth is exact."""

from __future__ import annotations

import itertools
import math
from datetime import date, datetime, timezone

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from crmray.config import DemoSource
from crmray.data import demo, demo_truth
from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import FOLLOW
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import World
from crmray.errors import ConfigError, DataError
from crmray.salesforce import ids
from crmray.storage import Lake

SOURCE = DemoSource(kind="demo", customers=300, months=24)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("lake"))
    return lake, demo.write(lake, SOURCE, 7)


def test_ids_have_the_published_suffix():
    # the first two from the examples of Salesforce's REST API guide; the third by hand: capitals at 0 and 2 of the last
    # five characters give 0b00101 = 5 = F
    assert ids.to_18("001D000000IRFma") == "001D000000IRFmaIAH"
    assert ids.to_18("001D000000IomazIAB") == "001D000000IomazIAB"
    assert ids.to_18("0010000000AbCde") == "0010000000AbCdeAAF"
    with pytest.raises(DataError, match="IAH"):
        ids.to_18("001D000000IRFmaIAD")
    with pytest.raises(DataError, match="15 or 18"):
        ids.to_18("001A0000006Vm9")
    made = ids.make("500", np.array([0, 61, 62, 3_000_000_000])).to_pylist()
    assert len(set(made)) == 4
    assert all(ids.to_18(one[:15]) == one and one.startswith("500") for one in made)
    assert made[1][14] == "z"
    assert made[2][13:15] == "10"


def test_equal_settings_give_equal_bytes(written, tmp_path):
    lake, runs = written
    again = demo.write(Lake(tmp_path), SOURCE, 7)
    assert set(runs) == set(demo.OBJECTS)
    for name, run in runs.items():
        assert again[name].run_id == run.run_id
        assert again[name].manifest()["files"] == run.manifest()["files"], name
    hidden = lake.latest("truth", "demo")
    assert hidden.manifest()["files"] == Lake(tmp_path).latest("truth", "demo").manifest()["files"]
    other = demo.write(Lake(tmp_path), SOURCE, 8)
    assert other["Order"].manifest()["files"] != runs["Order"].manifest()["files"]


def test_a_run_that_died_continues(written, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as died:
        died.setattr(demo, "_write_affinities", fail)
        with pytest.raises(KeyboardInterrupt):
            demo.write(Lake(tmp_path), SOURCE, 7)
    monkeypatch.setattr(demo, "simulate", fail)  # all parts are there: nothing is made again
    again = demo.write(Lake(tmp_path), SOURCE, 7)
    for name, run in written[1].items():
        assert again[name].manifest()["files"] == run.manifest()["files"], name
        assert again[name].manifest()["rows"] == run.read_table().num_rows


def test_a_block_does_not_depend_on_how_many_blocks_there_are(monkeypatch):
    monkeypatch.setattr(dw, "BLOCK", 50)
    few, many = World(customers=100, months=24), World(customers=150, months=24)
    for index in (0, 1):
        one, other = (demo.tables(world, simulate(world, index), index) for world in (few, many))
        assert all(one[name].equals(other[name]) for name in one)
    last = demo.tables(many, simulate(many, 2), 2)["Account"]
    assert not set(last["Id"].to_pylist()) & set(one["Account"]["Id"].to_pylist())


def test_rows_refer_to_rows(written):
    _, runs = written
    rows = {name: run.read_table() for name, run in runs.items()}
    own = {name: set(table["Id"].to_pylist()) for name, table in rows.items()}
    for name, table in rows.items():
        assert len(own[name]) == table.num_rows, name
        assert table["IsDeleted"].to_pylist() == [False] * table.num_rows
    for name, column, target in (
        ("Contact", "AccountId", "Account"), ("Order", "AccountId", "Account"), ("OrderItem", "OrderId", "Order"),
        ("OrderItem", "Product2Id", "Product2"), ("Case", "ContactId", "Contact"), ("EmailMessage", "ParentId", "Case"),
        ("CampaignMember", "CampaignId", "Campaign"), ("CampaignMember", "ContactId", "Contact"),
        ("Web_Visit__c", "Account__c", "Account"), ("Web_Visit__c", "Product__c", "Product2"),
        ("Lead", "ConvertedAccountId", "Account"), ("OpportunityFieldHistory", "OpportunityId", "Opportunity"),
        ("AccountHistory", "AccountId", "Account"), ("Task", "AccountId", "Account"),
        ("Order", "OriginalOrderId", "Order"),
    ):  # fmt: skip
        assert set(rows[name][column].drop_null().to_pylist()) <= own[target], (name, column)
    order_account = dict(zip(rows["Order"]["Id"].to_pylist(), rows["Order"]["AccountId"].to_pylist(), strict=True))
    items = rows["OrderItem"]
    assert [order_account[one] for one in items["OrderId"].to_pylist()] == items["Order.AccountId"].to_pylist()
    total = np.round(items["Quantity"].to_numpy() * items["UnitPrice"].to_numpy(), 2)
    np.testing.assert_allclose(items["TotalPrice"].to_numpy(), total, atol=0.005)
    assert 0 < np.mean(items["Quantity"].to_numpy() < 0) < 0.04  # returns


def test_nothing_happens_after_the_end_or_before_its_customer(written):
    _, runs = written
    end = datetime.fromisoformat(SOURCE.end).replace(tzinfo=timezone.utc)
    for name, run in runs.items():
        assert pc.max(run.read_table()["CreatedDate"]).as_py() < end, name
    accounts, orders = runs["Account"].read_table(), runs["Order"].read_table()
    created = dict(zip(accounts["Id"].to_pylist(), accounts["CreatedDate"].to_pylist(), strict=True))
    pairs = zip(orders["AccountId"].to_pylist(), orders["CreatedDate"].to_pylist(), strict=True)
    assert all(created[account] < when for account, when in pairs)


def test_truth_beside_the_data_agrees_with_it(written):
    lake, runs = written
    table = lake.latest("truth", "demo").read_table("churn-*.parquet")
    as_of = datetime(2026, 7, 3, tzinfo=timezone.utc)
    rows = table.filter(pc.equal(table["as_of"], as_of))
    items = runs["OrderItem"].read_table().filter(pc.field("Quantity") > 0)
    later = items.filter(pc.field("Order.EffectiveDate") >= as_of)["Order.AccountId"].unique()
    assert rows["label"].to_pylist() == pc.invert(pc.is_in(rows["entity_id"], later)).cast("int8").to_pylist()
    assert set(rows["segment"].to_pylist()) <= set(dw.SEGMENTS)
    final = table.filter(pc.equal(table["as_of"], datetime(2026, 10, 1, tzinfo=timezone.utc)))
    assert final["label"].null_count == final.num_rows


def test_truth_refuses_other_dates():
    world = demo.world(SOURCE, 0)
    for wrong in (datetime(2026, 7, 3, 12), datetime(2027, 1, 1), datetime(2020, 1, 1)):
        with pytest.raises(DataError, match="midnight"):
            demo_truth.of_block(world, simulate(world, 0), [wrong], 90)
    with pytest.raises(ConfigError, match="ISO date"):
        demo.world(SOURCE.model_copy(update={"end": "soon"}), 0)


def _poisson(count: int, mean: float) -> float:
    return math.exp(-mean) * mean**count / math.factorial(count)


class _Enumeration:
    """P(no order in the horizon | what one customer showed) by summing over classes, tastes, and all paths of z.

    Day by day and event by event, with scalars only: no code of demo_truth is used.
    """

    def __init__(self, world, block, i, day, horizon):
        self.world, self.block, self.i, self.day, self.end = world, block, i, day, day + horizon
        self.first, self.last = int(block.first_week[i]), (day + horizon - 1) // 7
        chosen = block.order_customer == i
        self.orders = [o for o in np.flatnonzero(chosen) if block.order_day[o] < day]
        self.visits = [k for k in np.flatnonzero(block.visit_customer == i) if block.visit_day[k] < day]
        self.cases = [k for k in np.flatnonzero(block.case_customer == i) if block.case_day[k] < day]

    def probability(self):
        joint = np.zeros(2)
        for v, s, a in itertools.product(range(2), range(2), range(3)):
            prior = (dw.P_LOYAL if v else 1 - dw.P_LOYAL) * (dw.P_SENSITIVE[v] if s else 1 - dw.P_SENSITIVE[v])
            prior *= dw.P_ACTIVITY[a] * dw.P_INDUSTRY[v][self.block.industry[self.i]]
            prior *= dw.P_SIZE[v][self.block.size[self.i]] * self.for_life(v, s)
            for z in range(3):
                joint += prior * dw.P_START[z] * np.array(self.from_week(self.first, z, v, s, a))
        return joint[1] / joint[0]

    def for_life(self, v, s):
        b, result = self.block, 1.0
        for o in self.orders:
            lines = np.flatnonzero(b.line_order == o)
            result *= dw.P_DISCOUNT[s] if b.discounted[o] else 1 - dw.P_DISCOUNT[s]
            result *= _poisson(len(lines) - 1, dw.EXTRA_LINES[v])
            result *= math.prod(_poisson(int(b.units[k]) - 1, dw.EXTRA_UNITS[v]) for k in lines)
        return result * sum(share * self.products(t, s) for t, share in enumerate(dw.taste_prior()[2 * v + s]))

    def products(self, t, s):
        b, catalogue, result = self.block, self.world.catalogue, 1.0
        for k in self.visits:
            if b.viewed[k] >= 0:
                result *= catalogue.base[catalogue.era_of(b.visit_day[k] // 7), t, s, b.viewed[k]]
        for before, o in zip([None, *self.orders], self.orders, strict=False):
            era = catalogue.era_of(b.order_day[o] // 7)
            for k in np.flatnonzero(b.line_order == o):
                chance = catalogue.base[era, t, s, b.product[k]]
                if before is not None:
                    parents = b.product[np.flatnonzero(b.line_order == before)]
                    follow = np.mean([catalogue.successors[era, j, b.product[k]] for j in parents])
                    chance = FOLLOW * follow + (1 - FOLLOW) * chance
                result *= chance
        return result

    def from_week(self, w, z, v, s, a):
        """(P(seen from week w on), P(seen from week w on and no order in the horizon)) given z in week w."""
        if 7 * w >= self.end:
            return 1.0, 1.0
        b, season = self.block, self.world.seasons(w + 1)[w]
        known_monday, total = 7 * w < self.day, np.zeros(2)
        for arm, rise, bad in itertools.product((-1, 0, 1), (0, 1), (0, 1)):
            weight = self.exogenous(w, arm, rise, s, z, known_monday)
            if weight == 0:
                continue
            seen = gone = weight
            rate = dw.PURCHASES[v] * dw.ACTIVITY[a] * dw.PURCHASES_BY_STATE[z] * season
            rate *= 1 + (dw.UPLIFT[s] if arm == 1 else 0)
            browse = dw.VISITS[s] * dw.ACTIVITY[a] * dw.VISITS_BY_STATE[z] * season
            quiet, had_bad = 1.0, False
            for d in range(7):
                today = 7 * w + d
                if today < self.day:
                    chance = _poisson(sum(b.order_day[o] == today for o in self.orders), rate * dw.DAY_SHARES[d])
                    chance *= _poisson(sum(b.visit_day[k] == today for k in self.visits), browse * dw.DAY_SHARES[d])
                    for cell in range(6):
                        count = sum(b.case_day[k] == today and b.case_cell[k] == cell for k in self.cases)
                        chance *= _poisson(count, dw.CASE_RATES[cell, z] / 7)
                        had_bad |= bool(count) and cell % 3 == 0
                    seen, gone = seen * chance, gone * chance
                else:
                    quiet *= math.exp(-(dw.CASE_RATES[0, z] + dw.CASE_RATES[3, z]) / 7)
                    if today < self.end:
                        gone *= math.exp(-rate * dw.DAY_SHARES[d])
            chance_bad = 1.0 if had_bad else 1 - quiet
            weight_bad = chance_bad if bad else 1 - chance_bad
            push = dw.CONTENT_TO_DRIFTING + bad * dw.BAD_CASE_PUSH[0] + rise * dw.PRICE_RISE_PUSH[s]
            worse = dw.DRIFTING_TO_LEAVING + bad * dw.BAD_CASE_PUSH[1]
            back = dw.DRIFTING_TO_CONTENT
            rows = (
                (1 - push, push, 0),
                (back, 1 - back - worse, worse),
                (dw.LEAVING_TO_CONTENT, 0, 1 - dw.LEAVING_TO_CONTENT),
            )
            for z_next, chance in enumerate(rows[z]):
                if chance and weight_bad:
                    total += weight_bad * chance * np.array(self.from_week(w + 1, z_next, v, s, a)) * (seen, gone)
        return total[0], total[1]

    def exogenous(self, w, arm, rise, s, z, known):
        """Weight of an arm and a price rise in week w, with what was opened and clicked where it is known."""
        b, i = self.block, self.i
        mailed = bool(b.opted_in[i]) and w % dw.MAIL_EVERY == 0
        if not known:
            chances = {1: dw.P_TREATMENT, 0: 1 - dw.P_TREATMENT} if mailed else {-1: 1.0}
            return chances.get(arm, 0.0) * (dw.P_PRICE_RISE if rise else 1 - dw.P_PRICE_RISE)
        if arm != b.arm[i, w] or rise != b.rise[i, w]:
            return 0.0
        if arm != 1:
            return 1.0
        if not b.opened[i, w]:
            return 1 - dw.P_OPEN[z, s]
        return dw.P_OPEN[z, s] * (dw.P_CLICK[s] if b.clicked[i, w] else 1 - dw.P_CLICK[s])


@pytest.mark.parametrize(("day", "horizon"), [(17, 9), (14, 5), (20, 1), (16, 12)])
def test_the_filter_is_what_enumeration_gives(monkeypatch, day, horizon):
    # made eventful: three weeks would show hardly anything otherwise
    monkeypatch.setattr(dw, "CASE_RATES", dw.CASE_RATES * 15)
    monkeypatch.setattr(demo_truth, "BAD_RATES", demo_truth.BAD_RATES * 15)
    monkeypatch.setattr(dw, "P_PRICE_RISE", 0.3)
    world = World(customers=60, months=24, seed=3)
    block = simulate(world, 0)
    exact = demo_truth.p_leave(world, block, [day], horizon)[0]
    eventful = np.bincount(block.case_customer[block.case_day < day], minlength=60)
    eventful += np.bincount(block.order_customer[block.order_day < day], minlength=60) + 3 * (block.first_week == 1)
    some = [i for i in np.argsort(-eventful, kind="stable") if block.first_week[i] * 7 < day][:6]
    for i in some:
        assert exact[i] == pytest.approx(_Enumeration(world, block, i, day, horizon).probability(), rel=1e-9)


@pytest.fixture(scope="module")
def scene():
    world = World(customers=5_000, seed=1)
    return world, simulate(world, 0), (date(2026, 7, 3) - world.epoch).days


def test_the_world_is_neither_trivial_nor_hopeless(scene):
    world, block, day = scene
    p = demo_truth.p_leave(world, block, [day], 90)[0]
    inputs, populations = zip(*(_behaviour(world, block, one) for one in (day - 90, day)), strict=True)
    left = [~ordered(block, one, one + 90)[who] for one, who in zip((day - 90, day), populations, strict=True)]
    scaler = StandardScaler().fit(inputs[0][:, :3])
    model = LogisticRegression().fit(scaler.transform(inputs[0][:, :3]), left[0])
    rfm = model.predict_proba(scaler.transform(inputs[1][:, :3]))[:, 1]
    p = p[populations[1]]
    ceiling = roc_auc_score(left[1], p)
    assert 0.20 < left[1].mean() < 0.45
    assert abs(p.mean() - left[1].mean()) < 3 * math.sqrt((p * (1 - p)).sum()) / len(p)
    assert 0.80 < ceiling < 0.90
    assert ceiling - roc_auc_score(left[1], inputs[1][:, 0]) > 0.08
    assert ceiling - roc_auc_score(left[1], rfm) > 0.03


def test_the_planted_segments_can_be_found(scene):
    world, block, day = scene
    figures, population = _behaviour(world, block, day)
    found = KMeans(6, n_init=5, random_state=0).fit_predict(StandardScaler().fit_transform(figures))
    planted = dw.segments(block.v, block.s, block.z[:, : day // 7 + 1])[population]
    assert adjusted_rand_score(planted, found) > 0.8


def ordered(block, first_day, end_day):
    chosen = (block.order_day >= first_day) & (block.order_day < end_day)
    return np.isin(np.arange(len(block)), block.order_customer[chosen])


def _behaviour(world, block, day):
    """log1p of recency, orders, spend of the year before the day, basket, discount, visits; and who bought in it."""
    n, chosen = len(block), (block.order_day < day) & (block.order_day >= day - 365)
    customer, lines = block.order_customer[chosen], chosen[block.line_order]
    recency = np.full(n, 1e9)
    np.minimum.at(recency, customer, day - block.order_day[chosen])
    amount = (world.catalogue.price[block.product] * block.units)[lines]
    spend = np.bincount(block.order_customer[block.line_order][lines], amount, minlength=n)
    orders, cheap = (np.bincount(customer, w, minlength=n) for w in (None, block.discounted[chosen]))
    visits = np.bincount(block.visit_customer[(block.visit_day < day) & (block.visit_day >= day - 90)], minlength=n)
    each = np.maximum(orders, 1)
    population = orders > 0
    return np.log1p(np.column_stack([recency, orders, spend, spend / each, 0.3 * cheap / each, visits]))[
        population
    ], population
