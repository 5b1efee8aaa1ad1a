"""Sentiment: which rows and labels there are, what the models must not do, and what the endpoint takes."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from crmray import schema
from crmray.data import asof_texts
from crmray.errors import ConfigError, DataError, NotEnoughDataError
from crmray.evaluate import aspects
from crmray.models import text_calibration, text_classes, text_encoder, text_tokens
from crmray.models.labels import class_scores
from crmray.models.tabular import softmax
from crmray.models.text_cnn import TextCNN
from crmray.models.text_tfidf import TfidfLogistic, TfidfSVC
from crmray.tasks import sentiment

NOW = datetime(2025, 1, 1, tzinfo=timezone.utc)
WORDS = {"negative": ["awful", "slow", "broken", "late"], "neutral": ["order", "invoice", "parcel", "copy"],
         "positive": ["great", "lovely", "kind", "quick"]}  # fmt: skip


def interactions(*rows: tuple, columns: tuple[str, ...] = ("rating",)) -> dict[str, pa.Table]:
    """(customer, days before NOW, id, text, …) as the table of interactions, as the shard stage sorts it."""
    names = ("entity_id", "occurred_at", "interaction_id", "text", *columns)
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    values["occurred_at"] = pa.array([NOW - timedelta(days=day) for day in values["occurred_at"]], schema.TIME)
    return {"interactions": pa.table(values).sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")])}


def texts(count: int, seed: int = 0, words: dict[str, list[str]] | None = None) -> pa.Table:
    """Rows of examples: three words of a class and two of another, any order."""
    rng, words = np.random.default_rng(seed), words or WORDS
    label = [list(words)[i] for i in rng.integers(0, len(words), count)]
    noise = [word for own in words.values() for word in own]
    said = [" ".join(rng.permutation([*rng.choice(words[one], 3), *rng.choice(noise, 2)])) for one in label]
    names = [f"i{number:04d}" for number in range(count)]
    return pa.table(
        {
            "entity_id": names, "as_of": pa.nulls(count, schema.TIME), "part": ["train"] * count, "label": label,
            "customer_id": names, "text": said,
        }
    )  # fmt: skip


def test_ratings_become_classes_at_the_settings_limits():
    tables = interactions(*(("a", 9 - k, f"i{k}", "words", rating) for k, rating in enumerate((1, 2, 2.5, 4, 5, None))))
    rows = sentiment.examples(tables, NOW, sentiment.Settings(), labels=True)
    assert rows["label"].to_pylist() == ["negative", "negative", "neutral", "positive", "positive"]
    rows = sentiment.examples(tables, NOW, sentiment.Settings(negative_to=1, positive_from=2), labels=True)
    assert rows["label"].to_pylist() == ["negative", "positive", "positive", "positive", "positive"]
    with pytest.raises(ValidationError, match="to\\s+be less"):
        sentiment.Settings(negative_to=4, positive_from=4)


def test_an_attribute_has_to_name_the_classes():
    settings = sentiment.Settings(label="attribute:mood")
    tables = interactions(("a", 1, "i0", "x", "Negative"), ("a", 2, "i1", "y", " positive"), columns=("mood",))
    assert sentiment.examples(tables, NOW, settings, labels=True)["label"].to_pylist() == ["negative", "positive"]
    tables = interactions(("a", 1, "i0", "x", "angry"), columns=("mood",))
    with pytest.raises(DataError, match="'mood' holds 1 values other than negative, neutral, positive"):
        sentiment.examples(tables, NOW, settings, labels=True)


def test_an_outcome_of_the_customer_is_a_label():
    tables = interactions(("a", 1, "i0", "x"), ("b", 1, "i1", "y"), ("c", 1, "i2", "z"), columns=())
    tables["outcomes"] = pa.table({"entity_id": ["b", "a"], "name": ["mood", "mood"], "value": [-1.0, 0.0]})
    rows = sentiment.examples(tables, NOW, sentiment.Settings(label="outcome:mood"), labels=True)
    assert dict(zip(*(rows[name].to_pylist() for name in ("entity_id", "label")), strict=True)) == {
        "i0": "neutral", "i1": "negative",
    }  # fmt: skip


def test_of_outcomes_the_last_that_was_known_in_time_counts():
    tables = interactions(("a", 40, "i0", "x"), ("b", 40, "i1", "y"), columns=())
    given = [NOW - timedelta(days=day) for day in (30, 9, 20, 5)]
    tables["outcomes"] = pa.table(
        {"entity_id": ["a", "a", "a", "b"], "name": ["mood"] * 4, "value": [1.0, -1.0, 0.0, 1.0],
         "as_of": pa.array(given, schema.TIME)}
    )  # fmt: skip
    settings = sentiment.Settings(label="outcome:mood", window_days=20)
    then = sentiment.examples(tables, NOW - timedelta(days=29), settings, labels=True)  # known: what is 9 days old
    assert dict(zip(then["entity_id"].to_pylist(), then["label"].to_pylist(), strict=True)) == {"i0": "neutral"}


def test_a_rating_that_came_after_the_next_window_is_not_known():
    tables = interactions(("a", 40, "i0", "x", 1.0, 21), ("a", 39, "i1", "y", 1.0, 19), columns=("rating", "closed_at"))
    closed = [NOW - timedelta(days=day) for day in tables["interactions"]["closed_at"].to_pylist()]
    tables = {"interactions": tables["interactions"].set_column(5, "closed_at", pa.array(closed, schema.TIME))}
    rows = sentiment.examples(tables, NOW - timedelta(days=30), sentiment.Settings(window_days=10), labels=True)
    assert rows["entity_id"].to_pylist() == ["i0"]


def test_a_window_holds_what_customers_wrote_in_it():
    tables = interactions(
        ("a", 0, "now", "x", 1.0, "inbound"), ("a", 10, "last", "x", 1.0, "Inbound"), ("a", 30, "first", "x", 1, None),
        ("a", 31, "before", "x", 1.0, "inbound"), ("b", 5, "ours", "x", 1.0, "outbound"),
        ("b", 5, "mute", None, 1.0, None),
        ("b", 6, "quoted", "?!", 1.0, None), columns=("rating", "direction"),
    )  # fmt: skip
    settings = sentiment.Settings(window_days=30, scored_days=31)
    assert sentiment.examples(tables, NOW, settings, labels=True)["entity_id"].to_pylist() == ["first", "last"]
    scored = sentiment.examples(tables, NOW, settings, labels=False)
    assert scored["entity_id"].to_pylist() == ["before", "first", "last"]
    assert scored["label"].null_count == 3


def test_windows_follow_each_other_back_from_the_test():
    settings = sentiment.Settings(window_days=30, num_windows=2)
    dates = sentiment.dates(settings, (NOW - timedelta(days=400), NOW - timedelta(hours=1)))
    back = [(NOW - date).days for date in (*dates.train, dates.validation, dates.test, dates.now)]
    assert back == [90, 60, 30, 0, 0]
    with pytest.raises(NotEnoughDataError, match="more than two windows of 30 days"):
        sentiment.dates(settings, (NOW - timedelta(days=50), NOW - timedelta(hours=1)))


def test_rows_without_an_id_are_told_apart():
    tables = interactions(("b", 3, "i", "x", 1.0), ("a", 2, "i", "y", 1.0), ("a", 1, "i", "z", 1.0))
    tables = {"interactions": tables["interactions"].drop_columns(["interaction_id"])}
    rows = sentiment.examples(tables, NOW, sentiment.Settings(), labels=True)
    assert rows["entity_id"].to_pylist() == ["a#000000000", "a#000000001", "b#000000000"]
    assert rows["text"].to_pylist() == ["y", "z", "x"]


@pytest.mark.parametrize("candidate", [TfidfLogistic(), TfidfSVC(), TextCNN(max_epochs=8, lr=5e-3, filters=32)])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_model_learns_words_of_any_number_of_classes(candidate, num_classes):
    words = dict(list(WORDS.items())[:num_classes])
    train, test = texts(240, 0, words), texts(120, 1, words)
    model = fitted(candidate, train)
    probability = class_scores(model.predict(test))[1]
    assert np.allclose(probability.sum(1), 1.0)
    assert sentiment.score(test, model.predict(test))["accuracy"] > 0.85


def fitted(candidate, train: pa.Table):
    if candidate.KIND == "memory":
        return candidate.fit(train, None, seed=0)
    torch.manual_seed(0)
    state = candidate.prepare(train)
    arrays, module = candidate.encode(state, train), candidate.module(state)
    optimizer = torch.optim.AdamW(module.parameters(), lr=candidate.lr)
    for epoch in range(candidate.max_epochs):
        for rows in np.array_split(np.random.default_rng(epoch).permutation(train.num_rows), 8):
            loss = candidate.loss(module, candidate.batch(arrays, rows)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return candidate.fitted(state, module.state_dict(), candidate.max_epochs)


def test_padding_and_texts_shorter_than_a_filter_change_nothing():
    candidate = TextCNN(dropout=0.0)
    train = texts(60)
    state = candidate.prepare(train)
    module = candidate.module(state).eval()
    short = pa.table({"text": ["awful", "awful slow broken late order invoice parcel copy great", ""]})
    arrays = candidate.encode(state, short)
    together = module(candidate.batch(arrays, np.arange(3)))
    for row in range(3):
        assert torch.allclose(module(candidate.batch(arrays, np.array([row])))[0], together[row], atol=1e-6)


def test_rare_classes_are_not_learned_and_one_class_is_refused():
    labels = ["a"] * 6 + ["b"] * 5 + [f"rare {k}" for k in range(10_000)]
    rows, classes, code = text_classes.learnable(pa.table({"text": labels, "label": labels}))
    assert (classes, code.tolist(), rows.num_rows) == (["a", "b"], [0] * 6 + [1] * 5, 11)
    with pytest.raises(NotEnoughDataError, match="got 2 classes"):
        text_classes.learnable(pa.table({"text": ["x"] * 7, "label": ["a"] * 6 + ["b"]}))


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    true = softmax(rng.normal(0, 2, (20_000, 3)))
    label = (rng.random((20_000, 1)) > true.cumsum(1)[:, :2]).sum(1)
    sharp = softmax(2 * np.log(true))
    assert text_calibration.fit_temperature(label, sharp) == pytest.approx(2.0, abs=0.05)
    assert np.allclose(text_calibration.tempered(sharp, 2.0), true)


def test_confidence_is_calibrated_and_the_class_stays():
    rng = np.random.default_rng(0)
    said = rng.integers(0, 3, 6_000)
    raw = np.full((6_000, 3), 0.05)
    raw[np.arange(6_000), said] = 0.9
    label = np.where(rng.random(6_000) < np.array([0.6, 0.9, 0.9])[said], said, (said + 1) % 3)
    raw[said == 0] = [0.8, 0.1, 0.1]  # less sure of the first class, not by enough
    made = text_calibration.calibrated(raw, text_calibration.fit(label, raw))
    assert np.allclose(made.sum(1), 1.0)
    assert (made.argmax(1) == said).all()
    assert made.max(1)[said == 0] == pytest.approx(0.6, abs=0.02)
    assert made.max(1)[said != 0] == pytest.approx(0.9, abs=0.02)


def test_a_curve_that_falls_below_the_next_class_leaves_a_tie_to_nobody():
    raw = np.array([[0.45, 0.55], [0.55, 0.45]])
    fitted = {"temperature": 1.0, "curves": text_calibration.fit(*_unsure())["curves"]}
    made = text_calibration.calibrated(raw, fitted)
    assert (made.argmax(1) == [1, 0]).all()
    assert made.max(1) == pytest.approx(0.5, abs=1e-6)  # as unsure as may be


def _unsure() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of a model that is always sure, and seldom right."""
    rng, said = np.random.default_rng(0), np.arange(4_000) % 2
    raw = np.where(np.arange(2) == said[:, None], 0.9, 0.1)
    return np.where(rng.random(4_000) < 0.2, said, 1 - said), raw


