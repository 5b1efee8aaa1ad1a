"""The tasks, one file each. TASKS is written by hand: adding a task is its file and one name here."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ValidationError

from crmray.config import Org, explain
from crmray.data.names import Names
from crmray.errors import ConfigError, did_you_mean
from crmray.tasks import (
    churn,
    custom,
    forecast,
    intent,
    leads,
    recommendation,
    response,
    segmentation,
    sentiment,
    value,
)
from crmray.tasks.contract import Task

TASKS: dict[str, Task] = {
    module.NAME: cast(Task, module)
    for module in (churn, segmentation, recommendation, leads, response, custom, value, forecast, sentiment, intent)
}


def task(name: str) -> Task:
    """The task of this name, or one of those that `family.name` asks of a family; ConfigError when there is none."""
    family = TASKS.get(name.split(".")[0])
    if name not in TASKS and family is not None and hasattr(family, "named"):
        if (own := name.split(".")[-1]) in TASKS:  # fields in Salesforce are named by it
            raise ConfigError(f"got task {name!r}, but {own} is a task of its own; choose another name")
        return cast(Task, family.named(name))
    if name not in TASKS:
        hint = did_you_mean(name, TASKS) or "; one of your own is called custom.<name>"
        raise ConfigError(f"got task {name!r}, expected one of {', '.join(TASKS)}{hint}")
    return TASKS[name]


def settings(org: Org, name: str) -> BaseModel:
    """The task's checked section of the org file (all defaults where the org file has an empty one)."""
    if name not in org.tasks:
        asked = ", ".join(org.tasks) or "none"
        hint = did_you_mean(name, org.tasks) or "; add it under `tasks:`"
        raise ConfigError(f"org file {org.path}: task {name!r} is not asked for (asked for: {asked}){hint}")
    where = f"org file {org.path}: tasks.{name}"
    return check_settings(task(name), org.tasks[name], where=where, names=Names.of(org))


def check_settings(
    which: Task, values: dict[str, Any], *, where: str = "settings", names: Names | None = None
) -> BaseModel:
    """The values as the task's Settings; ConfigError names each wrong key. names: of the org's columns, where known."""
    try:
        return which.Settings.model_validate(values, context=names)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from None
