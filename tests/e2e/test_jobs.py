"""A head of `crmray up`, jobs through the Ray Jobs API as users submit them, and `crmray down`: one head for all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from crmray import cli, config
from crmray.commands import head as head_commands
from crmray.commands.head import family
from crmray.commands.submit import submit
from crmray.dashboard import Dashboard
from crmray.errors import AuthError, ClusterError, ConfigError
from crmray.head import Head, local_head
from crmray.storage import Lake

ORDERS = "id,customer,day,amount\n" + "".join(
    f"{number},c{number % 40:02d},2024-{1 + number % 12:02d}-{1 + number % 28:02d},{10 + number % 7}\n"
    for number in range(400)
)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A small head, started by the command and ended by the command; nothing of it is left."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    # The token of this head alone counts, whatever other tests of this process have set.
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        patch.delenv(name, raising=False)
    assert cli.main(["up", "--num-cpus", "2", "--object-store-gib", "0.2", "--dashboard-port", "0", "--port", "0"]) == 0
    head = local_head()
    assert head
    processes = family(head)
    try:
        yield head
    finally:
        processes += family(head)
        assert cli.main(["down"]) == 0
        patch.undo()
    assert [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert not Path(head.temp_dir).exists()
    assert local_head() is None


@pytest.fixture(scope="module")
def org_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("org")
    (folder / "orders.csv").write_text(ORDERS)
    (folder / "org.yaml").write_text(
        "name: shop\nstorage: lake\nshards: 2\n"
        "source:\n  kind: files\n  tables:\n    transactions:\n      files: [orders.csv]\n"
        "      columns: {transaction_id: id, entity_id: customer, occurred_at: day, net_amount: amount}\n"
        "tasks: {churn: {horizon_days: 30}}\n"
    )
    return folder / "org.yaml"


def test_everything_of_the_head_listens_on_loopback_and_asks_for_the_token(head: Head) -> None:
    listening = [
        connection.laddr.ip
        for process in family(head)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert stat.S_IMODE(Path(head.token_path).stat().st_mode) == 0o600
    with requests.Session() as session:
        session.trust_env = False
        for path in ("/api/jobs/", "/api/version", "/nodes"):
            assert session.get(head.dashboard + path, timeout=10).status_code == 401


def test_up_again_finds_the_head_that_runs(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up"]) == 0
    assert capsys.readouterr().out.startswith(f"is up already (pid {head.pid})")
    assert local_head() == head


def test_a_wrong_token_and_a_dead_address_are_told(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crmray.dashboard.local_head", lambda: None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(AuthError, match="refuses the token; set RAY_AUTH_TOKEN_PATH"):
        Dashboard(head.dashboard).version()
    with pytest.raises(ClusterError, match="does not answer"):
        Dashboard("http://127.0.0.1:9").version()


def test_submitted_jobs_follow_their_log_and_end_with_its_code(
    head: Head, org_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", "ingest", "--org", str(org_file)]) == 0
    out = capsys.readouterr()
    closing = json.loads(out.out.strip().splitlines()[-1])
    assert closing["job"] == "ingest"
    assert all(Path(path).exists() for path in closing["manifests"].values())
    assert f"ingest: reads {len(ORDERS) / 1000:.1f} kB of files" in out.err

    assert cli.main(["submit", "train", "churn", "--org", str(org_file)]) == 2
    told = capsys.readouterr().out
    assert "train churn: examples/churn: nothing there yet" in told
    assert "run the 'examples' job first" in told
    assert "Traceback" not in told

    (failed, done) = Dashboard().jobs()[:2]
    assert (failed["status"], done["status"]) == ("FAILED", "SUCCEEDED")
    assert failed["submission_id"].startswith("shop-train-churn-")
    assert failed["metadata"]["tasks"] == "churn"
    assert not any("TOKEN" in name for job in (failed, done) for name in job["runtime_env"].get("env_vars", {}))


def test_a_job_that_is_stopped_ends_with_143(head: Head, org_file: Path) -> None:
    dashboard = Dashboard()
    name = dashboard.submit(
        f"{sys.executable} -c 'import time; print(1, flush=True); time.sleep(60)'",
        submission_id="sleeper",
        metadata={},
        runtime_env={},
    )
    with contextlib.ExitStack() as stack:
        stack.callback(dashboard.stop, name)
        assert (
            dashboard.follow(name, lambda text: dashboard.stop(name) if "1" in text.splitlines()[-1:] else None) == 143
        )


def test_shard_and_check_report_what_the_data_can_carry(
    head: Head, org_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, as a user does, which does not wait for what the running head is busy with."""
    done = subprocess.run(
        [sys.executable, "-m", "crmray.cli", "check", str(org_file)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cluster.joined address=local " in done.stderr
    assert "transactions  400   2024-01-01  2024-12-28" in done.stdout
    assert "churn: can run" in done.stdout
    assert Lake(config.load(org_file).root).has("tables", "transactions")


def test_on_another_cluster_the_org_file_travels_and_its_storage_must_be_reachable(head: Head, org_file: Path) -> None:
    """The same head, addressed as one would a remote one."""
    there = Dashboard()
    there.head = None
    with pytest.raises(ConfigError, match="storage: got 'lake', which lies on this machine, expected a URL"):
        submit(there, config.load(org_file), "ingest", [])
    uri = there.upload({"org.yaml": b"name: shop\n"})
    again = there.upload({"org.yaml": b"name: shop\n"})
    assert uri == again
    packed = there.call("GET", f"/api/packages/gcs/{uri.removeprefix('gcs://')}")
    assert packed.status_code == 200
    name = there.submit(
        f"{sys.executable} -c 'print(open(\"org.yaml\").read())'",
        submission_id="reader",
        metadata={},
        runtime_env={"working_dir": uri},
    )
    lines: list[str] = []
    assert there.follow(name, lines.append) == 0
    assert "name: shop" in "".join(lines)


def test_status_shows_nodes_and_jobs(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    out = capsys.readouterr().out
    assert f"cluster    {head.dashboard}, Ray 2.60.0" in out
    assert "127.0.0.1  ALIVE" in out
    assert "shop-ingest-" in out
    assert cli.main(["doctor"]) == 0, capsys.readouterr().out


def test_a_head_that_cannot_start_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    monkeypatch.setattr(head_commands.sys, "executable", shutil.which("false"))
    with pytest.raises(ClusterError, match=r"Ray did not start \(exit code 1\): no output"):
        head_commands.start()
    assert local_head() is None
