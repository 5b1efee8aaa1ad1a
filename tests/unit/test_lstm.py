"""The LSTM candidate: what it reads, what it must not see, what it keeps."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from crmray.errors import NotEnoughDataError, SchemaError
from crmray.models.events import EVENT_COLUMNS
from crmray.models.lstm import LSTM
from crmray.schema import KEYS

torch.set_num_threads(1)


def table(num_rows=60, seed=0, events=True, attributes=True, longest=9):
    """Label 1 = an event of kind 7 among the last three, or x above 0.5."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, num_rows)
    kinds = [rng.integers(5, 8, n).astype(np.int16) for n in lengths]
    x = rng.normal(size=num_rows)
    label = [int((events and 7 in k[-3:]) or (attributes and v > 0.5)) for k, v in zip(kinds, x, strict=True)]
    columns = {"entity_id": [f"c{i}" for i in range(num_rows)], "label": pa.array(label, pa.int8())}
    if events:
        columns["event_kind"] = pa.array([k.tolist() for k in kinds], pa.list_(pa.int16()))
        days = [np.sort(rng.uniform(1, 300, n))[::-1].tolist() for n in lengths]
        columns["event_days_before"] = pa.array(days, pa.list_(pa.float32()))
        columns["event_value"] = pa.array([rng.normal(20, 9, n).tolist() for n in lengths], pa.list_(pa.float32()))
    if attributes:
        columns |= {"x": x, "country": pa.array(rng.choice(["de", "fr"], num_rows))}
    return pa.table(columns)


def untrained(rows, **settings):
    torch.manual_seed(0)
    candidate = LSTM(hidden=8, min_frequency=1, **settings)
    state = candidate.prepare(rows)
    weights = candidate.module(state).state_dict()
    return candidate.fitted(state, weights, rounds=3)


def test_arrays_of_two_rows_computed_by_hand():
    rows = table(20)
    lists = {
        "event_kind": pa.array([[5, 6], [], [99]], pa.list_(pa.int16())),
        "event_days_before": pa.array([[30.0, 10.0], [], [4.0]], pa.list_(pa.float32())),
        "event_value": pa.array([[np.e - 1, 0.0], [], [5.0]], pa.list_(pa.float32())),
    }
    few = pa.table({**lists, "x": [0.0, 1.0, 2.0], "country": ["de", None, "fr"], "entity_id": ["a", "b", "c"]})
    candidate = LSTM(min_frequency=1)
    state = candidate.prepare(rows)
    state["value_scales"] = [[0.0, 1.0]] * len(state["value_scales"])
    arrays = candidate.encode(state, few)
    assert state["kinds"] == [5, 6, 7]
    assert arrays["offsets"].tolist() == [0, 2, 2, 3]
    assert arrays["kinds"].tolist() == [2, 3, 1]  # 2 and 3: first and second known kind; 1: a kind that training lacks
    gap_days_value = [[0, np.log(31) / 3, 1], [np.log(21) / 3, np.log(11) / 3, 0], [0, np.log(5) / 3, np.log(6)]]
    np.testing.assert_allclose(arrays["events"], gap_days_value, rtol=1e-6)


def test_only_the_newest_events_are_read():
    rows = table(20, longest=30)
    candidate = LSTM(max_events=4, min_frequency=1)
    arrays = candidate.encode(candidate.prepare(rows), rows)
    kinds = rows["event_kind"].to_pylist()
    longest = max(range(20), key=lambda i: len(kinds[i]))
    start = arrays["offsets"][longest]
    assert np.diff(arrays["offsets"]).max() == 4
    assert [k - 2 + 5 for k in arrays["kinds"][start : start + 4]] == kinds[longest][-4:]


def test_padding_is_invisible():
    rows = table(40)
    model = untrained(rows)
    arrays = model.candidate.encode(model.state, rows)
    batch = model.candidate.batch(arrays, np.arange(40))
    wide = {**batch, "kinds_BT": torch.nn.functional.pad(batch["kinds_BT"], (0, 7))}
    wide["events_BTC"] = torch.nn.functional.pad(batch["events_BTC"], (0, 0, 0, 7), value=1e3)
    with torch.inference_mode():
        plain, padded = (model.candidate.outputs(model.module, b)["score"] for b in (batch, wide))
    torch.testing.assert_close(plain, padded, rtol=0, atol=1e-6)


def test_batch_equals_single_and_round_trip_keeps_the_bits():
    rows = table(50)
    model = untrained(rows)
    score = model.predict(rows)["score"]
    single = [model.predict(rows.slice(i, 1))["score"][0] for i in range(50)]
    np.testing.assert_allclose(score, single, rtol=0, atol=1e-5)
    assert score.std() > 0
    again = LSTM.load(model.save())
    assert np.array_equal(again.predict(rows)["score"], score)
    assert again.rounds == 3


@pytest.mark.parametrize(("events", "attributes"), [(True, False), (False, True)])
def test_events_alone_and_attributes_alone(events, attributes):
    rows = table(40, events=events, attributes=attributes)
    score = untrained(rows).predict(rows)["score"]
    assert score.shape == (40,)
    assert np.unique(score).size > 2


def test_a_row_without_events_and_a_missing_list_get_an_answer():
    rows = table(40)
    model = untrained(rows)
    empty = pa.table({name: pa.nulls(2, rows.schema.field(name).type) for name in rows.column_names if name != "label"})
    assert np.isfinite(model.predict(empty)["score"]).all()


def test_refuses_rows_without_anything_to_learn_from():
    with pytest.raises(NotEnoughDataError, match=r"without any event"):
        LSTM().prepare(table(40).select(["entity_id", "label"]))
    assert "neither events nor feature" in LSTM.applies([*KEYS, "label"])
    one_class = table(40).set_column(1, "label", pa.array([1] * 40))
    with pytest.raises(NotEnoughDataError, match="0 with 0"):
        LSTM().prepare(one_class)


def test_a_missing_sequence_is_named():
    rows = table(40)
    with pytest.raises(SchemaError, match="event_value"):
        untrained(rows).predict(rows.drop_columns(EVENT_COLUMNS[2]))


def test_class_weights_move_the_loss_and_not_the_odds():
    rows = table(60)
    labels = np.array(rows["label"].to_pylist())
    plain, weighted = untrained(rows), untrained(rows, imbalance="weights")
    ratio = (labels == 0).sum() / labels.sum()
    assert weighted.state["positive_weight"] == pytest.approx(ratio)
    batch = plain.candidate.batch(plain.candidate.encode(plain.state, rows), np.arange(60))
    with torch.inference_mode():
        losses = [m.candidate.loss(m.module, batch).numpy() for m in (plain, weighted)]
    np.testing.assert_allclose(losses[1] / losses[0], np.where(labels == 1, ratio, 1.0), rtol=1e-4)
    # the same logits under weights stand for odds that are `ratio` times smaller
    odds = [p / (1 - p) for p in (plain.predict(rows)["score"], weighted.predict(rows)["score"])]
    np.testing.assert_allclose(odds[0] / odds[1], ratio, rtol=1e-4)


def test_hyper_parameters_are_checked():
    with pytest.raises(ValueError, match=r"dropout=1\.5"):
        LSTM(dropout=1.5)
    with pytest.raises(ValueError, match="hidden"):
        LSTM(hidden=0)
