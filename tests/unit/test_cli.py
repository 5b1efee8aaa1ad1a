"""The command line without a cluster: help, one-line errors, drafts, tables, what may be removed, what is deployed."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import jobs
from crmray import cli, config
from crmray import dashboard as dashboard_module
from crmray.commands import doctor, draft, serving, submit, text
from crmray.commands import head as head_commands
from crmray.commands.estimate import estimate
from crmray.commands.lake import leftovers, unreferenced
from crmray.commands.run import _why
from crmray.dashboard import Dashboard, _reason
from crmray.errors import ClusterError, ConfigError
from crmray.head import Head, home, local_head, process_started, token_file
from crmray.keys import KeyFile
from crmray.org import OpenOrg
from crmray.storage import Lake

COMMANDS = (
    "init", "check", "up", "down", "run", "demo", "submit", "deploy", "predict", "keys", "compare", "status", "gc",
    "doctor",
)  # fmt: skip


@pytest.fixture
def org_file(tmp_path: Path) -> Path:
    path = tmp_path / "org.yaml"
    path.write_text("name: acme\nstorage: lake\nsource: {kind: demo, customers: 200}\ntasks: {churn: {}}\n")
    return path


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
        (["submit", "shard", "--org", "ORG"], "no cluster: none was given and no local head runs; do `crmray up`"),
        (["status", "--address", "head:8265"], "got address 'head:8265', expected the dashboard's URL"),
        (["compare", "nothing", "--org", "ORG"], "got task 'nothing', expected one of"),
        (["compare", "churn", "--org", "ORG"], "churn: no version yet in"),
        (["keys", "revoke", "nobody"], "got key name 'nobody', expected one of those in"),
        (["keys", "add"], "keys add: got no name, expected a name"),
        (["predict", "nothing", "1"], "got task 'nothing', expected one of churn"),
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


def test_doctor_finds_the_token_that_others_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    path = token_file()
    path.chmod(0o644)
    assert cli.main(["doctor"]) == 2
    assert f"BAD  {path} has mode 0644; others can read it: chmod 600" in capsys.readouterr().out
    assert token_file() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -------------------------------------------------------------------------------------------------------- local head


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
    assert _why("train", "segmentation", job.said, 2) == "train: table transactions: no rows"
    assert _why("train", "other", job.said, 137) == "train: the job ended with exit code 137; its log tells more"


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
    for chunk in ('{"event": "shard.wro', 'te", "rows": 5}\nplain', " text\nlast"):
        reader(chunk)
    reader.close()
    assert lines == ['{"event": "shard.wrote", "rows": 5}', "plain text", "last"]
    assert capsys.readouterr().out == "    shard.wrote rows=5\n"


# ---------------------------------------------------------------------------------------------------------- lake


def commit(lake: Lake, kind: str, name: str, run_id: str, **fields: object) -> None:
    run = lake.run(kind, name, run_id)
    run.write_bytes("data.bin", b"12345")
    run.commit(**fields)


def test_gc_keeps_what_is_current_published_or_needed_by_it(org_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(config.load(org_file).root)
    commit(lake, "tables", "transactions", "t-old")
    commit(lake, "examples", "churn", "e-old", inputs={"transactions": "t-old"})
    commit(lake, "bundles", "churn", "b-champion", data={"examples": "e-old"})
    commit(lake, "tables", "transactions", "t-lost")
    commit(lake, "examples", "churn", "e-lost", inputs={"transactions": "t-lost"})
    commit(lake, "tables", "transactions", "t-new")
    commit(lake, "examples", "churn", "e-new", inputs={"transactions": "t-new"})
    commit(lake, "bundles", "churn", "b-new", data={"examples": "e-new"})
    entry = {"task": "churn", "version": "b-champion", "previous": None}
    lake.write("registry/churn/ledger/000001.json", json.dumps(entry).encode())

    assert [(run.kind, run.run_id) for run in unreferenced(lake)] == [("examples", "e-lost"), ("tables", "t-lost")]
    assert cli.main(["gc", str(org_file)]) == 0
    assert "2 runs, 0 folders of _work, 0.0 MB would be removed with --yes" in capsys.readouterr().out
    assert lake.run("tables", "transactions", "t-lost").exists()
    assert cli.main(["gc", str(org_file), "--yes"]) == 0
    assert not lake.run("tables", "transactions", "t-lost").files()
    assert lake.run("tables", "transactions", "t-old").exists()
    assert unreferenced(lake) == []


def test_gc_removes_what_died_and_keeps_what_a_running_job_may_use(org_file: Path) -> None:
    lake = Lake(config.load(org_file).root)
    for number in ("1", "2"):
        commit(lake, "tables", "transactions", f"t{number}")
        commit(lake, "examples", "churn", f"e{number}", inputs={"transactions": f"t{number}"})
        commit(lake, "bundles", "churn", f"b{number}", inputs={"examples": f"e{number}"})
    lake.run("bundles", "churn", "b-dead").write_bytes("part.bin", b"1")
    work = ["_work/fits/churn/key", "_work/search/churn/b1", "_work/search/churn/b2", "_work/train/churn/b2-2"]
    for folder in work:
        lake.write(f"{folder}/file", b"1")

    with lake.run("bundles", "churn", "b-live").claim("train"):
        found = [(run.kind, run.run_id) for run in unreferenced(lake)]
        assert found == [("bundles", "b-dead"), ("bundles", "b1")]
        assert leftovers(lake) == []
    found_later = [run.run_id for run in unreferenced(lake)]
    assert found_later == ["b-dead", "b-live", "b1", "e1", "t1"]
    assert leftovers(lake, unreferenced(lake)) == [work[0], work[1], work[3]]

    assert cli.main(["gc", str(org_file)]) == 0
    assert lake.run("bundles", "churn", "b-dead").has("part.bin")
    assert cli.main(["gc", str(org_file), "--yes"]) == 0
    assert not lake.run("bundles", "churn", "b-dead").has("part.bin")
    assert lake.list("_work/*/*/*") == [work[2]]
    assert lake.latest("bundles", "churn").read_bytes("data.bin") == b"12345"
    assert lake.latest("tables", "transactions").read_bytes("data.bin") == b"12345"
    assert (unreferenced(lake), leftovers(lake)) == ([], [])


def test_an_estimate_says_size_rows_and_the_last_time_scaled(org_file: Path) -> None:
    org = config.load(org_file)
    lake = Lake(org.root)
    assert estimate(org, "ingest").startswith("ingest: generates about")
    assert "its input is not there yet" in estimate(org, "shard")
    commit(lake, "raw", "Order", "r1", rows=40)
    assert f"shard: reads 5 B, 40 rows; has not run in {org.root} yet" in estimate(org, "shard")
    commit(lake, "tables", "transactions", "t1", rows=40, facts={"seconds": 30.0, "input_bytes": 10})
    assert "reads 5 B, 40 rows; about 15 s by its last run" in estimate(org, "shard")


# ------------------------------------------------------------------------------------------------------- org files


def test_init_drafts_an_org_file_for_a_sales_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "retail.csv").write_text(
        "Invoice;StockCode;Description;Quantity;InvoiceDate;Price;Customer ID;Country\n"
        "489434;85048;LIGHTS;12;13/12/2009 07:45;6,95;13085;United Kingdom\n"
        "489435;79323;CAF\xc9;-2;02/12/2009 07:46;2,10;13085;France\n",
        encoding="latin-1",
    )
    out = tmp_path / "org.yaml"
    assert cli.main(["init", str(tmp_path / "retail.csv"), "--out", str(out)]) == 0
    assert "guesses to look at" in capsys.readouterr().out
    org = config.load(out)
    assert org.source.kind == "files"
    ((source,),) = org.source.tables.values()
    assert source.columns == {
        "entity_id": "Customer ID",
        "occurred_at": "InvoiceDate",
        "order_id": "Invoice",
        "product_id": "StockCode",
        "num_units": "Quantity",
        "unit_price_amount": "Price",
    }
    assert (source.date_format, source.delimiter, source.encoding) == ("%d/%m/%Y %H:%M", ";", "latin-1")
    assert set(org.tasks) == {"churn", "segmentation", "recommendation"}
    assert cli.main(["init", str(tmp_path / "retail.csv"), "--out", str(out)]) == 2


def test_init_drafts_an_org_file_for_labelled_rows(tmp_path: Path) -> None:
    path = tmp_path / "churn.csv"
    path.write_text("Call Failure,Complains,Status,Churn\n8,0,1,0\n0,1,2,1\n")
    guess = draft.guess(str(path))
    assert (guess.table, guess.label, guess.made_id) == ("customers", "Churn", True)
    drafted = tmp_path / "org.yaml"
    drafted.write_text(draft.render("calls", [guess], tmp_path))
    org = config.load(drafted)
    assert org.source.kind == "files"
    assert set(org.source.tables) == {"customers", "outcomes"}
    assert org.source.tables["customers"][0].attributes == ["Call Failure", "Complains", "Status"]
    assert org.source.tables["outcomes"][0].values == {"name": "churn"}
    assert org.tasks == {"churn": {"label": "outcome:churn"}}


def test_init_says_which_file_fits_nothing(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("alpha,beta\n1,2\n")
    text_of = draft.render("odd", [draft.guess(str(path))], tmp_path)
    assert f"# {path}: no canonical table fits its columns alpha, beta" in text_of


def test_init_writes_nothing_when_no_file_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "odd.csv", tmp_path / "org.yaml"
    path.write_text("alpha,beta\n1,2\n")
    assert cli.main(["init", str(path), "--out", str(out)]) == 2
    assert f"fit no canonical table ({path}: alpha, beta)" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`crmray check` with its shards made in this process: (tables, task settings) -> (exit code, what it says)."""
    from crmray.data.shard import shard

    def inline(fn, items, *, label, **_options):
        return ((item, fn(item)) for item in items)

    monkeypatch.setattr(OpenOrg, "shard", lambda self: shard(self.config, self.lake, inline))

    def check(tables: str, churn: str) -> tuple[int, str]:
        path = tmp_path / "org.yaml"
        path.write_text(
            f"name: t\nstorage: lake\nshards: 1\nsource: {{kind: files, tables: {tables}}}\ntasks: {{churn: {churn}}}\n"
        )
        return cli.main(["check", str(path)]), capsys.readouterr().out

    return check


