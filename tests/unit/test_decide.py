"""Thresholds by F1, by cost and by capacity, worked out by hand."""

import numpy as np
import pytest

from crmray import tasks
from crmray.errors import ConfigError
from crmray.evaluate import decide
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
