"""Segmentation: planted groups are found, named and told apart; shards do not matter."""

import itertools
import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from crmray import schema
from crmray.errors import NotEnoughDataError, SchemaError
from crmray.evaluate import segment_words
from crmray.models.events import EVENT_COLUMNS
from crmray.models.hierarchy import Ward
from crmray.models.kmeans import Cut, KMeans, silhouette, simplest
from crmray.models.rfm import RFMRules
from crmray.models.segment_transformer import SegmentTransformer
from crmray.models.segments import Segments, nearest
from crmray.tasks import segmentation
from crmray.tasks.segmentation import Settings


def planted(n=600, seed=0):
    """Three groups of customers, far apart in spend, frequency and recency."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    spend = np.exp(np.array([8.0, 5.0, 2.0])[group] + rng.normal(0, 0.3, n))
    orders = np.round(np.exp(np.array([3.5, 2.0, 0.5])[group] + rng.normal(0, 0.2, n)))
    recency = np.floor(np.exp(np.array([1.0, 5.0, 4.0])[group] + rng.normal(0, 0.2, n)))
    as_of = pa.array([datetime(2026, 1, 1, tzinfo=timezone.utc)] * n, pa.timestamp("us", "UTC"))
    table = pa.table(
        {
            "entity_id": [f"c{i}" for i in range(n)],
            "as_of": as_of,
            "part": ["train"] * n,
            "spend_amount": spend,
            "frequency_orders": orders,
            "recency_days": recency,
            "later_amount": spend / 4,
        }
    )
    return table, group


def fit(table, candidate, shards=1):
    """Run the shard-wise contract in this process."""
    state, done = candidate.start(table, 0), False
    bounds = np.linspace(0, table.num_rows, shards + 1).astype(int)
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    while not done:
        state, done = candidate.reduce(state, [candidate.map(state, part) for part in parts])
    return candidate.fitted(state)


def test_planted_groups_are_found_whatever_the_shards():
    table, group = planted()
    one, many = fit(table, KMeans(num_segments=3)), fit(table, KMeans(num_segments=3), shards=7)
    segment = one.predict(table)["segment"]
    assert adjusted_rand_score(group, segment) > 0.98
    np.testing.assert_allclose(one.centers_KD, many.centers_KD, atol=1e-9)
    assert one.stability > 0.95


def test_segments_are_numbered_by_spend_and_standardised_by_hand():
    table, _ = planted()
    model = fit(table, KMeans(num_segments=3))
    logs = np.log1p(table["spend_amount"].to_numpy())
    axis = model.columns.index("spend_amount")
    assert axis == 0
    np.testing.assert_allclose([model.mean_D[0], model.scale_D[0]], [logs.mean(), logs.std()], rtol=1e-9)
    assert np.all(np.diff(model.centers_KD[:, 0]) < 0)


def test_the_right_number_scores_best():
    table, _ = planted()
    quality = {k: segmentation.score(table, fit(table, KMeans(num_segments=k)).predict(table)) for k in (2, 3, 4, 5)}
    assert max(quality, key=lambda k: quality[k]["stable_silhouette"]) == 3
    assert len(fit(table, KMeans()).centers_KD) == 3


def stretched(n=900, seed=0):
    """Three groups of one shape, long in the direction in which they do not differ."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    along, across = rng.normal(0, 1.0, n), rng.normal(0, 0.12, n) + group
    table = planted(n)[0]
    logs = {"spend_amount": 6 + along + across, "frequency_orders": 6 + along - across, "recency_days": np.full(n, 2.0)}
    for place, (name, values) in enumerate(logs.items(), start=3):
        table = table.set_column(place, name, pa.array(np.expm1(values)))
    return table, group


def test_adaptive_distances_find_groups_whatever_their_shape_and_the_shards():
    table, group = stretched()
    plain, one = fit(table, KMeans(num_segments=3)), fit(table, KMeans(num_segments=3, adaptive=True))
    many = fit(table, KMeans(num_segments=3, adaptive=True), shards=7)
    found = [adjusted_rand_score(group, model.predict(table)["segment"]) for model in (plain, one)]
    assert found[0] < 0.9 < 0.99 < found[1]
    within_ND = one.position(table) - one.centers_KD[one.predict(table)["segment"]]
    np.testing.assert_allclose(np.cov((within_ND @ one.whitening_DD)[:, :2].T), np.eye(2), atol=0.1)  # the ridge
    np.testing.assert_allclose(many.centers_KD, one.centers_KD, atol=1e-9)
    np.testing.assert_allclose(many.whitening_DD, one.whitening_DD, rtol=1e-6)


