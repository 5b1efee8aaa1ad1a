"""Batch scoring over real Ray Data actors: every row once, the same answer as the endpoint, resumable."""

from __future__ import annotations

import os

import pytest
import toy_task as toy

from crmray import config, registry, score
from crmray.bundle import load_bundle
from crmray.errors import NoChampionError
from crmray.storage import Lake

pytestmark = pytest.mark.usefixtures("ray_folder")


def test_every_now_row_is_scored_once_as_the_endpoint_would(tmp_path):
    org = config.load(toy.write_org(tmp_path))
    lake = Lake(org.root)
    examples = toy.write_examples(lake, 1_001)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    with pytest.raises(NoChampionError, match="run the 'publish' job"):
        score.score(org, lake, toy.module())
    registry.publish(lake, toy.module())
    run = score.score(org, lake, toy.module())
    rows = run.read_table("part-*.parquet")
    assert rows.column_names == [
        "entity_id",
        "as_of",
        "version",
        "probability",
        "leaves",
        "reasons",
        "scored_at",
    ]
    now = score._now(examples)
    assert rows["entity_id"].to_pylist() == now["entity_id"].to_pylist()
    assert set(rows["version"].to_pylist()) == {"a" * 16}
    assert set(rows["as_of"].to_pylist()) == {toy.NOW}
    bundle = load_bundle(lake.run("bundles", "toy", "a" * 16), toy.module())
    single = bundle.predict(now.slice(7, 1))["probability"][0].as_py()
    assert rows["probability"][7].as_py() == pytest.approx(single, abs=1e-12)
    assert run.manifest()["rows"] == 1_001

    before = os.stat(f"{run.path}/part-00000.parquet").st_mtime_ns
    assert score.score(org, lake, toy.module()).run_id == run.run_id
    assert os.stat(f"{run.path}/part-00000.parquet").st_mtime_ns == before


def test_a_run_that_died_goes_on_with_the_missing_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "PART_ROWS", 400)
    org = config.load(toy.write_org(tmp_path))
    lake = Lake(org.root)
    toy.write_examples(lake, 1_000)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    registry.publish(lake, toy.module())
    run = score.score(org, lake, toy.module())
    assert run.files("part-*.parquet") == [f"part-{number:05d}.parquet" for number in range(3)]
    kept = os.stat(f"{run.path}/part-00001.parquet").st_mtime_ns
    for name in ("manifest.json", "part-00002.parquet"):
        os.unlink(f"{run.path}/{name}")
    score.score(org, lake, toy.module())
    assert run.read_table("part-*.parquet").num_rows == 1_000
    assert os.stat(f"{run.path}/part-00001.parquet").st_mtime_ns == kept
