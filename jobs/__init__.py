"""What you submit: one parse, one call into the Python API, one closing JSON line that names the manifest.

    python -m jobs.train churn --org org.yaml --set lr=3e-4     on this machine
    crmray submit train churn --org org.yaml --set lr=3e-4      on the cluster

A job over several tasks does one after the other and closes each with a line of its own; one that is refused (code 2)
does not stop the rest, a fault of ours does. Exit code 0: done; 2: the request, the org file or the data is wrong, told
in one line; 1: a fault of ours, with its traceback; 143: stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from crmray import log
from crmray.errors import ConfigError, CrmrayError

if TYPE_CHECKING:
    from crmray.org import OpenOrg

STATIONS = {
    "ingest": "bring the source's objects into the lake",
    "shard": "type, clean and shard them with Modin",
    "examples": "make as-of rows of tasks",
    "train": "fit every candidate of tasks once, refit the winner",
    "tune": "search the candidates' grids with Ray Tune, refit the winner",
    "evaluate": "write the pages of tasks' champions; without a task the page that compares all",
    "publish": "compare with the champion; promote, refuse or roll back",
    "score": "predict for all that is known now: every customer, open lead, recent text or series",
    "writeback": "bring the predictions into fields of the org, or take them back",
}
WITHOUT_TASK = ("ingest", "shard")
FOR_ALL = ("evaluate",)
"""without a task these do what concerns all of them"""


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


# Flags: name of the option in the Python API -> flag and how argparse reads it.
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "candidates": ("--candidates", {"action": "append", "metavar": "NAME", "help": "only this model (again for more)"}),
    "overrides": ("--set", {"action": "append", "metavar": "FIELD=VALUE", "help": "a hyper-parameter, e.g. lr=3e-4"}),
    "num_workers": ("--workers", {"type": _count, "help": "training workers for the refit; default: all that fit"}),
    "concurrency": ("--concurrency", {"type": _count, "help": "trials at the same time; default: all that fit"}),
    "scheduler": ("--scheduler", {"choices": ["asha"], "help": "stop hopeless trials early"}),
    "search": ("--search", {"choices": ["optuna"], "help": "search instead of the full grid (extra `optuna`)"}),
    "version": ("--version", {"help": "a bundle's version; default: the newest, to evaluate the champion"}),
    "force": ("--force", {"metavar": "REASON", "help": "promote whatever the comparison says, and say why"}),
    "dry_run": ("--dry-run", {"action": "store_true", "help": "show counts and samples, write nothing"}),
    "undo": ("--undo", {"metavar": "RUN", "help": "restore what this receipt replaced, where it still stands"}),
    "rollback": ("--rollback", {"action": "store_true", "help": "make the previous champion champion again"}),
}


ALONE = ("undo", "rollback")
"""go with no other option"""


def refuse_together(options: Iterable[str]) -> None:
    """ConfigError where these options were given together and one of them goes alone."""
    names = [FLAGS[option][0] for option in options]
    for one in (FLAGS[option][0] for option in ALONE):
        if one in names and len(names) > 1:
            raise ConfigError(f"got {' with '.join(sorted(names, key=one.__ne__))}, expected {one} alone")


def add_flags(parser: argparse.ArgumentParser, options: Iterable[str]) -> None:
    """Add the flags of these options."""
    for option in options:
        flag, how = FLAGS[option]
        parser.add_argument(flag, dest=option, **how)


def job(
    name: str,
    call: Callable[[OpenOrg, str, dict[str, Any]], Any],
    *,
    flags: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run `call(org, task, options)` for each task (task "" for stations without) and print the closing lines.

    options: those of `flags` that were given, under their names in the Python API. Returns the exit code.
    """
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=STATIONS[name])
    if name not in WITHOUT_TASK:
        count = "*" if name in FOR_ALL else "+"
        parser.add_argument("tasks", nargs=count, metavar="task", help="churn, leads, custom.NAME, …")
    parser.add_argument("--org", required=True, metavar="ORG.yaml", help="the org file")
    add_flags(parser, flags)
    arguments = parser.parse_args(argv)
    log.setup()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that claims are given back and Ray is left in order
    tasks, started = getattr(arguments, "tasks", None) or [""], time.monotonic()
    outcomes = []
    for number, task in enumerate(tasks, 1):
        if len(tasks) > 1:
            elapsed_s = round(time.monotonic() - started, 1)
            log.event(f"{name} {task}.begun", number=number, of=len(tasks), elapsed_s=elapsed_s)
        outcomes.append(_one(name, call, arguments, task, {option: getattr(arguments, option) for option in flags}))
    return max(outcomes)


def _one(name: str, call: Callable[..., Any], arguments: argparse.Namespace, task: str, options: dict[str, Any]) -> int:
    from crmray import config
    from crmray.org import OpenOrg

    started, start = time.monotonic(), datetime.now(timezone.utc)
    try:
        options = {option: value for option, value in options.items() if value}
        refuse_together(options)
        whole = not options  # calls take options out
        if "overrides" in options:
            options["overrides"] = settings_of(options["overrides"])
        # The tasks' code is heavy; what runs before any task does without it.
        org = OpenOrg.load(arguments.org) if name not in WITHOUT_TASK else OpenOrg(config.load(arguments.org))
        result = call(org, task, options)
        seconds = round(time.monotonic() - started, 2)
    except CrmrayError as error:
        print(f"{' '.join(filter(None, (name, task)))}: {error}", file=sys.stderr, flush=True)
        return 2
    line = {"job": name, "task": task, **closing(result), "seconds": seconds}
    print(json.dumps(line, default=str), flush=True)
    if whole:  # with a flag it may have done less: its time is not that of the job
        _note(org, name, task, result, start, seconds)
    return 0


def _note(org: OpenOrg, name: str, task: str, result: Any, start: datetime, seconds: float) -> None:
    """Keep the time for the next estimate; a warning where that fails, because the job itself is done."""
    from crmray.commands import estimate

    try:
        if is_new(result, start):
            estimate.note(org.config, name, task, seconds)
    except (CrmrayError, OSError, ValueError) as error:
        log.warn("job.time_not_kept", station=name, task=task, why=f"{type(error).__name__}: {error}")


def settings_of(pairs: Iterable[str]) -> dict[str, Any]:
    """`lr=3e-4` → {"lr": 0.0003}: values are JSON where they can be, else text."""
    settings = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not (field and equals):
            raise ConfigError(f"--set: got {pair!r}, expected FIELD=VALUE, for example lr=3e-4")
        try:
            settings[field] = json.loads(value)
        except ValueError:
            settings[field] = value
    return settings


def is_new(result: Any, start: datetime) -> bool:
    """Whether a job that began then made something; what was there already, or refused, or only shown, was not made."""
    from crmray.storage import Run

    runs = [run for run in (result.values() if isinstance(result, Mapping) else [result]) if isinstance(run, Run)]
    if not runs:
        return bool(result.get("promoted"))
    begun = start.replace(microsecond=start.microsecond // 1000 * 1000)  # manifests tell milliseconds
    return any(datetime.fromisoformat(run.manifest()["created_at"]) >= begun for run in runs)


def closing(result: Any) -> dict[str, Any]:
    """Fields of the closing line: the manifest's path of one run, of several by name, or a ledger entry as it is."""
    from crmray.storage import Run

    if isinstance(result, Run):
        return {"run_id": result.run_id, "manifest": f"{result.path}/manifest.json"}
    if isinstance(result, Mapping) and all(isinstance(run, Run) for run in result.values()):
        return {"manifests": {name: f"{run.path}/manifest.json" for name, run in result.items()}}
    return dict(result)
