"""What decides which fit is repeated, and what is told of one that failed; no Ray."""

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
    for raises, expected in ((of_a_library, failed), (ours, "TrainingError: net: epoch 1: loss is nan")):
        try:
            raises()
        except (ValueError, TrainingError) as error:
            shards._failed(shared, refit, error, 0.0)
        assert shared.results.of(refit).failed == expected
