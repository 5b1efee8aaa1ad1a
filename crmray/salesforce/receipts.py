"""Receipts of write-backs: immutable runs that say for every row what was there, what was sent and what came of it.

    receipts/writeback-<task>/<run_id>/receipt-fields.parquet
        entity_id, record            as the lake names them: pseudonyms where privacy is on
        before.<Field> after.<Field> values as text; null: empty
        state                        written | failed | unsent | not_found (or withdrew after the plan was made)
        code, message                Salesforce's, for failed rows; without record values

A run whose steps are planned and that has no manifest was interrupted.
"""

from __future__ import annotations

from crmray.errors import NotFoundError
from crmray.storage import Lake, Run

KIND = "receipts"


def name_of(task: str) -> str:
    """Name of a task's receipts in the lake."""
    return f"writeback-{task}"


def latest(lake: Lake, task: str) -> Run | None:
    """The last complete receipt; None before the first."""
    return lake.latest(KIND, name_of(task)) if lake.has(KIND, name_of(task)) else None


def complete(lake: Lake, task: str, run_id: str) -> Run:
    """A complete receipt; NotFoundError that names those that are there."""
    run = lake.run(KIND, name_of(task), run_id)
    if not run.exists():
        known = ", ".join(other.run_id for other in lake.runs(KIND, name_of(task))[-5:]) or "none"
        raise NotFoundError(
            f"write-back of {task}: got run {run_id!r}, which is not there or not complete; expected one of {known}"
        )
    return run


def interrupted(lake: Lake, task: str) -> list[Run]:
    """Receipts of write-backs that began to send and did not end."""
    paths = lake.list(f"{KIND}/{name_of(task)}/*/steps.json")
    runs = [lake.run(KIND, name_of(task), path.split("/")[-2]) for path in paths]
    return [run for run in runs if not run.exists()]