def test_what_is_calibrated_is_left_as_it_is():
    rng = np.random.default_rng(0)
    true = softmax(rng.normal(0, 2, (3_000, 3)))
    label = (rng.random((3_000, 1)) > true.cumsum(1)[:, :2]).sum(1)
    assert text_calibration.fit(label, true) == {"temperature": 1.0, "curves": []}


@pytest.mark.parametrize("candidate", [TfidfLogistic(C=16.0), TfidfSVC(C=0.5)])
def test_a_linear_model_knows_how_sure_it_may_be_of_each_class(candidate):
    right = {"negative": 0.9, "neutral": 0.6, "positive": 0.9}  # the others are noise, which so weak a penalty learns

    def noisy(count: int, seed: int) -> pa.Table:
        rows, rng = texts(count, seed), np.random.default_rng(seed + 10)
        said = [one if rng.random() < right[one] else str(rng.choice(list(right))) for one in rows["label"].to_pylist()]
        return rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(said))

    test = noisy(4_000, 1)
    figures = sentiment.score(test, candidate.fit(noisy(1_500, 0), None, seed=0).predict(test))
    assert figures["ece"] < 0.03


def test_rare_classes_are_found_as_well_as_frequent_ones():
    def rare(count: int, seed: int) -> pa.Table:
        rows, kept = texts(count, seed), np.random.default_rng(seed).random(count) < 0.1
        return rows.filter(pc.or_(pc.equal(rows["label"], "negative"), pa.array(kept)))

    test = rare(3_000, 1)
    for candidate in (TfidfLogistic(), TfidfSVC()):
        figures = sentiment.score(test, candidate.fit(rare(600, 0), None, seed=0).predict(test))
        assert figures["macro_recall"] > 0.95  # without weights the logistic regression finds .924 of a class
        assert figures["ece"] < 0.03


