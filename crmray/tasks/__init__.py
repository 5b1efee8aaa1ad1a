"""The tasks, one file each. TASKS is written by hand: adding a task is its file and one name here."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ValidationError

from crmray.config import Org, explain
from crmray.errors import ConfigError
from crmray.tasks import churn, recommendation, segmentation
from crmray.tasks.contract import Task

TASKS: dict[str, Task] = {module.NAME: cast(Task, module) for module in (churn, segmentation, recommendation)}


def task(name: str) -> Task:
    """The task of this name; ConfigError when there is none."""
    if name not in TASKS:
        raise ConfigError(f"got task {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def settings(org: Org, name: str) -> BaseModel:
    """The task's checked section of the org file (all defaults where the org file has an empty one)."""
    if name not in org.tasks:
        asked = ", ".join(org.tasks) or "none"
        raise ConfigError(
            f"org file {org.path}: task {name!r} is not asked for (asked for: {asked}); add it under `tasks:`"
        )
    return check_settings(task(name), org.tasks[name], where=f"org file {org.path}: tasks.{name}")


def check_settings(which: Task, values: dict[str, Any], *, where: str = "settings") -> BaseModel:
    """The values as the task's Settings; ConfigError names each wrong key."""
    try:
        return which.Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from None
