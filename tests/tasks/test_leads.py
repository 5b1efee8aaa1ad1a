"""Leads: population and labels by hand, attributes that a conversion writes, drift, scores of the endpoint's kind."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from by_hand import AS_OF, at, table
from conformance import fit, rows_of, settings_of, small
from pydantic import ValidationError

from crmray import config, schema
from crmray.data import asof_attributes, asof_leads
from crmray.data.examples import examples
from crmray.data.history import Field
from crmray.data.profile import Profile
from crmray.data.splits import Snapshots, micros
from crmray.errors import ConfigError, DataError, NotEnoughDataError
from crmray.evaluate import calibration, drift
from crmray.models.boosting import RecentLightGBM
from crmray.models.rates import SourceRate
from crmray.models.recent import newest
from crmray.models.tabular_net import TabularNet
from crmray.storage import Lake
from crmray.tasks import leads

LEADS = table(
    "leads", ("lead_id", "created_at", "source", "converted_at", "entity_id"),
    ("early", at(-30), "web", at(-1), "x"), ("first", at(-365), "web", at(0), "y"),
    ("last", at(-10), "fair", at(29.9), "z"), ("later", at(-10), "fair", at(30), "w"),
    ("never", at(-0.5), None, None, None),
    ("new", at(0), "web", at(5), "v"),
    ("old", at(-366), "web", at(3), "u"),
)  # fmt: skip
SETTINGS = leads.Settings(horizon_days=30)


def test_open_leads_and_their_conversions_by_hand():
    rows = leads.examples({"leads": LEADS}, AS_OF, SETTINGS, labels=True)
    labels = dict(zip(rows["entity_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    # `early` was converted before, `new` begins at the date, `old` before the lookback
    assert labels == {"first": 1, "last": 1, "later": 0, "never": 0}
    assert rows["lead_age_days"].to_pylist() == [365, 10, 10, 0.5]
    assert rows["lead_source"].to_pylist() == ["web", "fair", "fair", None]
    told = {"entity_id", "as_of", "part", "label", "lead_age_days", "lead_source"}
    assert set(rows.column_names) == told  # neither converted_at nor the customer it became


def test_events_of_a_lead_strictly_before_the_date():
    calls = table(
        "interactions", ("entity_id", "occurred_at", "channel"),
        ("last", at(-5), "call"), ("last", at(0), "call"), ("never", at(-0.1), "email"), ("early", at(-3), "call"),
    )  # fmt: skip
    rows = leads.examples({"leads": LEADS, "interactions": calls}, AS_OF, SETTINGS, labels=False)
    assert rows["contact_call_num_30d"].to_pylist() == [0, 1, 0, 0]
    assert rows["contact_recency_days"].to_pylist()[1] == 5
    assert rows["label"].null_count == 4


def test_given_labels_without_a_clock_are_split_as_mapped():
    given = table(
        "outcomes", ("entity_id", "name", "value", "split"),
        ("early", "won", 1.0, "train"), ("last", "won", 0.0, "test"), ("gone", "won", 1.0, "test"),
        ("new", "x", 1.0, None),
    )  # fmt: skip
    settings = leads.Settings(label="outcome:won", split="part")
    assert not settings.uses_time
    rows = leads.examples({"leads": LEADS, "outcomes": given}, None, settings, labels=True)
    assert rows.select(["entity_id", "part", "label"]).to_pylist() == [
        {"entity_id": "early", "part": "train", "label": 1}, {"entity_id": "last", "part": "test", "label": 0},
    ]  # fmt: skip
    assert "lead_age_days" not in rows.column_names
    assert leads.examples({"leads": LEADS}, None, settings, labels=False).num_rows == 7
    with pytest.raises(ValidationError, match="a conversion has a date"):
        leads.Settings(split="part")


def plan_of(modified: list[float], changes: pa.Table | None, insist: list[str]) -> dict:
    """What becomes of `source` at the date, of six leads of which the first three convert later."""
    rows = table(
        "leads", ("lead_id", "created_at", "source", "converted_at", "modified_at"),
        *((f"l{i}", at(-20), "web", at(5) if i < 3 else None, at(modified[i])) for i in range(6)),
    )  # fmt: skip
    dates = Snapshots(train=(AS_OF,), validation=at(40), test=at(80), now=at(120), horizon_days=30)
    fields = [Field(column="source", object="Lead", field="LeadSource")]
    counts = asof_attributes.survey(rows, changes, fields, [AS_OF], key="lead_id", groups=asof_leads.outcome_masks)
    return asof_attributes.plan(counts, fields, dates, has_modified=True, insist=insist)["source"]


def test_an_attribute_counts_as_known_only_if_it_is_of_those_that_convert_too():
    assert asof_leads.outcome_masks(LEADS, micros(AS_OF))[0].tolist() == [False, True, True, True, False, False, True]
    untouched = [-20.0] * 6
    assert plan_of(untouched, None, [])["used"] == "as of"
    by_conversion = [5.0] * 3 + [-20.0] * 3
    kept_out = plan_of(by_conversion, None, [])
    assert (kept_out["used"], kept_out["known"]) == ("kept out", {AS_OF.isoformat(): 0.0})
    assert plan_of(by_conversion, None, ["Lead.LeadSource"])["used"] == "today's"
    tracked = table(
        "changes", ("entity_id", "object", "field", "occurred_at", "old_value", "new_value"),
        ("l5", "Lead", "LeadSource", at(-15), "fair", "web"),
    )  # fmt: skip
    assert plan_of(by_conversion, tracked, [])["used"] == "as of"


def org_with_leaks(path) -> tuple[config.Org, Lake]:
    """400 leads over a year; every fourth converts, and its status and reason are then written."""
    rows = []
    for i in range(400):
        created, won = at(-i * 0.9), i % 4 == 0
        converted = created + timedelta(days=15) if won and i >= 17 else None
        closed = converted is not None
        rows.append(
            (f"l{i:03d}", created, ("web", "fair")[i % 2], "Closed - Converted" if closed else "Open", converted,
             converted or created, ("price", "service")[i // 4 % 2] if closed else None)
        )  # fmt: skip
    names = ("lead_id", "created_at", "source", "status", "converted_at", "modified_at", "Won_Reason__c")
    found = table("leads", names, *rows)
    lake = Lake(path)
    run = lake.run("tables", "leads", "0123456789abcdef")
    run.write_table("shard-00000.parquet", found.sort_by("lead_id"))
    columns = {field.name: str(field.type) for field in found.schema}
    run.commit(**Profile.of("leads", found).to_json(), columns=columns, num_shards=1, clock="utc")
    insist = ["Lead.LeadSource", "Lead.Status", "Lead.Won_Reason__c"]
    return config.Org(name="o", storage=lake.root, source={"kind": "demo"}, history={"insist": insist}), lake


def test_a_leak_planted_on_purpose_is_found_although_the_org_file_insists(tmp_path):
    org, lake = org_with_leaks(tmp_path)
    settings = leads.Settings(horizon_days=30, lookback_days=60, num_snapshots=4, snapshot_every_days=30)
    run = examples(org, lake, leads, settings, lambda fn, items, *, label: ((item, fn(item)) for item in items))
    about = run.manifest()
    told = {name: how["used"] for name, how in about["attributes"].items()}
    assert told == {"source": "today's", "status": "kept out", "Won_Reason__c": "kept out"}
    assert about["attributes"]["status"]["leak"]["share_with"] == 1.0
    rows = run.read_table("test/*.parquet")
    features = {"lead_age_days", "lead_source"}
    assert set(rows.column_names) == {"entity_id", "as_of", "part", "label", *features}
    assert rows["lead_source"].null_count == 0
    with pytest.raises(ConfigError, match="Lead.Sauce"):
        wrong = org.model_copy(update={"history": config.History(insist=["Lead.Sauce"])})
        examples(wrong, lake, leads, settings, lambda fn, items, *, label: ((item, fn(item)) for item in items))


def test_a_table_that_the_org_does_not_map_is_named(tmp_path):
    org, lake = org_with_leaks(tmp_path)
    settings = leads.Settings(label="outcome:won", horizon_days=30)
    with pytest.raises(DataError, match="task leads needs table outcomes .*, got no rows of it; map it in the org"):
        examples(org, lake, leads, settings, lambda fn, items, *, label: ((item, fn(item)) for item in items))


def test_the_rate_of_the_source_by_hand():
    train = pa.table({"lead_source": ["a"] * 4 + ["b"] * 4 + [None] * 2, "label": [1, 1, 1, 0, 0, 0, 0, 0, 1, 0]})
    model = SourceRate(prior_rows=10).fit(train, None, seed=0)
    score = model.predict(pa.table({"lead_source": ["a", "b", "c", None]}))["score"]
    assert score == pytest.approx([(3 + 4) / 14, (0 + 4) / 14, 0.4, 0.4])


def test_drift_by_hand():
    train = pa.table({"x": np.arange(100.0), "kind": ["a"] * 50 + ["b"] * 50, "same": [1.0] * 100})
    profile = drift.profile(train)
    assert set(profile) == {"x", "kind"}
    assert drift.psi(profile, train) == {"kind": 0.0, "x": 0.0}
    later = pa.table({"x": np.arange(100.0), "kind": ["a"] * 75 + ["b"] * 25, "same": [1.0] * 100})
    expected = 0.25 * np.log(0.75 / 0.5) - 0.25 * np.log(0.25 / 0.5)
    assert drift.psi(profile, later) == {"kind": pytest.approx(expected, abs=1e-4), "x": 0.0}
    assert list(drift.summary(profile, later)["psi"]) == ["kind", "x"]


def test_a_lead_is_described_by_its_columns():
    request = leads.Request(lead={"source": "web"}, events={"engagement": [{"kind": "visit"}]}, threshold=0.3)
    described = request.described
    assert described is not None
    assert list(described) == ["engagement", "leads"]
    assert set(described["leads"][0]) == {"created_at", "source"}
    assert request.options() == {"threshold": 0.3}
    assert leads.Request(id="00Q").described is None
    with pytest.raises(ValidationError, match="exactly one"):
        leads.Request(id="00Q", lead={})
    with pytest.raises(ValidationError, match="events without lead"):
        leads.Request(id="00Q", events={})


@pytest.fixture(scope="module")
def decided():
    rows = rows_of(leads)
    model = fit(small(leads.CANDIDATES["lightgbm"]), rows["train"], rows["validation"])
    return model, leads.finalize(model, rows["train"], rows["validation"], settings_of(leads))


def test_the_report_has_gains_lift_bands_and_drift(decided):
    model, decision = decided
    figures = leads.evaluate(model, decision, rows_of(leads)["test"], settings_of(leads))
    assert figures["auc_interval"][0] <= figures["auc"] <= figures["auc_interval"][1]
    assert {"gains", "lift", "roc", "calibration"} <= set(figures["curves"])
    assert set(figures["drift"]["rate"]) == {"train", "validation", "test"}
    assert figures["drift"]["test"]["psi"]
    assert sum(figures["bands"][name]["rows"] for name in calibration.BANDS) == figures["rows"]


def test_a_threshold_and_the_reasons_of_the_source(decided):
    model, decision = decided
    rows = rows_of(leads)["now"]
    answers = leads.predict(model, decision, rows, explain=True, threshold=0.0)
    assert pc.all(answers["will_convert"]).as_py()
    told = [reason for reasons in answers["reasons"].to_pylist() for reason in reasons]
    assert any("where the lead comes from" in reason for reason in told)


def test_the_newest_rows_are_whole_dates():
    dates = pa.array([at(0)] * 5 + [at(7)] * 3 + [at(14)] * 2, schema.TIME)
    rows = pa.table({"as_of": dates, "x": list(range(10))})
    assert newest(rows, 0.2)["x"].to_pylist() == [8, 9]
    assert newest(rows, 0.4)["x"].to_pylist() == [5, 6, 7, 8, 9]
    assert newest(rows, 1.0) is rows
    undated = rows.set_column(0, "as_of", pa.nulls(10, schema.TIME))
    assert newest(undated, 0.2).num_rows == 10
    with pytest.raises(ValueError, match="newest_share=0"):
        RecentLightGBM(newest_share=0)


def many(**columns: object) -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    label = (rng.random(600) < 1 / (1 + np.exp(-2 * x))).astype(np.int8)
    keys = {"entity_id": [str(i) for i in range(600)], "part": ["train"] * 600}
    return pa.table({**keys, "label": label, "x": x, **columns})


@pytest.mark.parametrize("name", [name for name in leads.CANDIDATES if name != "source_rate"])
def test_ten_thousand_categories_and_constants_do_no_harm(name):
    wide = pa.array([f"v{i * 17 % 10_000}" for i in range(600)])
    rows = many(city=wide, same=["a"] * 600, one=np.ones(600), nothing=pa.nulls(600, pa.float64()))
    model = fit(small(leads.CANDIDATES[name]), rows, rows)
    assert leads.score(rows, model.predict(rows))["auc"] > 0.8


@pytest.mark.parametrize("name", list(leads.CANDIDATES))
def test_one_class_is_said_with_the_counts(name):
    rows = many(lead_source=["web"] * 600)
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(np.zeros(600, np.int8)))
    with pytest.raises(NotEnoughDataError, match="got 0 rows with 1 and 600 with 0"):
        fit(small(leads.CANDIDATES[name]), rows, rows)


def test_the_piecewise_linear_encoding_by_hand():
    import torch

    from crmray.models.tabular_net import PiecewiseLinear

    layer = PiecewiseLinear([[0.0, 1.0, 3.0], [0.0, 1.0]], 1)
    with torch.no_grad():
        layer.weight_FTE.copy_(torch.ones(2, 2, 1))
        # below the first edge 0; half of the first bin 0.5; all of the first and half of the second 1.5; above it 2
        found = layer(torch.tensor([[-5.0, 0.5], [0.5, 0.0], [2.0, 1.0], [9.0, 7.0]]))
    assert found.tolist() == [[0.0, 0.5], [0.5, 0.0], [1.5, 1.0], [2.0, 1.0]]


def test_focal_loss_by_hand():
    import torch

    candidate = TabularNet(imbalance="focal", focal_gamma=2.0)
    plain = TabularNet()
    rows = many()
    state = plain.prepare(rows)
    module = plain.module(state).eval()
    batch = plain.batch(plain.encode(state, rows), np.arange(50))
    with torch.no_grad():
        cross_entropy, focal = plain.loss(module, batch), candidate.loss(module, batch)
    assert torch.allclose(focal, (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy, atol=1e-6)