def test_who_is_not_in_the_hierarchy_is_assigned_by_the_shape_of_its_segments():
    """Slanted segments, told apart across their slant: the distance alone leads one in twelve astray."""
    rng = np.random.default_rng(0)
    group = np.arange(3000) % 3
    along = rng.normal(0, 0.5, 3000) + 0.5 * group
    rows_ND = np.column_stack([along, group + rng.normal(0, 0.12, 3000) + along / 4])
    found = [nearest(rows_ND, *Ward(adaptive=adaptive)._split(rows_ND[:150], 3)) for adaptive in (False, True)]
    agreement = [adjusted_rand_score(group, segment) for segment in found]
    assert agreement[0] < 0.9 < 0.99 < agreement[1]


def test_of_equally_clear_segments_the_steadier_ones_score_better():
    table, group = planted()
    rows_ND = np.log1p(np.column_stack([table["spend_amount"], table["frequency_orders"], table["recency_days"]]))
    centers_KD = np.array([rows_ND[group == one].mean(axis=0) for one in range(3)])
    clear, error = silhouette(rows_ND, nearest(rows_ND, centers_KD))
    steadier, other = (Cut.of(rows_ND, centers_KD, stability) for stability in (1.0, 0.9))
    assert (steadier.quality, other.quality) == pytest.approx((clear, 0.9 * clear))
    assert (steadier.error, other.error) == pytest.approx((error, 0.9 * error))
    assert 0.5 < clear < 1


def test_the_silhouette_and_its_error_by_hand():
    """0, 1 | 3, 5: 1 - 1/4, 1 - 1/3, 1 - 2/2.5, 1 - 2/4.5."""
    values = np.array([1 - 1 / 4, 1 - 1 / 3, 1 - 2 / 2.5, 1 - 2 / 4.5])
    found = silhouette(np.array([[0.0], [1.0], [3.0], [5.0]]), np.array([0, 0, 1, 1]))
    assert found == pytest.approx((values.mean(), values.std() / 2))


def test_more_segments_have_to_be_better_by_more_than_chance():
    def cut(k, quality):
        return Cut(centers_KD=np.zeros((k, 2)), stability=1.0, quality=quality, error=0.01)

    assert len(simplest([cut(3, 0.40), cut(5, 0.495), cut(6, 0.5)]).centers_KD) == 5
    assert len(simplest([cut(3, 0.40), cut(5, 0.485), cut(6, 0.5)]).centers_KD) == 6
    assert len(simplest([cut(3, 0.50), cut(5, 0.495)]).centers_KD) == 3


@pytest.mark.parametrize("adaptive", [False, True])
def test_round_trip_and_batch_equals_single(adaptive):
    table, _ = planted()
    model = fit(table, KMeans(num_segments=3, adaptive=adaptive))
    again = KMeans.load(model.save())
    assert isinstance(again, Segments)
    whole = again.predict(table)
    single = [again.predict(table.slice(i, 1)) for i in range(20)]
    assert whole["segment"][:20].tolist() == [one["segment"][0] for one in single]
    assert whole["distance"][:20].tolist() == [one["distance"][0] for one in single]
    assert np.array_equal(whole["position"], model.predict(table)["position"])


def test_names_say_what_sets_a_segment_apart():
    table, group = planted()
    model = fit(table, KMeans(num_segments=3))
    decision = json.loads(json.dumps(segmentation.finalize(model, table, table, Settings())))
    names = [entry["name"] for entry in decision["segments"]]
    assert len(set(names)) == 3
    assert {"high value", "buys often", "bought lately"} & set(names[0].split(", "))
    assert "lapsing" in names[1]
    assert {"low value", "buys rarely"} & set(names[2].split(", "))
    assert sum(entry["share_of_customers"] for entry in decision["segments"]) == pytest.approx(1)
    best = table["spend_amount"].to_numpy()[group == 0].sum() / table["spend_amount"].to_numpy().sum()
    assert decision["segments"][0]["share_of_sales"] == pytest.approx(best, abs=0.01)
    parts = {part["name"] for entry in decision["segments"] for part in entry["subsegments"]}
    own = {word for pair in segment_words.WORDS.values() for word in pair}
    assert parts - {"all of it"}  # within a segment customers are compared with each other, in other words
    assert not own & {word for name in parts for word in name.split(", ")}
    predictions = segmentation.predict(model, decision, table, explain=True)
    assert predictions.num_rows == table.num_rows
    assert set(predictions["subsegment"].to_pylist()) <= {0, 1, 2}
    figures = segmentation.evaluate(model, decision, table, Settings())
    assert figures["later_amount_p_value"] < 1e-6
    two = segmentation.evaluate(model, decision, table.filter(pa.array(group > 0)), Settings())["later_amount_mean"]
    assert two[names[0]] is None  # nobody of the best group is among these rows
    assert two[names[1]] == pytest.approx(table["spend_amount"].to_numpy()[group == 1].mean() / 4, rel=0.02)
    chart = segmentation.files(decision, figures)["segments.svg"]
    assert chart.startswith(b"<?xml")
    assert names[0].encode() in chart


