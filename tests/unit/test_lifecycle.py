"""The hidden Markov model of who is still there, against sums over all paths and against a planted one."""

import itertools
from datetime import datetime, timezone
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from crmray.data.sequences import EVENT_KINDS, MAX_EVENTS
from crmray.errors import SchemaError
from crmray.models import lifecycle, segment_transformer
from crmray.models.hierarchy import Ward
from crmray.models.kmeans import KMeans
from crmray.models.lifecycle import BASKET, DORMANT, NUM_WEEKS, SPEND, Lifecycle
from crmray.models.segment_transformer import SegmentTransformer
from crmray.models.segments import BEFORE, matrix
from crmray.tasks import segmentation
from crmray.tasks.segmentation import Settings

LEVELS = np.array([1.0, 0.4, 0.03])
MOVES = np.array([[0.98, 0.02, 0.0], [0.05, 0.90, 0.05], [0.01, 0.0, 0.99]])
SMALL = Lifecycle(
    pace_G=np.array([1.0, 3.0]), share_G=np.array([0.7, 0.3]), level_S=np.array([1.0, 0.2]),
    move_SS=np.array([[0.9, 0.1], [0.3, 0.7]]), start_S=np.array([0.8, 0.2]), dormant_weeks=2, prior=(2.0, 2.0),
)  # fmt: skip


def lists(purchases_NW: np.ndarray, visits_NW: np.ndarray | None = None) -> pa.Table:
    """Event lists with so many purchases, of 10 each, and visits a week, in the middle of the week, oldest first."""
    rows = []
    for customer in range(len(purchases_NW)):
        row = []
        for kind, counts_NW in (("purchase", purchases_NW), ("visit", visits_NW)):
            if counts_NW is not None:
                weeks = np.repeat(np.arange(counts_NW.shape[1]), counts_NW[customer])
                row += [(7.0 * (counts_NW.shape[1] - week) - 3.5, EVENT_KINDS.index(kind)) for week in weeks]
        rows.append(sorted(row, reverse=True))
    days = [[day for day, _ in row] for row in rows]
    kinds = [[kind for _, kind in row] for row in rows]
    return pa.table({
        "event_kind": pa.array(kinds, pa.list_(pa.int16())),
        "event_days_before": pa.array(days, pa.list_(pa.float32())),
        BASKET: np.full(len(rows), 10.0),
    })  # fmt: skip


