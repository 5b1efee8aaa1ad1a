"""Customer value: labels by hand, models against published figures, answers that cannot contradict themselves."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from by_hand import AS_OF, at, table
from conformance import fit, rows_of, settings_of, small
from hypothesis import given, settings
from hypothesis import strategies as st

from crmray import schema
from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.evaluate import metrics
from crmray.models import value_answer
from crmray.models.value_bgnbd import BGNBD
from crmray.models.value_boosting import SpendLightGBM
from crmray.models.value_rule import RunRate
from crmray.models.value_targets import LABELS, OUTPUTS, PURCHASES, SPEND, longest_window
from crmray.models.value_transformer import ValueTransformer
from crmray.tasks import churn, value


def history(rows: list[tuple]) -> dict[str, pa.Table]:
    """Transactions from (entity, day, order, units, amount), sorted as the shard stage sorts them."""
    names = ("entity_id", "occurred_at", "order_id", "num_units", "net_amount")
    rows = [(who, at(day), order, float(units), float(amount)) for who, day, order, units, amount in sorted(rows)]
    return {"transactions": table("transactions", names, *rows)}


def labels(tables: dict[str, pa.Table], **settings) -> dict[str, tuple[float, float]]:
    rows = value.examples(tables, AS_OF, value.Settings(**settings), labels=True)
    names = ("entity_id", SPEND, PURCHASES)
    return {
        who: (spend, purchases) for who, spend, purchases in zip(*(rows[n].to_pylist() for n in names), strict=True)
    }


# -- labels and columns -----------------------------------------------------------------------------------------------


def test_spend_is_net_of_returns_and_purchases_are_orders():
    before = [(who, -10, f"{who}0", 1, 5) for who in ("back", "idle", "many", "one", "over")]
    after = [
        ("one", 0, "a", 2, 30), ("one", 0, "a", 1, 12), ("one", 90, "z", 1, 99),  # the horizon is half open
        ("many", 1, "b", 1, 10), ("many", 2, "c", 1, 20), ("many", 3, "d", -1, -4),
        ("over", 5, "e", 1, 10), ("over", 6, "f", -3, -40),  # more came back than was bought
        ("back", 7, "g", -1, -5), ("new", 8, "h", 1, 70),  # only a return; nobody knew them before
    ]  # fmt: skip
    found = labels(history(before + after))
    assert found == {"back": (0, 0), "idle": (0, 0), "many": (26, 2), "one": (42, 1), "over": (0, 1)}


def test_one_customer_and_a_horizon_without_a_row():
    one = history([("x", -10, "a", 1, 5)])
    assert labels(one) == {"x": (0, 0)}
    rows = value.examples(one, at(-20), value.Settings(), labels=True)
    assert rows.num_rows == 0
    assert rows.schema == value.examples(one, AS_OF, value.Settings(), labels=True).schema


def test_the_population_and_the_label_are_those_of_churn():
    rows, theirs = rows_of(value)["test"], rows_of(churn)["test"]
    assert rows["entity_id"].equals(theirs["entity_id"])
    assert [p == 0 for p in rows[PURCHASES].to_pylist()] == [label == 1 for label in theirs["label"].to_pylist()]


def test_orders_by_month_count_each_order_of_the_last_year_once():
    days = [(-1, "a"), (-1, "a"), (-31, "b"), (-60, "c"), (-365, "d"), (-366, "e")]
    rows = value.examples(history([("x", d, o, 1, 5) for d, o in days]), AS_OF, value.Settings(), labels=False)
    expected = [0.0] * 12
    expected[11], expected[10], expected[0] = 2.0, 1.0, 1.0  # 31 and 1 December, 2 November, 1 January
    assert rows["orders_by_month"].to_pylist() == [expected]
    assert rows[SPEND].null_count == rows[PURCHASES].null_count == 1


def test_longest_window():
    columns = ["spend_net_30d_amount", "spend_net_365d_amount", "spend_net_all_amount", "spend_gross_400d_amount"]
    assert longest_window(columns, "spend_net_", "_amount") == ("spend_net_365d_amount", 365)
    assert longest_window(columns, "frequency_orders_") is None


# -- one coherent answer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    rows = rows_of(value)
    models = {
        name: fit(small(value.CANDIDATES[name]), rows["train"], rows["validation"])
        for name in ("lightgbm", "bgnbd_gammagamma", "run_rate", "transformer")
    }
    return {name: (model, value.finalize(model, rows["train"], rows["validation"], settings_of(value)))
            for name, model in models.items()}  # fmt: skip


def check_coherent(p: np.ndarray, purchases: np.ndarray, spend: np.ndarray) -> None:
    assert ((p >= 0) & (p <= 1)).all()
    assert (purchases >= p).all()
    assert ((spend > 0) == (p > 0)).all()
    assert (purchases[p == 0] == 0).all()


@pytest.mark.parametrize("name", list(value.CANDIDATES))
def test_answers_do_not_contradict_each_other_and_totals_agree(fitted, name):
    model, decision = fitted[name]
    json.dumps(decision, allow_nan=False)
    for part in ("validation", "test", "now"):
        rows = rows_of(value)[part]
        answers = value.predict(model, decision, rows)
        p, purchases, spend, worth = (answers[key].to_numpy() for key in (*OUTPUTS, "lifetime_value"))
        check_coherent(p, purchases, spend)
        value.Prediction.model_validate(answers.slice(0, 1).to_pylist()[0])
        assert (worth >= spend).all()
        order = np.argsort(spend, kind="stable")
        assert (np.diff(answers["percentile"].to_numpy()[order]) >= 0).all()
        starts = pc.index_in(answers["band"], value_set=pa.array(["low", "medium", "high", "top"])).to_numpy()
        assert (np.diff(starts[order]) >= 0).all()
        if part == "validation":
            bought = (rows[PURCHASES].to_numpy() > 0).astype(float)
            assert spend.sum() == pytest.approx(rows[SPEND].to_numpy().sum(), rel=0.02)
            assert p.mean() == pytest.approx(bought.mean(), abs=0.02)
            if name == "lightgbm":
                assert metrics.expected_calibration_error(bought, p) < 0.06


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e3), st.floats(0, 1e7)), min_size=1, max_size=20),
    st.floats(0.2, 5.0), st.floats(0.01, 100.0), st.sampled_from(["none", "platt"]),
)  # fmt: skip
def test_whatever_a_model_says_the_answer_is_coherent(raw, speed, scale, method):
    columns = dict(zip(OUTPUTS, map(np.array, zip(*raw, strict=True)), strict=True))
    state = {
        "calibration": {"method": method, "slope": 0.7, "intercept": -0.4}, "shift": 0.3, "least_spend": 0.5,
        "horizon_days": 30, "scale": {"purchases": scale, "spend": scale},
        "season": {"factors": [speed] * 12, "validation": 1.0},
    }  # fmt: skip
    rows = pa.table({"as_of": pa.array([AS_OF] * len(raw), schema.TIME)})
    answer = value_answer.apply(state, columns, rows)
    check_coherent(*(answer[name] for name in OUTPUTS))
    assert (answer["p_purchase"][columns["p_purchase"] == 0] == 0).all()


def test_a_busier_season_raises_all_three_and_keeps_the_order(fitted):
    model, decision = fitted["lightgbm"]
    rows = rows_of(value)["test"]
    calm = value.predict(model, decision, rows)
    busy = {**decision, "season": {"factors": [2.0] * 12, "validation": 1.0}}
    answers = value.predict(model, busy, rows)
    for name in OUTPUTS:
        assert (answers[name].to_numpy() > calm[name].to_numpy()).all()
    one, other = (np.argsort(table["spend"].to_numpy(), kind="stable") for table in (calm, answers))
    assert np.array_equal(one, other)


def test_a_row_is_answered_alike_alone_and_among_others(fitted):
    for model, decision in fitted.values():
        rows = rows_of(value)["now"].slice(0, 30)
        together = value.predict(model, decision, rows)
        alone = value.predict(model, decision, rows.slice(7, 1))
        for name in (*OUTPUTS, "lifetime_value", "percentile"):
            assert together[name][7].as_py() == pytest.approx(alone[name][0].as_py(), rel=1e-5)


def test_event_lists_of_unequal_length_are_refused_where_their_totals_agree(fitted):
    model, _ = fitted["transformer"]
    rows = rows_of(value)["now"].slice(0, 2)
    kinds = rows["event_kind"].to_pylist()
    wrong = pa.array([[*kinds[0], kinds[1][0]], kinds[1][1:]], rows.schema.field("event_kind").type)
    with pytest.raises(SchemaError, match="its lists differ in length from those of"):
        model.predict(rows.set_column(rows.schema.get_field_index("event_kind"), "event_kind", wrong))


def test_reasons_name_what_the_planted_org_differs_in(fitted):
    model, decision = fitted["lightgbm"]
    rows = rows_of(value)["test"]
    dear = pc.greater(rows["price_mean_amount"], 50.0)
    told = value.predict(model, decision, rows.filter(dear), explain=True)["reasons"].to_pylist()
    assert np.mean([any("how much they spend" in reason for reason in reasons) for reasons in told]) > 0.5


def test_the_report_covers_totals_deciles_and_kinds_of_customer(fitted):
    model, decision = fitted["lightgbm"]
    rows = rows_of(value)["test"]
    figures = value.evaluate(model, decision, rows, settings_of(value))
    assert figures["ranking"] == pytest.approx((figures["ngini"] + figures["spearman"]) / 2)
    assert sum(one["rows"] for one in figures["deciles"]) == rows.num_rows
    assert sum(figures["groups"][f"band {name}"]["rows"] for name in value.BANDS) == rows.num_rows
    assert figures["totals"]["spend"]["came"] == pytest.approx(rows[SPEND].to_numpy().sum())
    assert figures["deciles"][0]["spend"]["came"] > 5 * figures["deciles"][-1]["spend"]["came"]


@pytest.mark.parametrize("spend", [[10.0] * 3, [10.0, np.nextafter(10.0, 11.0), 10.0], [0.0] * 3, [-5.0, -1.0, 2.0]])
def test_spend_that_ranks_nobody_is_said(spend):
    rows = pa.table({SPEND: spend})
    with pytest.raises(NotEnoughDataError, match=r"expected amounts that differ"):
        value.score(rows, {"spend": np.array([1.0, 2.0, 3.0])})


def test_a_model_fitted_again_is_brought_to_the_same_totals(fitted):
    model, decision = fitted["lightgbm"]
    rows = rows_of(value)["validation"]

    class Louder:
        def predict(self, examples):
            found = model.predict(examples)
            return {**found, "spend": 3.0 * found["spend"], "purchases": 0.5 * found["purchases"]}

    again = value.shipped(Louder(), decision, rows)
    one, other = value.predict(model, decision, rows), value.predict(Louder(), again, rows)
    for name in (*OUTPUTS, "percentile"):
        assert other[name].to_numpy() == pytest.approx(one[name].to_numpy())


# -- the candidates ---------------------------------------------------------------------------------------------------


def test_the_rule_is_last_years_pace():
    rows = rows_of(value)["now"].slice(0, 3)
    model = fit(RunRate(horizon_days=30), rows_of(value)["train"], rows_of(value)["validation"])
    found = model.predict(rows)
    assert found["spend"] == pytest.approx(rows["spend_net_180d_amount"].to_numpy() / 6, rel=1e-6)
    assert found["purchases"] == pytest.approx(rows["frequency_orders_180d"].to_numpy() / 6, rel=1e-6)
    assert value.fixed(value.Settings(horizon_days=30))["run_rate.horizon_days"] == 30


def test_a_blend_has_the_totals_of_validation(fitted):
    rows = rows_of(value)["validation"]
    models = {name: model for name, (model, _) in fitted.items()}
    found = value.best_blend(models, rows, lambda outputs: 1.0 if len(outputs["spend"]) else 0.0)
    assert found is None  # no blend is better than another figure of 1
    figures = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.0])
    found = value.best_blend(models, rows, lambda outputs: next(figures))
    assert len(found.members) == 2
    assert found.predict(rows)["spend"].sum() == pytest.approx(rows[SPEND].to_numpy().sum())
    again = value.BLEND.load(found.save(), value.CANDIDATES)
    assert all(np.array_equal(again.predict(rows)[name], found.predict(rows)[name]) for name in OUTPUTS)


def test_the_transformer_reads_orders_and_returns_alone(fitted):
    model = fitted["transformer"][0]
    rows = rows_of(value)["now"].slice(0, 20)
    purchase = value_transformer_kinds(rows)
    with_visits = model.predict(rows)
    without = model.predict(purchase)
    assert purchase["event_kind"].to_pylist() != rows["event_kind"].to_pylist()
    assert all(np.array_equal(with_visits[name], without[name]) for name in OUTPUTS)


def value_transformer_kinds(rows: pa.Table) -> pa.Table:
    """The rows with the events of kind purchase and return alone."""
    lists = {name: rows[name].to_pylist() for name in ("event_kind", "event_days_before", "event_value")}
    kept = [[i for i, kind in enumerate(kinds) if kind in (1, 2)] for kinds in lists["event_kind"]]
    for name, column in lists.items():
        cut = pa.array([[one[i] for i in places] for one, places in zip(column, kept, strict=True)],
                       rows.schema.field(name).type)  # fmt: skip
        rows = rows.set_column(rows.schema.get_field_index(name), name, cut)
    return rows


# -- data that is hard ------------------------------------------------------------------------------------------------


def with_labels(rows: pa.Table, spend: np.ndarray, purchases: np.ndarray) -> pa.Table:
    for name, values in zip(LABELS, (spend, purchases), strict=True):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.float64()))
    return rows


@pytest.mark.parametrize("candidate", [RunRate(), BGNBD(), SpendLightGBM(), ValueTransformer()], ids=lambda c: c.NAME)
def test_labels_that_nothing_can_be_learned_from(candidate):
    train = rows_of(value)["train"]
    zeros = np.zeros(train.num_rows)
    learn = candidate.prepare if candidate.KIND == "torch" else lambda rows: candidate.fit(rows, None, seed=0)
    with pytest.raises(NotEnoughDataError, match=f"got 0 of {train.num_rows} training rows with a purchase"):
        learn(with_labels(train, zeros, zeros))
    with pytest.raises(DataError, match=f"column 'label_spend' of the training rows: got 1 of {train.num_rows} rows"):
        learn(with_labels(train, np.where(np.arange(train.num_rows) == 5, -1.0, 1.0), zeros + 1))
    with pytest.raises(NotEnoughDataError, match="got 1 of 1 training rows"):
        learn(with_labels(train.slice(0, 1), np.ones(1), np.ones(1)))


def test_everybody_buys_once_for_the_same_amount():
    rows = rows_of(value)
    ones = {name: with_labels(rows[name], np.full(rows[name].num_rows, 7.0), np.ones(rows[name].num_rows))
            for name in ("train", "validation")}  # fmt: skip
    for name in value.CANDIDATES:
        model = fit(small(value.CANDIDATES[name]), ones["train"], ones["validation"])
        answers = value.predict(model, value.finalize(model, *ones.values(), settings_of(value)), rows["now"])
        check_coherent(*(answers[key].to_numpy() for key in OUTPUTS))
        assert np.isfinite(answers["spend"].to_numpy()).all()
        if name in ("lightgbm", "transformer"):
            assert answers["purchases"].to_numpy().mean() == pytest.approx(1.0, abs=0.15)


def test_constant_features_leave_the_neural_model_its_orders_and_the_trees_a_message():
    train = rows_of(value)["train"].slice(0, 200)
    keys = {"entity_id", "as_of", "part", *LABELS, "event_kind", "event_days_before", "event_value"}
    for name in train.column_names:
        if name not in keys and pa.types.is_floating(train.schema.field(name).type):
            constant = pa.array(np.ones(train.num_rows), train.schema.field(name).type)
            train = train.set_column(train.schema.get_field_index(name), name, constant)
    train = train.drop_columns([n for n in train.column_names if n not in keys and n != "recency_days"])
    with pytest.raises(NotEnoughDataError, match="only columns without information"):
        SpendLightGBM().fit(train, None, seed=0)
    model = fit(small(ValueTransformer), train, train)
    assert np.ptp(model.predict(train)["spend"]) > 0


def test_the_answer_is_held_against_churn_and_segments(fitted):
    rows = rows_of(value)["test"]
    own = value.predict(*fitted["lightgbm"], rows)
    other = churn.Settings(horizon_days=30, lookback_days=180)
    stays = own["p_purchase"].to_numpy()
    theirs = pa.table({"probability": 1.0 - stays + 0.02})
    found = value.beside_churn(own, theirs, settings_of(value), other)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["mean_difference"] == pytest.approx(0.02)
    assert found["share_apart"] == 0.0
    assert value.beside_churn(own, theirs, settings_of(value), churn.Settings(horizon_days=60)) is None
    assert value.beside_churn(own, theirs, settings_of(value), churn.Settings(label="cancelled")) is None
    segments = pa.table({"segment_name": ["few", "many"] * (rows.num_rows // 2)})
    told = value.by_segment(own, segments, settings_of(value), None)["segments"]
    assert told["few"]["rows"] == told["many"]["rows"] == rows.num_rows // 2
    assert told["few"]["spend"] == pytest.approx(own["spend"].to_numpy()[::2].mean())
