"""Histories, popularity, item-kNN and EASE on purchases small enough to count by hand, and blends of rankings."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest

from crmray.errors import CorruptError, DataError, NotEnoughDataError, SchemaError
from crmray.models import histories, ranking
from crmray.models.ease import Ease, solve
from crmray.models.histories import Catalogue
from crmray.models.neighbours import ItemKNN, Popularity, strongest
from crmray.models.ranking_blend import RankingBlend, best_blend

AS_OF = datetime(2024, 1, 1, tzinfo=timezone.utc)


def rows(histories_of: list[list[str]], *, days=None, as_of=AS_OF, targets=None, owned=True, ids=None) -> pa.Table:
    """Examples; without `days` every purchase is a visit of its own, one day apart."""
    days = days or [[float(len(h) - i) for i in range(len(h))] for h in histories_of]
    size = len(histories_of)
    return pa.table(
        {
            "entity_id": ids or [f"c{i}" for i in range(size)],
            "as_of": pa.array([as_of] * size, pa.timestamp("us", "UTC")),
            "target": pa.array(targets or [None] * size, pa.list_(pa.string())),
            "history": pa.array(histories_of, pa.list_(pa.string())),
            "history_days_before": pa.array(days, pa.list_(pa.float32())),
            "exclude_owned": pa.array([owned] * size),
        }
    )


def weight(model, owned: str, candidate: str) -> float:
    code_of = model.catalogue.code_of
    return float(model.votes[code_of[owned], code_of[candidate]])


ONE_VISIT = [["a", "b"], ["a", "b"], ["a", "c"], ["b"]]
SAME_DAY = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0]]


def test_the_catalogue_is_in_order_of_buyers_then_id():
    catalogue = Catalogue.of(rows(ONE_VISIT))
    assert catalogue.items.tolist() == ["a", "b", "c"]
    assert catalogue.buyers.tolist() == [3, 3, 1]


def test_popularity_counts_the_buyers_of_the_window():
    train = rows([["a", "b"], ["a"], ["a"]], days=[[40.0, 2.0], [31.0], [30.0]])
    model = Popularity(window_days=30).fit(train, None, seed=0)
    assert dict(zip(model.catalogue.items, model.catalogue.popularity, strict=True)) == {"a": 1.0, "b": 1.0}
    everything = Popularity(window_days=None).fit(train, None, seed=0)
    assert everything.catalogue.popularity.tolist() == pytest.approx([1.0, 1 / 3])
    assert everything.predict(rows([["a"]]))["products"][0].tolist() == ["b"] + [None] * 9


def test_item_knn_is_the_cosine_of_buyers():
    model = ItemKNN(alpha=0.5, shrink=0.0, closeness=1.0, decay=1.0).fit(rows(ONE_VISIT, days=SAME_DAY), None, seed=0)
    assert weight(model, "a", "b") == pytest.approx(2 / 3)  # two of three and three buyers: 2 / sqrt(3 * 3)
    assert weight(model, "a", "c") == pytest.approx(1 / np.sqrt(3))
    assert weight(model, "b", "c") == 0
    assert weight(model, "a", "a") == 0


def test_item_knn_asymmetry_and_shrinkage():
    train = rows(ONE_VISIT, days=SAME_DAY)
    model = ItemKNN(alpha=0.7, shrink=5.0, closeness=1.0).fit(train, None, seed=0)
    assert weight(model, "a", "c") == pytest.approx(1 / (3**0.7 * 1**0.3 + 5))
    assert weight(model, "c", "a") == pytest.approx(1 / (1**0.7 * 3**0.3 + 5))


def test_closeness_weighs_pairs_by_the_visits_between_them():
    # two visits: {a, b}, then {c}; another customer buys a and c three visits apart
    train = rows([["a", "b", "c"], ["a", "x", "y", "c"]], days=[[9.0, 9.0, 5.0], [9.0, 6.0, 5.0, 1.0]])
    catalogue = Catalogue.of(train)
    counts = histories.cooccurrence(histories.encode(train, catalogue), len(catalogue), 0.5).toarray()
    at = catalogue.code_of
    assert counts[at["a"], at["b"]] == pytest.approx(1.0)
    assert counts[at["a"], at["c"]] == pytest.approx(0.5 + 0.5**3)
    assert np.allclose(counts, counts.T)
    assert np.diagonal(counts).tolist() == catalogue.buyers.tolist()


def test_counts_do_not_depend_on_how_many_customers_are_counted_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    train = rows([[f"p{i}" for i in rng.permutation(9)[: rng.integers(1, 8)]] for _ in range(30)])
    catalogue = Catalogue.of(train)
    bought = histories.encode(train, catalogue)
    whole = histories.cooccurrence(bought, len(catalogue), 0.8).toarray()
    monkeypatch.setattr(histories, "BLOCK_PAIRS", 200)
    assert np.allclose(histories.cooccurrence(bought, len(catalogue), 0.8).toarray(), whole)


def test_decay_counts_visits_from_the_newest():
    catalogue = Catalogue.named(["a", "b", "c"])
    bought = histories.encode(rows([["a", "b", "c"]], days=[[9.0, 5.0, 5.0]]), catalogue)
    assert bought.matrix(3, 0.5).toarray().tolist() == [[0.5, 1.0, 1.0]]
    assert bought.matrix(3, 0.0).toarray().tolist() == [[0.0, 1.0, 1.0]]


def test_what_was_bought_again_counts_once_at_its_newest_entry():
    # visits {a, b}, {b}, {b, c}: the one in the middle holds nothing that was not bought again later
    catalogue = Catalogue.named(["a", "b", "c"])
    bought = histories.encode(rows([["a", "b", "b", "b", "c"]], days=[[9.0, 9.0, 5.0, 1.0, 1.0]]), catalogue)
    assert bought.matrix(3, 0.5).toarray().tolist() == [[0.5, 1.0, 1.0]]
    counts = histories.cooccurrence(bought, 3, 0.5).toarray()
    assert counts.tolist() == [[1.0, 0.5, 0.5], [0.5, 1.0, 1.0], [0.5, 1.0, 1.0]]


def test_ease_is_the_closed_form():
    rng = np.random.default_rng(1)
    bought = (rng.random((40, 6)) < 0.4).astype(float)
    train = rows([[f"p{i}" for i in np.flatnonzero(row)] for row in bought])
    model = Ease(l2=3.0, closeness=1.0, decay=1.0).fit(train, None, seed=0)
    inverse = np.linalg.inv(bought.T @ bought + 3.0 * np.eye(6))
    expected = np.eye(6) - inverse / np.diag(inverse)
    order = [int(item[1:]) for item in model.catalogue.items]
    assert np.allclose(model.votes.toarray(), expected[np.ix_(order, order)], atol=1e-5)


def test_ease_of_two_products_by_hand():
    # G = [[2, 1], [1, 2]], l2 = 1: P = [[3, -1], [-1, 3]] / 8, B = 1/3 off the diagonal
    model = Ease(l2=1.0, closeness=1.0).fit(rows([["a", "b"], ["a"], ["b"]]), None, seed=0)
    assert np.allclose(model.votes.toarray(), [[0, 1 / 3], [1 / 3, 0]], atol=1e-6)


def test_only_the_strongest_weights_are_kept():
    import scipy.sparse as sp

    votes = sp.csr_matrix(np.array([[0.0, 0.1, -0.9, 0.5], [0.3, 0.0, 0.2, 0.0], [0, 0, 0, 0], [1, 2, 3, 0]]))
    assert strongest(votes, 2).toarray() == pytest.approx(
        np.array([[0, 0, -0.9, 0.5], [0.3, 0, 0.2, 0], [0, 0, 0, 0], [0, 2, 3, 0]])
    )
    gram = sp.csr_matrix(np.array([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]], np.float32))
    assert (np.diff(solve(gram, 1.0, 1).indptr) == 1).all()


def test_ease_leaves_out_rare_products_above_its_limit():
    model = Ease(max_items=2).fit(rows(ONE_VISIT), None, seed=0)
    assert model.catalogue.items.tolist() == ["a", "b"]


def test_reasons_name_the_products_that_vote_most():
    model = ItemKNN(closeness=1.0, decay=1.0, shrink=0.0).fit(rows(ONE_VISIT, days=SAME_DAY), None, seed=0)
    assert model.because(rows([["a"]]), [["b", "c", "nowhere"]]) == [[["a"], ["a"], []]]


def test_a_customer_counts_once_with_the_newest_row():
    later = datetime(2024, 2, 1, tzinfo=timezone.utc)
    both = pa.concat_tables([rows([["a", "b"]], as_of=later, targets=[["z"]]), rows([["a"]], targets=[["b"]])])
    kept = histories.training(both)
    assert kept["history"].to_pylist() == [["a", "b"]]  # a dated target is never trained on


def test_without_dates_the_target_of_a_training_row_is_the_next_item():
    table = pa.concat_tables([rows([["a"], ["b"]], as_of=None), rows([["a"]], as_of=None, targets=[["c"]], ids=["c0"])])
    kept = histories.training(table)
    assert dict(zip(kept["entity_id"].to_pylist(), kept["history"].to_pylist(), strict=True)) == {
        "c0": ["a", "c"],
        "c1": ["b"],
    }
    assert kept["history_days_before"].to_pylist()[1] == [1.0, -1.0]


def test_ranking_excludes_what_is_owned_and_barred_and_fills_up_with_none():
    catalogue = Catalogue.named(["a", "b", "c", "d"])

    def scores(part: pa.Table) -> np.ndarray:
        return np.tile(np.array([4.0, 3.0, 3.0, 1.0], np.float32), (part.num_rows, 1))

    shown = ranking.rank(scores, catalogue, rows([["a"], []]), top_k=3, exclude=["d", "unknown"])
    assert shown["products"].tolist() == [["b", "c", None], ["a", "b", "c"]]  # equal scores in order of the catalogue
    assert np.isnan(shown["scores"][0, 2])
    again = ranking.rank(scores, catalogue, rows([["a"]], owned=False), top_k=1)
    assert again["products"].tolist() == [["a"]]


class Fixed:
    """A model with the same scores for everybody, or one list per customer."""

    def __init__(self, values):
        self.catalogue, self.values = Catalogue.named(["a", "b", "c"]), np.array(values, np.float32)

    def scores(self, part):
        wanted = [int(name[1:]) for name in part["entity_id"].to_pylist()]
        return self.values[wanted] if self.values.ndim == 2 else np.tile(self.values, (part.num_rows, 1))

    def predict(self, part):
        return ranking.rank(self.scores, self.catalogue, part)


def test_a_blend_adds_reciprocal_ranks_of_what_is_not_owned():
    members = {"one": Fixed([0, 3, 30]), "other": Fixed([2, 0, 1])}
    blend = RankingBlend(members=members, weights={"one": 0.25, "other": 0.75})
    # one: c, b, a; other: a, c, b; the second place counts 20/21, the third 20/22
    expected = [0.25 * 20 / 22 + 0.75, 0.25 * 20 / 21 + 0.75 * 20 / 22, 0.25 + 0.75 * 20 / 21]
    assert blend.scores(rows([[]]))[0] == pytest.approx(expected)
    # with c owned, one ranks b, a and other ranks a, b
    assert blend.scores(rows([["c"]]))[0] == pytest.approx([0.25 * 20 / 21 + 0.75, 0.25 + 0.75 * 20 / 21, 0])
    with pytest.raises(ValueError, match="sum to 1"):
        RankingBlend(members=members, weights={"one": 0.5, "other": 0.25})


def test_the_best_blend_is_found_and_none_when_one_model_is_as_good():
    part = rows([[], []])
    # the first customer wants b, the second c: each model is right about one and wrong by a hair about the other
    one, other = Fixed([[9, 8, 0], [0, 8, 9]]), Fixed([[0, 9, 8], [9, 0, 8]])

    def metric(products):
        return np.array([row[0] == want for row, want in zip(products, ("b", "c"), strict=True)], float)

    found = best_blend({"one": one, "other": other}, {"one": 0.5, "other": 0.5}, part, metric)
    assert found is not None
    assert set(found.weights) == {"one", "other"}
    assert metric(found.predict(part)["products"]).tolist() == [1, 1]
    assert best_blend({"one": other, "two": other}, {"one": 1, "two": 1}, part, metric) is None


def test_a_saved_blend_gives_the_same_bits_and_names_a_member_it_lacks():
    train = rows(ONE_VISIT)
    members = {"ease": Ease(max_items=2).fit(train, None, seed=0), "popularity": Popularity().fit(train, None, seed=0)}
    blend = RankingBlend(members=members, weights={"ease": 0.75, "popularity": 0.25})
    again = RankingBlend.load(blend.save(), {"ease": Ease, "popularity": Popularity})
    assert np.array_equal(again.scores(train), blend.scores(train))
    assert blend.scores(train).shape == (4, 3)  # c is outside EASE's catalogue
    with pytest.raises(CorruptError, match="'ease'"):
        RankingBlend.load(blend.save(), {"popularity": Popularity})


def test_wrong_input_is_named():
    with pytest.raises(NotEnoughDataError, match="1 different products"):
        Ease().fit(rows([["a"], ["a"]]), None, seed=0)
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        ItemKNN(alpha=1.5)
    with pytest.raises(ValueError, match="l2=0"):
        Ease(l2=0)
    model = Ease().fit(rows(ONE_VISIT), None, seed=0)
    with pytest.raises(SchemaError, match="'history'"):
        model.predict(rows([["a"]]).drop_columns(["history"]))
    uneven = rows([["a", "b"]], days=[[1.0]])
    with pytest.raises(DataError, match="history_days_before"):
        model.predict(uneven)
