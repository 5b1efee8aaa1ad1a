"""The Markov chain mixed with tastes: its pairs by hand, Bayes by hand, a planted chain that is found."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest

from crmray.models import histories, visit_chain
from crmray.models.histories import Catalogue
from crmray.models.markov import Markov, _newest_visit, _on_sale
from crmray.models.visit_chain import Chain

AS_OF = datetime(2024, 1, 1, tzinfo=timezone.utc)


def rows(baskets: list[list[list[str]]]) -> pa.Table:
    """One row per customer; each basket is a visit, a day after the one before."""
    history = [[item for basket in visits for item in basket] for visits in baskets]
    days = [[float(len(visits) - n) for n, basket in enumerate(visits) for _ in basket] for visits in baskets]
    return pa.table(
        {
            "entity_id": [f"c{n}" for n in range(len(baskets))],
            "as_of": pa.array([AS_OF] * len(baskets), pa.timestamp("us", "UTC")),
            "target": pa.nulls(len(baskets), pa.list_(pa.string())),
            "history": pa.array(history, pa.list_(pa.string())),
            "history_days_before": pa.array(days, pa.list_(pa.float32())),
            "exclude_owned": [True] * len(baskets),
            "viewed": pa.array([[]] * len(baskets), pa.list_(pa.string())),
        }
    )


def test_an_entry_may_follow_every_product_of_the_visits_before():
    catalogue = Catalogue.named(["a", "b", "c", "d"])
    bought = histories.encode(rows([[["a", "b"], ["c"], ["d"]], [["a"]], [["b"], ["d"]]]), catalogue)
    chain = Chain.of(bought, 2)
    # entries: a b c d | a | b d; c (2) follows a and b, d (3) follows c, the last d (6) follows b
    assert chain.entries[0].tolist() == [2, 2, 3, 6]
    assert chain.parents[0].tolist() == [0, 1, 2, 1]
    assert chain.shares[0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert chain.entries[1].tolist() == [3, 3]  # two visits back
    assert chain.parents[1].tolist() == [0, 1]
    assert chain.present_NL[3].tolist() == [1.0, 1.0, 1.0]
    assert chain.weighted(np.array([0.5, 0.3, 0.2]))[2].tolist() == pytest.approx([0.625, 0.375, 0.0])


def test_responsibilities_and_the_one_taste_are_bayes():
    theta, drawn, followed = np.array([[0.5, 0.5]]), np.array([[0.2, 0.6]]), np.array([0.1])
    by_taste, inverse = visit_chain.of_mixed_tastes(theta, drawn, followed)
    assert by_taste[0] == pytest.approx([0.1 / 0.5, 0.3 / 0.5])  # 0.1 + 0.3 from the tastes, 0.1 followed
    assert followed * inverse == pytest.approx([0.2])
    by_row = visit_chain.groups(np.array([0, 0]), 1)
    found = visit_chain.one_taste(by_row, np.array([[0.2, 0.6], [0.5, 0.1]]), np.zeros(2), np.array([0.5, 0.5]))
    assert found[0] == pytest.approx([0.1 / 0.16, 0.06 / 0.16])


def test_a_late_product_counts_for_the_time_that_it_was_on_sale():
    catalogue = Catalogue.named(["a", "b"])
    bought = histories.encode(rows([[["a"], ["a"], ["a"], ["b"]]]), catalogue)
    assert _on_sale(bought, 2).tolist() == [1.0, 0.25]


def planted(seed: int, num_customers: int = 200) -> pa.Table:
    """After `a` comes `b`, after `c` comes `d`; a third of the purchases are of e or f, as the customer likes."""
    rng, found = np.random.default_rng(seed), []
    for number in range(num_customers):
        visits = [[str(rng.choice(["a", "c"]))]]
        for _ in range(7):
            follows = {"a": "b", "c": "d"}.get(visits[-1][0])
            likes = "e" if number % 2 else "f"
            visits.append([likes if rng.random() < 1 / 3 else follows or str(rng.choice(["a", "c"]))])
        found.append(visits)
    return rows(found)


@pytest.mark.parametrize("membership", ["mixed", "single", "auto"])
def test_what_follows_what_is_found(membership):
    model = Markov(membership=membership, num_tastes=4, num_lags=1).fit(planted(0), None, seed=0)
    code = model.catalogue.code_of
    votes = model.votes.toarray()
    assert votes[code["a"]].argmax() == code["b"]
    assert votes[code["c"]].argmax() == code["d"]
    shown = model.predict(rows([[["e"], ["a"]], [["f"], ["c"]]]))["products"]
    assert shown[:, 0].tolist() == ["b", "d"]
    assert model.because(rows([[["e"], ["a"]]]), [["b", "nowhere"]]) == [[["a"], []]]
    again = Markov.load(model.save())
    assert np.array_equal(again.scores(planted(1)), model.scores(planted(1)))


def test_tastes_tell_customers_apart():
    likes = rows([[["e"], ["e"], ["e"]] * 2, [["f"], ["f"], ["f"]] * 2])
    model = Markov(num_tastes=4, num_lags=1).fit(planted(0), None, seed=0)
    scores, code = model.scores(likes), model.catalogue.code_of
    assert scores[0, code["e"]] > scores[0, code["f"]]
    assert scores[1, code["f"]] > scores[1, code["e"]]


def test_what_was_viewed_tells_the_taste():
    model = Markov(num_tastes=4, num_lags=1).fit(planted(0), None, seed=0)
    newcomers = rows([[], []])
    views = pa.array([["e", "e", "gone"], ["f", "f"]], pa.list_(pa.string()))
    newcomers = newcomers.set_column(newcomers.schema.get_field_index("viewed"), "viewed", views)
    scores, code = model.scores(newcomers), model.catalogue.code_of
    assert scores[0, code["e"]] > scores[0, code["f"]]
    assert scores[1, code["f"]] > scores[1, code["e"]]


def test_customers_who_came_once_are_told_apart_by_taste_alone():
    model = Markov(num_tastes=2).fit(rows([[["a", "b"]], [["a", "c"]], [["d", "e"]]]), None, seed=0)
    assert model.membership == "mixed"
    assert model.votes.nnz == 0
    assert np.isfinite(model.scores(rows([[["a"]], []]))).all()


def test_customers_are_sampled_above_the_limit_of_pairs(monkeypatch):
    monkeypatch.setattr("crmray.models.markov.MAX_PAIRS", 100)
    model = Markov(num_tastes=2, num_lags=1).fit(planted(0), None, seed=0)
    assert np.isfinite(model.scores(planted(0))).all()


def test_memberships_are_compared_on_the_newest_visits_a_few_customers_at_a_time(monkeypatch):
    """`a` leads to b and c to d, always; of three customers who came again two did as the others before them."""
    model = Markov(membership="mixed", num_tastes=2, num_lags=1).fit(planted(0), None, seed=0)
    bought = histories.encode(rows([[["a"], ["b"]], [["c"], ["d"]], [["a"], ["a"]], [["e"]]]), model.catalogue)
    assert _newest_visit(model, bought) == 1.0  # the third bought nothing for the first time, the fourth came once
    monkeypatch.setattr("crmray.models.ranking.BLOCK_CELLS", 1)
    assert _newest_visit(model, bought) == 1.0
    assert _newest_visit(model, bought.slice(2, 4)) == 0.0


def test_settings_are_checked():
    with pytest.raises(ValueError, match="membership='both'"):
        Markov(membership="both")
    with pytest.raises(ValueError, match="look_ahead_days=-1"):
        Markov(look_ahead_days=-1)
