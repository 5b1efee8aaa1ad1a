"""`crmray doctor`: what is wrong with this machine or this cluster, in words."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from crmray import config
from crmray.commands.head import family
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
MIN_MEMORY_GIB, MIN_DISK_GIB, MIN_SHM_GIB, MIN_OPEN_FILES = 8, 10, 2, 8192
ANSWER_S = 15.0
"""so long a busy head may take for an answer"""

Level = Literal["ok", "note", "BAD"]
"""note: to know of, and nothing fails of it; BAD: something will fail, or is open to others"""
Finding = tuple[Level, str]
"""(how it is, what was found and, where it is not ok, what to do)"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="what is wrong with this machine or cluster",
        description="Look at versions, memory, disk, ports, files of tokens and keys, the cluster, an org file. BAD: "
        "something will fail, or is open to others; note: to know of, and nothing fails of it.",
        epilog="example: crmray doctor --org org.yaml",
    )
    parser.add_argument("--org", metavar="ORG.yaml", help="look at this org file too")
    parser.add_argument("--address", help="dashboard of another cluster; default: the local head")
    parser.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """Print the findings; exit code 2 when one is bad."""
    address = arguments.address
    findings = [*versions(), *machine(), *ports(address), *secrets_files(), *cluster(address)]
    if arguments.org:
        findings += org_file(arguments.org)
    for level, text in findings:
        print(f"{level:<4} {text}")
    levels = [level for level, _ in findings]
    bad, notes = levels.count("BAD"), levels.count("note")
    told = f"{bad} of {len(levels)} checks failed" if bad else f"{len(levels) - notes} checks passed"
    print(f"\n{told}" + (f"; notes: {notes}" if notes else ""))
    return 2 if bad else 0


def _unless(fine: bool, level: Level) -> Level:
    return "ok" if fine else level


def versions() -> Iterator[Finding]:
    """Python and the pinned packages against what crmray asks for."""
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield _unless(supported, "BAD"), f"Python {sys.version.split()[0]} (3.11 to 3.13 are supported)"
    pins = [part.split(";")[0] for part in importlib.metadata.requires("crmray") or []]
    wanted = {pin.split("==")[0].split("[")[0]: pin.split("==")[1].strip() for pin in pins if "==" in pin}
    for name in PINNED:
        if name not in wanted:
            continue
        try:
            there = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            there = "none"
        advice = "" if there == wanted[name] else f", expected {wanted[name]}; install with constraints.txt"
        yield _unless(not advice, "BAD"), f"{name} {there}{advice}"


def machine() -> Iterator[Finding]:
    """CPUs, memory, disk, shared memory, open files."""
    yield "ok", f"{os.cpu_count()} CPUs"
    memory = psutil.virtual_memory()
    enough = memory.total / 2**30 >= MIN_MEMORY_GIB
    told = f"memory {memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB of it free"
    advice = "" if enough else f", at least {MIN_MEMORY_GIB} are asked for; lower memory_gib in the org file"
    yield _unless(enough, "note"), told + advice
    yield from _room("/tmp", MIN_DISK_GIB, "Ray's sessions", "BAD", "free some, or mount more")
    yield from _room("/dev/shm", MIN_SHM_GIB, "objects of Ray", "note", "mount more: what has no place goes to /tmp")
    import resource

    most = max(resource.getrlimit(resource.RLIMIT_NOFILE))
    yield (
        _unless(most >= MIN_OPEN_FILES, "BAD"),
        f"open files: up to {most} ({MIN_OPEN_FILES} are asked for; ulimit -n)",
    )


def _room(folder: str, least_gib: int, what: str, level: Level, advice: str) -> Iterator[Finding]:
    if os.path.isdir(folder):
        free_gib = shutil.disk_usage(folder).free / 2**30
        told = f"{folder} (for {what}) has {free_gib:.0f} GiB free, at least {least_gib} are asked for"
        yield _unless(free_gib >= least_gib, level), told + ("" if free_gib >= least_gib else f"; {advice}")


