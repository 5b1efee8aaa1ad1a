"""Thresholds by F1, by cost and by capacity, worked out by hand; the level of a model that is fitted again."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest

from crmray import tasks
from crmray.errors import ConfigError
from crmray.evaluate import decide
from crmray.models.blend import Blend
from crmray.models.boosting import RecentLightGBM
from crmray.models.linear import Logistic, RecentLogistic
from crmray.tasks import churn

LABEL = np.array([1, 0, 1, 0, 0, 1])
PROBABILITY = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.1])


def cost(false_positive, false_negative):
    return {"cost": {"false_positive": false_positive, "false_negative": false_negative}}


def test_the_cheapest_threshold():
    # false alarms, missed at .9: 0, 2; .8: 1, 2; .7: 1, 1; .4: 2, 1; .3: 3, 1; .1: 3, 0; nobody: 0, 3
    assert decide.threshold(LABEL, PROBABILITY, cost(1, 1)) == 0.9  # 2 and 2 at .7: the higher one
    assert decide.threshold(LABEL, PROBABILITY, cost(1, 1.5)) == 0.7  # 2.5 against 3
    assert decide.threshold(LABEL, PROBABILITY, cost(1, 10)) == 0.1  # 3 against 11
    assert decide.threshold(LABEL, PROBABILITY, decide.ByCost.model_validate(cost(1, 10))) == 0.1
    nobody = decide.threshold(1 - LABEL, PROBABILITY, cost(10, 1))  # 10 and 2 missed at .9; 3 when nobody is called
    assert 0.9 < nobody < 0.9 + 1e-12


def test_as_many_as_one_can_take_care_of():
    assert decide.threshold(LABEL, PROBABILITY, {"capacity": 2}) == 0.8
    assert decide.threshold(LABEL, PROBABILITY, {"capacity": 100}) == 0.1
    ties = np.array([0.9, 0.5, 0.5, 0.5, 0.2, 0.1])
    assert decide.threshold(LABEL, ties, {"capacity": 3}) == 0.9  # with those at .5 there are four
    assert decide.threshold(LABEL, ties, {"capacity": 4}) == 0.5
    assert decide.threshold(LABEL, np.full(6, 0.5), {"capacity": 4}) == 0.5  # all tie: nothing tells them apart


def test_f1_is_the_default():
    # F1 at .9: 2/4, .8: 2/5, .7: 4/6, .4: 4/7, .3: 4/8, .1: 6/9 = 4/6, of which the higher threshold counts
    assert decide.threshold(LABEL, PROBABILITY) == 0.7


@pytest.mark.parametrize("how", ["recall", {"capacity": 0}, {"cost": {"false_positive": -1, "false_negative": 1}}, {}])
def test_another_rule_is_refused(how):
    with pytest.raises(ValueError, match=r"got .*, expected f1, \{cost"):
        decide.threshold(LABEL, PROBABILITY, how)
    with pytest.raises(ConfigError, match=r"tasks.churn: threshold: got [^;]*, expected f1, \{cost[^;]*$"):
        tasks.check_settings(churn, {"threshold": how}, where="tasks.churn")


def test_the_org_file_says_how():
    settings = churn.Settings.model_validate({"threshold": {"capacity": 500}})
    assert settings.threshold == decide.ByCapacity(capacity=500)
    assert settings.model_dump(mode="json")["threshold"] == {"capacity": 500}
    assert churn.Settings().threshold == "f1"


def months(*rates: float) -> list[pa.Table]:
    """2,000 rows of each of these months: x moves the odds, the month's rate their level."""
    tables = []
    for number, rate in enumerate(rates):
        rng = np.random.default_rng(number)
        x = rng.normal(size=2000)
        p = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + x)))
        as_of = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(days=30 * number)
        columns = {"entity_id": np.arange(2000).astype(str), "as_of": [as_of] * 2000, "x": x}
        tables.append(pa.table({**columns, "label": (rng.random(2000) < p).astype(np.int8)}))
    return tables


SHARES = {"weights": 0.5, "none": 0.5, "all rows": 1.0}


def candidate(name: str) -> RecentLogistic:
    return RecentLogistic(newest_share=SHARES[name], imbalance="weights" if name == "weights" else "none")


@pytest.mark.parametrize("names", [["weights"], ["weights", "none"], ["weights", "all rows"]])
def test_the_level_after_the_refit_is_that_of_the_rows_that_each_model_learns_from(names):
    *months_before, later = months(0.05, 0.05, 0.3, 0.3, 0.3, 0.3)
    train, validation, both = (pa.concat_tables(rows) for rows in (months_before[:4], months_before[4:], months_before))

    def fitted(rows: pa.Table) -> Blend:
        weights = dict.fromkeys(names, 1 / len(names))
        return Blend(members={name: candidate(name).fit(rows, None, seed=0) for name in names}, weights=weights)

    model = fitted(train)
    assert model.predict(validation)["score"].mean() > 0.33  # class weights: too high
    decision = decide.fit(model, train, validation)
    assert decision["calibration"]["method"] == "platt"
    again = decide.shipped(fitted(both), decision, validation)
    learned = [both.slice(4000 if SHARES[name] == 0.5 else 0)["label"].to_numpy().mean() for name in names]
    assert decide.probabilities(fitted(both), again, later).mean() == pytest.approx(np.mean(learned), abs=0.02)


@pytest.mark.parametrize("kind", [RecentLightGBM, RecentLogistic])
def test_a_model_of_the_newest_rows_still_knows_them_when_it_is_loaded(kind):
    rows = pa.concat_tables(months(0.2, 0.3))
    for share in (1.0, 0.5):
        model = kind(newest_share=share).fit(rows, None, seed=0)
        files = model.save()
        loaded = kind.load(files)
        assert model.newest_share == loaded.newest_share == share
        assert loaded.save() == files
        assert np.array_equal(loaded.predict(rows)["score"], model.predict(rows)["score"])
    plain = Logistic().fit(rows, None, seed=0).save()
    assert RecentLogistic.load(plain).newest_share == 1  # one that was saved before shares were
