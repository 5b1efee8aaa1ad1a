"""The plain candidates on planted data."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray.errors import CorruptError, DataError, NotEnoughDataError
from crmray.evaluate.metrics import auc
from crmray.models import labels as training_rows
from crmray.models.blend import Blend, best_blend
from crmray.models.boosting import LightGBM
from crmray.models.linear import PATH, Linear, Logistic
from crmray.models.tabular import Recency
from crmray.models.trees import DecisionTree, RandomForest

FAST = {
    "recency": Recency(),
    "logistic": Logistic(),
    "decision_tree": DecisionTree(),
    "random_forest": RandomForest(num_trees=20),
    "lightgbm": LightGBM(patience=20),
}
CLASSES = {name: type(candidate) for name, candidate in FAST.items()}


def planted(num_rows: int, seed: int) -> pa.Table:
    """Odds rise with recency and with one plan, fall with log spend; one number in ten is missing."""
    rng = np.random.default_rng(seed)
    days, spend = rng.exponential(40, num_rows), rng.lognormal(3, 1, num_rows)
    plan = rng.choice(["basic", "pro", "rare"], num_rows, p=[0.7, 0.29, 0.01])
    odds = np.log1p(days) + 1.5 * (plan == "pro") - np.log(spend) - 1.5
    label = rng.random(num_rows) < 1 / (1 + np.exp(-odds))
    columns = {"entity_id": [f"c{i}" for i in range(num_rows)], "recency_days": days, "plan": plan, "noise": days[::-1]}
    spend = pa.array(spend, mask=rng.random(num_rows) < 0.1)
    return pa.table({**columns, "spend": spend, "label": label.astype(float)})


TRAIN, VALIDATION, TEST = planted(1500, 0), planted(500, 1), planted(1000, 2)


@pytest.fixture(scope="module")
def fitted():
    return {name: candidate.fit(TRAIN, VALIDATION, seed=0) for name, candidate in FAST.items()}


@pytest.mark.parametrize("name", FAST)
def test_planted_effect_round_trip_and_single_rows(fitted, name):
    model, y = fitted[name], TEST["label"].to_numpy()
    score = model.predict(TEST)["score"]
    assert score.dtype == np.float64
    assert 0 <= score.min() <= score.max() <= 1
    assert auc(y, score) > {"recency": 0.6, "decision_tree": 0.7}.get(name, 0.77)
    again = CLASSES[name].load(model.save())
    assert np.array_equal(again.predict(TEST)["score"], score)
    assert getattr(again, "rounds", None) == getattr(model, "rounds", None)
    assert again.save() == model.save() or name in ("decision_tree", "random_forest")  # a skops archive holds dates
    singles = np.concatenate([model.predict(TEST.slice(i, 1))["score"] for i in range(20)])
    assert np.abs(singles - score[:20]).max() < 1e-9
    twin = FAST[name].fit(TRAIN, VALIDATION, seed=0)
    assert np.array_equal(twin.predict(TEST)["score"], score)
    assert len(model.predict(TEST.slice(0, 0))["score"]) == 0


def test_who_applies():
    assert Recency.applies(["entity_id", "spend"]) == "the examples have no column 'recency_days'"
    assert Recency.applies(["recency_days"]) is None
    assert Logistic.applies(["entity_id", "as_of", "label"]) == "the examples have no feature columns"
    assert all(candidate.applies(TRAIN.column_names) is None for candidate in CLASSES.values())


def test_recency_ranks_by_days_and_a_customer_without_any_counts_as_longest(fitted):
    longest = float(np.max(TRAIN["recency_days"].to_numpy()))
    score = fitted["recency"].predict(pa.table({"recency_days": [1.0, 5.0, longest, None]}))["score"]
    assert score[0] < score[1] < score[2] == score[3]


def test_rounds_of_the_caller_are_kept(fitted):
    assert 1 <= fitted["lightgbm"].rounds < 500
    assert LightGBM().fit(TRAIN, None, seed=0, rounds=7).rounds == 7
    assert LightGBM(num_rounds=9).fit(TRAIN, None, seed=0).rounds == 9


def noisy(num_rows: int, num_noise: int, seed: int) -> pa.Table:
    """One number tells the label, the others nothing; customers have two rows each."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=num_rows)
    noise = {f"noise_{k}": rng.normal(size=num_rows) for k in range(num_noise)}
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-2 * cause))).astype(np.int8)
    return pa.table({"entity_id": [f"c{i // 2}" for i in range(num_rows)], "cause": cause, **noise, "label": label})


