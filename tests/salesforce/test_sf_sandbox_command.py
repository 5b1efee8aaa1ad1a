"""`crmray sandbox` as a person starts it: what it prints is enough to connect."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from crmray import config
from crmray.cli import build_parser
from crmray.commands.sandbox import command, fill
from crmray.errors import ConfigError, StorageError
from crmray.salesforce.sandbox.store import Store

FAULTS = ["--error-503-every", "1000", "--lock-rows", "0.01"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Folder of a running sandbox, and what it printed."""
    folder = tmp_path_factory.mktemp("command")
    process = subprocess.Popen(
        [sys.executable, "-m", "crmray.cli", "sandbox", "--folder", str(folder), "--port", "0", *FAULTS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CRMRAY_HOME": str(folder)},
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "/services/oauth2/token" in line and "curl" not in line and "-u" in line:
            break
    yield folder, "".join(lines)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_what_it_prints_connects(started: tuple[Path, str]) -> None:
    folder, printed = started
    text = printed.partition("simple-salesforce:\n")[2].partition("\ncurl:")[0]
    scope: dict = {}
    exec(textwrap.dedent(text), scope)
    assert scope["sf"].query("SELECT Id FROM User")["totalSize"] == 1
    org = config.load(folder / "org.yaml")
    assert isinstance(org.source, config.SalesforceSource)
    assert org.source.login.url in printed
    curl = printed.partition("curl:\n")[2]
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
    assert '"access_token"' in done.stdout, done.stderr


def test_its_faults_are_on(started: tuple[Path, str]) -> None:
    folder, _ = started
    org = config.load(folder / "org.yaml")
    assert isinstance(org.source, config.SalesforceSource)
    owner = tuple((folder / name).read_text().strip() for name in ("client_id", "client_secret"))
    with requests.Session() as plain:
        plain.trust_env = False
        answer = plain.get(f"{org.source.login.url}/sandbox/faults", auth=owner, verify=str(folder / "ca.pem"))
    told = answer.json()["settings"]
    assert (told["error_503_every"], told["lock_rows"], told["fail_rows"]) == (1000, 0.01, 0.0)


def test_its_help_names_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["sandbox", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("--drop-field", "every token is good for this many calls", "crmray sandbox --demo", "curl --cacert"):
        assert phrase in text


def test_it_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("crmray.commands.sandbox.NEEDED", ("json", "no_such_package"))
    arguments = build_parser().parse_args(["sandbox", "--folder", str(tmp_path)])
    with pytest.raises(ConfigError, match="needs no_such_package"):
        command(arguments)


def test_a_busy_port_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        arguments = build_parser().parse_args(["sandbox", "--folder", str(tmp_path / "org"), "--port", str(port)])
        with pytest.raises(ConfigError, match=f"port {port}: got Address already in use.*, expected a free port"):
            command(arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_does_not_fit_on_the_disk_leaves_no_half_of_it(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from crmray.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20));"
        "sys.exit(main(['sandbox', '--demo', '--customers', '300', '--port', '0', '--folder', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "nothing half-loaded is kept" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_org_whose_log_was_not_taken_over_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(store: Store, **settings: object) -> None:
        store._connection.execute("SET checkpoint_threshold = '1TB'; PRAGMA disable_checkpoint_on_shutdown")
        store._connection.execute("CREATE TABLE rows AS SELECT range FROM range(1000)")

    monkeypatch.setattr("crmray.salesforce.sandbox.load.load_demo", load)
    with pytest.raises(StorageError, match="could not be written whole"):
        fill(tmp_path / "org.duckdb", 100, 24, "2026-10-01", 0)
    assert list(tmp_path.iterdir()) == []


def test_an_org_that_is_there_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "org.duckdb"
    fill(path, 100, 24, "2026-10-01", 0)
    with contextlib.closing(Store(path)) as store:
        assert store.query("SELECT COUNT() FROM Account").count == 100
    assert [one.name for one in tmp_path.iterdir()] == ["org.duckdb"]
    fill(path, 200, 24, "2026-10-01", 0)
    assert "with 100 accounts, and stays as it is" in capsys.readouterr().out
