"""Reports: what stands in them, that they need no network and name nobody, and that a browser draws them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from conformance import fit, rows_of, settings_of, small

import jobs
from crmray import registry
from crmray.commands.lake import champion_row
from crmray.config import Org
from crmray.errors import ConfigError, NoChampionError
from crmray.evaluate import card, charts, judge, pages, uplift
from crmray.org import OpenOrg
from crmray.storage import Lake
from crmray.tasks import churn
from crmray.train import evaluation, points, report, rows
from crmray.train.engine import EngineSettings
from jobs import evaluate as job

NAMES = ("lstm", "logistic", "decision_tree", "recency")
HISTORY = {"step": [1.0, 2.0, 3.0], "train_loss": [0.7, 0.5, 0.4], "validation_loss": [0.7, 0.6, 0.65],
           "auc": [0.5, 0.7, 0.69]}  # fmt: skip
VOID = {"meta", "br", "link", "img", "hr", "input"}
OPTIONAL = {"li"}
"""elements whose end may be left out"""


@pytest.fixture(scope="module")
def org(tmp_path_factory):
    """A lake with examples of the planted org and one bundle of churn, as a training leaves them."""
    lake = Lake(tmp_path_factory.mktemp("lake"))
    seen = rows_of(churn)
    write_examples(lake, "0" * 16, seen["test"])
    write_bundle(lake, "a" * 16, seen)
    return OpenOrg(Org.model_validate({
        "name": "t", "storage": lake.root, "source": {"kind": "demo"}, "tasks": {"churn": {}, "segmentation": {}},
    }))  # fmt: skip


def write_examples(lake, number, test):
    run = lake.run("examples", "churn", number)
    run.write_table("test/shard-00000.parquet", test)
    dates = {"train": [], "validation": None, "test": test["as_of"][0].as_py().isoformat(), "now": None}
    run.commit(features_version=churn.FEATURES_VERSION, as_of=dates, rows={"test": test.num_rows}, inputs={})
    run.make_latest()


def write_bundle(lake, number, seen):
    models = {name: fit(small(churn.CANDIDATES[name]), seen["train"], seen["validation"]) for name in NAMES}
    best = {}
    for name, model in models.items():
        point = points.Point(candidate=name, settings={})
        one = points.Fit.of(point, "selection", examples="0" * 16, seed=0, engine=EngineSettings())
        figures = churn.score(seen["validation"], model.predict(seen["validation"]))
        best[name] = points.Result(fit=one, figures=figures, seconds=1.0, history=HISTORY if name == "lstm" else {})
    point = points.Point(candidate="random_forest", settings={})
    lost = points.Fit.of(point, "selection", examples="0" * 16, seed=0, engine=EngineSettings())
    outcome = report.Outcome(
        task=churn, settings=settings_of(churn), seed=0, examples=lake.latest("examples", "churn"),
        seen=rows.Rows(selection=seen["train"], validation=seen["validation"], refit=seen["train"], share=1.0),
        results=[*best.values(), *[points.Result(fit=lost, failed="TrainingError: no\ntree") for _ in range(2)]],
        skipped={"lightgbm": "got no feature"}, best=best, models=models, winner="logistic",
        compared={name: result.figures for name, result in best.items()},
        selected=models["logistic"], champion=models["logistic"], refitted={}, hash_model=None,
    )  # fmt: skip
    run = lake.run("bundles", "churn", number)
    report.write(outcome, run, lake)
    run.make_latest()


@pytest.fixture(scope="module")
def page(org):
    """Path, HTML and JSON of the champion's report."""
    with pytest.raises(NoChampionError, match="run the 'publish' job"):
        org.evaluate("churn")
    registry.publish(org.lake, churn, force="the only one")
    run = org.evaluate("churn")
    return Path(run.path) / "report.html", run.read_bytes("report.html").decode(), json.loads(
        run.read_bytes("report.json")
    )  # fmt: skip


