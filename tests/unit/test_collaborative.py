"""Matrix factorisation and user-based neighbours on purchases small enough to solve by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from test_markov import rows

from crmray import erase
from crmray.models import ranking
from crmray.models.factorization import ALS, solve
from crmray.models.user_neighbours import UserKNN


def test_the_factors_of_a_customer_by_hand():
    # Y = (1, 2): Y'Y + l2 = 6; the first product was bought with confidence 1 + 3: 6 + 3 * 1 = 9, Y'Cp = 4
    found = solve(sp.csr_matrix(np.array([[1.0, 0.0], [0.0, 0.0]])), np.array([[1.0], [2.0]]), alpha=3.0, l2=1.0)
    assert found[:, 0] == pytest.approx([4 / 9, 0.0])


def test_solving_is_the_closed_form():
    rng = np.random.default_rng(0)
    weights, others = (rng.random((5, 7)) < 0.4) * rng.random((5, 7)), rng.normal(size=(7, 3))
    confidence, wanted = 1 + 2.0 * weights, (weights > 0).astype(float)
    expected = [
        np.linalg.solve(others.T @ np.diag(c) @ others + 0.5 * np.eye(3), others.T @ (c * p))
        for c, p in zip(confidence, wanted, strict=True)
    ]
    assert np.allclose(solve(sp.csr_matrix(weights), others, alpha=2.0, l2=0.5), expected)


TWO_GROUPS = [[["a"], ["b"], ["c"]], [["a"], ["b"], ["c"]], [["x"], ["y"], ["z"]], [["x"], ["y"], ["z"]]]


@pytest.mark.parametrize("candidate", [ALS(dim=2), UserKNN()])
def test_a_customer_gets_what_others_of_the_group_bought(candidate):
    model = candidate.fit(rows(TWO_GROUPS), None, seed=0)
    newcomer = rows([[["a"], ["b"]], [["x"], ["y"]]])
    newcomer = newcomer.set_column(0, "entity_id", [["n0", "n1"]])
    assert model.predict(newcomer)["products"][:, 0].tolist() == ["c", "z"]
    again = type(candidate).load(model.save())
    assert np.array_equal(again.scores(newcomer), model.scores(newcomer))


def test_likeness_is_the_cosine_and_nobody_is_their_own_neighbour():
    model = UserKNN(shrink=0.0, decay=1.0).fit(rows([[["a", "b"]], [["a", "c"]], [["d"]]]), None, seed=0)
    scores, code = model.scores(rows([[["a", "b"]]])), model.catalogue.code_of
    assert scores[0, code["c"]] == pytest.approx(1 / 2, abs=1e-5)  # one of two and two products: 1 / sqrt(2 * 2)
    assert scores[0, code["b"]] == pytest.approx(0.0, abs=1e-5)  # that is c0's own row
    assert scores[0, code["d"]] == pytest.approx(0.0, abs=1e-5)


def test_it_says_only_of_what_a_neighbour_bought_that_others_buy_it():
    model = UserKNN().fit(rows([[["a", "b"]], [["a", "c"]], [["d"]]]), None, seed=0)
    asked = rows([[["a", "b"]], [[]]])
    assert model.because(asked, [["c", "d", "gone"], ["a"]]) == [[["c"], [], []], [[]]]


def test_customers_in_blocks_get_the_same_scores(monkeypatch):
    model = UserKNN().fit(rows(TWO_GROUPS), None, seed=0)
    together = model.scores(rows(TWO_GROUPS))
    monkeypatch.setattr(ranking, "BLOCK_CELLS", 4)  # a customer at a time
    assert np.array_equal(model.scores(rows(TWO_GROUPS)), together)
    assert model.scores(rows(TWO_GROUPS).slice(0, 0)).shape == (0, 6)


def test_only_the_customers_with_the_latest_purchases_are_kept():
    model = UserKNN(max_customers=1).fit(rows([[["a"], ["b"], []], [["a"], ["c"]]]), None, seed=0)
    assert model.customers == ["c1"]


def test_whoever_is_erased_is_found_in_the_files():
    table = rows([[["a"], ["b"]], [["a"], ["c"]]])
    id_ = "001000000000001AAA"
    table = table.set_column(0, "entity_id", [[id_, "c1"]])
    files = UserKNN().fit(table, None, seed=0).save()
    assert any(erase._mentions(content, {id_}) for content in files.values())


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="dim=0"):
        ALS(dim=0)
    with pytest.raises(ValueError, match="shrink=-1"):
        UserKNN(shrink=-1)
