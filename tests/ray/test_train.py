"""Fit on a small Ray cluster: bundle, reruns, workers that die."""

import os
import signal
import threading
import time

import mini_task
import numpy as np
import psutil
import pytest
import torch

from crmray import config
from crmray.bundle import load_bundle
from crmray.errors import CapacityError, ConfigError, TrainingError
from crmray.storage import Lake
from crmray.train import engine, loop, refit, rows, search, trainer
from crmray.train import fit as fit_module
from crmray.train.fit import fit
from crmray.train.points import Fit, Point, Results

pytestmark = pytest.mark.usefixtures("ray_folder")


def org_of(lake):
    return config.Org.model_validate({"name": "t", "storage": lake.root, "source": {"kind": "demo"}})


def shared_of(lake, examples, *points, **settings):
    return search.Search(
        task=mini_task, results=Results(lake, mini_task), examples=examples.run_id, seed=0,
        engine=engine.EngineSettings(**settings), device="cpu", points=points, by_optuna=False,
    )  # fmt: skip


def test_fit_writes_a_bundle_and_a_rerun_finds_it(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    mini_task.write_examples(lake)
    options = {"grid": True, "overrides": {"hidden": 8}}
    run = fit(org_of(lake), lake, mini_task, mini_task.Settings(), **options)
    bundle = load_bundle(run, mini_task)
    about = bundle.about
    assert about["candidate"] == "net"
    assert about["metrics"]["net"]["auc"] == max(t["auc"] for t in about["trials"] if t["auc"] is not None)
    failed = [t for t in about["trials"] if "failed" in t]
    assert [t["point"] for t in failed] == ["net lr=1e+38"]  # diverged: marked, and the search went on
    assert "NonFiniteError: net: epoch 1, step" in failed[0]["failed"]
    # the label follows 1.5 x0 - x1: a linear score reaches AUC 0.84, x0 alone 0.78, chance is 0.5
    assert 0.78 < about["test"]["auc"] < 0.9
    assert about["test_candidates"]["net"]["refit"]["auc"] == pytest.approx(about["test"]["auc"])
    assert about["test_by_customer"]["rows"] == 400 * 6 // 20
    test_rows = rows.test(lake.latest("examples", "mini"))
    answer = bundle.predict(test_rows)["probability"].to_numpy()
    assert mini_task.score(test_rows, {"score": answer})["auc"] == pytest.approx(about["test"]["auc"])
    monkeypatch.setattr(fit_module._Work, "go", None)  # nothing is worked out anew
    assert fit(org_of(lake), lake, mini_task, mini_task.Settings(), **options).run_id == run.run_id


def test_a_search_in_which_nothing_converges_says_why(tmp_path):
    lake = Lake(tmp_path)
    mini_task.write_examples(lake)
    with pytest.raises(TrainingError, match="none of 1 trials gave a model; net: NonFiniteError"):
        fit(org_of(lake), lake, mini_task, mini_task.Settings(), grid=False, candidates=["net"], overrides={"lr": 1e38})


def test_what_cannot_be_placed_is_refused_at_once(tmp_path):
    lake = Lake(tmp_path)
    seen = rows.read(mini_task.write_examples(lake), memory_gib=1, seed=0)
    point = Point(candidate="net", settings={"max_epochs": 1})
    shared = shared_of(lake, lake.latest("examples", "mini"), point)
    one = Fit.of(point, "refit", examples="x", seed=0, engine=shared.engine, rounds=1)
    with pytest.raises(CapacityError, match="room for 2 workers"):
        refit.refit(shared, [(one, seen.refit)], name="a", num_workers=3)
    with pytest.raises(ConfigError, match="needs a grid"):
        fit(org_of(lake), lake, mini_task, mini_task.Settings(), grid=False, scheduler="asha")


def train_workers(session):
    """Train's worker processes of our own cluster."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            name = " ".join(process.info["cmdline"] or [])
            if name.startswith("ray::") and "TrainWorker" in name and session in " ".join(process.parent().cmdline()):
                found.append(process.pid)
        except (psutil.NoSuchProcess, AttributeError):
            continue
    return found


def test_a_killed_worker_resumes_from_its_checkpoint(ray_folder, tmp_path):
    lake = Lake(tmp_path)
    examples = mini_task.write_examples(lake)
    seen = rows.read(examples, memory_gib=1, seed=0)
    trace = tmp_path / "trace"
    settings = {"max_epochs": 8, "batch_size": 200, "pause_s": 0.1, "trace": str(trace)}
    point = Point(candidate="net", settings=settings)
    shared = shared_of(lake, examples, point)
    one = Fit.of(point, "refit", examples=examples.run_id, seed=0, engine=shared.engine, rounds=8)
    killed = []

    def kill_after_four_epochs():
        while not trace.exists() or trace.read_text().count("\n") < 2 * 8 * 4:  # 2 ranks x 8 steps x 4 epochs
            time.sleep(0.05)
        pid = train_workers(str(ray_folder))[0]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill_after_four_epochs, daemon=True)
    killer.start()
    trainer.train(shared, [(one, seen.refit, None)], name="killed", num_workers=2, checkpoint_every_s=0)
    killer.join(1)
    steps = trace.read_text().split()
    assert len(killed) == 1
    assert len(set(steps)) == 4  # two processes before, two after
    assert 2 * 8 * 8 <= len(steps) <= 2 * 8 * 8 + 2 * 8 * 3  # at most three epochs were done again, not four
    # the same weights as one unbroken process gives
    candidate = mini_task.Net(max_epochs=8, batch_size=200)
    state = candidate.prepare(seen.refit)
    torch.set_num_threads(1)
    with engine.single_process_group("cpu"):
        whole = loop.train(
            candidate, state, trainer.encoded(mini_task, candidate, state, seen.refit, None), seed=0, rounds=8
        )
    model = shared.results.model(mini_task, one)
    for name, value in whole.weights.items():
        np.testing.assert_allclose(model.weights[name].numpy(), value.numpy(), rtol=1e-3, atol=1e-5)


def test_a_trial_may_train_on_workers_of_its_own(tmp_path):
    lake = Lake(tmp_path)
    examples = mini_task.write_examples(lake)
    seen = rows.read(examples, memory_gib=1, seed=0)
    point = Point(candidate="net", settings={"max_epochs": 2, "hidden": 8})
    shared = shared_of(lake, examples, point, workers_per_trial=2)
    [result] = search.search(shared, seen.selection, seen.validation, name="wide")
    assert result.failed is None
    alone = Fit.of(point, "selection", examples="here", seed=0, engine=engine.EngineSettings())
    model, rounds, history = search.fit_here(
        mini_task, alone, seen.selection, seen.validation, seed=0, settings=engine.EngineSettings(), device="cpu"
    )
    assert result.rounds == rounds
    assert list(result.history) == ["step", "train_loss", "validation_loss", "auc"]
    assert result.history["step"] == history["step"] == [1, 2]
    assert result.history["train_loss"] == pytest.approx(history["train_loss"], rel=1e-3)
    expected = mini_task.score(seen.validation, model.predict(seen.validation))["auc"]
    assert result.figures["auc"] == pytest.approx(expected, abs=1e-3)