def ports(address: str | None) -> Iterator[Finding]:
    """Who has the ports that a head and its endpoints take by default; address: of the cluster, as for `cluster`."""
    own: set[int | None] = set()
    served = False
    with contextlib.suppress(CrmrayError):  # no cluster, or one that does not answer: a finding of `cluster`
        own |= _own_ports()
        dashboard = Dashboard(address, timeout_s=ANSWER_S)
        at = urlsplit(dashboard.address)
        own |= {at.port} if at.hostname in ("127.0.0.1", "localhost") else set()  # only this machine's are looked at
        served = dashboard.head is None or bool(dashboard.serve().get("proxies"))
    for port, (what, advice) in PORTS.items():
        if not _busy(port):
            yield "ok", f"port {port} ({what}) is free"
        elif port in own:
            yield "ok", f"port {port} ({what}) is that of the running cluster"
        else:
            fails = port == SERVE_PORT and not served  # endpoints that are up stay where they are
            yield "BAD" if fails else "note", f"port {port} ({what}) is another program's; {advice}"


def _own_ports() -> set[int]:
    """What the processes of the local head listen on, endpoints included, however busy it is."""
    head = local_head()
    found: set[int] = set()
    for process in family(head) if head else ():
        with contextlib.suppress(psutil.Error):  # it may have ended since
            found |= {at.laddr.port for at in process.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
    return found


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
            told = f"{path} has mode {mode:04o}" + ("" if fine else f"; others can read it: chmod 600 {path}")
            yield _unless(fine, "BAD"), told
        elif named and path == Path(named):
            yield "BAD", f"RAY_AUTH_TOKEN_PATH names {path}, which is not there"


def cluster(address: str | None) -> Iterator[Finding]:
    """Whether the head answers, speaks our version of Ray, asks for the token, and has room."""
    try:
        dashboard = Dashboard(address, timeout_s=ANSWER_S)
        version = dashboard.version()["ray_version"]
        ours = importlib.metadata.version("ray")
        told = f"cluster {dashboard.address} runs Ray {version}"
        advice = "" if version == ours else f", this machine has {ours}; both have to be the same"
        yield _unless(version == ours, "BAD"), told + advice
        if _asks_for_token(dashboard):
            yield "ok", "the cluster asks for the token"
        else:
            yield "BAD", "the cluster asks for no token: who reaches it can run code; start it with RAY_AUTH_MODE=token"
        dead = [node["node_ip"] for node in dashboard.nodes() if node["state"] != "ALIVE"]
        told = (
            f"{len(dead)} nodes are down: {', '.join(dead)}; jobs run on the others" if dead else "all nodes are alive"
        )
        yield _unless(not dead, "note"), told
        for name, (used, total) in dashboard.usage().items():
            if name in ("CPU", "GPU") and total:
                told = f"{used:g} of {total:g} {name} in use" + (
                    "" if used < total else "; jobs wait until one is free"
                )
                yield _unless(used < total, "note"), told
    except CrmrayError as error:
        no_head = address is None and local_head() is None
        yield _unless(no_head, "BAD"), "no cluster runs here; `crmray up` starts one" if no_head else str(error)


def _asks_for_token(dashboard: Dashboard) -> bool:
    import requests

    try:
        with requests.Session() as session:
            session.trust_env = dashboard.address.startswith("https://")
            return session.get(f"{dashboard.address}/api/version", timeout=ANSWER_S).status_code in (401, 403)
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
        yield "ok", f"org file {path}: {org.name}, tasks {', '.join(org.tasks) or 'none'}"
        secrets = list(secrets_of(org))
        yield from secrets
        lake = Lake(org.root)
        if all(level == "ok" for level, text in secrets if text.startswith("privacy.")):  # else told above, once
            Pseudonyms.of_lake(org, Lake.of(org))  # both refuse another key than that of the lake
        lake.write("_work/doctor.txt", b"may be removed")
        lake.fs.rm_file(f"{lake.base}/_work/doctor.txt")
        yield "ok", f"storage {org.root} can be written"
    except (CrmrayError, OSError) as error:
        yield "BAD", str(error)


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
        return "BAD", f"{name}: {error}"
    return "ok", f"{name} can be read" + (" in this shell; jobs have the variables of the head" if secret.env else "")
