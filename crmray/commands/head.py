"""`crmray up` and `crmray down`: a Ray head on this machine, reachable from this machine only."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from crmray import disk
from crmray.dashboard import Dashboard
from crmray.errors import AuthError, ClusterError
from crmray.head import Head, home, local_head, process_started, token_file

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
KEPT = {
    "auth_token": "the cluster's token",
    "key": "the key of `crmray predict`",
    "keys.json": "the endpoints' keys",
    "lakes/*": "lakes, the demo's with its Salesforce org",
}
"""what lies in the folder of this machine's state and stays, by pattern"""
HAPROXY_ENV = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    up = commands.add_parser(
        "up",
        help="start a Ray head on this machine",
        description="Start a Ray head on this machine: every port on 127.0.0.1, token auth on. `crmray down` ends it.",
        epilog="example: crmray up --num-cpus 8",
    )
    up.add_argument("--num-cpus", type=int, help="CPUs that Ray may plan with; default: all")
    up.add_argument("--port", type=int, default=6379, help="of the GCS; another one is taken when it is busy")
    up.add_argument("--dashboard-port", type=int, default=8265, help="likewise")
    up.add_argument("--object-store-gib", type=float, help="shared memory for objects; default: Ray's choice")
    up.add_argument("--haproxy", action="store_true", help="Serve behind HAProxy: faster; opens 8404 and 9101 as well")
    up.set_defaults(call=up_command)
    down = commands.add_parser(
        "down",
        help="end the head that `up` started",
        description="End the head that `crmray up` started, and the Salesforce org of `crmray demo --keep`; nothing "
        "else.",
        epilog="example: crmray down --keep-logs",
    )
    down.add_argument("--keep-logs", action="store_true", help="leave Ray's session folder with its logs")
    down.set_defaults(call=down_command)


def up_command(arguments: argparse.Namespace) -> int:
    """Start a head unless one runs, and say how to reach it."""
    head = local_head()
    if head:
        print(f"is up already (pid {head.pid})")
    else:
        head = start(
            num_cpus=arguments.num_cpus,
            port=arguments.port,
            dashboard_port=arguments.dashboard_port,
            object_store_gib=arguments.object_store_gib,
            haproxy=arguments.haproxy,
        )
    print(f"dashboard   {head.dashboard}   (it asks for the token in {head.token_path})")
    print(f"sessions    {head.temp_dir}")
    print("for `ray` commands and notebooks:")
    for name, value in environment(head).items():
        print(f"  export {name}={value}")
    return 0


def environment(head: Head) -> dict[str, str]:
    """Variables with which plain `ray` commands and programs reach this head."""
    return {
        "RAY_ADDRESS": head.address,
        "RAY_API_SERVER_ADDRESS": head.dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": head.token_path,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for: this node is 127.0.0.1
    }


