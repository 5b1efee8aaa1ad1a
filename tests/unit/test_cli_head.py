"""The local Ray head from the command line: up, down, doctor, following a job, without starting Ray."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests

from crmray import cli, config
from crmray import dashboard as dashboard_module
from crmray.commands import demo, doctor
from crmray.commands import head as head_commands
from crmray.dashboard import Dashboard
from crmray.errors import ClusterError
from crmray.head import Head, home, local_head, process_started, token_file


@pytest.fixture
def answers() -> Iterator[Callable[..., str]]:
    """Starts an HTTP server that gives these (status, body) one after the other, the last one for ever; its URL."""
    servers = []

    def start(*told: tuple[int, str]) -> str:
        left = list(told)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "answer", [(401, "no"), (200, "<html>"), (200, '{"ray_version": "2", "session_name": "session_of_another"}')]
)
def test_up_does_not_take_anothers_dashboard_for_its_own(
    answer: tuple[int, str], answers: Callable[..., str], tmp_path: Path
) -> None:
    url = answers(answer)
    head = Head(pid=0, started=0, address="x", dashboard=url, token_path="t", temp_dir=str(tmp_path))
    process = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(ClusterError, match=f"another program took {url} while Ray started"):
            head_commands._wait_until_up(head, process)
    finally:
        process.kill()
        process.wait()


def test_following_outlives_a_short_silence_of_the_dashboard(
    answers: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = '{"status": "SUCCEEDED", "logs": "all said"}'
    said: list[str] = []
    assert Dashboard(answers((503, "busy"), (200, done))).follow("job", said.append) == 0
    assert said == ["all said"]
    with pytest.raises(ClusterError, match="404 no such job"):  # an answer, and no silence
        Dashboard(answers((404, "no such job"))).follow("job", said.append)
    monkeypatch.setattr(dashboard_module, "LOST_S", 0.0)
    with pytest.raises(ClusterError, match="503 busy"):
        Dashboard(answers((503, "busy"))).follow("job", said.append)


def test_doctor_tells_a_silent_cluster_in_words() -> None:
    with pytest.raises(ClusterError, match="does not answer without the token"):
        doctor._asks_for_token(Dashboard("http://127.0.0.1:9"))


def test_a_head_whose_pid_was_used_anew_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    assert local_head() is None
    started = process_started(os.getpid())
    assert started
    fields = {"address": "127.0.0.1:6379", "dashboard": "http://127.0.0.1:8265", "token_path": "t", "temp_dir": "d"}
    head_commands._record(Head(pid=os.getpid(), started=started, **fields))
    assert local_head() == Head(pid=os.getpid(), started=started, **fields)
    head_commands._record(Head(pid=os.getpid(), started=started - 60, **fields))
    assert local_head() is None
    (home() / "head.json").write_text("{}")
    with pytest.raises(ClusterError, match="expected the state file of `crmray up`; remove it"):
        local_head()


@pytest.mark.parametrize("when", ["before its children are looked for", "before it is asked to end"])
def test_down_when_the_head_ends_by_itself_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    process = psutil.Popen(["sleep", "60"])
    session = tmp_path / "session"
    session.mkdir()
    fields = {"address": "127.0.0.1:6379", "dashboard": "http://127.0.0.1:8265", "token_path": "t"}
    head = Head(pid=process.pid, started=process.create_time(), temp_dir=str(session), **fields)
    head_commands._record(head)
    found = head_commands.family

    def ends() -> bool:
        if process.is_running():
            process.kill()
            process.wait()
        return True

    if when == "before its children are looked for":
        monkeypatch.setattr(Head, "alive", property(lambda _: ends()))
    else:
        monkeypatch.setattr(head_commands, "family", lambda of: (found(of), ends())[0])
    assert cli.main(["down"]) == 0
    assert not session.exists()
    monkeypatch.undo()
    assert not (tmp_path / "head.json").exists()


@pytest.mark.parametrize("left", [True, False])
def test_the_demo_says_that_it_goes_on_with_what_an_earlier_one_left(
    left: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start() -> Head:
        raise ClusterError("enough")

    for name in ("HOME", "CRMRAY_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(head_commands, "start", start)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    lake = tmp_path / ".crmray" / "lakes" / "demo"
    if left:
        lake.mkdir(parents=True)
    assert cli.main(["demo"]) == 2
    assert (f"what an earlier demo left in {lake}; remove" in capsys.readouterr().out) == left


def test_a_question_to_endpoints_that_are_down_says_how_to_start_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise requests.ConnectionError

    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    monkeypatch.setenv("CRMRAY_KEY", "k")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert cli.main(["predict", "churn", "C1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("crmray: the endpoints are down: no head runs on this machine; do `crmray up`, then `crmray")
    assert cli.main(["predict", "churn", "C1", "--url", "http://127.0.0.1:9"]) == 2
    told = capsys.readouterr().err
    assert "http://127.0.0.1:9/v1/churn does not answer (ConnectionError); is it up? If not, do `crmray up`" in told
    monkeypatch.setattr(requests.Session, "post", refused)
    assert cli.main(["predict", "churn", "C1", "--url", "http://crmray.invalid:9"]) == 2
    told = capsys.readouterr().err
    assert "http://crmray.invalid:9/v1/churn does not answer (ConnectionError); is it up there" in told
    assert "crmray up" not in told
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "127.0.0.1:9")
    assert cli.main(["predict", "churn", "C1"]) == 2
    assert "got address '127.0.0.1:9', expected the dashboard's URL" in capsys.readouterr().err


def test_down_ends_the_salesforce_org_that_a_kept_demo_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    kept = psutil.Popen(["sleep", "60"])
    demo._record(kept)
    assert cli.main(["down"]) == 0
    assert kept.wait(timeout=30) != 0
    assert "ended the Salesforce org" in capsys.readouterr().out
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out == "nothing to end: no head of ours runs\n"


def test_down_says_what_stays_and_how_it_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    token_file()
    (tmp_path / "lakes" / "demo").mkdir(parents=True)
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{tmp_path} stays: auth_token (the cluster's token), lakes/* (lakes, the demo's with its Salesforce org); "
        f"to remove all of it: rm -r {tmp_path}"
    ]


def test_a_kept_demo_says_how_to_log_in_to_its_salesforce_org(tmp_path: Path) -> None:
    login = "{flow: client_credentials, url: 'https://127.0.0.1:4443', client_id: {file: i}, client_secret: {file: s}}"
    path = tmp_path / "demo.yaml"
    path.write_text(f"name: a\nstorage: l\nsource: {{kind: salesforce, login: {login}}}\ntasks: {{churn: {{}}}}\n")
    cluster: Any = SimpleNamespace(address="http://127.0.0.1:8265", serve=dict)
    told = demo._next_steps(cluster, "t", config.load(path))
    assert f"https://127.0.0.1:4443    the Salesforce org (how to log in: cat {tmp_path}/sandbox.log)" in told
