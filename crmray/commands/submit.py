"""`crmray submit`: one job through the Ray Jobs API, followed to its end."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crmray import __version__, config
from crmray.commands.estimate import estimate
from crmray.commands.text import LogReader, object_of
from crmray.config import FilesSource, Org
from crmray.dashboard import Dashboard
from crmray.errors import ConfigError
from jobs import FLAGS, FOR_ALL, STATIONS, WITHOUT_TASK, add_flags, refuse_together


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "submit",
        help="run one job on the cluster",
        description="Submit a job through the Ray Jobs API, follow its log and end with its exit code. A terminal gets "
        "the log as lines for people, a pipe or a file as the job wrote it: a JSON object for each event.",
        epilog="examples: crmray submit shard --org org.yaml    crmray submit train churn --org org.yaml --set lr=3e-4"
        "    crmray submit evaluate --org org.yaml",
    )
    parser.add_argument("job", choices=STATIONS, metavar="JOB", help=", ".join(STATIONS))
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        help=f"churn, leads, custom.NAME, … of the org file; none for {' and '.join(WITHOUT_TASK)}; {FOR_ALL[0]} "
        "without any compares all",
    )
    parser.add_argument("--org", required=True, metavar="ORG.yaml", help="the org file")
    parser.add_argument(
        "--address", help="dashboard of another cluster, e.g. http://head:8265; default: the local head"
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    parser.add_argument("--json", action="store_true", help="the log as the job wrote it on a terminal too")
    add_flags(parser, FLAGS)
    parser.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """Submit and follow; returns the job's exit code."""
    if arguments.job not in FOR_ALL and bool(arguments.tasks) == (arguments.job in WITHOUT_TASK):
        wanted = "no task" if arguments.job in WITHOUT_TASK else "at least one task"
        raise ConfigError(f"submit {arguments.job}: got {arguments.tasks or 'no task'}, expected {wanted}")
    _check_flags(arguments)
    org, dashboard = _asked(arguments.org, arguments.job, arguments.tasks), Dashboard(arguments.address)
    print(estimate(org, arguments.job, arguments.tasks), file=sys.stderr)
    started = submit(dashboard, org, arguments.job, arguments.tasks, flags_of(arguments))
    print(f"{started.submission_id} on {dashboard.address}", file=sys.stderr, flush=True)
    if arguments.no_wait:
        return 0
    try:
        if arguments.json or not sys.stdout.isatty():
            return dashboard.follow(started.submission_id, lambda text: print(text, end="", flush=True))
        with contextlib.closing(LogReader(started.read, indent="", whole=True)) as reader:
            return dashboard.follow(started.submission_id, reader)
    except KeyboardInterrupt:
        print(f"the job goes on; to stop it: ray job stop {started.submission_id}", file=sys.stderr)
        raise


def _check_flags(arguments: argparse.Namespace) -> None:
    """ConfigError for flags that the job does not take, or that do not go together."""
    given = [option for option in FLAGS if getattr(arguments, option)]
    taken = getattr(importlib.import_module(f"jobs.{arguments.job}"), "FLAGS", ())
    if foreign := [FLAGS[option][0] for option in given if option not in taken]:
        known = ", ".join(FLAGS[option][0] for option in taken) or "none"
        raise ConfigError(f"submit {arguments.job}: got {', '.join(foreign)}, expected flags of this job: {known}")
    refuse_together(given)


def _asked(path: str, job: str, wanted: Sequence[str]) -> Org:
    """The org file; ConfigError, before anything goes to the cluster, for a task that it does not ask for, whose
    section is wrong, or whose predictions have no place in the source to be written back to."""
    if not wanted:
        return config.load(path)  # the tasks' code is heavy; what runs before any task does without it
    from crmray import tasks
    from crmray.org import OpenOrg

    org = OpenOrg.load(path)
    for name in wanted:
        tasks.settings(org.config, name)
        if job == "writeback":
            org.aim(name)
    return org.config


def flags_of(arguments: argparse.Namespace) -> list[str]:
    """The shared flags that were given, as the job's own command line takes them."""
    words: list[str] = []
    for option, (flag, _) in FLAGS.items():
        value = getattr(arguments, option)
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [f"{flag}={one}" for one in value]
        elif value:
            words.append(f"{flag}={value}")
    return words


@dataclass(kw_only=True)
class Submitted:
    """A job that was handed in, and what its log has told so far."""

    submission_id: str
    """name on the cluster"""
    closings: list[dict[str, Any]] = field(default_factory=list)
    """closing lines, one per task that was done"""
    said: list[str] = field(default_factory=list)
    """other lines of the log, newest last"""

    def read(self, line: str) -> None:
        """Sort one line of the log in."""
        parsed = object_of(line)
        if parsed and "job" in parsed and ("manifest" in parsed or "manifests" in parsed or "version" in parsed):
            self.closings.append(parsed)
        elif not parsed:
            self.said = [*self.said[-199:], line]


def check_reachable(org: Org, address: str) -> None:
    """ConfigError when storage or source files are named relative to the org file, which other nodes do not have."""
    named = {"storage": [org.storage]}
    if isinstance(org.source, FilesSource):
        for table, sources in org.source.tables.items():
            named[f"source.tables.{table}.files"] = [path for source in sources for path in source.files]
    for key, places in named.items():
        for place in places:
            if not re.match(r"[a-z][a-z0-9+.-]*://|/", place):
                raise ConfigError(
                    f"org file {org.path}: {key}: got {place!r}, which lies on this machine, expected a URL or an "
                    f"absolute path that the nodes of {address} share"
                )


def submit(dashboard: Dashboard, org: Org, job: str, tasks: Sequence[str], flags: Iterable[str] = ()) -> Submitted:
    """Hand a job in. On another cluster the org file travels along; what it names has to be reachable from there."""
    if dashboard.head:
        python, org_file, runtime_env = shlex.quote(sys.executable), org.path, {}
    else:
        check_reachable(org, dashboard.address)
        content = Path(org.path).read_bytes()
        python, org_file, runtime_env = "python", "org.yaml", {"working_dir": dashboard.upload({"org.yaml": content})}
    words = [*tasks, f"--org={org_file}", *flags]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = "-".join([org.name, job, *([tasks[0]] if len(tasks) == 1 else []), stamp, secrets.token_hex(2)])
    submission_id = dashboard.submit(
        f"{python} -m jobs.{job} {shlex.join(words)}",
        submission_id=name,
        metadata={
            "org": org.name,
            "station": job,
            "tasks": ",".join(tasks),
            "crmray": __version__,
        },
        runtime_env=runtime_env,
    )
    return Submitted(submission_id=submission_id)