class Elements(HTMLParser):
    """The elements that are open, and attributes and texts that a reader gets."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def read(html):
    elements = Elements()
    elements.feed(html)
    assert elements.open == []
    return elements


def test_the_card_names_attributes_without_a_past():
    used = {"plan": {"used": "today's"}, "city": {"used": "as of"}}
    about = {"test": {}, "data": {"as_of": {"test": "2025-01-01"}, "attributes": used}}
    (told,) = (one for one in card.limits(about) if "today" in one)
    assert told.startswith(
        "The past of these attributes is not known, so they stand as they are today at every date: plan."
    )


def test_the_page_is_whole_fetches_nothing_and_is_small(page):
    path, html, _ = page
    elements = read(html)
    assert path.stat().st_size < 6_000_000
    assert html.count("plotly.js v") == 1
    links = [value for _, name, value in elements.attributes if name in ("src", "href")]
    assert not [one for one in links if not one.startswith(("#", "data:image/svg+xml;base64,"))]
    assert any(one.startswith("data:") for one in links)  # the decision tree as a picture
    policy = next(value for tag, name, value in elements.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "@import" not in html.split("</style>")[0]


def test_the_page_says_what_was_measured(page):
    _, html, found = page
    text = " ".join(read(html).texts)
    assert f"{found['test']['auc']:.4g}" in text
    for words in ("ROC-AUC", "Confusion matrix", "Calibration", "Cumulative gains", "lstm: loss", "Limits", "recency"):
        assert words in text
    assert set(found["models"]) == set(NAMES)
    assert found["models"]["lstm"] == {
        **found["models"]["lstm"], "neural": True, "architecture": "recurrent", "test_before_refit": None
    }  # fmt: skip
    assert found["learning"]["lstm"] == {"unit": "epoch", **HISTORY}
    assert found["test"]["intervals"]["auc"][0] < found["test"]["auc"] < found["test"]["intervals"]["auc"][1]
    assert set(found["test_neural"]["lstm"]) >= {"accuracy", "precision", "recall", "f1", "auc"}
    assert any("country = FR" in name for name in found["test"]["groups"])


def test_two_figures_of_the_champion_are_told_apart(page):
    path, _, found = page
    words = "figures of the models' raw scores, so that all are measured alike"
    raw = found["models"]["logistic"]["test"]
    answers = {**found["test"], "ece": raw["ece"] + 0.1}
    assert words in pages.bundle_page({**found, "test": answers}).decode()
    assert "Of its answers; probabilities are calibrated." in (path.parent / "card.md").read_text(encoding="utf-8")
    assert words not in pages.bundle_page({**found, "test": {**answers, **raw}}).decode()
    newer = pages.bundle_page({**found, "test": answers, "at_training": answers}).decode()
    assert "raw scores on the test rows of the training, so" in newer


def test_a_candidate_without_a_model_is_told_with_the_reason(org, page):
    path, html, found = page
    told = {"lightgbm": "got no feature", "random_forest": "TrainingError: no tree (2 trials)"}
    bundle = org.lake.latest("bundles", "churn")
    assert found["not_fitted"] == json.loads(bundle.read_bytes("bundle.json"))["not_fitted"] == told
    bundle_card = bundle.read_bytes("card.md").decode()
    for text in (" ".join(read(html).texts), (path.parent / "card.md").read_text(encoding="utf-8"), bundle_card):
        for name, why in told.items():
            assert f"{name}: {why}" in text
    assert "Candidates without a model" not in pages.bundle_page({**found, "not_fitted": {}}).decode()


def test_the_head_of_the_page_says_how_many_rows_were_measured(page):
    _, _, found = page
    total = found["evaluated"]["rows"]
    for measured, expected in ((total, f"on {total} test rows"), (12.0, f"on 12 of {total} test rows")):
        html = pages.bundle_page({**found, "test": {**found["test"], "rows": measured}}).decode()
        assert expected in " ".join(read(html).texts)


def test_facts_are_told_as_they_were_given(page):
    _, _, found = page
    assert report.data_of({"horizon_days": 0, "rows": {"test": 5}, "span": None, "schema": {"x": "int8"}}) == {
        "rows": {"test": 5}
    }
    population = [{"table": "cases", "at_least": 1, "at_most": None}]
    told = {**found, "settings": {"population": population, "lr": 3e-5}, "data": {"span": ["2024", None]}}
    text = " ".join(read(pages.bundle_page(told).decode()).texts)
    for words in ("population: (table: cases; at_least: 1; at_most: none)", "lr: 3e-05", "span: 2024, none"):
        assert words in text
        assert f"- {words}\n" in card.render({**told, "metrics": {}})
    assert "None" not in text


def test_figures_near_zero_are_told_as_that_and_cannot_break_the_page(page):
    _, _, found = page
    tiny = {**found["test"], "auc": 2e-6, "intervals": {"auc": [-2e-6, 0.5]}, "later_amount_p_value": 7e-18}
    text = " ".join(read(pages.bundle_page({**found, "test": tiny}).decode()).texts)
    assert text.count("< 0.0001") >= 3  # in large and in the tables
    assert "95 %: > -0.0001 to 0.5" in text


def test_the_run_and_the_page_name_the_same_best(org, page):
    run = org.evaluate()
    told = json.loads(run.read_bytes("report.json"))["tasks"]["churn"]
    line, row = pages._short(told), champion_row(org.config, "churn")
    models = {name: one["test"]["auc"] for name, one in told["models"].items()}
    plain = max(("decision_tree", "recency"), key=lambda name: models[name])  # beside logistic, the champion
    assert line["best baseline"].split()[0] == row["best baseline"].split()[0] == plain
    assert line["best neural"].split()[0] == row["best neural"].split()[0] == "lstm"
    assert line["best rule of thumb"].split()[0] == "recency"
    won = pages._short({**told, "candidate": "lstm"})
    assert won["best neural"].split()[0] == "lstm"  # the champion, where it is one
    assert won["best baseline"].split()[0] == max(set(NAMES) - {"lstm"}, key=lambda name: models[name])


def test_the_page_can_be_read_without_seeing_the_charts(page):
    _, html, _ = page
    elements = read(html)
    kinds = [tag for tag, name, value in elements.attributes if (name, value) == ("class", "chart")]
    labels = [value for tag, name, value in elements.attributes if name == "aria-label"]
    assert ("html", "lang", "en") in elements.attributes
    assert html.count("<h1>") == 1
    assert html.count("<figcaption>") == html.count("The numbers") == len(kinds) >= 7
    assert html.count("<caption>") == html.count("<table>")
    assert all(labels)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_nobody_is_named(org, page):
    path, html, _ = page
    ids = org.lake.latest("examples", "churn").read_table("test/*.parquet")["entity_id"].to_pylist()
    for name in ("report.json", "card.md"):
        content = (path.parent / name).read_text(encoding="utf-8")
        assert not [one for one in ids if re.search(rf"\b{one}\b", content)]
    shown = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not [one for one in ids if re.search(rf"\b{one}\b", shown)]


def test_texts_of_a_task_do_not_reach_the_page_and_names_cannot_break_it(page):
    _, _, found = page
    test = {**found["test"], "note": "Jane Doe", "groups": {"country = </script><b>": {"rows": 60, "auc": 0.5}}}
    test["aspects"] = [{"aspect": "late", "phrases": ["call me at 5"], "share": {"of texts": 0.25}}]
    html = pages.bundle_page({**found, "test": test}).decode()
    text = " ".join(read(html).texts)
    assert "late" in text
    assert "call me" not in html
    assert "Jane Doe" not in html
    assert "country = </script><b>" in text  # as text, not as markup
    kept = evaluation._without_texts(test)
    assert kept["aspects"] == [{"aspect": "late", "phrases": [], "share": {"of texts": 0.25}}]
    assert "note" not in kept
    assert kept["curves"] == test["curves"]


def test_the_card_says_what_it_is_for_and_what_it_does_not_know(page):
    path, _, found = page
    text = (path.parent / "card.md").read_text(encoding="utf-8")
    for title in ("# churn: logistic", "## Intended use", "## Figures", "## Limits", "## Data", "## Settings"):
        assert title in text
    assert "other seasons may be easier or harder" in text
    assert f"| ROC-AUC | {found['test']['auc']:.4g} |" in text
    assert "| logistic |" in text.split("## Figures")[1]


def test_newer_examples_give_a_new_report_with_the_figures_of_the_training_beside(org, page):
    first, _, found = page
    assert found["at_training"] is None
    assert org.evaluate("churn").path == str(first.parent)  # nothing is new: the report is there
    newer = rows_of(churn)["test"]
    newer = newer.take(pa.array(np.random.default_rng(0).permutation(newer.num_rows)[:150]))
    write_examples(org.lake, "1" * 16, newer)
    run = org.evaluate("churn", version="a" * 16)
    again = json.loads(run.read_bytes("report.json"))
    assert again["at_training"]["auc"] == found["test"]["auc"]
    assert (again["evaluated"]["rows"], again["test"]["rows"]) == (150, 150)
    assert "On newer rows than at its training" in run.read_bytes("report.html").decode()


def test_another_champion_to_be_held_against_gives_a_new_report(org, page, monkeypatch):
    monkeypatch.setattr(evaluation.agreement, "of", lambda *_: {})
    paths = []
    for version in ("v1", "v2"):
        beside = {"value": (version, SimpleNamespace(run_id="e"))}
        monkeypatch.setattr(evaluation.agreement, "others", lambda lake, task, beside=beside: beside)
        paths.append(org.evaluate("churn").path)
    assert paths[0] != paths[1]


def test_the_comparison_of_all_tasks(org, page):
    run = org.evaluate()
    told = json.loads(run.read_bytes("report.json"))
    assert list(told["tasks"]) == ["churn"]  # segmentation has no bundle yet
    line = told["neural"]["churn: lstm"]
    assert (line["kind"], line["champion"]) == ("recurrent", False)
    assert line["f1"] == told["tasks"]["churn"]["test_neural"]["lstm"]["f1"]
    html = run.read_bytes("report.html").decode()
    text = " ".join(read(html).texts)
    assert "Recurrent, convolutional and Transformer models" in text
    assert "churn: lstm" in text
    assert run.manifest()["inputs"] == {"churn": "a" * 16}
    with pytest.raises(ConfigError, match="without a task"):
        org.evaluate(version="a" * 16)


def test_the_job_ends_with_a_line_that_names_the_report(org, page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs.log, "setup", lambda **_: None)
    monkeypatch.setattr(jobs.signal, "signal", lambda *_: None)
    path = tmp_path / "org.yaml"
    path.write_text(f"name: t\nstorage: {org.lake.root}\nsource: {{kind: demo}}\ntasks: {{churn: {{}}, value: {{}}}}\n")
    for given, task in ((["churn"], "churn"), ([], "all")):
        assert job.main([*given, "--org", str(path)]) == 0
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        folder = Path(line["manifest"]).parent
        assert (folder.parent.name, (folder / "report.html").exists()) == (task, True)
    assert job.main(["value", "--org", str(path)]) == 2
    assert "evaluate value: value: nothing is published yet" in capsys.readouterr().err


def test_macro_figures_stand_in_the_table_of_neural_models():
    figures = {"accuracy": 0.8, "macro_precision": 0.7, "macro_recall": 0.6, "macro_f1": 0.65}
    one = {"test_neural": {"cnn": figures, "net": {"rmse": 1.0}}, "candidate": "cnn"}
    one["models"] = {name: {"architecture": "convolutional"} for name in ("cnn", "net")}
    assert evaluation.neural({"sentiment": one}) == {
        "sentiment: cnn": {
            "kind": "convolutional", "champion": True, "accuracy": 0.8, "precision": 0.7, "recall": 0.6, "f1": 0.65,
        }
    }  # fmt: skip


def test_every_chart_is_one_that_plotly_knows():
    from plotly.graph_objects import Figure

    rng = np.random.default_rng(0)
    amount = judge.amount(rng.exponential(size=50), rng.exponential(size=50))
    several = judge.classes(np.arange(60) % 3, rng.dirichlet(np.ones(3), 60), ["a", "b", "c"])
    yes_no = judge.binary(np.arange(60) % 2, rng.random(60), 0.5)
    drawn = [chart for test in (amount, several, yes_no) for chart in charts.curves(test)]
    drawn += charts.learning(HISTORY, "lstm", "epoch")
    drawn.append(charts.compared([("a", 0.5), ("b", 0.6)], "ROC-AUC", "", "b"))
    treated = np.arange(60) % 2
    drawn += charts.curves({"curves": {"qini": uplift.qini_curve(treated, np.arange(60) % 3 == 0, rng.random(60))}})
    drawn += charts.curves({"by_horizon": [{"week": k, "wape": 0.1 * k, "coverage_80": 0.8} for k in (1, 2, 3)]})
    assert len(drawn) == 2 + 2 + 6 + 2 + 1 + 2
    for chart in drawn:
        Figure(data=list(chart.traces), layout=dict(chart.layout))  # raises for what Plotly does not have
        assert len({len(values) for values in chart.columns.values()}) == 1


def test_the_best_possible_is_what_the_truth_gives_where_it_is_about_the_same(tmp_path):
    as_of = pa.array([datetime(2026, 1, 1, tzinfo=timezone.utc)] * 3, pa.timestamp("us", tz="UTC"))
    test = pa.table({"entity_id": ["b", "a", "c"], "as_of": as_of, "label": [1, 0, 1], "items": [["x"], [], ["y"]]})
    truth = pa.table({
        "entity_id": ["a", "b", "c", "d"], "as_of": as_of.take(pa.array([0] * 4)), "label": [0.0, 1.0, 1.0, 0.0],
        "items": [[], ["x"], ["y"], ["z"]], "score": [0.1, 0.2, 0.3, 0.4], "ranked": [["p", "q"]] * 4,
    })  # fmt: skip
    given = {}

    def score(rows, answers):
        given.update(answers)
        return {"mean": answers["score"].mean()}

    task, lake = SimpleNamespace(NAME="mini", LABELS=("label", "items"), score=score), Lake(tmp_path)
    assert report.best_possible(lake, task, test) is None  # no generator is known
    lake.run("truth", "demo", "0" * 16).write_table("mini-00000.parquet", truth)
    lake.run("truth", "demo", "0" * 16).commit()
    assert report.best_possible(lake, task, test) == {"mean": pytest.approx(0.2)}
    assert given["score"].tolist() == [0.2, 0.1, 0.3]  # in the order of the test rows
    assert given["ranked"].shape == (3, 2)
    for name, values in (("label", [1, 1, 1]), ("items", [["x"], [], ["z"]]), ("entity_id", ["b", "a", "e"])):
        other = test.set_column(test.schema.get_field_index(name), name, pa.array(values))
        assert report.best_possible(lake, task, other) is None
    assert report.best_possible(lake, SimpleNamespace(NAME="other", LABELS=()), test) is None
    later = test.set_column(1, "as_of", pa.array([datetime(2026, 2, 1, tzinfo=timezone.utc)] * 3, as_of.type))
    assert report.best_possible(lake, task, later) is None  # of which nothing is known


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_a_browser_draws_every_chart(page):
    path, html, _ = page
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    dom = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    drawn = int(re.search(r'data-drawn="(\d+)"', dom)[1])
    assert drawn == html.count("class=chart ") == dom.count('class="plot-container')
