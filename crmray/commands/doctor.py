"""`crmray doctor`: what is wrong with this machine or this cluster, in words."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from crmray import config
from crmray.commands.serving import PORT as SERVE_PORT
from crmray.config import Org, SalesforceSource, Secret
from crmray.dashboard import Dashboard
from crmray.errors import ClusterError, ConfigError, CrmrayError
from crmray.head import home, local_head
from crmray.keys import default_path
from crmray.storage import Lake

PINNED = ("torch", "ray", "deepspeed", "modin", "pyarrow")
PORTS = {
    6379: ("GCS", "`crmray up` takes another port"),
    8265: ("dashboard", "`crmray up` takes another port"),
    SERVE_PORT: ("endpoints", "give --port to `crmray deploy` and `crmray run`"),
}
"""port -> whose it is by default, and what happens where it is taken"""
MIN_MEMORY_GIB, MIN_DISK_GIB, MIN_SHM_GIB = 8, 10, 2

Finding = tuple[bool, str]
"""(fine, what was found and, where it is not fine, what to do)"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="what is wrong with this machine or cluster",
        description="Look at versions, memory, disk, ports, files of tokens and keys, the cluster, an org file.",
        epilog="example: crmray doctor --org org.yaml",
    )
    parser.add_argument("--org", metavar="ORG.yaml", help="look at this org file too")
    parser.add_argument("--address", help="dashboard of another cluster; default: the local head")
    parser.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """Print the findings; exit code 2 when one is not fine."""
    findings = [*versions(), *machine(arguments.address), *secrets_files(), *cluster(arguments.address)]
    if arguments.org:
        findings += org_file(arguments.org)
    for fine, text in findings:
        print(f"{'ok  ' if fine else 'BAD '} {text}")
    bad = sum(not fine for fine, _ in findings)
    print(f"\n{bad} of {len(findings)} checks failed" if bad else f"\n{len(findings)} checks passed")
    return 2 if bad else 0


def versions() -> Iterator[Finding]:
    """Python and the pinned packages against what crmray asks for."""
    yield (3, 11) <= sys.version_info[:2] < (3, 14), f"Python {sys.version.split()[0]} (3.11 to 3.13 are supported)"
    pins = [part.split(";")[0] for part in importlib.metadata.requires("crmray") or []]
    wanted = {pin.split("==")[0].split("[")[0]: pin.split("==")[1].strip() for pin in pins if "==" in pin}
    for name in PINNED:
        if name not in wanted:
            continue
        try:
            there = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            there = "none"
        fine = there == wanted[name]
        yield fine, f"{name} {there}" + ("" if fine else f", expected {wanted[name]}; install with constraints.txt")


def machine(address: str | None) -> Iterator[Finding]:
    """CPUs, memory, disk, shared memory, open files, ports; address: of the cluster, as for `cluster`."""
    yield True, f"{os.cpu_count()} CPUs"
    memory = psutil.virtual_memory()
    text = f"memory {memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB of it free"
    yield memory.total / 2**30 >= MIN_MEMORY_GIB, f"{text} (at least {MIN_MEMORY_GIB} GiB are asked for)"
    for folder, least, what in (("/tmp", MIN_DISK_GIB, "Ray's sessions"), ("/dev/shm", MIN_SHM_GIB, "objects of Ray")):
        if os.path.isdir(folder):
            free = shutil.disk_usage(folder).free / 2**30
            advice = "" if free >= least else "; free some, or mount more"
            yield (
                free >= least,
                f"{folder} (for {what}) has {free:.0f} GiB free, at least {least} are asked for{advice}",
            )
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield max(soft, hard) >= 8192, f"open files: up to {max(soft, hard)} (8192 are asked for; ulimit -n)"
    own = _own_ports(address)
    for port, (what, advice) in PORTS.items():
        if not _busy(port):
            yield True, f"port {port} ({what}) is free"
        elif port in own:
            yield True, f"port {port} ({what}) is that of the running cluster"
        else:
            yield port != SERVE_PORT, f"port {port} ({what}) is another program's; {advice}"


def _own_ports(address: str | None) -> set[int | None]:
    """Ports of this machine at which the cluster is reached: its dashboard, its endpoints, and the GCS of a local head.

    None of a cluster that is elsewhere or does not answer, which is a finding of `cluster`.
    """
    try:
        dashboard = Dashboard(address, timeout_s=5)
        served = dashboard.serve()
    except CrmrayError:
        return set()
    place = urlsplit(dashboard.address)
    if place.hostname not in ("127.0.0.1", "localhost"):
        return set()
    gcs = [urlsplit(f"//{dashboard.head.address}").port] if dashboard.head else []
    endpoints = [(served.get("http_options") or {}).get("port", SERVE_PORT)] if served.get("proxies") else []
    return {place.port, *gcs, *endpoints}


