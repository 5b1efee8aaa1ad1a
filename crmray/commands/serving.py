"""`crmray deploy`, `crmray predict`, `crmray keys`: the endpoints."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import requests
import yaml

from crmray import config, disk
from crmray.commands.head import free_port
from crmray.commands.text import cut
from crmray.config import Org
from crmray.dashboard import Dashboard, NoCluster, with_headers
from crmray.errors import AuthError, ClusterError, ConfigError, CrmrayError, NotFoundError
from crmray.head import home
from crmray.keys import KeyFile
from crmray.storage import Lake

PORT = 8000
DEPLOY_TIMEOUT_S = 300.0
CLI_KEY_NAME = "crmray-cli"
START = "do `crmray up`, then `crmray deploy ORG.yaml` (what was published stays in the lake)"
"""how endpoints of this machine come back"""
HERE = ("http://127.0.0.1", "http://localhost", "http://[::1]")
"""how URLs of endpoints on this machine begin"""
APPLICATIONS = "serve.app:"
"""how import paths of applications begin that are crmray's"""
NOT_SERVED = ("not_found", "not_deployed", "method_not_allowed")
"""codes with which the root, or the application above it, answers for a task that has no application"""
PRINTED = """\
# For `serve deploy FILE`, or as serveConfigV2 of a RayService (cluster/rayservice.yaml).
# host 127.0.0.1 answers on the nodes themselves only; on Kubernetes, or behind a load balancer, set it to 0.0.0.0.
"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    deploy_parser = commands.add_parser(
        "deploy",
        help="put the endpoints of an org on Serve",
        description="Deploy an application for each task of an org file, and one for /, all as serve/config.yaml says. "
        "A head serves one org: endpoints of another one are not replaced. "
        "On another cluster the endpoints read <storage>/org.yaml; where storage is a URL (s3://…) they read the org "
        "file that CRMRAY_ORG names on its nodes, which has to be set there.",
        epilog="examples: crmray deploy org.yaml    crmray deploy org.yaml --print > serve.yaml",
    )
    deploy_parser.add_argument("org", metavar="ORG.yaml", help="the org file")
    deploy_parser.add_argument("--address", help="dashboard of another cluster; default: the local head")
    deploy_parser.add_argument("--port", type=int, default=PORT, help="of the endpoints, where Serve is started")
    deploy_parser.add_argument(
        "--print", action="store_true", dest="print_", help="only print the file for `serve deploy` or KubeRay"
    )
    deploy_parser.set_defaults(call=deploy_command)
    predict = commands.add_parser(
        "predict",
        help="ask an endpoint about ids",
        description="Ask the task's endpoint, with the key in CRMRAY_KEY, else with the one that `deploy` left here.",
        epilog="example: crmray predict churn C00042 --explain",
    )
    predict.add_argument("task", metavar="TASK", help="churn, leads, custom.NAME, … of the org file")
    predict.add_argument("ids", nargs="+", metavar="ID", help="up to 1,000 ids as the org writes them")
    predict.add_argument("--explain", action="store_true", help="with reasons")
    predict.add_argument("--url", help="where the endpoints are; default: those of the local head")
    predict.set_defaults(call=predict_command)
    keys = commands.add_parser(
        "keys",
        help="bearer keys of the endpoints",
        description="Add, revoke or list the bearer keys of the endpoints. A key is shown once, when it is made.",
        epilog="examples: crmray keys add salesforce    crmray keys revoke salesforce    crmray keys list",
    )
    keys.add_argument("action", choices=("add", "revoke", "list"), help="what to do")
    keys.add_argument("name", nargs="?", metavar="NAME", help="who uses the key; none for list")
    keys.set_defaults(call=keys_command)


# ---------------------------------------------------------------------------------------------------------- deploy


def deploy_command(arguments: argparse.Namespace) -> int:
    """Deploy and wait until the applications run."""
    org = config.load(arguments.org)
    if arguments.print_:
        print(PRINTED + yaml.safe_dump(serve_config(org, port=arguments.port, elsewhere=True), sort_keys=False), end="")
        return 0
    for task, url in deploy(Dashboard(arguments.address), org, port=arguments.port).items():
        print(f"{task:<16} POST {url}")
    return 0


def _template() -> dict[str, Any]:
    """serve/config.yaml as it stands."""
    spec = importlib.util.find_spec("serve")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package `serve` is not installed beside crmray; install crmray again")
    path = Path(next(iter(spec.submodule_search_locations))) / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def route(task: str) -> str:
    """Path of a task's endpoint; ConfigError when there is no such task."""
    from crmray import tasks  # imports torch, which the other commands do without

    return tasks.task(task).ROUTE