def test_check_tells_a_mapped_column_without_values_and_dates_that_cannot_be(tmp_path: Path, checked) -> None:
    days = [f"20{20 + n // 12}-{n % 12 + 1:02d}-15" for n in range(48)]
    (tmp_path / "sales.csv").write_text("who,when,paid\n" + "".join(f"c1,{day},n/a\n" for day in days))
    tables = (
        "{transactions: {files: [sales.csv], columns: {entity_id: who, occurred_at: when, unit_price_amount: paid}}}"
    )
    code, told = checked(tables, "{horizon_days: 60}")
    assert code == 0
    assert "transactions: column unit_price_amount is mapped and has no value in any row" in told
    assert "churn: can run" in told
    code, told = checked(tables, "{horizon_days: 60, as_of: 2031-01-01}")
    assert code == 2
    assert "churn: cannot run: got as_of 2031-01-01 with horizon_days 60, but the data ends on 2023-12-15" in told


def test_check_says_that_one_label_is_not_enough(tmp_path: Path, checked) -> None:
    (tmp_path / "rows.csv").write_text("id,age,left\n" + "".join(f"c{n},{n},0\n" for n in range(300)))
    tables = (
        "{customers: {files: [rows.csv], columns: {entity_id: id}, attributes: [age]}, outcomes: "
        "{files: [rows.csv], columns: {entity_id: id, value: left}, values: {name: left}}}"
    )
    code, told = checked(tables, '{label: "outcome:left"}')
    assert (code, "churn: cannot run: all labelled rows have the same label" in told) == (2, True)