def _busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def secrets_files() -> Iterator[Finding]:
    """Nobody else may read tokens and keys."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    ray_default = Path.home() / ".ray" / "auth_token"
    for path in dict.fromkeys(
        [home() / "auth_token", home() / "key", default_path(), ray_default, *([Path(named)] if named else [])]
    ):
        if path.exists():
            mode = path.stat().st_mode & 0o777
            fine = mode & 0o077 == 0
            yield fine, f"{path} has mode {mode:04o}" + ("" if fine else f"; others can read it: chmod 600 {path}")
        elif named and path == Path(named):
            yield False, f"RAY_AUTH_TOKEN_PATH names {path}, which is not there"


def cluster(address: str | None) -> Iterator[Finding]:
    """Whether the head answers, speaks our version of Ray, asks for the token, and has room."""
    try:
        dashboard = Dashboard(address, timeout_s=5)
        version = dashboard.version()["ray_version"]
        ours = importlib.metadata.version("ray")
        yield (
            version == ours,
            f"cluster {dashboard.address} runs Ray {version}"
            + ("" if version == ours else f", this machine has {ours}; both have to be the same"),
        )
        yield (
            _asks_for_token(dashboard),
            "the cluster asks for the token; without it anybody who reaches it can run code",
        )
        dead = [node["node_ip"] for node in dashboard.nodes() if node["state"] != "ALIVE"]
        yield not dead, f"{len(dead)} nodes are down: {', '.join(dead)}" if dead else "all nodes are alive"
        for name, (used, total) in dashboard.usage().items():
            if name in ("CPU", "GPU") and total:
                fine = used < total
                yield fine, f"{used:g} of {total:g} {name} in use" + ("" if fine else "; jobs wait until one is free")
    except CrmrayError as error:
        no_head = address is None and local_head() is None
        yield no_head, "no cluster runs here; `crmray up` starts one" if no_head else str(error)


def _asks_for_token(dashboard: Dashboard) -> bool:
    import requests

    try:
        with requests.Session() as session:
            session.trust_env = dashboard.address.startswith("https://")
            return session.get(f"{dashboard.address}/api/version", timeout=5).status_code in (401, 403)
    except requests.RequestException as error:
        raise ClusterError(f"{dashboard.address} does not answer without the token ({type(error).__name__})") from None


def org_file(path: str) -> Iterator[Finding]:
    """Whether the org file is right, its tasks are known, its secrets can be read and its storage be written."""
    from crmray import tasks
    from crmray.privacy import Pseudonyms

    try:
        org = config.load(path)
        for name in org.tasks:
            tasks.settings(org, name)
        yield True, f"org file {path}: {org.name}, tasks {', '.join(org.tasks) or 'none'}"
        secrets = list(secrets_of(org))
        yield from secrets
        lake = Lake(org.root)
        if all(fine for fine, text in secrets if text.startswith("privacy.")):  # else told above, once
            Pseudonyms.of_lake(org, Lake.of(org))  # both refuse another key than that of the lake
        lake.write("_work/doctor.txt", b"may be removed")
        lake.fs.rm_file(f"{lake.base}/_work/doctor.txt")
        yield True, f"storage {org.root} can be written"
    except (CrmrayError, OSError) as error:
        yield False, str(error)


def secrets_of(org: Org) -> Iterator[Finding]:
    """Whether each secret that the org file names is where it says, and each key of `privacy` is one."""
    named = [(f"privacy.{name}", value) for name, value in org.privacy]
    if isinstance(org.source, SalesforceSource):
        named += [(f"source.login.{name}", value) for name, value in org.source.login]
    for name, value in named:
        for secret in value if isinstance(value, list) else [value]:
            if isinstance(secret, Secret):
                yield _secret(name, secret, org.folder)


def _secret(name: str, secret: Secret, folder: Path) -> Finding:
    try:
        if name.startswith("privacy."):
            secret.read_key(folder, longer=name == "privacy.pseudonym_key")
        else:
            secret.read(folder)
    except ConfigError as error:
        return False, f"{name}: {error}"
    return True, f"{name} can be read" + (" in this shell; jobs have the variables of the head" if secret.env else "")
