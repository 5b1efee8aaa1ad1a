"""`crmray run`: every station of an organisation through submitted jobs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from crmray.commands import lake as lake_commands
from crmray.commands import serving
from crmray.commands.estimate import estimate, first_run
from crmray.commands.submit import submit
from crmray.commands.text import LogReader, table
from crmray.config import Org
from crmray.dashboard import Dashboard
from crmray.errors import ConfigError, CrmrayError
from crmray.storage import Lake

COLUMNS = (
    "task",
    "champion",
    "metric",
    "value",
    "best baseline",
    "best neural",
    "best possible",
    "version",
    "endpoint",
)


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    parser = commands.add_parser(
        "run",
        help="all stations for all tasks, to live endpoints",
        description="Run every station through submitted jobs (what is done is skipped), deploy, write back what "
        "`writeback:` of the org file names, and end in one table and the pages to open.",
        epilog="examples: crmray run org.yaml    crmray run org.yaml --tune --task churn --no-deploy",
    )
    parser.add_argument("org", metavar="ORG.yaml", help="the org file")
    parser.add_argument("--tune", action="store_true", help="search the grids instead of training the defaults")
    parser.add_argument("--task", action="append", help="only this task (again for more); default: all of the org file")
    parser.add_argument("--address", help="dashboard of another cluster; default: the local head")
    parser.add_argument("--no-deploy", action="store_true", help="leave Serve as it is")
    parser.add_argument("--port", type=int, default=serving.PORT, help="of the endpoints, where Serve is started")
    parser.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """Run all stations; exit code 2 when a task could not be brought to a champion."""
    from crmray.org import OpenOrg

    org = OpenOrg.load(arguments.org).config  # with the tasks' sections, which the first jobs do not look at
    dashboard = Dashboard(arguments.address)
    code = run(
        dashboard, org, tasks=arguments.task, tune=arguments.tune, port=None if arguments.no_deploy else arguments.port
    )
    if not code and not arguments.no_deploy:
        print(
            f"\nnext: {predict_of(arguments.task or list(org.tasks))}; all endpoints: /docs beside them; "
            "`crmray down` ends them"
        )
    return code


def predict_of(tasks: Sequence[str]) -> str:
    """The command that asks one of the tasks: the first that gives reasons, or without them the first."""
    from crmray.org import answer_of
    from crmray.tasks import task  # imports torch, which the other commands do without

    explained = [one for one in tasks if "reasons" in answer_of(task(one)).model_fields]
    return f"crmray predict {explained[0]} ID --explain" if explained else f"crmray predict {tasks[0]} ID"


def run(dashboard: Dashboard, org: Org, *, tasks: list[str] | None, tune: bool, port: int | None) -> int:
    """Every station for the tasks (None: all of the org file); port None: no deployment. Prints the closing table."""
    from crmray.org import OpenOrg
    from crmray.tasks import settings  # imports torch, which the other commands do without

    wanted = tasks or list(org.tasks)
    if not wanted:
        raise ConfigError(f"org file {org.path}: got no task, expected at least one under `tasks:`")
    for one in wanted:
        settings(org, one)  # refuses what the org file does not ask for
        if one in org.writeback:
            OpenOrg(org).aim(one)  # refuses what could not be written back in the end
    serving.check_org(dashboard, org, wanted if port is None else None)  # `publish` and `deploy` would refuse
    failed: dict[str, str] = {}
    if first := first_run(org):
        print(first, flush=True)
    for station in ("ingest", "shard"):
        told = _station(dashboard, org, station, [])
        if told:
            raise CrmrayError(told[""])
    for wave in _waves(wanted):
        for station in ("examples", "tune" if tune else "train", "publish", "score"):
            runnable = [task for task in wave if task not in failed]
            if runnable:
                failed |= _station(dashboard, org, station, runnable)
    endpoints: dict[str, str] = {}
    if port is not None:
        print("deploy", flush=True)
        endpoints = serving.deploy(dashboard, org, port=port)
    live = [task for task in wanted if task not in failed]
    if written := [task for task in live if task in org.writeback]:
        failed |= _station(dashboard, org, "writeback", written)
    if live:  # a write-back that failed costs no page
        failed |= _station(dashboard, org, "evaluate", live)
        if missing := _station(dashboard, org, "evaluate", []):
            failed["the page of all tasks"] = missing[""]
    print()
    print(table([_row(org, task, failed.get(task), endpoints.get(task)) for task in wanted], COLUMNS))
    print("Champions won on validation rows; the figures are those of the test rows.")
    print(_pages(org, wanted))
    for task, why in failed.items():
        print(f"\n{task}: {why}")
    return 2 if failed else 0


def _pages(org: Org, tasks: list[str]) -> str:
    """Where the pages of the tasks are, and the one that compares all."""
    from crmray.train.evaluation import ALL  # imports torch, as above

    lake = Lake.of(org)
    there = [name for name in (ALL, *tasks) if lake.has("evaluations", name)]
    return "\n".join(f"{name}: {lake.latest('evaluations', name).path}/report.html" for name in there)


def _row(org: Org, task: str, failure: str | None, endpoint: str | None) -> dict[str, Any]:
    row = lake_commands.champion_row(org, task)
    return {**row, "endpoint": endpoint} if row else {"task": task, "champion": "none" if not failure else "failed"}


def _waves(wanted: list[str]) -> list[list[str]]:
    """The tasks whose predictions others read, then the others: each wave goes through all stations."""
    from crmray.tasks import task  # as above

    read = {name for one in wanted for name in getattr(task(one), "AFTER", ())}
    first, rest = [one for one in wanted if one in read], [one for one in wanted if one not in read]
    return [wave for wave in (first, rest) if wave]


def _station(dashboard: Dashboard, org: Org, station: str, tasks: list[str]) -> dict[str, str]:
    """Submit one job for all tasks and follow it; task -> what went wrong ("" for a station without tasks)."""
    started = time.monotonic()
    print(estimate(org, station, tasks), flush=True)
    job = submit(dashboard, org, station, tasks)
    reader = LogReader(job.read)
    code = dashboard.follow(job.submission_id, reader)
    reader.close()
    print(f"    {job.submission_id}: {time.monotonic() - started:.1f} s", flush=True)
    done = {closing.get("task") or "" for closing in job.closings}
    missing = [task for task in (tasks or [""]) if task not in done]
    if code and not missing:  # every task was done, and then something failed
        raise CrmrayError(f"{station}: the job ended with exit code {code} after its last task; its log tells more")
    if code == 1 and missing:  # a fault of ours: its traceback is worth seeing
        print("\n".join(job.said[-40:]))
    return {task: _why(station, task, job.said, code) for task in missing} | _refused(job.closings)


def _refused(closings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Tasks that a publish left without any champion: there is nothing to score with."""
    return {
        one[
            "task"
        ]: f"publish: {one['why']}; `crmray submit publish {one['task']} --force REASON` takes it all the same"
        for one in closings
        if one.get("promoted") is False and one["previous"] is None
    }


def _why(station: str, task: str, said: list[str], code: int) -> str:
    start = " ".join(filter(None, (station, task))) + ": "
    told = [line.removeprefix(start) for line in said if line.startswith(start)]
    return f"{station}: {told[-1] if told else f'the job ended with exit code {code}; its log tells more'}"
