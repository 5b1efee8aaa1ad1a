"""Settings of an application: the `args` of serve/config.yaml."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from crmray import config, log, tasks
from crmray.config import Org, Part
from crmray.errors import ConfigError
from crmray.tasks.contract import Task


class RootOptions(Part):
    """What every application needs."""

    org: str = ""
    """org file; default: the environment variable CRMRAY_ORG of the cluster, else the demo org of this repository"""
    lake: str = ""
    """digest of the lake that this was deployed for (`Lake.address_of`); `crmray deploy` sets it to tell orgs apart"""
    keys: str = ""
    """file with the bearer keys; default: CRMRAY_KEYS, else keys.json in CRMRAY_HOME (~/.crmray)"""
    require_key: bool = True
    """false: anybody who reaches the port is answered"""
    tasks: str = "crmray.tasks:TASKS"
    """module:attribute with the mapping name -> task"""
    served: list[str] = Field(default_factory=list)
    """of the root: tasks that it lists and waits for; default: those of the org file when it starts"""
    poll_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    """how often the ledger, the current examples and the key file are looked at, in seconds"""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """largest body that is read; above it 413"""
    max_in_flight: Annotated[int, Field(ge=1)] = 64
    """requests that one replica works on; above it 429. Serve's max_ongoing_requests has to be larger"""
    timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """time for one request; after it 504. Serve's request_timeout_s has to be larger"""

    def load_org(self) -> Org:
        """The org file; ConfigError says where it was looked for."""
        path = self.org or os.environ.get("CRMRAY_ORG", "")
        if not path:
            log.warn("serve.demo_org", why="neither args.org nor CRMRAY_ORG is set: the demo org of crmray is served")
        return config.load(path or config.DEMO_ORG)

    def load_tasks(self) -> Mapping[str, Task]:
        """The mapping of tasks, and those of the org file that a family of them makes (`custom.<name>`)."""
        module, _, attribute = self.tasks.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"args.tasks: got {self.tasks!r}, expected module:attribute ({error})") from None
        asked = [name for name in self.load_org().tasks if name not in found and name.split(".")[0] in found]
        return {**found, **{name: tasks.task(name) for name in asked}}


class TaskOptions(RootOptions):
    """What the application of one task needs beside that."""

    task: str
    """name of the task"""
    max_batch_rows: Annotated[int, Field(ge=1)] = 256
    """rows at which a call of the model takes no further request along; one request is never split"""
    batch_wait_s: Annotated[float, Field(ge=0, le=0.05)] = 0.0
    """time to wait for company; 0: take what has gathered while the model was busy"""
    num_threads: Annotated[int, Field(ge=1)] = 1
    """threads of torch, BLAS and Arrow in a replica; as many as its num_cpus, at least one"""
