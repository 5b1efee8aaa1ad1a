"""`crmray init` drafts an org file from data files; `crmray check` says what an org file's data holds and can carry."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import crmray
from crmray import schema
from crmray.commands import draft, exported, look
from crmray.commands.text import table
from crmray.data import rejected
from crmray.data.clean import ASKED_FOR
from crmray.data.partition import REPEATED
from crmray.errors import ClusterError, ConfigError, CrmrayError
from crmray.org import OpenOrg
from crmray.sources import TableSource
from crmray.storage import Run

MANY_SET_ASIDE = 0.05
"""share of rows set aside for one reason that hints at a wrong mapping, unless the org file asks for it"""
MIN_CUSTOMERS = 200
"""fewer do not carry an honest 70/15/15 split: about 30 would be left to test on"""
MIN_OF_CLASS = 20
"""labelled rows of the rarer class; with fewer, three are left to test on"""
MOST_CLASSES = 20
"""values of a label; one with more is a number"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    init = commands.add_parser(
        "init",
        help="draft an org file from data files",
        description="Guess which canonical tables the files are and draft an org file; every guess is marked GUESS.",
        epilog="example: crmray init data/orders.csv data/products.csv --out org.yaml",
    )
    init.add_argument("files", nargs="+", metavar="FILE", help="CSV or Parquet files")
    init.add_argument("--name", help="name of the org; default: from the first file")
    init.add_argument("--out", metavar="ORG.yaml", help="where to write; default: standard output")
    init.set_defaults(call=init_command)
    check = commands.add_parser(
        "check",
        help="what the data holds and which tasks can run",
        description="Ingest and shard (the results stay in the lake), then say what was found per table, which "
        "tasks can run, and exactly what the others lack. Exit code 2 where a task cannot run, or needs a table most "
        "of whose rows were set aside.",
        epilog="example: crmray check org.yaml",
    )
    check.add_argument("org", metavar="ORG.yaml", help="the org file")
    check.set_defaults(call=check_command)


def init_command(arguments: argparse.Namespace) -> int:
    """Draft and write."""
    out = Path(arguments.out) if arguments.out else None
    if out and out.exists():
        raise ConfigError(f"{out}: is there already, and init does not overwrite; give another --out or remove it")
    parts = [exported.guesses(path) or [look.guess(path)] for path in dict.fromkeys(arguments.files)]
    guesses = exported.one_sale(guess for part in parts for guess in part)
    if not any(guess.table for guess in guesses):
        raise ConfigError(
            f"got nothing to draft from ({'; '.join(draft.left_out(guesses))}), expected for example columns with the "
            "id of the customer and a date; write the org file by hand, as the README's “Your own files” shows"
        )
    name = re.sub(r"[^a-z0-9_-]+", "-", (arguments.name or Path(arguments.files[0]).stem).lower()).strip("-_") or "org"
    folder = out.parent if out else Path.cwd()
    text = draft.render(name[:63], guesses, folder, is_named=arguments.name is not None)
    if out:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {out}: got {error.strerror}, expected a place for a new file") from None
        print(f"wrote {out}: {text.count('GUESS')} guesses to look at; then: crmray check {out}")
        print("".join(f"left out {line}\n" for line in draft.left_out(guesses)), end="")
        if any(guess.standard for guess in guesses):
            print(f"this is {exported.NOTE}")
    else:
        sys.stdout.write(text)
    return 0


def check_command(arguments: argparse.Namespace) -> int:
    """Report; exit code 2 when a task cannot run, or needs a table most of whose rows were set aside."""
    from crmray import cluster  # imports Ray

    org = crmray.open(arguments.org)
    org.ingest()
    # Not on the head of `crmray up`, unless it is named: what runs there may keep its CPUs for hours.
    cluster.connect(os.environ.get("RAY_ADDRESS") or "local")
    runs = org.shard()
    found = {name: run.manifest() for name, run in runs.items()}
    print(table([_table_row(name, manifest) for name, manifest in found.items()]))
    for name, run in runs.items():
        print("".join(f"{name}: {told}\n" for told in _notes(org.config, name, run)), end="")
    print(_of_today(found))
    refused = [name for name in org.config.tasks if not _verdict(org, name, found, runs)]
    lost = {name: told for name, manifest in found.items() if (told := _mostly_lost(org.config, name, manifest))}
    print("".join(f"\n{told}" for told in lost.values()), end="\n" if lost else "")
    return 2 if refused or set(lost) & _needed(org.config) else 0