def test_reasons_are_what_speaks_for_the_segment_against_the_others():
    """Customers who are light buyers and lapsing; of one who buys often, though unusual, that speaks for another."""
    columns = ("spend_amount", "frequency_orders", "recency_days")
    rows = pa.table({"spend_amount": [20.0, 20.0], "frequency_orders": [9.0, 2.0], "recency_days": [90.0, 30.0]})
    position, center = np.array([[-1.0, 2.5, 1.0], [-0.1, 0.0, 0.0]]), np.array([[-0.6, -0.4, 1.5]] * 2)
    typical = {"spend_amount": 300.0, "recency_days": 30.0}
    told = segment_words.reasons(rows, position, center, columns, typical)
    said = ["lapsing: last purchase 90 days ago, typically 30", "low value: spend 20, typically 300"]
    assert told == [said, ["low value: spend 20, typically 300"]]
    assert segment_words.names(center[:1], columns) == ["lapsing, low value"]
    assert segment_words.names(center[:1], columns, segment_words.WITHIN) == ["bought longer ago, lower value"]
    # How much nearer to the own centre than to the others, and what becomes of it without one feature.
    share, others = np.array([0.2, 0.5, 0.3]), np.array([[0.6, 1.0, 0.0], [-0.6, -1.4, -1.0]])
    centers = np.array([center[0], *others])
    assert share @ centers == pytest.approx([0.0, 0.0, 0.0])

    def nearer(x):
        away = ((x - centers) ** 2).sum(1)
        return share[1:] @ away[1:] / share[1:].sum() - away[0]

    for d in range(3):
        without = np.where(np.arange(3) == d, 0.0, position[0])
        assert nearer(position[0]) - nearer(without) == pytest.approx(2 * position[0, d] * center[0, d] / 0.8)


def test_the_strongest_reason_is_in_the_segments_name():
    table, _ = planted()
    model = fit(table, KMeans(num_segments=3))
    decision = json.loads(json.dumps(segmentation.finalize(model, table, table, Settings())))
    answers = segmentation.predict(model, decision, table, explain=True).to_pylist()
    first = [answer["reasons"][0].partition(": ") for answer in answers]
    assert np.mean([word in answer["segment_name"] for (word, *_), answer in zip(first, answers, strict=True)]) > 0.95
    assert all(", typically " in value for *_, value in first)
    assert segmentation.predict(model, decision, table)["reasons"].null_count == table.num_rows


def test_rules_put_the_best_customers_first():
    table, group = planted()
    rules = RFMRules().fit(table, None, seed=0)
    segment = RFMRules.load(rules.save()).predict(table)["segment"]
    assert segment[group == 0].mean() < 1.5
    assert segment[group == 1].mean() > 3
    assert segment.min() >= 0
    assert segment.max() <= 6


def test_too_few_customers_is_said_with_the_counts():
    table, _ = planted(20)
    with pytest.raises(NotEnoughDataError, match="got 20 customers, expected at least 30"):
        KMeans(num_segments=3).start(table, 0)
    with pytest.raises(NotEnoughDataError, match="got 20 customers, expected at least 80"):
        KMeans().start(table, 0)


def test_a_wrong_number_of_segments_is_named_by_every_family():
    for family in (KMeans, Ward, SegmentTransformer):
        with pytest.raises(ValueError, match="got num_segments=1, expected 2 or more"):
            family(num_segments=1)


