"""The command line without a cluster: help, one-line errors, jobs' flags, tables, what is deployed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

import jobs
from crmray import cli, config, log
from crmray.commands import run as run_command
from crmray.commands import submit, text
from crmray.dashboard import _reason
from crmray.errors import ConfigError, did_you_mean

COMMANDS = (
    "init", "check", "up", "down", "run", "demo", "submit", "deploy", "predict", "keys", "compare", "status", "gc",
    "doctor", "describe", "sandbox", "fields", "forget", "vault",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ help and mistakes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"crmray {command}" in capsys.readouterr().out.partition("example")[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    (\w+) +\S", capsys.readouterr().out, re.M)
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "missing.yaml"], "org file missing.yaml: got No such file or directory, expected a readable YAML"),
        (["submit", "train", "--org", "ORG"], "submit train: got no task, expected at least one task"),
        (["submit", "shard", "churn", "--org", "ORG"], "submit shard: got ['churn'], expected no task"),
        (
            ["submit", "train", "chrn", "--org", "ORG"],
            "task 'chrn' is not asked for (asked for: churn); did you mean 'ch",
        ),
        (
            ["submit", "writeback", "churn", "--org", "ORG", "--dry-run", "--undo", "r1"],
            "got --undo with --dry-run, expected --undo alone",
        ),
        (
            ["submit", "publish", "churn", "--org", "ORG", "--rollback", "--force", "why"],
            "got --rollback with --force, expected --rollback alone",
        ),
        (
            ["submit", "train", "churn", "--org", "ORG", "--undo", "r1"],
            "submit train: got --undo, expected flags of this job: --candidates, --set, --workers, --concurrency",
        ),
        (
            ["submit", "writeback", "churn", "--org", "ORG"],
            "got source kind demo, expected salesforce: only there are records with fields to write to",
        ),
        (["fields", "ORG"], "got source kind demo, expected salesforce: only there are records"),
        (["submit", "train", "value", "--org", "ORG"], "(asked for: churn); add it under `tasks:`"),
        (["submit", "shard", "--org", "ORG"], "no cluster: none was given and no local head runs; do `crmray up`"),
        (["status", "--address", "head:8265"], "got address 'head:8265', expected the dashboard's URL"),
        (["compare", "nothing", "--org", "ORG"], "got task 'nothing', expected one of"),
        (["compare", "churn", "--org", "ORG"], "churn: no version yet in"),
        (["keys", "revoke", "nobody"], "got key name 'nobody', expected one of those in"),
        (["keys", "add"], "keys add: got no name, expected a name"),
        (["predict", "valu", "1"], "sentiment, intent; did you mean 'value'?"),
        (["predict", "buys_again", "1"], "one of your own is called custom.<name>"),
        (["init", "missing.csv"], "got no file at missing.csv"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    argv: list[str], message: str, org_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([str(org_file) if word == "ORG" else word for word in argv])
    out = capsys.readouterr()
    told = out.err + out.out
    assert message in told
    assert "Traceback" not in told
    assert code == (0 if argv[0] == "status" else 2)
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("got", "known", "hint"),
    [
        ("valu", ["churn", "value"], "; did you mean 'value'?"),
        ("vip", ["churn", "custom.vip"], "; did you mean 'custom.vip'?"),
        ("customer_id", ["order_id", "entity_id"], ""),
        ("P9999", [f"P{number:05d}" for number in range(1_000)], "; did you mean 'P00999'?"),
        ("P9999", [f"P{number:05d}" for number in range(5_000)], ""),
        ("Product:P00042", [f"product:P{number:05d}" for number in range(5_000)], "; did you mean 'product:P00042'?"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_told_with_the_right_one(got: str, known: list[str], hint: str) -> None:
    assert did_you_mean(got, known) == hint


def test_a_section_of_no_task_is_refused_before_the_cluster_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "org.yaml"
    path.write_text("name: a\nstorage: lake\nsource: {kind: demo}\ntasks: {churn: {}, valu: {}}\n")
    assert cli.main(["submit", "train", "churn", "--org", str(path)]) == 2
    assert "did you mean 'value'?" in capsys.readouterr().err


def test_no_keys_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "list"]) == 0
    assert capsys.readouterr().out.endswith("keys.json; `crmray keys add NAME` makes one\n")


def test_events_of_a_command_are_lines_for_people_off_a_terminal_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "list"]) == 0
    log.event("shard.wrote", rows=5)
    out, err = capsys.readouterr()
    assert err.endswith(" shard.wrote rows=5\n")  # after the time
    assert "shard" not in out


def test_check_misses_a_key_before_it_reads_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "orders.csv").write_text("who,when\na,2024-01-01\n")
    (tmp_path / "org.yaml").write_text(
        "name: a\nstorage: lake\nprivacy: {pseudonym_key: {file: keys/pseudonym.key}}\nsource: {kind: files, tables: "
        "{transactions: [{files: [orders.csv], columns: {entity_id: who, occurred_at: when}}]}}\n"
    )
    assert cli.main(["check", str(tmp_path / "org.yaml")]) == 2
    assert "crmray: privacy.pseudonym_key: secret file keys/pseudonym.key: got No such file" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- jobs


def test_settings_are_json_where_they_can_be() -> None:
    assert jobs.settings_of(["lr=3e-4", "layers=2", "optimizer=adamw", "tied=true", "sizes=[1, 2]", "note=a=b"]) == {
        "lr": 0.0003,
        "layers": 2,
        "optimizer": "adamw",
        "tied": True,
        "sizes": [1, 2],
        "note": "a=b",
    }
    with pytest.raises(ConfigError, match="got 'lr', expected FIELD=VALUE"):
        jobs.settings_of(["lr"])


def test_flags_reach_the_job_as_they_were_given() -> None:
    words = ["submit", "tune", "churn", "--org", "o", "--set", "lr=3e-4", "--set", "hidden=64", "--scheduler", "asha"]
    arguments = cli.build_parser().parse_args([*words, "--workers", "4"])
    assert submit.flags_of(arguments) == ["--set=lr=3e-4", "--set=hidden=64", "--workers=4", "--scheduler=asha"]


@pytest.mark.parametrize(
    ("storage", "files", "message"),
    [
        ("lake", "/lake/a.csv", "storage: got 'lake', which lies on this machine"),
        ("s3://bucket/lake", "data/a.csv", "source.tables.transactions.files: got 'data/a.csv', which lies on this"),
        ("/lake", "~/a.csv", "source.tables.transactions.files: got '~/a.csv'"),
        ("/lake", "s3://bucket/*.csv", None),
    ],
)
def test_another_cluster_gets_only_what_it_can_reach(
    storage: str, files: str, message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "org.yaml"
    path.write_text(
        f"name: acme\nstorage: {storage}\nsource: {{kind: files, tables: {{transactions: {{files: ['{files}']}}}}}}\n"
    )
    org = config.load(path)
    if message is None:
        submit.check_reachable(org, "http://head:8265")
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            submit.check_reachable(org, "http://head:8265")


def test_every_station_has_its_job() -> None:
    for station in jobs.STATIONS:
        assert (Path(jobs.__file__).parent / f"{station}.py").exists()


def test_closing_lines_and_messages_are_told_apart() -> None:
    job = submit.Submitted(submission_id="x")
    for line in (
        "Running entrypoint for job x: python -m jobs.train",
        '{"time": 1, "level": "info", "event": "train.progress", "done": 1}',
        '{"job": "train", "task": "churn", "run_id": "a", "manifest": "/lake/manifest.json", "seconds": 1}',
        "train segmentation: table transactions: no rows",
    ):
        job.read(line)
    assert [closing["task"] for closing in job.closings] == ["churn"]
    assert run_command._why("train", "segmentation", job.said, 2) == "train: table transactions: no rows"
    assert (
        run_command._why("train", "other", job.said, 137)
        == "train: the job ended with exit code 137; its log tells more"
    )


def test_a_refused_first_version_leaves_a_run_without_the_task_and_says_why() -> None:
    entry = {"job": "publish", "promoted": False, "why": "does not beat its baseline"}
    told = run_command._refused([
        {**entry, "task": "response", "previous": None}, {**entry, "task": "churn", "previous": "a" * 16},
        {**entry, "task": "leads", "previous": None, "promoted": True}, {"job": "score", "task": "value"},
    ])  # fmt: skip
    assert list(told) == ["response"]
    assert told["response"].startswith("publish: does not beat its baseline; `crmray submit publish response --force")


def test_a_servers_message_is_its_last_line() -> None:
    assert _reason('{"msg": "Traceback (most recent call last):\\n  File x\\nValueError: no such job"}') == (
        "ValueError: no such job"
    )
    assert _reason("") == "no reason given"


# ---------------------------------------------------------------------------------------------------------- text


def test_tables_align_and_mark_what_is_missing() -> None:
    rows = [{"task": "churn", "value": 0.87654, "n": 3}, {"task": "clv", "value": None, "n": 12}]
    assert text.table(rows).splitlines() == [
        "task    value   n",
        "─────  ──────  ──",
        "churn  0.8765   3",
        "clv         –  12",
    ]


def test_a_log_in_pieces_is_read_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    reader = text.LogReader(lines.append)
    for chunk in ('{"event": "shard.wro', 'te", "rows": 5, "parts": ["a", 0.5]}\nplain', " text\nlast"):
        reader(chunk)
    reader.close()
    assert lines == ['{"event": "shard.wrote", "rows": 5, "parts": ["a", 0.5]}', "plain text", "last"]
    assert capsys.readouterr().out == "    shard.wrote rows=5 parts=a, 0.5\n"


@pytest.mark.parametrize(("terminal", "flags"), [(True, []), (True, ["--json"]), (False, [])])
def test_a_terminal_gets_the_log_of_a_submitted_job_in_lines_for_people(
    terminal: bool, flags: list[str], org_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    why = "what is wrong, and at the end of it " * 9 + "what to do"  # longer than any line of `crmray run`
    lines = (
        "Running entrypoint",
        json.dumps({"time": 1, "level": "warning", "event": "shard.wrote", "rows": 5, "why": why}),
        json.dumps({"job": "shard", "task": "", "manifests": {"orders": "/lake/m.json"}, "told": why, "seconds": 1.5}),
    )

    class Cluster:
        address, head = "http://h", "ours"

        def __init__(self, *_: object) -> None:
            pass

        def submit(self, *_: object, **__: object) -> str:
            return "job-1"

        def follow(self, _: str, write: Callable[[str], object]) -> int:
            for line in lines:
                write(line)
                write("\n")
            return 0

    monkeypatch.setattr(submit, "Dashboard", Cluster)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert cli.main(["submit", "shard", "--org", str(org_file), *flags]) == 0
    told = capsys.readouterr().out.replace("\r\033[K", "")
    if terminal and not flags:
        assert told == (
            f"Running entrypoint\nshard.wrote rows=5 why={why}\n"
            f"job: shard\ntask: ''\nmanifests:\n  orders: /lake/m.json\ntold: {why}\nseconds: 1.5\n"
        )
    else:
        assert told == "".join(f"{line}\n" for line in lines)


def test_a_run_that_could_not_write_back_is_refused_before_its_first_job(tmp_path: Path) -> None:
    path = tmp_path / "org.yaml"
    path.write_text("name: a\nstorage: lake\nsource: {kind: demo}\ntasks: {churn: {}}\nwriteback: {churn: {}}\n")
    no_cluster: Any = None
    with pytest.raises(ConfigError, match="got source kind demo, expected salesforce"):
        run_command.run(no_cluster, config.load(path), tasks=None, tune=False, port=None)


@pytest.mark.parametrize(
    ("tasks", "command"),
    [
        (["churn", "forecast"], "churn ID --explain"),
        (["sentiment", "intent", "custom.again"], "custom.again ID --explain"),
        (["forecast", "sentiment"], "forecast ID"),  # give no reasons, and refuse to be asked for some
    ],
)
def test_a_run_ends_with_a_command_that_its_tasks_answer(tasks: list[str], command: str) -> None:
    assert run_command.predict_of(tasks) == f"crmray predict {command}"


def test_what_is_cut_says_so_and_ends_with_a_word() -> None:
    assert text.cut("one two three", 13) == "one two three"
    assert text.cut("one two three", 12) == "one two …"
    assert text.cut("abcdef", 3) == "abc …"


# ---------------------------------------------------------------------------------------------------------- serving


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, '{"error": {"code": "not_found", "message": "POST /v1/churn: Not Found", "field": null}}',
         "http://h/v1/churn: no task is served there; `crmray status` lists what is, `crmray deploy ORG.yaml`"),
        (405, '{"error": {"code": "method_not_allowed", "message": "it", "field": null}}', "no task is served there"),
        (503, '{"error": {"code": "not_deployed", "message": "it", "field": null}}', "no task is served there"),
        (404, "Path '/v1/churn' not found.", "no task is served there"),
        (404, '{"error": {"code": "unknown_customer", "message": "this customer is not known", "field": "id"}}',
         "http://h/v1/churn: 404 this customer is not known"),
        (502, "<html>Bad\n gateway</html>", "http://h/v1/churn: 502 <html>Bad gateway</html>"),
    ],
)  # fmt: skip
def test_a_refusal_of_an_endpoint_is_told_in_words(
    status: int, body: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = requests.Response()
    answer.status_code, answer._content = status, body.encode()
    monkeypatch.setattr(requests.Session, "post", lambda *_, **__: answer)
    monkeypatch.setenv("CRMRAY_KEY", "k")
    assert cli.main(["predict", "churn", "C1", "--url", "http://h"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert '{"error"' not in said