def _notes(org: crmray.config.Org, name: str, run: Run) -> list[str]:
    """What to know of a table: rows set aside and where they stand, columns without values, dates that are text."""
    manifest, told = run.manifest(), []
    counts, places = manifest.get("rejected", {}), rejected.told(org, run)
    for reason, count in counts.items():
        if reason == ASKED_FOR:
            told.append(f"{_counted(count)} {reason}")
            continue
        share = count / max(_rows(manifest) + sum(counts.values()), 1)
        alarm = f"  ({share:.0%}: is the mapping right?)" if share > MANY_SET_ASIDE else ""
        told += [f"{_counted(count)} set aside: {reason}{alarm}", *(f"  {place}" for place in places.get(reason, ()))]
    if set(counts) - {ASKED_FOR}:
        told.append(f"the ids of rows set aside: {run.path}/{rejected.FILE}")
    told += [f"column {column} is mapped and has no value in any row" for column in _unfilled(org, name, manifest)]
    if empty := [column for column in _attributes(name, manifest) if _is_empty(manifest, column)]:
        told.append(f"no value in any row, so of no use: {', '.join(empty)}")
    return told + _dates_as_text(name, run)


def _attributes(name: str, manifest: Mapping[str, Any]) -> list[str]:
    return [column for column in manifest.get("columns", ()) if column not in schema.TABLES[name].fields]


