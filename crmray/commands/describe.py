"""`crmray describe`: what would be read of a Salesforce org, what is missing for which task, and what a pull costs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from crmray.commands.text import table
from crmray.config import Org, SalesforceSource
from crmray.errors import ConfigError, DataError, NotFoundError
from crmray.salesforce.catalogue import ABSENT, Catalogue
from crmray.storage import Lake

SHARING = (
    "rows that sharing rules hide from the integration user are neither read nor counted: give it View All on these "
    "objects, or View All Data"
)


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "describe",
        help="what would be read of a Salesforce org, and what it costs",
        description="Ask a Salesforce org what it has, without reading its rows: object by object what will be read, "
        "what is not there or needs a permission, what each task lacks, how many API calls a full and an incremental "
        "pull cost, and, once the lake has data, which attributes have a past.",
        epilog="example: crmray describe org.yaml    crmray describe org.yaml --json",
    )
    parser.add_argument("org", metavar="ORG.yaml", help="the org file")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """Report; exit code 2 when a task of the org file cannot run."""
    from crmray import config
    from crmray.salesforce import catalogue
    from crmray.salesforce.client import Client

    org = config.load(arguments.org)
    if not isinstance(org.source, SalesforceSource):
        raise ConfigError(f"{arguments.org}: got source {org.source.kind}, expected salesforce; try `crmray check`")
    with Client.connect(org.source, org.folder) as client:
        found = catalogue.read(client, org)
        limits = client.limits().get("DailyApiRequests", {})
    report = describe(org, found, limits)
    print(json.dumps(report) if arguments.json else told(report))
    return 2 if any(task["lacks"] for task in report["tasks"].values()) else 0


def describe(org: Org, found: Catalogue, limits: Mapping[str, int]) -> dict[str, Any]:
    """The report as JSON: objects, lacks, tasks, calls, history."""
    return {
        "objects": {
            name: {
                "rows": plan.rows,
                "via": plan.via,
                "fills": list(plan.tables) or ["consent"],
                "fields": {path: plan.types[path] for path in plan.fields},
                "derived": list(plan.derived),
                "sliced_by": plan.modstamp,
            }
            for name, plan in found.objects.items()
        },
        "lacks": [
            {
                "object": lack.object,
                "field": lack.path,
                "for": list(lack.tables) or ["consent"],
                "why": lack.why,
                "may_need_permission": lack.why == ABSENT,
                "named_by_org_file": lack.asked,
            }
            for lack in found.lacks
        ],
        "tasks": tasks_of(org, found),
        "calls": calls_of(org, found, limits),
        "history": history_of(org),
    }


def tasks_of(org: Org, found: Catalogue) -> dict[str, dict[str, list[str]]]:
    """Of each task of the org file (of all where it has none): what it lacks, and what would make it better."""
    from crmray import tasks

    mapped = {
        name: {column for source in sources for column in (*source.columns, *source.values)}
        for name, sources in found.tables.items()
    }
    filled = {table for plan in found.objects.values() if plan.rows for table in plan.tables}
    report = {}
    for name in org.tasks or tasks.TASKS:
        which = tasks.task(name)
        settings = tasks.check_settings(which, org.tasks.get(name, {}))
        needs = which.needs(settings)
        report[name] = {
            "lacks": _lacking(needs.required, mapped, filled),
            "would_help": _lacking(needs.useful, mapped, filled),
        }
    return report


def _lacking(needs: Mapping[str, Sequence[str]], mapped: Mapping[str, set[str]], filled: set[str]) -> list[str]:
    """Tables without rows, and columns that nothing is mapped to."""
    lacking = []
    for name, columns in needs.items():
        if name not in filled:
            lacking.append(f"{name}: {'no rows' if name in mapped else 'no object of the org fills it'}")
        elif absent := [column for column in columns if column not in mapped[name]]:
            lacking.append(f"{name}: {', '.join(absent)}")
    return lacking


def calls_of(org: Org, found: Catalogue, limits: Mapping[str, int]) -> dict[str, Any]:
    """Calls of a pull beside the org's limit. Incremental: of a day's changes, if all days were alike."""
    from crmray.salesforce import costs

    assert isinstance(org.source, SalesforceSource)
    whole = costs.full(found, org.source.page_rows)
    day = costs.incremental(found, org.source.page_rows, costs.daily(found))
    limit = limits.get("Max")
    return {
        "full": sum(whole.values()),
        "incremental": sum(day.values()),
        "by_object": {name: {"full": whole[name], "incremental": day[name]} for name in found.objects},
        "formula": costs.FORMULA,
        "daily_limit": limit,
        "left_today": limits.get("Remaining"),
        "reserved": int(limit * org.source.calls_reserve) if limit is not None else None,
    }


def history_of(org: Org) -> dict[str, Any]:
    """Which attributes have a past at a task's dates, and which fields of leads are written at their conversion; empty
    while the lake has no tables."""
    from crmray import tasks
    from crmray.data import asof_leads, examples

    lake = Lake.of(org)
    report: dict[str, Any] = {}
    for name in org.tasks or tasks.TASKS:
        which = tasks.task(name)
        settings = tasks.check_settings(which, org.tasks.get(name, {}))
        try:
            report["customers"] = examples.attributes_of(org, lake, which, settings)
        except (DataError, NotFoundError):
            continue  # what it lacks stands under `tasks`
        if report["customers"]:
            report["dates_of"] = name
            break
    if leads := asof_leads.leaks_of(org, lake):
        report["leads"] = leads
    return report


# -- for people ------------------------------------------------------------------------------------------------------


def told(report: Mapping[str, Any]) -> str:
    """The report in tables and sentences."""
    parts = [_objects(report), _lacks(report["lacks"]), _tasks(report["tasks"]), _calls(report["calls"])]
    return "\n\n".join(part for part in (*parts, _history(report["history"])) if part)


def _objects(report: Mapping[str, Any]) -> str:
    by_object = report["calls"]["by_object"]
    rows = [
        {
            "object": name,
            "rows": f"{about['rows']:,}",
            "by": about["via"],
            "fills": ", ".join(about["fills"]),
            "calls": by_object[name]["full"],
            "then": by_object[name]["incremental"],
            "fields": len(about["fields"]),
            "derived": ", ".join(about["derived"]) or "–",
        }
        for name, about in report["objects"].items()
    ]
    fields = [f"{name}: {', '.join(about['fields'])}" for name, about in report["objects"].items()]
    return "\n".join(["what will be read", table(rows), "", *fields, "", SHARING])


def _lacks(lacks: Sequence[Mapping[str, Any]]) -> str:
    if not lacks:
        return "the mapping finds all that it looks for"
    lines = []
    for lack in lacks:
        name = f"{lack['object']}.{lack['field']}" if lack["field"] else f"object {lack['object']}"
        asked = "; named by the org file, so the pull refuses" if lack["named_by_org_file"] else ""
        lines.append(f"  {name} ({', '.join(lack['for'])}): {lack['why']}{asked}")
    return "\n".join(["what is looked for and cannot be read", *lines])


def _tasks(report: Mapping[str, Mapping[str, list[str]]]) -> str:
    lines = ["tasks"]
    for name, about in report.items():
        verdict = f"lacks {'; '.join(about['lacks'])}" if about["lacks"] else "has the tables and columns it needs"
        helps = f"; would use {'; '.join(about['would_help'])}" if about["would_help"] else ""
        lines.append(f"  {name}: {verdict}{helps}")
    return "\n".join(lines)


def _calls(calls: Mapping[str, Any]) -> str:
    limit = "unknown" if calls["daily_limit"] is None else f"{calls['daily_limit']:,}"
    left = "unknown" if calls["left_today"] is None else f"{calls['left_today']:,}"
    reserved = "" if calls["reserved"] is None else f", of which {calls['reserved']:,} are left to others"
    return (
        f"API calls: about {calls['full']:,} for a full pull, {calls['incremental']:,} for one of a day's changes; the "
        f"org allows {limit} in 24 hours, {left} are left{reserved}\n{calls['formula']}"
    )


def _history(history: Mapping[str, Any]) -> str:
    lines = []
    if about := history.get("customers"):
        rows = [
            {
                "field": f"{how['object']}.{how['field']}",
                "history": how["status"],
                "from": (how["covered_from"] or "–")[:10],
                "least known": f"{min(how['known'].values()):.0%}",
                "at past dates": how["used"] + (", insisted" if how["insisted"] else ""),
            }
            for how in about.values()
        ]
        lines += [f"attributes at the past dates of {history['dates_of']}", table(rows)]
    for column, leak in history.get("leads", {}).items():
        lines.append(
            f"Lead {column}: written at conversion: {leak['share_with']:.0%} of converted leads"
            f" against {leak['share_without']:.0%} of the others, by its {leak['by']}; no feature of open leads"
        )
    return "\n".join(lines) or "attributes at past dates: known once the data is sharded (`crmray check`)"