def serve_config(org: Org, *, port: int = PORT, elsewhere: bool = False) -> dict[str, Any]:
    """serve/config.yaml for this org: an application for each of its tasks, with the org file, a digest of the lake's
    address and the key file as args.

    elsewhere: on another cluster, whose nodes have a key file of their own (CRMRAY_KEYS) and the org file in the lake;
    an org file is not read from a URL, so with such a storage its path is left to CRMRAY_ORG of the nodes.
    """
    deployment = _template()
    own = {**_org_file(org, elsewhere), "lake": Lake.address_of(org.root)}
    if not elsewhere:
        own["keys"] = str(KeyFile().path)
    by_task = {application["args"].get("task"): application for application in deployment["applications"]}
    usual = next(application for task, application in by_task.items() if task)
    # Named, so that a task more or less is a change: Serve leaves an application as it is where its args are the same.
    applications = [{**by_task[None], "args": {**by_task[None]["args"], "served": list(org.tasks), **own}}]
    for task in org.tasks:
        made = {**by_task.get(task, usual), "name": task, "route_prefix": route(task)}
        applications.append({**made, "args": {**made["args"], "task": task, **own}})
    return {
        **deployment,
        "applications": applications,
        "http_options": {**deployment.get("http_options", {}), "port": port},
    }


def _org_file(org: Org, elsewhere: bool) -> dict[str, str]:
    """The org file that the applications read, as their args name it."""
    if not elsewhere:
        return {"org": org.path}
    return {} if "://" in org.root else {"org": f"{org.root}/org.yaml"}


def check_org(dashboard: Dashboard, org: Org, tasks: Collection[str] | None = None) -> None:
    """ClusterError where the endpoint of one of these tasks (None: any) answers for another org.

    The same lake is the same org, whatever its file is called. Applications of another tool do not count; those that
    `crmray deploy` did not make, or one before it told the lake, do not say whose they are.
    """
    for name, application in dashboard.serve()["applications"].items():
        args = _args(application)
        if args.get("lake", "") in ("", Lake.address_of(org.root)) or not (tasks is None or name in tasks):
            continue
        theirs = f"the lake that {args['org']} named when they were deployed" if args.get("org") else "another lake"
        raise ClusterError(
            f"the endpoints of {dashboard.address} answer from {theirs}, not from {org.root}; a head serves one org, "
            f"so nothing was done for {org.name!r}: do `crmray down` first, or take another head"
        )


def _args(application: dict[str, Any]) -> dict[str, Any]:
    """What an application was deployed with; nothing where it is another tool's."""
    deployed = application.get("deployed_app_config") or {}
    ours = str(deployed.get("import_path")).startswith(APPLICATIONS)
    return (deployed.get("args") or {}) if ours else {}


def deploy(dashboard: Dashboard, org: Org, *, port: int = PORT) -> dict[str, str]:
    """Deploy, wait until every application runs, and return task -> URL of its endpoint. ClusterError as `check_org`.

    On another cluster the org file has to lie where its storage says: `<storage>/org.yaml`, a path that nodes share;
    where the storage is a URL, CRMRAY_ORG of the nodes names it.
    """
    check_org(dashboard, org)
    if dashboard.head:
        if not dashboard.serve().get("proxies") and free_port(port) != port:
            raise ClusterError(f"port {port} is in use by another program; give another --port for the endpoints")
        ensure_cli_key()
        wanted = serve_config(org, port=port)
    else:
        wanted = serve_config(org, port=port, elsewhere=True)
    dashboard.deploy(wanted)
    _wait_until_running(dashboard, [application["name"] for application in wanted["applications"]])
    base = base_url(dashboard)
    return {
        application["args"]["task"]: base + application["route_prefix"]
        for application in wanted["applications"]
        if application["args"].get("task")
    }


def base_url(dashboard: Dashboard) -> str:
    """Where the endpoints of a cluster are, as far as its head can tell: the port is Serve's, the host the head's."""
    http = dashboard.serve().get("http_options") or {}
    return f"http://{urlsplit(dashboard.address).hostname}:{http.get('port', PORT)}"


def _wait_until_running(dashboard: Dashboard, names: list[str]) -> None:
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while True:
        applications = dashboard.serve()["applications"]
        states = {name: applications.get(name, {}).get("status", "NOT_STARTED") for name in names}
        if all(state == "RUNNING" for state in states.values()):
            return
        failed = [name for name, state in states.items() if state in ("DEPLOY_FAILED", "UNHEALTHY")]
        if failed:
            raise ClusterError(f"Serve could not start {failed[0]}: {_last_line(applications[failed[0]])}")
        if time.monotonic() > deadline:
            slow = ", ".join(f"{name} is {state}" for name, state in states.items() if state != "RUNNING")
            raise ClusterError(
                f"Serve: waited {DEPLOY_TIMEOUT_S:.0f} s and {slow}; most often no CPU is free for replicas"
            )
        time.sleep(0.5)