def test_a_vocabulary_is_the_same_every_time():
    said = texts(300)["text"].to_pylist()
    assert text_tokens.fit(said, vocabulary=200) == text_tokens.fit(said, vocabulary=200)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory) -> str:
    """A BERT with random weights that knows the words above, in a folder of the transformers format."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for own in WORDS.values() for word in own)]
    places = {word: number for number, word in enumerate(known)}
    BertTokenizerFast(vocab=places, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(known), **sizes)).save_pretrained(folder)
    return str(folder)


def test_embeddings_do_not_depend_on_the_texts_beside_them(tiny_bert):
    encoder = text_encoder.load(tiny_bert)
    both = encoder.embeddings(["awful slow", "great lovely kind quick order"])
    text_encoder.load.cache_clear()
    assert np.allclose(
        both[1], text_encoder.load(tiny_bert).embeddings(["great lovely kind quick order"])[0], atol=1e-6
    )
    assert np.allclose(np.linalg.norm(both, axis=1), 1.0)
    rows = text_encoder.embedded(texts(3), tiny_bert)
    assert rows["text_embedding"].type == pa.list_(pa.float32())
    assert np.allclose(rows["text_embedding"][1].as_py(), encoder.embeddings([rows["text"][1].as_py()])[0])


@pytest.mark.parametrize("fine_tune", [False, True])
def test_a_network_over_a_bert_is_saved_whole(tiny_bert, tmp_path, fine_tune):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    lr = 3e-4 if fine_tune else 5e-3
    candidate = TextCNN(encoder=str(folder), fine_tune=fine_tune, max_epochs=2, lr=lr, filters=16, width=16)
    test = texts(40, 1)
    model = fitted(candidate, texts(120))
    files, before = model.save(), model.predict(test)
    if fine_tune:  # needs the folder no longer
        shutil.rmtree(folder)
        text_encoder.load.cache_clear()
    again = TextCNN.load(files).predict(test)
    assert all((again[name] == before[name]).all() for name in before)
    assert any(name.startswith("bert.") for name in model.module.state_dict()) == fine_tune


def test_a_published_tokenizer_pads_nothing_and_cuts_within_its_marks(tiny_bert):
    tokenizer = Tokenizer.from_file(f"{tiny_bert}/tokenizer.json")
    tokenizer.enable_padding(length=20)
    start, awful, slow, end = 2, 5, 6, 3
    ids = text_tokens.ids(tokenizer.to_str(), ["awful", "awful slow broken"], 4, special=True)
    assert ids == [[start, awful, end], [start, awful, slow, end]]


def test_an_encoder_reads_no_more_than_it_can(tiny_bert):
    encoder = text_encoder.load(tiny_bert)
    (states,) = encoder.states(["awful " * 600], max_tokens=1_000)
    assert states.shape == (512, encoder.width)


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="expected the hub id or the local folder"):
        text_encoder.load(str(tmp_path / "none"))


def test_aspects_are_what_several_dissatisfied_customers_wrote():
    many = [(f"the parcel service lost my parcel again, number {k}", f"c{k}", True) for k in range(8)]
    one = [("my neighbour Ada steals the mail", "c0", True)] * 9
    good = [(f"thanks for the kind advice, number {k}", f"d{k}", False) for k in range(60)]
    hidden = [(f"nobody but [NAME] of you listens, number {k}", f"e{k}", True) for k in range(6)]
    said, customers, negative = zip(*many, *one, *good, *hidden, strict=True)
    found = aspects.of_texts(said, customers, np.array(negative), np.where(negative, -0.8, 0.6))
    told = " ".join(str(row) for row in found)
    assert "parcel service" in told
    assert "Ada" not in told
    assert "neighbour" not in told
    assert "advice" not in told
    assert not any("name" in row["aspect"] for row in found)  # what was taken out is nothing that they speak of
    assert any("but [name] of you listens" in phrase for row in found for phrase in row["phrases"])
    top = found[0]
    assert (top["texts"], top["customers"]) == (8, 8)
    assert top["mean_score"] == pytest.approx(-0.8)


def test_the_endpoint_takes_texts():
    asked = sentiment.Request(texts=["late!", "x" * 1_000_000])
    assert asked.num_described == 2
    assert asked.options() == {}
    with pytest.raises(ValidationError, match="text 1: got no letter or digit"):
        sentiment.Request(texts=["late", " <br> "])
    with pytest.raises(ValidationError, match="exactly one"):
        sentiment.Request(texts=["late"], id="x")
    with pytest.raises(ValidationError, match="none_required"):
        sentiment.Request(id="x", customer={"interactions": []})


def test_texts_that_are_described_keep_their_order():
    from serve.described import date_of, tables_of

    said = [f"text {number}" for number in range(30, 0, -1)]
    rows = asof_texts.inline(said, NOW)
    names = schema.TABLES["interactions"].schema
    tables = tables_of(rows, {"interactions": names}, field="texts", entity_id="inline")
    made = sentiment.examples(tables, date_of(tables, NOW), sentiment.Settings(), labels=False)
    assert made["text"].to_pylist() == said
