"""`crmray doctor`: what it finds, and what of it is bad."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from crmray import cli, config
from crmray.commands import doctor
from crmray.commands import head as head_commands
from crmray.head import Head, process_started, token_file
from crmray.privacy import Pseudonyms
from crmray.storage import Lake


def test_doctor_tells_the_ports_of_the_running_head_from_those_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CRMRAY_HOME", str(tmp_path))
    busy = socket.create_server(("127.0.0.1", 0))
    port = busy.getsockname()[1]
    monkeypatch.setattr(doctor, "SERVE_PORT", port)
    monkeypatch.setattr(doctor, "PORTS", {port: ("endpoints", "give --port")})
    with busy:
        assert list(doctor.ports(None)) == [("BAD", f"port {port} (endpoints) is another program's; give --port")]
        monkeypatch.setattr(doctor, "SERVE_PORT", 8000)
        assert [level for level, _ in doctor.ports(None)] == ["note"]  # `crmray up` takes another one
        monkeypatch.setattr(doctor, "SERVE_PORT", port)
        fields = {"address": "127.0.0.1:9", "dashboard": "http://127.0.0.1:9", "token_path": "t", "temp_dir": "d"}
        with monkeypatch.context() as patch:
            answers = SimpleNamespace(address="http://127.0.0.1:9", head=Head(pid=0, started=0, **fields))
            answers.serve = lambda: {"proxies": {"node": {}}}
            patch.setattr(doctor, "Dashboard", lambda *_, **__: answers)
            assert [level for level, _ in doctor.ports(None)] == ["note"]  # endpoints that are up stay where they are
            for host, level in (("localhost", "ok"), ("cluster.example", "note")):  # a port of another machine is none
                answers.address = f"http://{host}:{port}"
                assert [found for found, _ in doctor.ports(None)] == [level]
        head_commands._record(Head(pid=os.getpid(), started=process_started(os.getpid()) or 0, **fields))
        (tmp_path / "t").write_text("token")
        # Its dashboard does not answer, as that of a busy head at times.
        assert list(doctor.ports(None)) == [("ok", f"port {port} (endpoints) is that of the running cluster")]


def test_doctor_notes_what_fails_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    busy = SimpleNamespace(
        address="http://h", version=lambda: {"ray_version": importlib.metadata.version("ray")},
        usage=lambda: {"CPU": [2.0, 2.0], "memory": [1.0, 1.0]},
        nodes=lambda: [{"node_ip": "10.0.0.7", "state": "DEAD"}, {"node_ip": "10.0.0.8", "state": "ALIVE"}],
    )  # fmt: skip
    monkeypatch.setattr(doctor, "Dashboard", lambda *_, **__: busy)
    monkeypatch.setattr(doctor, "_asks_for_token", lambda _: True)
    for other in ("versions", "machine", "ports", "secrets_files"):
        monkeypatch.setattr(doctor, other, lambda *_: [])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "ok   the cluster asks for the token",
        "note 1 nodes are down: 10.0.0.7; jobs run on the others",
        "note 2 of 2 CPU in use; jobs wait until one is free",
        "",
        "2 checks passed; notes: 2",
    ]
    monkeypatch.setattr(doctor, "_asks_for_token", lambda _: False)
    assert cli.main(["doctor"]) == 2
    told = capsys.readouterr().out
    assert "BAD  the cluster asks for no token: who reaches it can run code; start it with RAY_AUTH_MODE=token" in told
    assert told.endswith("1 of 4 checks failed; notes: 2\n")


def test_doctor_finds_the_token_that_others_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    path = token_file()
    path.chmod(0o644)
    assert cli.main(["doctor"]) == 2
    told = capsys.readouterr().out
    assert f"BAD  {path} has mode 0644; others can read it: chmod 600" in told
    assert re.search(r"\n\d+ of \d+ checks failed(; notes: \d+)?\n$", told)
    assert token_file() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_doctor_reads_every_secret_of_the_org_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "org.yaml"
    path.write_text(
        "name: a\nstorage: lake\nsource: {kind: salesforce, login: {flow: client_credentials, "
        "client_id: {env: CRM_ID}, client_secret: {file: keys/secret}}}\n"
        "privacy: {pseudonym_key: {file: keys/pseudonym.key}, vault_key: {file: keys/vault.key}}\n"
    )
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "secret").write_text("s")
    (tmp_path / "keys" / "vault.key").write_text("00" * 31)
    monkeypatch.setenv("CRM_ID", "me")
    told = {text: level for level, text in doctor.org_file(str(path))}
    assert [text for text, level in told.items() if level == "BAD"] == [
        "privacy.pseudonym_key: secret file keys/pseudonym.key: got No such file or directory, expected a readable "
        "text file",
        "privacy.vault_key: secret file keys/vault.key: got 31 bytes, expected 32; `openssl rand -hex 32` makes some",
    ]
    assert {"source.login.client_secret can be read", f"storage {tmp_path}/lake can be written"} <= set(told)
    assert "source.login.client_id can be read in this shell; jobs have the variables of the head" in told
    (tmp_path / "keys" / "pseudonym.key").write_text("11" * 32)
    (tmp_path / "keys" / "vault.key").write_text("22" * 32)
    org = config.load(path)
    found = Pseudonyms.of_org(org)
    assert found
    found.mark(Lake.of(org))
    assert {level for level, _ in doctor.org_file(str(path))} == {"ok"}
    path.write_text(path.read_text().replace("privacy: {", "privacy: {lake_key: {file: keys/lake.key}, "))
    (tmp_path / "keys" / "pseudonym.key").unlink()
    told = {text: level for level, text in doctor.org_file(str(path))}
    assert [text.split(": ")[0] for text, level in told.items() if level == "BAD"] == [
        "privacy.pseudonym_key", "privacy.lake_key",
    ]  # fmt: skip
    assert told[f"storage {tmp_path}/lake can be written"] == "ok"
    path.write_text(path.read_text().replace("lake_key: {file: keys/lake.key}, ", ""))
    (tmp_path / "keys" / "pseudonym.key").write_text("33" * 32)
    assert any(
        "is not the key that the pseudonyms of" in text for level, text in doctor.org_file(str(path)) if level == "BAD"
    )
