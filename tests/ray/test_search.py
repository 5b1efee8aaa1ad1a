"""A search that is killed with its driver goes on with what is left; ASHA and Optuna run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mini_task
import pytest

from crmray.storage import Lake

HERE = Path(__file__).parent
DRIVER = """
import sys
import mini_task
from crmray import cluster, log
from crmray.storage import Lake
from crmray.train import engine, points, rows, search

log.setup(json=True)
root, temp, trace, how = sys.argv[1:]
lake = Lake(root)
examples = lake.latest("examples", "mini")
seen = rows.read(examples, memory_gib=1, seed=0)
cluster.connect("local", num_cpus=1, _temp_dir=temp, object_store_memory=200 * 2**20, include_dashboard=False)
grid = points.choose(
    mini_task, seen.selection.column_names, seen.selection.num_rows, candidates=["net"], grid=True, memory_gib=1,
    overrides={"lr": 0.01, "pause_s": 0.03, "trace": trace} if how == "grid" else {"hidden": 4, "max_epochs": 9},
)
shared = search.Search(
    task=mini_task, results=points.Results(lake, mini_task), examples=examples.run_id, seed=0,
    engine=engine.EngineSettings(), device="cpu", points=tuple(grid), by_optuna=how != "grid",
)
found = search.search(
    shared, seen.selection, seen.validation, name="s", scheduler=None if how == "grid" else "asha"
)
for result in found:
    print("RESULT", result.fit.point.settings["hidden"], result.figures.get("auc"), result.failed)
"""


def start(lake, temp, trace="", how="grid"):
    own = {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, lake.root, temp, str(trace), how],
        env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path)
    mini_task.write_examples(lake)
    return lake


def results_of(output):
    return [line.split()[1:3] for line in output.splitlines() if line.startswith("RESULT")]


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(lake, tmp_path):
    trace = tmp_path / "trace"
    with tempfile.TemporaryDirectory(prefix="ts", dir="/tmp", ignore_cleanup_errors=True) as temp:
        first = start(lake, f"{temp}/a", trace)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("_work/fits/mini/*/result.json")):
            assert first.poll() is None, first.stderr.read()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert len(list(tmp_path.glob("_work/fits/mini/*/result.json"))) == 1
        second = start(lake, f"{temp}/b", trace)
        output, errors = second.communicate(timeout=180)
    assert second.returncode == 0, errors[-2000:]
    assert "search.resumed" in errors
    assert sorted(hidden for hidden, _ in results_of(output)) == ["4", "8"]
    # 800 rows in batches of 64 are 13 steps, 3 epochs, 2 trials; the one that was under way when killed may be redone
    assert 2 * 39 <= len(trace.read_text().split()) <= 2 * 39 + 38


def test_optuna_proposes_and_asha_stops(lake, tmp_path):
    with tempfile.TemporaryDirectory(prefix="ts", dir="/tmp", ignore_cleanup_errors=True) as temp:
        driver = start(lake, temp, how="optuna")
        output, errors = driver.communicate(timeout=180)
    assert driver.returncode == 0, errors[-2000:]
    found = results_of(output)
    assert len(found) == 3  # as many trials as the grid has points
    assert any(float(auc) > 0.5 for _, auc in found if auc != "None")
    assert list(tmp_path.glob("_work/search/mini/s/**/events.out.tfevents*"))  # TensorBoard logs are kept
