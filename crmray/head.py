"""The local Ray head of `crmray up`: what is recorded of it, and the token of this machine. Needs no Ray."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import psutil

from crmray.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Head:
    """The local Ray head that `crmray up` started, as recorded in its state file."""

    pid: int
    """process id of `ray start --block`, which is also its process group"""
    started: float
    """start time of that process, seconds since the epoch, so that a reused pid is not mistaken for ours"""
    address: str
    """host:port of the GCS, for ray.init"""
    dashboard: str
    """URL of the dashboard and the Jobs API"""
    token_path: str
    """file with the cluster's token, mode 0600"""
    temp_dir: str
    """Ray's sessions and logs"""

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        started = process_started(self.pid)
        return started is not None and abs(started - self.started) < 2.0  # the clock may have been set since


def home() -> Path:
    """Folder of this machine's state (token, head); CRMRAY_HOME moves it."""
    return Path(os.environ.get("CRMRAY_HOME", "~/.crmray")).expanduser()


def process_started(pid: int) -> float | None:
    """Start time of a process, seconds since the epoch; None when there is no such process or it is a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def local_head() -> Head | None:
    """The running head that `crmray up` started on this machine, or None."""
    path = home() / "head.json"
    try:
        head = Head(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{path}: got {error}, expected the state file of `crmray up`; remove it") from None
    return head if head.alive else None


def token_file() -> Path:
    """Path of this machine's cluster token; makes it (mode 0600) when there is none."""
    path = home() / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        path.chmod(0o600)
    return path
