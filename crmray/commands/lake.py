"""`crmray compare`, `crmray status`, `crmray gc`: what lies in the lake and what of it is live."""

from __future__ import annotations

import argparse
import json
from typing import Any

from crmray import config
from crmray.commands.serving import base_url
from crmray.commands.text import table
from crmray.config import Org
from crmray.dashboard import Dashboard
from crmray.errors import ClusterError, NoChampionError, NotFoundError
from crmray.storage import KINDS, Lake, Run

GC_KINDS = tuple(kind for kind in KINDS if kind not in ("registry", "receipts", "truth"))


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    comparing = commands.add_parser(
        "compare",
        help="versions of a task side by side",
        description="All versions of a task, newest first, with their figures; the champion is marked.",
        epilog="example: crmray compare churn --org org.yaml",
    )
    comparing.add_argument("task", help="churn, segmentation, recommendation, …")
    comparing.add_argument("--org", required=True, metavar="ORG.yaml", help="the org file")
    comparing.set_defaults(call=compare_command)
    status = commands.add_parser(
        "status",
        help="cluster, jobs, endpoints, champions",
        description="What runs: nodes, the last jobs, the endpoints; with --org the champions too.",
        epilog="example: crmray status --org org.yaml",
    )
    status.add_argument("--org", metavar="ORG.yaml", help="show this org's champions")
    status.add_argument("--address", help="dashboard of another cluster; default: the local head")
    status.set_defaults(call=status_command)
    collect = commands.add_parser(
        "gc",
        help="remove runs that nothing refers to",
        description="Runs that no latest.json, ledger entry or kept run refers to are shown, and removed with --yes.",
        epilog="example: crmray gc org.yaml --yes",
    )
    collect.add_argument("org", metavar="ORG.yaml", help="the org file")
    collect.add_argument("--yes", action="store_true", help="remove them")
    collect.set_defaults(call=gc_command)