def _last_line(application: dict[str, Any]) -> str:
    told = [application.get("message") or ""]
    told += [deployment.get("message") or "" for deployment in application.get("deployments", {}).values()]
    lines = [line.strip() for text in told for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


# ------------------------------------------------------------------------------------------------------------ ask


def ensure_cli_key() -> str:
    """The key with which this user's command line asks the endpoints; made once, kept in a file of mode 0600."""
    path, keys = home() / "key", KeyFile()
    if path.exists():
        key = path.read_text(encoding="utf-8").strip()
        keys.refresh()
        if keys.check(key):
            return key
    if any(entry["name"] == CLI_KEY_NAME for entry in keys.entries()):
        keys.revoke(CLI_KEY_NAME)
    key = keys.add(CLI_KEY_NAME)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk.write_private(path, key)
    return key


def cli_key() -> str:
    """CRMRAY_KEY, else the key that `deploy` left for this user."""
    if os.environ.get("CRMRAY_KEY"):
        return os.environ["CRMRAY_KEY"]
    try:
        return (home() / "key").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise AuthError("no key: set CRMRAY_KEY to one made by `crmray keys add`") from None


def predict_command(arguments: argparse.Namespace) -> int:
    """Ask and print the answer as JSON."""
    body: dict[str, Any] = {"id": arguments.ids[0]} if len(arguments.ids) == 1 else {"ids": arguments.ids}
    if arguments.explain:
        body["explain"] = True
    path, url = route(arguments.task), arguments.url
    if not url:
        try:
            url = base_url(Dashboard())
        except NoCluster:
            raise ClusterError(
                f"the endpoints are down: no head runs on this machine; {START}, or give their --url"
            ) from None
    answer = ask(url.rstrip("/") + path, body)
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    return 0


def ask(url: str, body: dict[str, Any]) -> Any:
    """POST to an endpoint; what it refuses is raised with its own message."""
    try:
        with requests.Session() as session:
            session.trust_env = url.startswith("https://")  # no proxy for a tunnel or this machine
            answer = session.post(
                url, json=body, auth=with_headers({"Authorization": f"Bearer {cli_key()}"}), timeout=30
            )
    except requests.RequestException as error:
        advice = f"is it up? If not, {START}" if url.startswith(HERE) else "is it up there, and reachable from here?"
        raise ClusterError(f"{url} does not answer ({type(error).__name__}); {advice}") from None
    if answer.status_code == 200:
        with contextlib.suppress(ValueError):  # what else answers there is told below
            return answer.json()
    code, message = _refusal(answer)
    if code in NOT_SERVED:
        raise NotFoundError(
            f"{url}: no task is served there; `crmray status` lists what is, `crmray deploy ORG.yaml` serves the tasks "
            "of an org file, `crmray run ORG.yaml` trains and publishes them first"
        )
    raise CrmrayError(f"{url}: {answer.status_code} {message}")


def _refusal(answer: requests.Response) -> tuple[str, str]:
    """Code and message of an endpoint's error; of another server's its first words."""
    try:
        told = answer.json()["error"]
        return told["code"], told["message"]
    except (ValueError, TypeError, KeyError):
        code = "not_found" if answer.status_code == 404 else ""
        return code, cut(" ".join(answer.text.split()), 300)


def show_request(dashboard: Dashboard, org: Org, task: str) -> str:
    """One request about the first of the known ids as a curl line, and its answer."""
    url = base_url(dashboard) + route(task)
    body = {"id": _first_id(org, task)}
    curl = (
        f"curl -H \"Authorization: Bearer $(cat {home() / 'key'})\" -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}' {url}"
    )
    return f"{curl}\n{cut(json.dumps(ask(url, body), ensure_ascii=False), 600)}"


def _first_id(org: Org, task: str) -> str:
    """What the first of the current rows is about, as the org itself names it."""
    from crmray import tasks
    from crmray.salesforce.held import Ids

    lake = Lake.of(org)
    rows = pa.ipc.open_file(pa.py_buffer(lake.latest("examples", task).read_bytes("now.arrow"))).read_all()
    if not rows.num_rows:
        raise NotFoundError(f"examples/{task}: got no current rows, expected one to ask about")
    first = rows["entity_id"].slice(0, 1).combine_chunks()
    return Ids(org, lake, tasks.task(task).ENTITY).to_org(first)[0].as_py()


# ----------------------------------------------------------------------------------------------------------- keys


def keys_command(arguments: argparse.Namespace) -> int:
    """Add, revoke or list."""
    keys = KeyFile()
    if (arguments.action == "list") == bool(arguments.name):
        wanted = "no name" if arguments.action == "list" else "a name"
        raise ConfigError(f"keys {arguments.action}: got {arguments.name or 'no name'}, expected {wanted}")
    if arguments.action == "add":
        print(keys.add(arguments.name))
        print("shown this once; running endpoints know it within seconds", file=sys.stderr)
    elif arguments.action == "revoke":
        keys.revoke(arguments.name)
        print(f"revoked {arguments.name}")
    else:
        entries = keys.entries()
        for entry in entries:
            print(f"{entry['created_at']}  {entry['name']}")
        if not entries:
            print(f"no keys in {keys.path}; `crmray keys add NAME` makes one")
    return 0