def start(
    *,
    num_cpus: int | None = None,
    port: int = 6379,
    dashboard_port: int = 8265,
    object_store_gib: float | None = None,
    haproxy: bool = False,
) -> Head:
    """Start a head in a process group of its own, wait until it answers and record it."""
    port, dashboard_port = free_port(port), free_port(dashboard_port)
    # A short path: sockets below it must stay under the system's limit of about 107 characters.
    temp_dir = tempfile.mkdtemp(prefix="crmray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    command = [
        sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}", f"--temp-dir={temp_dir}", "--disable-usage-stats",
        # Fixed by default: with another Ray on this machine the agent could not listen, and no job would ever start.
        f"--dashboard-agent-listen-port={free_port(52365)}", f"--ray-client-server-port={free_port(10001)}",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    command += [f"--num-cpus={num_cpus}"] if num_cpus is not None else []
    command += [f"--object-store-memory={int(object_store_gib * 2**30)}"] if object_store_gib else []
    foreign = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    head = Head(
        pid=0,
        started=0.0,
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        token_path=str(token_file().resolve()),
        temp_dir=temp_dir,
    )
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    ours = {name: value for name, value in environment(head).items() if name not in foreign}
    extra = HAPROXY_ENV if haproxy else {}
    with open(Path(temp_dir) / "head.log", "wb") as log_file:
        process = subprocess.Popen(
            command,
            env={**inherited, **ours, **extra, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    head = dataclasses.replace(head, pid=process.pid, started=process_started(process.pid) or 0.0)
    try:
        _record(head)
        _wait_until_up(head, process)
    except BaseException:
        stop(head)
        raise
    return head


def free_port(preferred: int) -> int:
    """The port if nothing listens on it on 127.0.0.1, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise ClusterError("no free port on 127.0.0.1")


def _wait_until_up(head: Head, process: subprocess.Popen[bytes]) -> None:
    """Until the dashboard tells of a node that is alive; the raylet registers a little after the dashboard answers.

    ClusterError when Ray ends, or when another program took the dashboard's port since it was found free.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    dashboard, silence = Dashboard(head.dashboard, timeout_s=10), ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClusterError(f"Ray did not start (exit code {process.returncode}): {_last_words(head)}")
        try:
            if not _is_ours(head, dashboard):
                raise AuthError(head.dashboard)
            if any(node["state"] == "ALIVE" for node in dashboard.nodes()):
                return
        except AuthError:
            raise ClusterError(
                f"another program took {head.dashboard} while Ray started; try again, or give another --dashboard-port"
            ) from None
        except ClusterError as error:
            silence = str(error)
        time.sleep(0.1)
    raise ClusterError(f"Ray did not answer within {START_TIMEOUT_S:.0f} s ({silence}): {_last_words(head)}")


def _is_ours(head: Head, dashboard: Dashboard) -> bool:
    """Whether it is this head's dashboard that answers: its session lies in the folder that was made for the head."""
    try:
        session = dashboard.version()["session_name"]
    except (ValueError, KeyError, TypeError):  # not a Ray dashboard
        return False
    return bool(session) and (Path(head.temp_dir) / session).is_dir()


def _last_words(head: Head) -> str:
    lines = (Path(head.temp_dir) / "head.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-5:]) or "no output"


def _record(head: Head) -> None:
    disk.write_private(home() / "head.json", json.dumps(dataclasses.asdict(head), indent=1))


def down_command(arguments: argparse.Namespace) -> int:
    """End the recorded head, and the Salesforce org that `crmray demo --keep` left beside it."""
    from crmray.commands.demo import end_kept_sandbox  # which starts and ends heads by this module

    if end_kept_sandbox():
        print("ended the Salesforce org that `crmray demo --keep` left")
    head = local_head()
    if head is None:
        print("nothing to end: no head of ours runs")
    else:
        count = stop(head, keep_logs=arguments.keep_logs)
        logs = f"; its logs stay in {head.temp_dir}" if arguments.keep_logs else ""
        print(f"ended {count} processes of the head with pid {head.pid}{logs}")
    tell_what_stays()
    return 0


def tell_what_stays() -> None:
    """Print one line about the state that is left on this machine, and how it goes; nothing where there is none."""
    there = [f"{name} ({what})" for name, what in KEPT.items() if any(home().glob(name))]
    if there:
        print(f"{home()} stays: {', '.join(there)}; to remove all of it: rm -r {shlex.quote(str(home()))}")


def stop(head: Head, *, keep_logs: bool = False) -> int:
    """End the head's process and all that descend from it or share its group; the number of processes."""
    processes = family(head)
    for process in processes:
        if process.pid == head.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()  # `ray start --block` ends its children in order
    _, left = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since
            process.kill()
    psutil.wait_procs(left, timeout=5)
    (home() / "head.json").unlink(missing_ok=True)
    if not keep_logs:
        shutil.rmtree(head.temp_dir, ignore_errors=True)
    return len(processes)


def family(head: Head) -> list[psutil.Process]:
    """The head's processes. psutil remembers each one's start, so that a pid used anew is not ended."""
    if not head.alive:
        return []
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end meanwhile; its group is ended all the same
        first = psutil.Process(head.pid)
        found = {process.pid: process for process in (first, *first.children(recursive=True))}
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == head.pid:
                found[process.pid] = process
        except (ProcessLookupError, PermissionError):
            continue
    return list(found.values())