def planted(n: int, seed: int = 0) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Lists of n customers, their states (N, W), and their paces of purchases."""
    rng = np.random.default_rng(seed)
    pace_N = np.array([0.3, 1.0])[rng.integers(0, 2, n)]
    state_NW = np.zeros((n, NUM_WEEKS), int)
    for week in range(1, NUM_WEEKS):
        ahead_NS = MOVES[state_NW[:, week - 1]].cumsum(1)
        state_NW[:, week] = (rng.random(n)[:, None] > ahead_NS).sum(1)
    rate_NW = pace_N[:, None] * LEVELS[state_NW]
    return lists(rng.poisson(rate_NW), rng.poisson(2 * rate_NW)), state_NW, pace_N


def test_what_is_seen_is_the_sum_over_all_paths():
    acts_NW = np.array([[2.0, 1.0, 0.0, 0.0], [9.0, 0.0, 3.0, 1.0], [5.0, 5.0, 0.0, 1.0], [*[np.nan] * 3, 0.0]])
    there_NW = np.array([[True] * 4, [False, True, True, True], [False, False, False, True], [True] * 4])
    weeks_N, dormant_N = SMALL._seen(acts_NW, there_NW)
    for n in range(4):
        first = int(there_NW[n].argmax())
        total = weeks = dormant = 0.0
        for pace, share in zip(SMALL.pace_G, SMALL.share_G, strict=True):
            for path in itertools.product(range(2), repeat=4 - first):
                p = share * SMALL.start_S[path[0]]
                for before, after in itertools.pairwise(path):
                    p *= SMALL.move_SS[before, after]
                active = 0.0
                for state, count in zip(path, acts_NW[n, first:], strict=True):
                    rate = pace * SMALL.level_S[state]
                    if not np.isnan(count):
                        p *= rate**count * np.exp(-rate)
                        active += SMALL.level_S[state]
                total += p
                weeks += p * active
                dormant += p * (len(path) >= 2 and path[-2:] == (1, 1))
        assert weeks_N[n] == pytest.approx(weeks / total, rel=1e-9)
        assert dormant_N[n] == pytest.approx(dormant / total, abs=1e-12)


def test_weeks_are_counted_from_the_first_whole_one_on():
    table = pa.table({
        "event_kind": pa.array([[1, 3, 1], [1], None], pa.list_(pa.int16())),  # purchase, visit
        "event_days_before": pa.array([[22.0, 15.0, 1.0], [3.0], None], pa.list_(pa.float32())),
    })  # fmt: skip
    acts_NW, orders_N, there_NW = lifecycle.weekly(table)
    assert acts_NW[0, -4:].tolist() == [0, 1, 0, 1]  # the first purchase lies in a week that is cut
    assert there_NW.sum(1).tolist() == [3, 1, 1]
    assert orders_N.tolist() == [1, 1, 0]


def test_a_flood_of_mail_does_not_hide_who_is_dormant():
    """Two that bought last half a year ago; one is sent so much that its list holds nothing but sends."""
    purchases_NW = np.zeros((2, NUM_WEEKS), int)
    purchases_NW[:, 20:70:3] = 1
    kinds, days, _ = (column.to_pylist() for column in lists(purchases_NW).columns)
    days[1] = np.linspace(60, 1, MAX_EVENTS).tolist()
    kinds[1] = [EVENT_KINDS.index("send")] * MAX_EVENTS
    for cut, there in ((1, False), (0, True)):  # a list with room is that of a customer who came then
        flood = pa.table(
            {"event_kind": [kinds[0], kinds[1][cut:]], "event_days_before": [days[0], days[1][cut:]], BASKET: [1.0] * 2}
        )
        acts_NW, orders_N, there_NW = lifecycle.weekly(flood)
        assert there_NW[1].tolist() == [there] * 96 + [True] * 8
        assert np.isnan(acts_NW[1]).tolist() == [there] * 96 + [False] * 8
        assert orders_N[1] == 0
        table, _, _ = planted(200)
        probability = Lifecycle.fit(table, dormant_weeks=13, seed=0).with_traits(flood, ("",))[DORMANT].to_pylist()
        assert probability[0] > 0.9
        assert (probability[1] > 0.4) == there
    assert not np.isnan(Lifecycle.fit(flood, dormant_weeks=13, seed=0).level_S).any()


def test_the_spread_of_paces_by_hand():
    # mean 4 / 4 = 1; (0 - 2)² - 2 and (4 - 2)² - 2 over 2² + 2² make a variance of 1/2: shape and rate 1 / (1/2)
    assert lifecycle._prior(np.array([0.0, 4.0]), np.array([2.0, 2.0])) == pytest.approx((2.0, 2.0))


def test_planted_states_are_found_and_who_is_dormant():
    table, _, _ = planted(800)
    model = Lifecycle.fit(table, dormant_weeks=13, seed=0)
    np.testing.assert_allclose(model.level_S, LEVELS, atol=0.05)
    assert model.move_SS[2, 2] == pytest.approx(0.99, abs=0.01)
    fresh, state_NW, pace_N = planted(400, seed=1)
    told = model.with_traits(fresh.append_column("frequency_orders", pa.nulls(400, pa.float64())), ("",))
    assert told.column_names[2:] == [SPEND, DORMANT] == ["spend_amount_per_active_30d", "dormant_probability"]
    dormant = (state_NW[:, -13:] == 2).all(1)
    assert 0.1 < dormant.mean() < 0.6
    assert ((told[DORMANT].to_numpy() > 0.5) == dormant).mean() > 0.95
    pace = told[SPEND].to_numpy() / 10 * 7 / 30  # whoever is dormant keeps the pace of its active days
    for who in (dormant, ~dormant):
        assert np.median(pace[who & (pace_N == 1.0)]) == pytest.approx(1.0, abs=0.15)
        assert np.median(pace[who & (pace_N == 0.3)]) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("pace", [0.1, 1.0])
def test_where_nobody_is_dormant_no_one_stands_out(pace):
    table = lists(np.random.default_rng(0).poisson(pace, (250, NUM_WEEKS)))
    model = Lifecycle.fit(table, dormant_weeks=13, seed=0)
    acts_NW, _, there_NW = lifecycle.weekly(table)
    assert model._seen(acts_NW, there_NW)[1].std() > 1e-6  # the noise that standardising would blow up
    assert not Lifecycle.from_json(model.to_json()).with_traits(table, ("",))[DORMANT].to_numpy().any()


def test_a_last_state_that_is_active_is_not_dormant(monkeypatch):
    purchases_NW = np.random.default_rng(0).poisson(2.0, (60, NUM_WEEKS))
    purchases_NW[:20, -30:] = 0
    for most, dormant in ((0.5, 20), (0.0, 0)):
        monkeypatch.setattr(lifecycle, "DORMANT_LEVEL", most)
        monkeypatch.setattr(lifecycle, "_FITS", lifecycle._Memory(1))
        table = lists(purchases_NW)
        told = Lifecycle.fit(table, dormant_weeks=13, seed=0).with_traits(table, ("",))
        assert (told[DORMANT].to_numpy() > 0).sum() == dormant


def test_shards_and_samples_are_looked_at_once_for_all_passes_and_trials(monkeypatch):
    events, _, _ = planted(90, seed=5)
    rng = np.random.default_rng(0)
    table = events.append_column("spend_amount", pa.array(rng.lognormal(3, 1, 90)))
    looks, passes = [], []
    traits, maximised = Lifecycle._traits, Lifecycle._maximised
    monkeypatch.setattr(Lifecycle, "_traits", lambda *given: looks.append(1) or traits(*given))
    monkeypatch.setattr(Lifecycle, "_maximised", lambda *given: passes.append(1) or maximised(*given))
    shards = [table.slice(start, 30) for start in (0, 30, 60)]

    def sums() -> list[np.ndarray]:
        found = []
        for trial in (KMeans(num_segments=2, dormant_weeks=13), KMeans(num_segments=3, dormant_weeks=13)):
            state, done = trial.start(table, 0), False
            while not done:
                partials = [trial.map(state, shard) for shard in shards]
                found += [one["sum"] for one in partials]
                state, done = trial.reduce(state, partials)
        return found

    first = sums()
    assert len(first) >= 2 * 2 * 3  # trials, passes, shards
    assert (len(looks), len(passes)) == (1 + 3, lifecycle.NUM_PASSES)
    segment_transformer._fitted(KMeans(num_segments=2, dormant_weeks=13), table)  # the rows and the sample are the same
    assert (len(looks), len(passes)) == (1 + 3, lifecycle.NUM_PASSES)
    for name in ("_FITS", "_TRAITS"):
        monkeypatch.setattr(lifecycle, name, lifecycle._Memory(9))
    assert all(np.array_equal(one, other) for one, other in zip(first, sums(), strict=True))
    assert len(looks) == 2 * (1 + 3)
    KMeans(num_segments=2, dormant_weeks=12).start(table, 0)  # of another lifecycle nothing is known
    assert (len(looks), len(passes)) == (2 * (1 + 3) + 1, 3 * lifecycle.NUM_PASSES)


def test_memory_keeps_the_newest():
    memory, made = lifecycle._Memory(2), []
    for number in (1, 2, 1, 3, 1, 2):
        memory.of(lists(np.array([[number]])), 0, partial(made.append, number))
    assert made == [1, 2, 3, 2]
    memory.of(lists(np.array([[2]])), 1, partial(made.append, 2))
    assert made == [1, 2, 3, 2, 2]


def test_event_columns_without_a_list_tell_nothing():
    table = pa.table({name: pa.nulls(3) for name in (*lifecycle.EVENT_LISTS.names, BASKET)})
    told = SMALL.with_traits(table, ("",))
    for name in (SPEND, DORMANT):
        assert told[name].to_pylist() == [None] * 3
        assert told[name].type == pa.float64()
    bare = pa.table({name: pa.array([[], None]) for name in lifecycle.EVENT_LISTS.names})  # as an endpoint reads them
    with pytest.raises(SchemaError, match="column 'basket_amount_mean' is missing"):
        SMALL.with_traits(bare, ("",))
    told = SMALL.with_traits(bare.append_column(BASKET, pa.array([5.0, 5.0])), ("",))
    assert told[SPEND].is_null().to_pylist() == [False, True]


def test_spend_while_active_by_hand():
    """One active week each, with none and with one order, after a prior of two orders in two weeks."""
    orders_NW = np.array([[0, 0, 2, 0], [0, 0, 0, 1]])
    events = lists(orders_NW).set_column(2, BASKET, pa.array([5.0, 8.0]))
    steady = Lifecycle(
        pace_G=np.array([1.0]), share_G=np.array([1.0]), level_S=np.array([1.0, 1.0]), move_SS=np.full((2, 2), 0.5),
        start_S=np.array([0.5, 0.5]), dormant_weeks=2, prior=(2.0, 2.0),
    )  # fmt: skip
    _, orders_N, there_NW = lifecycle.weekly(events)
    assert (orders_N.tolist(), there_NW.sum(1).tolist()) == ([0, 1], [1, 1])  # two orders brought one in
    told = steady.with_traits(events, ("",))[SPEND].to_pylist()
    assert told == pytest.approx([30 / 7 * 2 / 3 * 5, 30 / 7 * 3 / 3 * 8])


def test_a_probability_is_not_drawn_together_as_spend_is():
    rows = pa.table({"spend_amount": [np.e - 1], DORMANT: [0.5], BEFORE + DORMANT: [0.25]})
    assert matrix(rows, rows.column_names)[0] == pytest.approx([1.0, 0.5, 0.25])


def test_round_trip_one_row_alone_and_nobody():
    table, _, _ = planted(60)
    model = Lifecycle.fit(table, dormant_weeks=13, seed=0)
    again = Lifecycle.from_json(model.to_json())
    whole = model.with_traits(table, ("",))
    assert whole.equals(again.with_traits(table, ("",)))
    one = again.with_traits(table.slice(7, 1), ("",))
    for name in (SPEND, DORMANT):
        assert one[name][0].as_py() == pytest.approx(whole[name][7].as_py(), rel=1e-9)
    assert model.with_traits(table.slice(0, 0), ("",)).num_rows == 0
    with pytest.raises(SchemaError, match="column 'before_event_kind' is missing"):
        model.with_traits(table, ("", BEFORE))


def test_segments_know_the_dormant():
    """Two groups that spent and bought alike, one of which has done nothing for a quarter; half were there before."""
    rng = np.random.default_rng(0)
    gone = np.arange(300) % 3 == 0
    purchases_NW = rng.poisson(0.7, (300, NUM_WEEKS))
    purchases_NW[gone, -20:] = 0
    events = lists(purchases_NW)
    there = pa.array(np.arange(300) % 2 == 0)
    table = pa.table({
        "entity_id": [f"c{i}" for i in range(300)],
        "as_of": pa.array([datetime(2026, 1, 1, tzinfo=timezone.utc)] * 300, pa.timestamp("us", "UTC")),
        "part": ["train"] * 300, "spend_amount": rng.lognormal(3, 0.1, 300), "later_amount": np.zeros(300),
        **{name: events[name] for name in events.column_names},
        **{
            BEFORE + name: pa.array([list_ if known else None for list_, known in zip(
                events[name].to_pylist(), there.to_pylist(), strict=True)], events.schema.field(name).type)
            for name in events.column_names
        },
        BEFORE + "spend_amount": pa.array(rng.lognormal(3, 0.1, 300), mask=~np.array(there)),
    })  # fmt: skip
    model = Ward(num_segments=2, dormant_weeks=13).fit(table, None, seed=0)
    found = model.predict(table)
    assert len({*zip(found["segment"].tolist(), gone.tolist(), strict=True)}) == 2
    assert (found["previous"] >= 0).tolist() == there.to_pylist()
    assert np.array_equal(found["previous"][found["previous"] >= 0], found["segment"][::2])
    again = Ward.load(model.save())
    assert np.array_equal(again.predict(table)["distance"], found["distance"])
    decision = segmentation.finalize(again, table, table, Settings())
    assert sorted("dormant" in entry["name"] for entry in decision["segments"]) == [False, True]
    assert decision["columns"] == ["spend_amount", SPEND, DORMANT]
    assert sorted(round(entry["medians"][DORMANT]) for entry in decision["segments"]) == [0, 1]


def test_a_horizon_makes_dormant_where_behaviour_counts():
    assert segmentation.fixed(Settings(horizon_days=90)) == {
        f"{family}.{name}": value
        for family in ("kmeans", "ward", "transformer") for name, value in (("adaptive", True), ("dormant_weeks", 13))
    }  # fmt: skip
    assert segmentation.fixed(Settings(horizon_days=1))["ward.dormant_weeks"] == 1
    assert segmentation.fixed(Settings(features="rfm", num_segments=4)) == {
        "kmeans.num_segments": 4, "ward.num_segments": 4, "transformer.num_segments": 4,
    }  # fmt: skip
    for family in (KMeans, Ward, SegmentTransformer):
        with pytest.raises(ValueError, match="got dormant_weeks=0, expected 1 to 104"):
            family(dormant_weeks=0)