def _of_today(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line on attributes of customers whose past nothing tells, where there is a past; else nothing."""
    from crmray.data.asof_attributes import KEYS

    customers = found.get("customers", {})
    names = [one for one in customers.get("columns", ()) if one not in KEYS and not _is_empty(customers, one)]
    dated = any(schema.TABLES[name].time for name in found if name not in ("customers", "outcomes"))
    if not names or not dated or "changes" in found or not _is_empty(customers, "modified_at"):
        return ""
    return (
        f"customers: used at past dates as they stand today, since no table of changes tells their past: "
        f"{', '.join(names)}; leave out what is written when, or after, what is to be predicted happens\n"
    )


def _is_empty(manifest: Mapping[str, Any], column: str) -> bool:
    return manifest.get("missing", {}).get(column, 0) >= _rows(manifest) > 0


def _dates_as_text(name: str, run: Run) -> list[str]:
    """What to say of attributes that hold dates and became text, by the first shard that has rows."""
    manifest = run.manifest()
    texts = [column for column in _attributes(name, manifest) if manifest["columns"][column] == "string"]
    if not texts:
        return []
    from crmray.data import infer

    rows = next((part for file in run.files("shard-*.parquet") if (part := run.read_table(file, texts)).num_rows), None)
    forms = {} if rows is None else {column: infer.form_of_dates(rows[column]) for column in texts}
    return draft.dates_as_text({column: form for column, form in forms.items() if form})


def _counted(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _mostly_lost(org: crmray.config.Org, name: str, manifest: Mapping[str, Any]) -> str:
    """A warning where most rows of a table were set aside, with the reason of most of them; else nothing.

    A row that a later one takes the place of is not lost: a source of daily snapshots has many.
    """
    rejected = manifest.get("rejected", {})
    reasons = {why: count for why, count in rejected.items() if why != ASKED_FOR and not why.endswith(REPEATED)}
    lost, left = sum(reasons.values()), _rows(manifest)
    if lost <= left:
        return ""
    most = max(reasons, key=lambda reason: reasons[reason])
    columns = {source for part in _sources(org, name) if (source := part.columns.get(most.split(":")[0]))}
    where = f" (column {', '.join(map(repr, sorted(columns)))} of the source)" if columns else ""
    return (
        f"WARNING: {name}: {_counted(lost)} of {lost + left:,} ({lost / (lost + left):.0%}) were set aside, most for "
        f"{most}{where}. The rest tells little of the org: correct the mapping, date_format, decimal or currency"
    )


def _needed(org: crmray.config.Org) -> set[str]:
    """The tables that a task of the org file cannot do without; of an org file without tasks all."""
    from crmray import tasks

    needs = [tasks.task(name).needs(tasks.settings(org, name)) for name in org.tasks]
    return {table for one in needs for table in one.required} or set(schema.TABLES)


def _verdict(org: OpenOrg, name: str, found: Mapping[str, Mapping[str, Any]], runs: Mapping[str, Run]) -> bool:
    """Whether the examples of a task can be made, by making some; says so, or what it lacks."""
    try:
        tried, shards = org.trial(name)
        weak = _weak(org, name, found, runs)
    except ClusterError:  # says nothing about this task, and the next would meet it too
        raise
    except CrmrayError as error:
        print(f"{name}: cannot run: {str(error).removeprefix(f'task {name}: ').removeprefix(f'task {name} ')}")
        return False
    so_far = f" (tried on {tried} of {shards} shards)" if tried < shards else ""
    print(f"{name}: can run{so_far}" + (f"; but {'; '.join(weak)}" if weak else ""), flush=True)
    return True


def _table_row(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows = _rows(manifest)
    missing = {column: count for column, count in manifest.get("missing", {}).items() if 0 < count < rows}
    worst = sorted(missing.items(), key=lambda item: -item[1])[:4]
    return {
        "table": name,
        "rows": f"{rows:,}",
        "from": str(manifest.get("earliest") or "–")[:10],
        "to": str(manifest.get("latest") or "–")[:10],
        "set aside": f"{sum(n for reason, n in manifest.get('rejected', {}).items() if reason != ASKED_FOR):,}",
        "missing": ", ".join(f"{column} {count / rows:.0%}" for column, count in worst) or "–",
    }


def _rows(manifest: Mapping[str, Any]) -> int:
    told = manifest.get("rows", 0)
    return sum(told.values()) if isinstance(told, Mapping) else int(told)


def _unfilled(org: crmray.config.Org, name: str, manifest: Mapping[str, Any]) -> list[str]:
    """Mapped columns of a table without a single value, in the order of the org file."""
    mapped = dict.fromkeys(column for source in _sources(org, name) for column in source.columns)
    return [column for column in mapped if _is_empty(manifest, column)]


def _sources(org: crmray.config.Org, table: str) -> list[TableSource]:
    from crmray.data.ingest import origins

    return [origin.source for origin in origins(org) if origin.table == table]


def _weak(org: OpenOrg, name: str, found: Mapping[str, Mapping[str, Any]], runs: Mapping[str, Run]) -> list[str]:
    """Counts too small for an honest model."""
    from crmray import tasks

    weak = []
    known = [m.get("entities", 0) for name, m in found.items() if schema.TABLES[name].entity == "entity_id"]
    customers = max(known, default=0)
    if 0 < customers < MIN_CUSTOMERS:
        weak.append(f"{customers} customers are too few for an honest model, expected at least {MIN_CUSTOMERS}")
    which = tasks.task(name)
    if "outcomes" in which.needs(tasks.settings(org.config, name)).required:
        rare = _rarest(runs["outcomes"])
        if rare < MIN_OF_CLASS:
            weak.append(f"only {rare} labelled rows of one class, expected at least {MIN_OF_CLASS}")
    return weak


def _rarest(outcomes: Run) -> int:
    """Rows of the rarest value of any label that has few."""
    counts = outcomes.read_table(columns=["name", "value"]).group_by(["name", "value"]).aggregate([("value", "count")])
    by_name: dict[str, list[int]] = {}
    for row in counts.to_pylist():
        by_name.setdefault(row["name"], []).append(row["value_count"])
    return min((min(one) for one in by_name.values() if len(one) <= MOST_CLASSES), default=MIN_OF_CLASS)
