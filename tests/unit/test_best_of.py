"""Which result stands for its family, and which family comes first."""

from __future__ import annotations

import pytest

from crmray.tasks import TASKS
from crmray.train.fit import best_of
from crmray.train.points import Fit, Point, Result


def _result(candidate: str, figures: dict[str, float], key: str = "k", failed: str | None = None) -> Result:
    point = Point(candidate=candidate, settings={})
    return Result(fit=Fit(point=point, rows="selection", key=key), figures=figures, failed=failed)


@pytest.mark.parametrize(
    ("figures", "first"),
    [
        ([{"auc": 0.8}, {"auc": 0.9}], 1),
        ([{"auc": 0.8, "logloss": 0.5}, {"auc": 0.8, "logloss": 0.4}], 1),  # equals: the better probabilities
        (
            [{"auc": 0.8, "logloss": 0.5}, {"auc": 0.8, "logloss": 0.5}],
            0,
        ),  # the first: a rerun chooses the same
        ([{"auc": 0.9, "logloss": 0.5}, {"auc": 0.8, "logloss": 0.4}], 0),
    ],
)
def test_best_of_a_family(figures: list[dict[str, float]], first: int) -> None:
    results = [_result("logistic", one, key=str(place)) for place, one in enumerate(figures)]
    assert best_of(TASKS["churn"], results)["logistic"] is results[first]


def test_of_an_error_less_is_better() -> None:
    results = [_result("ets", {"wql": 0.2}), _result("ets", {"wql": 0.1}), _result("ets", {}, failed="diverged")]
    assert best_of(TASKS["forecast"], results) == {"ets": results[1]}
