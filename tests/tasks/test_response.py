"""Campaign response: arms and outcomes by hand, bands, and a campaign that was not randomised."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from by_hand import AS_OF, at, table
from conformance import fit, rows_of, settings_of, small
from pydantic import ValidationError

from crmray.errors import DataError
from crmray.tasks import response

SETTINGS = response.Settings(horizon_days=17, outcome_days=7)


EXPOSURES = table(
    "exposures", ("entity_id", "campaign_id", "occurred_at", "arm"),
    ("a", "m", at(0), "Treatment"), ("a", "m", at(5), "control"), ("b", "m", at(9.9), "control"),
    ("c", "m", at(10), "treatment"), ("d", "m", at(2), "pilot"), ("e", "m", at(-1), "treatment"),
    ("f", "n", at(1), "control"),
)  # fmt: skip
SALES = table(
    "transactions", ("entity_id", "occurred_at", "num_units", "net_amount"),
    *((who, at(day), 1.0, 5.0) for who, day in (("a", -3), ("a", 6.9), ("b", 9), ("b", 16.9), ("f", 8), ("g", -2))),
)  # fmt: skip


def by_customer(settings: response.Settings, **more: pa.Table) -> dict[str, tuple[int, int]]:
    tables = {"exposures": EXPOSURES, "transactions": SALES, **more}
    rows = response.examples(tables, AS_OF, settings, labels=True)
    return {row["entity_id"]: (row["label_treated"], row["label"]) for row in rows.to_pylist()}


def test_first_exposures_and_what_came_of_them_by_hand():
    # a counts in its first arm; c was exposed too late, d in no arm that counts, e too early; b bought before and after
    # the exposure; f on the seventh day after it
    assert by_customer(SETTINGS) == {"a": (1, 1), "b": (0, 0), "f": (0, 0)}
    later = SETTINGS.model_copy(update={"outcome_days": 8, "horizon_days": 18})
    assert by_customer(later) == {"a": (1, 1), "b": (0, 1), "f": (0, 1)}
    assert set(by_customer(SETTINGS.model_copy(update={"campaign": "n"}))) == {"f"}
    assert by_customer(SETTINGS.model_copy(update={"treated_arms": ("pilot",)})) == {
        "a": (0, 1), "b": (0, 0), "d": (1, 0), "f": (0, 0),
    }  # fmt: skip


def test_visits_and_given_labels_as_outcomes():
    visits = table(
        "engagement", ("entity_id", "occurred_at", "kind"),
        ("a", at(1), "open"), ("b", at(10), "visit"), ("f", at(2), "click"),
    )  # fmt: skip
    visit = SETTINGS.model_copy(update={"outcome": "visit"})
    assert by_customer(visit, engagement=visits) == {"a": (1, 0), "b": (0, 1), "f": (0, 0)}
    given = table(
        "outcomes", ("entity_id", "as_of", "name", "value"), ("a", at(1), "came", 1.0), ("b", at(11), "came", 0.0)
    )
    came = SETTINGS.model_copy(update={"outcome": "outcome:came"})
    assert by_customer(came, outcomes=given) == {"a": (1, 1), "b": (0, 0), "f": (0, 0)}


def test_everybody_known_is_scored():
    rows = response.examples({"exposures": EXPOSURES, "transactions": SALES}, AS_OF, SETTINGS, labels=False)
    assert rows["entity_id"].to_pylist() == ["a", "e", "g"]
    assert rows["label"].null_count == rows["label_treated"].null_count == 3


def test_an_experiment_without_a_clock():
    given = table(
        "outcomes", ("entity_id", "name", "value", "split"),
        ("a", "came", 1.0, "test"), ("b", "came", 0.0, "train"), ("d", "came", 1.0, "train"),
    )  # fmt: skip
    settings = response.Settings(outcome="outcome:came", split="part")
    assert not settings.uses_time
    people = table("customers", ("entity_id", "country"), ("a", "UK"), ("b", "FR"))
    tables = {"exposures": EXPOSURES, "outcomes": given, "customers": people}
    rows = response.examples(tables, None, settings, labels=True)
    told = rows.select(["entity_id", "part", "label", "label_treated", "customer_country"]).to_pylist()
    assert [list(row.values()) for row in told] == [["a", "test", 1, 1, "UK"], ["b", "train", 0, 0, "FR"]]


def test_settings_that_do_not_go_together():
    with pytest.raises(ValidationError, match="expected fewer"):
        response.Settings(horizon_days=7, outcome_days=7)
    with pytest.raises(ValidationError, match="expected outcome:<name>"):
        response.Settings(split="part")


@pytest.fixture(scope="module")
def decided():
    rows = rows_of(response)
    model = fit(small(response.CANDIDATES["t_learner"]), rows["train"], rows["validation"])
    return model, response.finalize(model, rows["train"], rows["validation"], settings_of(response))


def test_those_who_are_moved_are_persuadable(decided):
    model, decision = decided
    assert decision["randomisation"]["randomised"]
    rows = rows_of(response)["test"]
    answers = response.predict(model, decision, rows, explain=True)
    french = pc.equal(rows["customer_country"], "FR")
    moved, others = (pc.mean(answers["uplift"].filter(mask)).as_py() for mask in (french, pc.invert(french)))
    assert moved > others + 0.05
    told = pc.value_counts(answers["band"].filter(french).combine_chunks()).to_pylist()
    assert max(told, key=lambda pair: pair["counts"])["values"] == "persuadable"
    gained = answers["p_treated"].to_numpy() - answers["p_control"].to_numpy()
    assert gained == pytest.approx(answers["uplift"].to_numpy())
    assert np.array_equal(answers["leave_alone"].to_numpy(zero_copy_only=False), gained < 0)
    assert any("country: " in reason for reasons in answers["reasons"].to_pylist() for reason in reasons)


def test_an_offer_that_costs_more_than_it_brings_persuades_nobody(decided):
    model, decision = decided
    answers = response.predict(model, decision, rows_of(response)["test"], worth=0.99)
    assert "persuadable" not in answers["band"].to_pylist()


def test_the_report_says_what_was_observed(decided):
    model, decision = decided
    figures = response.evaluate(model, decision, rows_of(response)["test"], settings_of(response))
    assert figures["qini_interval"][0] <= figures["qini"] <= figures["qini_interval"][1]
    assert sum(figures["bands"][name]["rows"] for name in response.BANDS) == figures["rows"]
    assert figures["deciles"][0]["uplift"] > figures["deciles"][-1]["uplift"]


def test_a_campaign_that_was_not_randomised_is_refused(decided):
    model, _ = decided
    rows = {part: rows_of(response)[part] for part in ("train", "validation")}
    for part, table_ in rows.items():
        chosen = pc.equal(table_["customer_country"], "FR").cast(pa.int8())
        rows[part] = table_.set_column(table_.schema.get_field_index("label_treated"), "label_treated", chosen)
    settings = settings_of(response)
    with pytest.raises(DataError, match="can be told from their features"):
        response.finalize(model, rows["train"], rows["validation"], settings)
    doubted = settings.model_copy(update={"if_not_random": "warn"})
    told = response.finalize(model, rows["train"], rows["validation"], doubted)["randomisation"]
    assert not told["randomised"]
    assert told["auc"] > 0.95
