"""Intent: what was answered to an inquiry, when nothing is said, and who is in the bundle."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest

from crmray import erase, schema
from crmray.data import asof_texts
from crmray.models import text_replies
from crmray.tasks import intent

NOW = datetime(2025, 1, 1, tzinfo=timezone.utc)


def interactions(*rows: tuple) -> pa.Table:
    """(customer, days before NOW, id, direction, subject, text, reason), as the shard stage sorts them."""
    names = ("entity_id", "occurred_at", "interaction_id", "direction", "subject", "text", "reason")
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    values["occurred_at"] = pa.array([NOW - timedelta(days=day) for day in values["occurred_at"]], schema.TIME)
    return pa.table(values).sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")])


TABLE = interactions(
    ("a", 20, "late", "inbound", "Parcel", "where is it", "Delivery"),
    ("a", 19, "other", "outbound", "News", "our autumn offers", None),
    ("a", 18, "reply", "outbound", "RE: parcel", "tomorrow", None),
    ("a", 5, "open", "inbound", "Bill", "it is wrong", "Invoice"),
    ("b", 4, "stranger", "outbound", "Re: Bill", "corrected", None),
    ("b", 40, "slow", "inbound", "Size", "which one", "Advice"),
    ("b", 3, "after weeks", "outbound", "Re: Size", "the large one", None),
)


def test_the_answer_is_the_first_to_that_subject_of_that_customer_in_time():
    place = np.flatnonzero(asof_texts.inbound(TABLE))
    names = TABLE["interaction_id"].take(pa.array(place)).to_pylist()
    answers, ids = asof_texts.replies(TABLE, place, NOW, 14)
    assert dict(zip(names, answers.to_pylist(), strict=True)) == {"late": "tomorrow", "open": None, "slow": None}
    assert ids.to_pylist() == ["reply", None, None]
    before, _ = asof_texts.replies(TABLE, place, NOW - timedelta(days=18), 14)
    assert before.to_pylist() == [None] * 3  # what is answered at the date is not known yet
    later, _ = asof_texts.replies(TABLE, place, NOW, 60)
    assert later.to_pylist()[names.index("slow")] == "the large one"


def test_a_case_is_solved_once_it_is_closed_and_no_note_is_an_answer():
    rows = interactions(
        ("a", 9, "case", "inbound", "Help", "help", "Usage"), ("a", 8, "note", "outbound", "Help", "no reply", None),
        ("a", 7, "mail", "outbound", "Help", "try this", None), ("b", 9, "open", "inbound", "Help", "help", "Usage"),
        ("b", 7, "mail 2", "outbound", "Help", "try that", None), ("c", 9, "chat", "inbound", "Help", "help", "Usage"),
        ("c", 7, "mail 3", "outbound", "Help", "as you see", None),
    )  # fmt: skip
    channels = {"case": "Case", "open": "case", "note": "call", "chat": "chat"}
    ids = rows["interaction_id"].to_pylist()
    closed = pa.array([NOW - timedelta(days=6) if one == "case" else None for one in ids], schema.TIME)
    rows = rows.append_column("channel", pa.array([channels.get(one, "email") for one in ids]))
    rows = rows.append_column("closed_at", closed)
    place = np.flatnonzero(asof_texts.inbound(rows))
    assert asof_texts.replies(rows, place, NOW, 14)[0].to_pylist() == ["try this", None, "as you see"]
    sooner = asof_texts.replies(rows, place, NOW - timedelta(days=6), 14)[0]
    assert sooner.to_pylist() == [None, None, "as you see"]


def test_rows_carry_reason_and_answer():
    rows = intent.examples({"interactions": TABLE}, NOW, intent.Settings(), labels=True)
    assert rows["label"].to_pylist() == ["Delivery", "Invoice", "Advice"]
    assert rows["text"].to_pylist() == ["Parcel. where is it", "Bill. it is wrong", "Size. which one"]
    assert rows["text_answer"].to_pylist() == ["tomorrow", None, None]


@pytest.mark.parametrize(
    ("least_accuracy", "expected"),
    [(0.9, 0.8), (0.75, 0.6), (0.5, 0.5), (0.99, 1.0)],
)
def test_the_least_confidence_is_the_lowest_that_is_right_often_enough(monkeypatch, least_accuracy, expected):
    monkeypatch.setattr(intent, "LEAST_ANSWERED", 4)
    right = np.array([False, True, True, True, True, True, True, True, True, True, False, False, True, False])
    confidence = np.array([0.95, *[0.9] * 5, *[0.8] * 4, *[0.6] * 3, 0.5])
    # at and above 0.9: 5 of 6 right; 0.8: 9 of 10; 0.6: 10 of 13; 0.5: 10 of 14
    assert intent._least_confidence(right, confidence, least_accuracy) == expected


class Words:
    """A model that knows its intent by one word."""

    rounds = None

    def predict(self, rows: pa.Table) -> dict[str, np.ndarray]:
        sure = np.array(
            [0.9 if "parcel" in text else 0.05 if "bill" in text else 0.5 for text in rows["text"].to_pylist()]
        )
        return {"p:Delivery": sure, "p:Invoice": 1 - sure}


def solved() -> dict:
    rows = [
        ("i0", "c0", "Delivery", "where is my parcel", "It comes tomorrow."),
        ("i1", "c1", "Delivery", "the parcel is wet", "Send us a photo."),
        ("i2", "c2", "Invoice", "the bill is wrong", "Here is a new one."),
        ("i3", "c3", "Invoice", "the parcel bill", None),
    ]
    return text_replies.solved(inquiries(*rows))


def inquiries(*rows: tuple) -> pa.Table:
    """(id, customer, label, text, answer) as rows of examples."""
    names = ("entity_id", "customer_id", "label", "text", "text_answer")
    columns = {name: pa.array([row[k] for row in rows], pa.string()) for k, name in enumerate(names)}
    ids = pa.array([f"answer to {row[0]}" if row[4] else None for row in rows], pa.string())
    return pa.table({**columns, "text_answer_id": ids, "as_of": pa.nulls(len(rows), schema.TIME)})


def test_answers_are_those_to_the_most_similar_solved_inquiry_and_none_without_an_intent():
    said = ["my parcel is all wet", "this bill is wrong!", "something else"]
    rows = pa.table({"entity_id": ["x", "y", "z"], "as_of": pa.nulls(3, schema.TIME), "text": said})
    decision = json.loads(
        json.dumps(
            {
                "calibration": {"temperature": 1.0, "curves": []},
                "least_confidence": 0.8,
                "solved": solved(),
            }
        )
    )
    answers = intent.predict(Words(), decision, rows)
    assert answers["intent"].to_pylist() == ["Delivery", "Invoice", None]
    assert answers["suggested_answer"].to_pylist() == ["Send us a photo.", "Here is a new one.", None]
    assert answers["similarity"].to_pylist()[2] is None
    assert answers["alternatives"][1].as_py()[0]["intent"] == "Invoice"
    intent.Response(version="1", predictions=[intent.Prediction(**row) for row in answers.to_pylist()])


def test_whoever_is_forgotten_is_found_in_the_bundle():
    content = json.dumps({"decision": {"solved": solved()}}, indent=1).encode()
    assert erase._mentions(content, {"c1"})
    assert erase._mentions(content, {"i2"})
    assert erase._mentions(content, {"answer to i0"})
    assert not erase._mentions(content, {"c3"})  # not answered, so not kept


def test_those_who_withdraw_take_their_answers_with_them():
    left = intent.without({"least_confidence": 0.5, "solved": solved()}, {"c1"})
    assert left["least_confidence"] == 0.5
    assert left["solved"]["answers"] == ["It comes tomorrow.", "Here is a new one."]
    known, intents = ["the parcel is wet", "the bill is wrong"], np.array(["Delivery", "Invoice"], object)
    answers, similarity = text_replies.nearest(left["solved"], known, intents, 0.01)
    assert answers == ["It comes tomorrow.", "Here is a new one."]
    assert similarity[1] == pytest.approx(1.0)  # its words are still its own


def test_without_an_answer_to_anything_nothing_is_suggested():
    for rows in ([], [("i0", "c0", "Delivery", "my parcel", None)]):
        none = text_replies.solved(inquiries(*rows))
        answers, similarity = text_replies.nearest(none, ["my parcel"], np.array(["Delivery"], object), 0.1)
        assert answers == [None]
        assert np.isnan(similarity).all()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("your parcel JD0146000038 left.", "Your parcel [NUMBER] left."),
        ("Es kommt am 2025-11-22 für 1234 €.", "Es kommt am [NUMBER] für 1234 €."),
        ("The number is 1234 5678 9012 now", "The number is [NUMBER] now"),
    ],
)
def test_an_answer_has_no_number_of_whom_it_was_written_to(written: str, shown: str):
    assert text_replies.solved(inquiries(("i0", "c0", "Delivery", "x", written)))["answers"] == [shown]


def test_an_answer_names_neither_who_wrote_it_nor_to_whom():
    rows = interactions(
        ("a", 9, "i1", "inbound", "Parcel", "where is it", "Delivery"),
        ("a", 8, "o1", "outbound", "Parcel", "Dear Ada\nit comes on Monday\nBest wishes\nTom", None),
        ("b", 9, "i2", "inbound", "Parcel", "where is it", "Delivery"),
        ("b", 8, "o2", "outbound", "Parcel", "<p>Hi Ben your parcel left.</p><p>Thanks, Tom</p>", None),
        ("c", 9, "i3", "inbound", "Parcel", "where is it", "Delivery"),
        ("c", 8, "o3", "outbound", "Parcel", "Hello Eve,", None),
    )  # fmt: skip
    made = intent.examples({"interactions": rows}, NOW, intent.Settings(), labels=True)
    assert made["text_answer"].to_pylist() == ["it comes on Monday", "your parcel left.", None]