def chosen_penalty(family: type[Linear], rows: pa.Table, **settings) -> list[float]:
    """The values of C that give the very model that is fitted where C is not given."""
    model = family(**settings).fit(rows, None, seed=0).save()
    return [C for C in PATH if family(**settings, C=C).fit(rows, None, seed=0).save() == model]


def test_the_linear_penalty_is_chosen_by_how_much_the_columns_tell():
    wide, test = noisy(300, 150, 0), noisy(1000, 150, 1)
    y = test["label"].to_numpy()
    chosen, weak = (auc(y, Logistic(C=C).fit(wide, None, seed=0).predict(test)["score"]) for C in (0.0, 1.0))
    assert chosen > weak + 0.02
    assert chosen_penalty(Logistic, wide)[0] < 0.1 < chosen_penalty(Logistic, noisy(300, 1, 0))[0]
    number = wide.set_column(wide.schema.get_field_index("label"), "label", wide["cause"])
    assert chosen_penalty(Linear, number, kind="number") == [10.0]
    few = np.array([1, 1, *[0] * 38], np.int8)  # both rows of yes are one customer's: without them nothing is learned
    rows = noisy(40, 3, 2).drop_columns(["label"]).append_column("label", pa.array(few))
    assert chosen_penalty(Logistic, rows) == [1.0]


def test_smote_evens_the_training_classes_and_keeps_the_given_rows():
    rng = np.random.default_rng(0)
    numbers, codes = rng.normal(size=(60, 2)), rng.integers(0, 3, (60, 1))
    labels = np.array([1] * 10 + [0] * 50)
    numbers_after, codes_after, labels_after = training_rows.smote(numbers, codes, labels, seed=0)
    assert np.bincount(labels_after).tolist() == [50, 50]
    assert np.array_equal(numbers_after[:60], numbers)
    assert np.array_equal(codes_after[:60], codes)
    new = numbers_after[60:]
    assert (labels_after[60:] == 1).all()
    assert (new.min(axis=0) >= numbers[:10].min(axis=0)).all()  # between two rows of the class
    assert (new.max(axis=0) <= numbers[:10].max(axis=0)).all()
    assert set(codes_after[60:, 0]) <= set(codes[:10, 0])
    for no_codes, no_numbers in ((codes[:, :0], numbers), (codes, numbers[:, :0])):
        assert np.bincount(training_rows.smote(no_numbers, no_codes, labels, seed=0)[2]).tolist() == [50, 50]


def test_imbalance_settings_move_the_scores_of_new_rows_up_and_touch_nothing_else(fitted):
    plain = fitted["logistic"].predict(TEST)["score"]
    for imbalance in ("weights", "smote"):
        score = Logistic(imbalance=imbalance).fit(TRAIN, None, seed=0).predict(TEST)["score"]
        assert len(score) == TEST.num_rows
        assert score.mean() > plain.mean() + 0.05  # a third of the rows are positive
    weights = training_rows.class_weights(np.array([1, 0, 0, 0]))
    assert weights == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize("positives", [2, 3, 4])
def test_smote_with_too_few_of_a_class_to_leave_some_out(positives):
    labels = pa.array([1.0] * positives + [0.0] * 40)
    table = pa.table({"recency_days": np.arange(40.0 + positives), "label": labels})
    assert len(Logistic(imbalance="smote").fit(table, None, seed=0).predict(table)["score"]) == 40 + positives


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ([0.0] * 20, NotEnoughDataError, "0 rows with 1 and 20 with 0"),
        ([1.0] + [0.0] * 19, NotEnoughDataError, "1 rows with 1 and 19 with 0"),
        ([None] * 3 + [0.0, 1.0] * 8 + [1.0], DataError, "3 of 20 rows without a value"),
        ([2.0] + [0.0, 1.0] * 9 + [1.0], DataError, "got 2 in 1 rows"),
    ],
)
def test_labels_that_cannot_be_learned_from(values, error, words):
    t = pa.table({"recency_days": np.arange(20.0), "label": values})
    for candidate in FAST.values():
        with pytest.raises(error, match=words):
            candidate.fit(t, None, seed=0)


