"""What decides which fit is repeated, and what is told of one that failed; no Ray."""

from types import SimpleNamespace

import mini_task
import pytest

from crmray import log
from crmray.config import Org
from crmray.errors import TrainingError
from crmray.storage import Lake
from crmray.train import engine, points, rows, search, shards
from crmray.train import fit as fit_module

CELL = "jane.doe@example.org"


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path)
    mini_task.write_examples(lake)
    return lake


def shared_of(lake, share=1.0):
    return search.Search(
        task=mini_task, results=points.Results(lake, mini_task), examples="0" * 16, seed=0,
        engine=engine.EngineSettings(), device="cpu", by_optuna=False, share=share,
        points=(points.Point(candidate="net", settings={"max_epochs": 1}),),
    )  # fmt: skip


def test_more_memory_for_sampled_rows_makes_a_new_bundle(lake, monkeypatch):
    made = []

    def go(work, *_):
        made.append(work.org.memory_gib)
        work.run.commit()

    monkeypatch.setattr(fit_module._Work, "go", go)

    def run_id(memory_gib):
        org = Org(name="a", storage=lake.root, source={"kind": "demo"}, memory_gib=memory_gib)
        return fit_module.fit(org, lake, mini_task, mini_task.Settings(), grid=False).run_id

    assert run_id(1) == run_id(1.0)
    assert run_id(2) != run_id(1)
    assert made == [1, 2]


def test_the_share_of_customers_is_part_of_a_fits_key(lake):
    examples = lake.latest("examples", "mini")
    whole, part = (rows.read(examples, memory_gib=gib, seed=0) for gib in (1, 5e-5))
    assert whole.share == 1
    assert 0 < part.share < 1
    assert part.selection.num_rows < whole.selection.num_rows
    point = shared_of(lake).points[0]
    keys = {shared_of(lake, seen.share).fit_on(point, "selection").key for seen in (whole, part)}
    assert len(keys) == 2
    assert shared_of(lake).fit_of({"point": 0}).key in keys


def test_a_finished_fit_is_read_and_one_of_another_format_is_fitted_anew(lake, monkeypatch):
    fitted = []

    def fit_here(task, fit, train, *_, **__):
        fitted.append(fit.key)
        return mini_task.ColumnModel(index=0), None, {}

    monkeypatch.setattr(search, "fit_here", fit_here)
    monkeypatch.setattr(log, "setup", lambda **_: None)
    monkeypatch.setattr(search.tune, "report", lambda _: None)
    shared, seen = shared_of(lake), (mini_task.rows(40, 0), mini_task.rows(40, 1))
    for _ in range(2):
        search._trial({"point": 0}, shared, *seen)
    assert len(fitted) == 1
    monkeypatch.setattr(points, "FORMAT", points.FORMAT + 1)
    search._trial({"point": 0}, shared, *seen)
    assert len(set(fitted)) == 2


def test_a_raised_format_of_bundles_makes_a_new_one(lake, monkeypatch):
    monkeypatch.setattr(fit_module._Work, "go", lambda work, *_: work.run.commit())
    org = Org(name="a", storage=lake.root, source={"kind": "demo"})
    made = [fit_module.fit(org, lake, mini_task, mini_task.Settings(), grid=False).run_id for _ in range(2)]
    monkeypatch.setattr(fit_module, "FORMAT", fit_module.FORMAT + 1)
    made.append(fit_module.fit(org, lake, mini_task, mini_task.Settings(), grid=False).run_id)
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError(f"Traceback\nray.exceptions.ActorDiedError: {CELL}"),
            "ray.exceptions.ActorDiedError; its log in",
        ),
        (RuntimeError("Traceback\ncrmray.errors.TrainingError: no room"), "no room; run again"),
        (RuntimeError(), "it left no message; run again"),
        (None, "it left no message; run again"),
    ],
)
def test_a_trial_that_never_began_ends_the_search_with_its_reason(lake, error, why):
    grid = [SimpleNamespace(config=None, error=error, metrics=None)]
    with pytest.raises(TrainingError, match=f"the process of trial 0 ended before it began: {why}") as told:
        search._result(shared_of(lake), grid, 0)
    assert CELL not in str(told.value)


def test_a_trial_that_crashed_is_a_result_and_one_that_was_stopped_keeps_its_figure(lake):
    shared = shared_of(lake)
    died = SimpleNamespace(config={"point": 0}, error=RuntimeError(f"ray.exceptions.X: {CELL}"), metrics=None)
    stopped = SimpleNamespace(config={"point": 0}, error=None, metrics={"auc": 0.6, "epoch": 1})
    first, second = (search._result(shared, [died, stopped], index) for index in (0, 1))
    assert (first.figures, first.failed) == ({}, "ray.exceptions.X; its log in the Ray dashboard has the message")
    assert (second.figures, second.failed) == ({"auc": 0.6}, "stopped early by the scheduler")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (f"ValueError: could not convert:\n  {CELL}", "ValueError; its log in the Ray dashboard has the message"),
        (f"ValueError: could not convert:\n{CELL}", "ValueError; its log in the Ray dashboard has the message"),
        (CELL, "an error without a kind; its log in the Ray dashboard has the message"),
        ("crmray.errors.TrainingError: net: epoch 1: loss is nan", "net: epoch 1: loss is nan"),
    ],
)
def test_what_an_error_of_several_lines_quotes_is_not_told(message, why):
    assert search._why(RuntimeError(f"ray::train()\n  File x, line 1\n{message}")) == why


def test_a_librarys_message_is_not_told_and_ours_is(lake, monkeypatch):
    def of_a_library(*_, **__):
        raise ValueError(f"could not convert string to float: {CELL!r}")

    def ours(*_, **__):
        raise TrainingError("net: epoch 1: loss is nan")

    monkeypatch.setattr(search, "fit_here", of_a_library)
    monkeypatch.setattr(log, "setup", lambda **_: None)
    told = []
    monkeypatch.setattr(search.tune, "report", told.append)
    shared = shared_of(lake)
    search._trial({"point": 0}, shared, mini_task.rows(9, 0), mini_task.rows(9, 1))
    failed = shared.results.of(shared.fit_of({"point": 0})).failed
    assert failed.startswith("ValueError at unit/test_points.py:")
    assert CELL not in str(told)
    refit = shared.fit_on(shared.points[0], "refit")
    assert str(refit) == "net (refit)"  # as events and errors of the cluster name it
    for raises, expected in ((of_a_library, failed), (ours, "TrainingError: net: epoch 1: loss is nan")):
        try:
            raises()
        except (ValueError, TrainingError) as error:
            shards._failed(shared, refit, error, 0.0)
        assert shared.results.of(refit).failed == expected
