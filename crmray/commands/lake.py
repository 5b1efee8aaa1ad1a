"""`crmray compare`, `crmray audience`, `crmray status`, `crmray gc`: what lies in the lake and what of it is live."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from crmray import claim, config
from crmray.commands.serving import base_url
from crmray.commands.text import table
from crmray.config import Org
from crmray.dashboard import Dashboard
from crmray.errors import BundleError, ClusterError, ConfigError, NoChampionError, NotFoundError
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
    comparing.add_argument("task", metavar="TASK", help="churn, leads, custom.NAME, …")
    comparing.add_argument("--org", required=True, metavar="ORG.yaml", help="the org file")
    comparing.set_defaults(call=compare_command)
    reaching = commands.add_parser(
        "audience",
        help="the customers whom a product fits best",
        description="The customers for whom a product stands highest among all that they may be shown, by the champion "
        "of the recommendation, as CSV: entity_id (as your data write it) and place. Who owns it already is left out "
        "unless people buy the same again.",
        epilog="example: crmray audience P0042 --org org.yaml --top 500 > audience.csv",
    )
    reaching.add_argument("product", metavar="PRODUCT", help="a product id")
    reaching.add_argument("--org", required=True, metavar="ORG.yaml", help="the org file")
    reaching.add_argument("--top", type=int, default=100, metavar="N", help="so many customers at most (default: 100)")
    reaching.set_defaults(call=audience_command)
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
        description="Runs that no latest.json, ledger entry or kept run refers to, runs whose process died and what "
        "training left in _work/ are shown, and removed with --yes. What a running job may use stays.",
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
    rows = compare(Lake.of(org), tasks.task(arguments.task))
    if not rows:
        raise NotFoundError(f"{arguments.task}: no version yet in {org.root}; run the 'train' job first")
    print(table(rows))
    return 0


def audience_command(arguments: argparse.Namespace) -> int:
    """Print the customers."""
    import crmray

    if arguments.top < 1:
        raise ConfigError(f"--top: got {arguments.top}, expected 1 or more")
    found = crmray.open(arguments.org).audience(arguments.product, num_customers=arguments.top)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(found.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in found.columns), strict=True))
    if not found.num_rows:
        why = (
            "everybody owns it, it is excluded or out of stock, nobody had bought it when the model was fitted, or "
            "those it fits withdrew consent"
        )
        print(f"nobody may be shown {arguments.product}: {why}", file=sys.stderr)
    return 0


def champion_row(org: Org, task: str) -> dict[str, Any] | None:
    """The champion of a task, its figure, and on the same rows the best baseline (of the models beside it that are no
    neural network), the best neural model and the ceiling.

    None where nothing is published. A bundle of another format has no figures; a ceiling is known for the demo org
    only.
    """
    from crmray import tasks
    from crmray.bundle import about_of
    from crmray.registry import Ledger

    lake, which = Lake.of(org), tasks.task(task)
    try:
        version = Ledger(lake, task).champion()
    except NoChampionError:
        return None
    try:
        about = about_of(lake.run("bundles", task, version))
    except BundleError:  # of another format: named here all the same, the stations that open it say what to do
        return {"task": task, "champion": "of another format", "version": version}
    on_test = which.METRIC in (about.get("test") or {})
    figures = (
        {name: one.get("refit", one["plain"]) for name, one in about["test_candidates"].items()} if on_test else {}
    )
    values = {name: one[which.METRIC] for name, one in (figures or about["metrics"]).items() if which.METRIC in one}
    neural = {name for name, kind in which.CANDIDATES.items() if kind.KIND == "torch"}
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
            "seconds": _seconds(job),
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


def _seconds(job: dict[str, Any]) -> int | None:
    """How long a job ran, or has run so far; None before it starts."""
    if not job.get("start_time"):
        return None
    return round((job.get("end_time") or time.time() * 1000) / 1000 - job["start_time"] / 1000)


# -------------------------------------------------------------------------------------------------------------- gc


def gc_command(arguments: argparse.Namespace) -> int:
    """Show or remove what nothing refers to."""
    org = config.load(arguments.org)
    lake = Lake.of(org)
    useless = unreferenced(lake)
    folders = [run.path for run in useless] + [f"{lake.base}/{folder}" for folder in leftovers(lake, useless)]
    size = 0
    for folder in folders:
        folder_bytes = lake.fs.du(folder)
        size += folder_bytes
        print(f"{folder.removeprefix(lake.base + '/')}  {folder_bytes / 1e6:.1f} MB")
        if arguments.yes:
            # The manifest first: a run without one does not exist, whenever this stops.
            if lake.fs.exists(f"{folder}/manifest.json"):
                lake.fs.rm_file(f"{folder}/manifest.json")
            lake.fs.rm(folder, recursive=True)
    done = "removed" if arguments.yes else "would be removed with --yes"
    print(f"{len(useless)} runs, {len(folders) - len(useless)} folders of _work, {size / 1e6:.1f} MB {done}")
    return 0


def unreferenced(lake: Lake) -> list[Run]:
    """Runs of no use: complete ones that neither a latest.json nor the ledger nor a kept run names, and incomplete ones
    that no living process works on.

    What a living one reads its claim does not say, so all complete runs of the kinds before its own stay.
    """
    runs = {(run.kind, run.name, run.run_id): run for run in _folders(lake)}
    held = {key for key, run in runs.items() if claim.is_held(run)}
    # Looked at last: a run that is completed meanwhile is held above or complete here, never neither.
    complete = {path.rsplit("/", 1)[0] for kind in GC_KINDS for path in lake.list(f"{kind}/*/*/manifest.json")}
    # One claim may stand for several runs that are made together: they have one id.
    kept = {key for key in runs if key[2] in {run_id for _, _, run_id in held}}
    last = max((GC_KINDS.index(kind) for kind, _, _ in held), default=0)
    queue = [key for key in runs if "/".join(key) in complete and key[0] in GC_KINDS[:last]]
    queue += [(kind, name, lake.latest(kind, name).run_id) for kind in GC_KINDS for name in lake.names(kind)]
    for path in lake.list("registry/*/ledger/*.json"):
        entry = json.loads(lake.read(path))
        queue += [("bundles", entry["task"], entry[key]) for key in ("version", "previous") if entry.get(key)]
    while queue:
        key = queue.pop()
        if key in kept or key not in runs:
            continue
        kept.add(key)
        if "/".join(key) not in complete:
            continue
        named = _ids(runs[key].manifest())
        queue += [other for other in runs if other[2] in named]
    return [run for key, run in sorted(runs.items()) if key not in kept]


def _folders(lake: Lake) -> Iterator[Run]:
    """Every folder of a run, complete or not."""
    for kind in GC_KINDS:
        for path in lake.list(f"{kind}/*/*"):
            if lake.fs.isdir(f"{lake.base}/{path}"):
                yield lake.run(*path.split("/"))


def leftovers(lake: Lake, useless: Sequence[Run] = ()) -> list[str]:
    """Folders of _work that no living training uses, under the root: finished fits, searches, checkpoints.

    They spare a killed training its work, and a new one on the same rows. The logs of searches that made a bundle
    which is not useless stay.
    """
    gone = {(run.kind, run.name, run.run_id) for run in useless}
    bundles = [run for run in _folders(lake) if run.kind == "bundles"]
    busy = {run.name for run in bundles if claim.is_held(run)}
    logs = {f"_work/search/{run.name}/{run.run_id}" for run in bundles if (run.kind, run.name, run.run_id) not in gone}
    return [
        path
        for path in lake.list("_work/*/*/*")
        if path.split("/")[2] not in busy and path not in logs and lake.fs.isdir(f"{lake.base}/{path}")
    ]


def _ids(value: Any) -> set[str]:
    """Every string in a manifest's fields but its list of files; run ids are among them."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return {one for key, part in value.items() if key != "files" for one in _ids(part)}
    if isinstance(value, list):
        return {one for part in value for one in _ids(part)}
    return set()