def test_rows_beyond_the_memory_budget_are_sampled_with_a_warning(caplog):
    kept = training_rows.within_budget(TRAIN, bytes_per_row=2**20, memory_gib=1000 / 1024, candidate="x", seed=0)
    assert kept.num_rows == 1000
    assert len(set(kept["entity_id"].to_pylist())) == 1000
    assert "train.sampled" in caplog.text
    assert training_rows.within_budget(TRAIN, bytes_per_row=10, memory_gib=1, candidate="x", seed=0) is TRAIN


def test_sampled_classes_keep_their_shares_and_a_rare_one_some_rows():
    label = np.array(["a"] * 12_000 + ["b"] * 7_988 + ["c"] * 12)
    rows = pa.table({"label": np.random.default_rng(1).permutation(label), "x": np.arange(20_000)})
    kept = training_rows.sampled(rows, 1000, seed=0)
    assert np.all(np.diff(kept["x"].to_numpy()) > 0)
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(kept["label"]).to_pylist()}
    assert (counts["c"], sum(counts.values())) == (10, 1000)
    assert counts["a"] / counts["b"] == pytest.approx(12_000 / 7_988, rel=0.01)
    amounts = pa.table({"label": np.arange(20_000.0)})  # a number has no classes
    assert training_rows.sampled(amounts, 1000, seed=0)["label"].to_numpy().mean() == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("family", [Linear, DecisionTree, RandomForest, LightGBM])
def test_a_rare_class_is_learned_beyond_the_memory_budget(family):
    rng = np.random.default_rng(4)
    label = np.array(["a", "b"])[rng.integers(2, size=20_000)].astype(object)
    label[:10] = "rare"
    rows = pa.table({"label": label.tolist(), "x": rng.normal(size=20_000) + 50.0 * (label == "rare")})
    quick = {"num_trees": 10} if family is RandomForest else {"num_rounds": 20} if family is LightGBM else {}
    model = family(kind="class", memory_gib=1e-9, **quick).fit(rows, None, seed=1)
    said = model.predict(rows)
    assert set(said) == {"p:a", "p:b", "p:rare"}
    assert said["p:rare"][:10].mean() > said["p:rare"][10:].mean()


def test_a_forest_draws_no_more_rows_per_tree_than_it_is_told():
    model = RandomForest(num_trees=3, min_rows_leaf=1, max_rows_tree=50).fit(TRAIN, None, seed=0)
    assert [tree.tree_.weighted_n_node_samples[0] for tree in model.estimator.estimators_] == [50, 50, 50]
    assert RandomForest(num_trees=2).fit(TRAIN, None, seed=0).estimator.max_samples is None


def test_settings_are_checked():
    with pytest.raises(ValueError, match="got imbalance='some'"):
        Logistic(imbalance="some")
    with pytest.raises(ValueError, match="got max_features=2"):
        RandomForest(max_features=2.0)
    with pytest.raises(ValueError, match="num_leaves=1"):
        LightGBM(num_leaves=1)


def test_damaged_files_are_refused(fitted):
    files = fitted["lightgbm"].save()
    with pytest.raises(CorruptError, match=r"model\.txt"):
        LightGBM.load({**files, "model.txt": b"tree\nrubbish"})
    with pytest.raises(CorruptError, match=r"'linear\.json'"):
        Logistic.load({})


def test_blend_averages_wins_only_where_validation_prefers_it_and_comes_back(fitted):
    y = VALIDATION["label"].to_numpy()
    some = {name: fitted[name] for name in ("logistic", "lightgbm", "recency")}
    blend = Blend(members=some, weights={"logistic": 0.5, "lightgbm": 0.25, "recency": 0.25})
    parts = {name: model.predict(TEST)["score"] for name, model in some.items()}
    expected = 0.5 * parts["logistic"] + 0.25 * parts["lightgbm"] + 0.25 * parts["recency"]
    assert blend.predict(TEST)["score"] == pytest.approx(expected)
    assert np.array_equal(Blend.load(blend.save(), CLASSES).predict(TEST)["score"], blend.predict(TEST)["score"])
    found = best_blend(fitted, VALIDATION, lambda told: auc(y, told["score"]))
    single = max(auc(y, model.predict(VALIDATION)["score"]) for model in fitted.values())
    assert found is None or auc(y, found.predict(VALIDATION)["score"]) > single
    same = {"a": fitted["logistic"], "b": fitted["logistic"]}
    assert best_blend(same, VALIDATION, lambda told: auc(y, told["score"])) is None
    with pytest.raises(CorruptError, match="'recency'"):
        Blend.load(blend.save(), {"logistic": Logistic, "lightgbm": LightGBM})