def test_the_transformer_compares_its_own_segments_at_both_dates():
    """A network made to tell segment 0 from three events on, else 1; the features say that nobody moved."""
    table, _ = planted()
    now, then = np.arange(table.num_rows) % 5 + 1, np.arange(table.num_rows) % 4 + 1
    there = np.arange(table.num_rows) % 10 > 0

    def lists(counts: np.ndarray, value: object, type_: pa.DataType, known: np.ndarray) -> pa.Array:
        return pa.array([[value] * n if k else None for n, k in zip(counts, known, strict=True)], pa.list_(type_))

    for name, value, type_ in (("kind", "order", pa.string()), ("days_before", 3.0, pa.float32()),
                               ("value", 1.0, pa.float32())):  # fmt: skip
        table = table.append_column(f"event_{name}", lists(now, value, type_, np.full(table.num_rows, True)))
        table = table.append_column(f"before_event_{name}", lists(then, value, type_, there))
    for name in ("spend_amount", "frequency_orders", "recency_days"):
        table = table.append_column(f"before_{name}", pa.array(table[name].to_numpy(), mask=~there))
    candidate = SegmentTransformer(num_segments=3)
    state = candidate.prepare(table)
    module = candidate.module(state)
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.weight[0, -1] = 1.0  # the logarithm of the number of events
        module.head.bias.copy_(torch.tensor([0.0, np.log(2.5), -9.0]))
    model = candidate.fitted(state, module.state_dict(), 1)
    found = model.predict(table)
    assert found["segment"].tolist() == np.where(now >= 3, 0, 1).tolist()
    assert found["previous"].tolist() == np.where(there, np.where(then >= 3, 0, 1), -1).tolist()
    one = model.predict(table.slice(13, 1))
    assert (one["segment"][0], one["previous"][0]) == (found["segment"][13], found["previous"][13])
    without = {name: pa.nulls(1) for name in EVENT_COLUMNS}  # an endpoint knows no type of what is empty
    bare = pa.table({name: without.get(name, table[name][13:14]) for name in table.column_names})
    assert model.predict(bare)["segment"].tolist() == [1]
    with pytest.raises(SchemaError, match="column 'event_value': its lists differ in length"):
        model.predict(
            table.set_column(table.column_names.index("event_value"), "event_value", pa.nulls(table.num_rows))
        )