# ---------------------------------------------------------------------------------------------------------- serving


def test_deployment_names_the_org_its_tasks_and_the_keys(org_file: Path) -> None:
    org = config.load(org_file)
    deployment = serving.serve_config(org, port=8123)
    assert [application["name"] for application in deployment["applications"]] == ["root", "churn"]
    assert all(application["args"]["org"] == str(org_file) for application in deployment["applications"])
    assert deployment["http_options"]["port"] == 8123
    assert deployment["http_options"]["host"] == "127.0.0.1"
    assert serving.route("segmentation") == "/v1/segment"


def test_another_cluster_reads_the_org_file_in_its_lake_or_its_own(tmp_path: Path) -> None:
    path = tmp_path / "org.yaml"
    for storage, args in (("/lake", {"org": "/lake/org.yaml"}), ("s3://bucket/lake", {})):
        path.write_text(f"name: acme\nstorage: {storage}\nsource: {{kind: demo}}\ntasks: {{churn: {{}}}}\n")
        root, churn = serving.serve_config(config.load(path), elsewhere=True)["applications"]
        assert root["args"] == args
        assert churn["args"] == {"task": "churn", **args}


def test_the_command_lines_key_is_made_once_and_made_anew_when_revoked() -> None:
    first = serving.ensure_cli_key()
    assert serving.ensure_cli_key() == first
    assert serving.cli_key() == first
    assert stat.S_IMODE((home() / "key").stat().st_mode) == 0o600
    KeyFile().revoke(serving.CLI_KEY_NAME)
    second = serving.ensure_cli_key()
    assert second != first
    keys = KeyFile()
    keys.refresh()
    assert (keys.check(first), keys.check(second)) == (None, serving.CLI_KEY_NAME)