# --------------------------------------------------------------------------------------------- champions, versions


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the versions."""
    from crmray import tasks
    from crmray.registry import compare

    org = config.load(arguments.org)
    rows = compare(Lake(org.root), tasks.task(arguments.task))
    if not rows:
        raise NotFoundError(f"{arguments.task}: no version yet in {org.root}; run the 'train' job first")
    print(table(rows))
    return 0


def champion_row(org: Org, task: str) -> dict[str, Any] | None:
    """The champion of a task, its figure, and on the same rows the best baseline, neural model and the ceiling.

    None where nothing is published; a ceiling is known for the demo org only.
    """
    from crmray import tasks
    from crmray.registry import Ledger

    lake, which = Lake(org.root), tasks.task(task)
    try:
        version = Ledger(lake, task).champion()
    except NoChampionError:
        return None
    about = json.loads(lake.run("bundles", task, version).read_bytes("bundle.json"))
    on_test = which.METRIC in (about.get("test") or {})
    figures = (
        {name: one.get("refit", one["plain"]) for name, one in about["test_candidates"].items()} if on_test else {}
    )
    values = {name: one[which.METRIC] for name, one in (figures or about["metrics"]).items() if which.METRIC in one}
    neural = {name for name, kind in which.CANDIDATES.items() if kind.NEURAL}
    champion, ceiling = about["candidate"], about.get("best_possible") or {}
    return {
        "task": task,
        "champion": champion,
        "metric": f"{which.METRIC} ({'test' if on_test else 'validation'})",
        "value": about["test"][which.METRIC] if on_test else values.get(champion),
        "best baseline": _best(values, set(values) - neural - {champion}, which.MODE),
        "best neural": _best(values, set(values) & neural, which.MODE),
        "best possible": ceiling.get(which.METRIC),
        "version": version,
    }


def _best(values: dict[str, float], names: set[str], mode: str) -> str | None:
    if not names:
        return None
    name = (max if mode == "max" else min)(sorted(names), key=lambda one: values[one])
    return f"{name} {values[name]:.4f}"


def status_command(arguments: argparse.Namespace) -> int:
    """Print what runs; without a cluster say so and still show the champions."""
    try:
        _cluster(Dashboard(arguments.address))
    except ClusterError as error:
        print(error)
    if arguments.org:
        org = config.load(arguments.org)
        rows = [champion_row(org, task) or {"task": task, "champion": "none"} for task in org.tasks]
        print("\nchampions\n" + table(rows, ("task", "champion", "metric", "value", "version")))
    return 0


def _cluster(dashboard: Dashboard) -> None:
    print(f"cluster    {dashboard.address}, Ray {dashboard.version()['ray_version']}")
    nodes = [
        {
            "node": node["node_ip"],
            "state": node["state"],
            "CPU": round(node["resources_total"].get("CPU", 0)),
            "GPU": round(node["resources_total"].get("GPU", 0)),
            "memory GiB": round(node["resources_total"].get("memory", 0) / 2**30),
        }
        for node in dashboard.nodes()
    ]
    print(table(nodes))
    jobs = [
        {
            "job": job["submission_id"],
            "status": job["status"],
            "seconds": round(((job.get("end_time") or 0) - (job.get("start_time") or 0)) / 1000) or None,
        }
        for job in dashboard.jobs()[:10]
    ]
    print("\njobs\n" + (table(jobs) if jobs else "none yet"))
    base = base_url(dashboard)
    applications = [
        {"endpoint": f"{base}{application.get('route_prefix')}", "status": application["status"]}
        for application in dashboard.serve()["applications"].values()
    ]
    print("\nendpoints\n" + (table(applications) if applications else "none; `crmray deploy ORG.yaml` makes them"))


# -------------------------------------------------------------------------------------------------------------- gc


def gc_command(arguments: argparse.Namespace) -> int:
    """Show or remove what nothing refers to."""
    org = config.load(arguments.org)
    lake = Lake(org.root)
    useless = unreferenced(lake)
    size = 0
    for run in useless:
        run_bytes = sum(lake.fs.size(f"{run.path}/{name}") for name in run.files())
        size += run_bytes
        print(f"{run.kind}/{run.name}/{run.run_id}  {run_bytes / 1e6:.1f} MB")
        if arguments.yes:
            # The manifest first: a run without one does not exist, whenever this stops.
            if run.exists():
                lake.fs.rm_file(f"{run.path}/manifest.json")
            lake.fs.rm(run.path, recursive=True)
    done = "removed" if arguments.yes else "would be removed with --yes"
    print(f"{len(useless)} runs, {size / 1e6:.1f} MB {done}")
    return 0


def unreferenced(lake: Lake) -> list[Run]:
    """Complete runs that neither a latest.json nor the ledger nor a kept run names."""
    runs = {
        (kind, name, path.split("/")[2]): lake.run(kind, name, path.split("/")[2])
        for kind in GC_KINDS
        for path in lake.list(f"{kind}/*/*/manifest.json")
        for name in [path.split("/")[1]]
    }
    kept: set[tuple[str, str, str]] = set()
    queue = [(kind, name, lake.latest(kind, name).run_id) for kind in GC_KINDS for name in lake.names(kind)]
    for path in lake.list("registry/*/ledger/*.json"):
        entry = json.loads(lake.read(path))
        queue += [("bundles", entry["task"], entry[key]) for key in ("version", "previous") if entry.get(key)]
    while queue:
        key = queue.pop()
        if key in kept or key not in runs:
            continue
        kept.add(key)
        named = _ids(runs[key].manifest())
        queue += [other for other in runs if other[2] in named]
    return [run for key, run in sorted(runs.items()) if key not in kept]


def _ids(value: Any) -> set[str]:
    """Every string in a manifest's fields but its list of files; run ids are among them."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return {one for key, part in value.items() if key != "files" for one in _ids(part)}
    if isinstance(value, list):
        return {one for part in value for one in _ids(part)}
    return set()