def test_what_stood_one_horizon_earlier_is_what_the_rows_of_that_date_say():
    as_of, settings = datetime(2026, 1, 1, tzinfo=timezone.utc), Settings(horizon_days=30, lookback_days=100)
    days = {"ann": (5, 40, 90, 120), "bob": (10,), "cat": (35, 101)}
    bought = {
        "entity_id": [who for who, moments in days.items() for _ in moments],
        "occurred_at": [as_of - timedelta(days=day) for moments in days.values() for day in moments],
    }
    lines = schema.check("transactions", pa.table({**bought, "net_amount": [10.0] * 7}))
    tables = {"transactions": lines.sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")])}
    now = segmentation.examples(tables, as_of, settings, labels=False)
    then = segmentation.examples(tables, as_of - timedelta(days=30), settings, labels=False)
    assert now["entity_id"].to_pylist() == ["ann", "bob", "cat"]
    assert then["entity_id"].to_pylist() == ["ann", "cat"]
    assert then["event_days_before"].to_pylist() == [[90.0, 60.0, 10.0], [71.0, 5.0]]
    names = [name for name in now.column_names if name.startswith("before_")]
    assert {"before_event_kind", "before_spend_amount"} <= set(names)
    assert {"basket_amount_mean", "basket_units_mean"} <= set(now.column_names)
    for name in names:
        here, told = now[name].to_pylist(), then[name.removeprefix("before_")].to_pylist()
        assert here == [told[0], None, told[1]], name


def test_wrong_settings_of_the_transformer_are_named():
    for wrong in ({"weight_decay": -0.1}, {"warmup_share": 1.0}, {"schedule": "linear"}, {"num_segments": 1}):
        ((name, given),) = wrong.items()
        with pytest.raises(ValueError, match=f"{name}={given!r}"):
            SegmentTransformer(**wrong)


def test_movements_are_counted_from_the_features_one_horizon_earlier():
    table, group = planted()
    rng = np.random.default_rng(1)
    places = np.array([np.flatnonzero(group == k)[0] for k in range(3)])  # a customer of each group, by falling spend
    then = np.where(rng.random(table.num_rows) < 0.5, 0, group)  # half were in the best group before
    then[:10] = -1  # and ten were not there yet
    for name in ("spend_amount", "frequency_orders", "recency_days"):
        values = table[name].to_numpy()[places][then]
        table = table.append_column(f"before_{name}", pa.array(values, mask=then < 0))
    model = fit(table, KMeans(num_segments=3))
    segment = model.predict(table)["segment"]
    order = [segment[place] for place in places]  # segment of each group
    decision = segmentation.finalize(model, table, table, Settings())
    answers = segmentation.predict(model, decision, table)
    assert answers["movement"].to_pylist()[:10] == ["new"] * 10
    assert answers["previous_segment"].to_pylist()[:10] == [None] * 10
    known = np.arange(table.num_rows) >= 10
    falls = known & (np.take(order, group) > np.take(order, then))
    assert [move == "falls" for move in answers["movement"].to_pylist()] == falls.tolist()
    moved = segmentation.evaluate(model, decision, table, Settings())["movements"]
    assert sum(count for row in moved["from_to"].values() for count in row.values()) == table.num_rows
    assert sum(moved["from_to"]["new"].values()) == 10
    assert moved["shares"]["falls"] == pytest.approx(falls.mean())


def test_the_planted_outliers_are_unlike_all_others():
    """One spends far more than anybody; one buys as often as the best and spends as little as the worst."""
    table, _ = planted()
    spend, orders = table["spend_amount"].to_numpy().copy(), table["frequency_orders"].to_numpy().copy()
    spend[0], orders[0] = 1e7, 30.0
    spend[1], orders[1] = 3.0, 200.0
    table = table.set_column(table.schema.get_field_index("spend_amount"), "spend_amount", pa.array(spend))
    table = table.set_column(table.schema.get_field_index("frequency_orders"), "frequency_orders", pa.array(orders))
    model = fit(table, KMeans(num_segments=3))
    score = model.predict(table)["anomaly"]
    assert score.min() >= 0
    assert score.max() <= 1
    assert set(np.argsort(-score)[:4]) >= {0, 1}
    again = KMeans.load(model.save())
    assert np.array_equal(again.predict(table)["anomaly"], score)
    figures = segmentation.evaluate(model, segmentation.finalize(model, table, table, Settings()), table, Settings())
    assert figures["anomalies"]["customers"] == (score >= segmentation.UNLIKE).sum()
    assert sum(figures["anomalies"]["stand_out_by"].values()) == figures["anomalies"]["customers"]


def test_the_hierarchy_finds_the_planted_groups_and_draws_its_tree():
    table, group = planted()
    model = Ward(num_segments=3).fit(table, None, seed=0)
    assert adjusted_rand_score(group, model.predict(table)["segment"]) > 0.98
    decision = segmentation.finalize(model, table, table, Settings())
    assert len(decision["tree"]) == segmentation.DENDROGRAM_ROWS - 1
    figures = segmentation.evaluate(model, decision, table, Settings())
    assert b"Hierarchy of 300 customers" in segmentation.files(decision, figures)["dendrogram.svg"]


def test_a_feature_that_is_never_known_stands_at_the_mean():
    table, _ = planted()
    values = table["spend_amount"].to_numpy()
    bare = table.append_column("visit_num_90d", pa.nulls(table.num_rows, pa.float64()))
    for model in (Ward(num_segments=3).fit(bare, None, seed=0), fit(bare, KMeans(num_segments=3))):
        assert (model.mean_D[-1], model.scale_D[-1]) == (0.0, 1.0)
        assert not model.predict(bare)["position"][:, -1].any()
        assert model.scale_D[0] == pytest.approx(np.log1p(values).std())


def test_agreement_with_the_teacher_is_that_of_the_test_part():
    table, _ = planted(8)
    part = ["train"] * 4 + ["test"] * 4
    table = table.set_column(table.schema.get_field_index("part"), "part", pa.array(part))
    found, teacher = np.array([0, 0, 0, 0, 0, 0, 1, 1]), np.array([1, 1, 1, 1, 0, 0, 1, 0])
    position = np.random.default_rng(0).normal(size=(8, 2))
    figures = segmentation.score(
        table, {"segment": found, "teacher": teacher, "position": position, "stability": np.ones(8)}
    )
    # of the four: truth 0 0 1 0, found 0 0 1 1: precision 1 and 1/2, recall 2/3 and 1
    assert figures["accuracy"] == 0.75
    assert figures["macro_precision"] == pytest.approx(0.75)
    assert figures["macro_recall"] == pytest.approx(5 / 6)
    assert figures["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
