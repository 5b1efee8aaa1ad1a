"""`crmray init` drafts an org file from data files; `crmray check` says what an org file's data holds and can carry."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import crmray
from crmray import schema
from crmray.commands import draft
from crmray.commands.text import table
from crmray.data.clean import ASKED_FOR
from crmray.errors import ConfigError, DataError
from crmray.org import OpenOrg
from crmray.storage import Run

MANY_SET_ASIDE = 0.05
"""share of rows set aside for one reason that hints at a wrong mapping, unless the org file asks for it"""
MIN_CUSTOMERS = 200
"""fewer do not carry an honest 70/15/15 split: about 30 would be left to test on"""
MIN_OF_CLASS = 20
"""labelled rows of the rarer class; with fewer, three are left to test on"""


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
        "tasks can run, and exactly what the others lack.",
        epilog="example: crmray check org.yaml",
    )
    check.add_argument("org", metavar="ORG.yaml", help="the org file")
    check.set_defaults(call=check_command)


def init_command(arguments: argparse.Namespace) -> int:
    """Draft and write."""
    out = Path(arguments.out) if arguments.out else None
    if out and out.exists():
        raise ConfigError(f"{out}: is there already, and init does not overwrite; give another --out or remove it")
    guesses = [draft.guess(path) for path in arguments.files]
    if not any(guess.table for guess in guesses):
        seen = "; ".join(f"{guess.path}: {', '.join(guess.seen)}" for guess in guesses)
        raise ConfigError(
            f"got columns that fit no canonical table ({seen}), expected for example an id of the customer and a date;"
            " write the org file by hand, as the README's “Your own files” shows"
        )
    name = re.sub(r"[^a-z0-9_-]+", "-", (arguments.name or Path(arguments.files[0]).stem).lower()).strip("-_") or "org"
    text = draft.render(name[:63], guesses, out.parent if out else Path.cwd())
    if out:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {out}: got {error.strerror}, expected a place for a new file") from None
        print(f"wrote {out}: {text.count('GUESS')} guesses to look at; then: crmray check {out}")
        for guess in (guess for guess in guesses if not guess.table):
            print(f"left out {guess.path}: no canonical table fits its columns {', '.join(guess.seen)}")
    else:
        sys.stdout.write(text)
    return 0


def check_command(arguments: argparse.Namespace) -> int:
    """Report; exit code 2 when a task of the org file cannot run."""
    org = crmray.open(arguments.org)
    org.ingest()
    runs = org.shard()
    found = {name: run.manifest() for name, run in runs.items()}
    print(table([_table_row(name, manifest) for name, manifest in found.items()]))
    for name, manifest in found.items():
        for reason, count in manifest.get("rejected", {}).items():
            share = count / max(_rows(manifest) + sum(manifest["rejected"].values()), 1)
            alarm = f"  ({share:.0%}: is the mapping right?)" if share > MANY_SET_ASIDE and reason != ASKED_FOR else ""
            print(f"{name}: {count:,} rows set aside: {reason}{alarm}")
        for column in _unfilled(org.config, name, manifest):
            print(f"{name}: column {column} is mapped and has no value in any row")
    counts = _outcome_counts(runs.get("outcomes"))
    lacking = False
    print()
    for name in org.config.tasks:
        lacks, weak = _lacks(org, name, found, counts), _weak(found, counts)
        lacking = lacking or bool(lacks)
        verdict = f"cannot run: {'; '.join(lacks)}" if lacks else "can run"
        print(f"{name}: {verdict}" + (f"; but {'; '.join(weak)}" if weak and not lacks else ""))
    return 2 if lacking else 0


def _table_row(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows = _rows(manifest)
    missing = {column: count for column, count in manifest.get("missing", {}).items() if 0 < count < rows}
    worst = sorted(missing.items(), key=lambda item: -item[1])[:4]
    return {
        "table": name,
        "rows": f"{rows:,}",
        "from": str(manifest.get("earliest") or "–")[:10],
        "to": str(manifest.get("latest") or "–")[:10],
        "set aside": f"{sum(manifest.get('rejected', {}).values()):,}",
        "missing": ", ".join(f"{column} {count / rows:.0%}" for column, count in worst) or "–",
    }


def _rows(manifest: Mapping[str, Any]) -> int:
    told = manifest.get("rows", 0)
    return sum(told.values()) if isinstance(told, Mapping) else int(told)


def _unfilled(org: crmray.config.Org, name: str, manifest: Mapping[str, Any]) -> list[str]:
    """Mapped columns of a table without a single value, in the order of the org file."""
    from crmray.data.ingest import origins

    mapped = dict.fromkeys(
        column for origin in origins(org) if origin.table == name for column in origin.source.columns
    )
    return [column for column in mapped if manifest.get("missing", {}).get(column, 0) >= _rows(manifest) > 0]


def _lacks(org: OpenOrg, task: str, found: Mapping[str, Mapping[str, Any]], outcomes: Mapping[float, int]) -> list[str]:
    """What the task needs and the tables do not hold."""
    from crmray import tasks
    from crmray.data.examples import dates_of

    which, settings = tasks.task(task), tasks.settings(org.config, task)
    needs = which.needs(settings)
    lacks = []
    for name, columns in needs.required.items():
        manifest = found.get(name)
        if manifest is None or not _rows(manifest):
            lacks.append(f"table {name} is missing or empty (columns {', '.join(columns)})")
            continue
        empty = [column for column in columns if manifest.get("missing", {}).get(column, 0) >= _rows(manifest)]
        if empty:
            lacks.append(f"table {name} has no value in {', '.join(empty)}: map it in the org file")
    if "outcomes" in needs.required and len(outcomes) == 1:
        lacks.append("all labelled rows have the same label, expected both labels")
    if not lacks:
        try:
            dates_of(org.lake, which, settings)
        except DataError as error:
            lacks.append(str(error))
    return lacks


def _outcome_counts(run: Run | None) -> dict[float, int]:
    if run is None:
        return {}
    values = run.read_table(columns=["value"])["value"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in values}


def _weak(found: Mapping[str, Mapping[str, Any]], outcomes: Mapping[float, int]) -> list[str]:
    """Counts too small for an honest model."""
    weak = []
    known = [m.get("entities", 0) for name, m in found.items() if schema.TABLES[name].entity == "entity_id"]
    customers = max(known, default=0)
    if 0 < customers < MIN_CUSTOMERS:
        weak.append(f"{customers} customers are too few for an honest model, expected at least {MIN_CUSTOMERS}")
    rare = min(outcomes.values(), default=MIN_OF_CLASS)
    if rare < MIN_OF_CLASS and len(outcomes) <= 20:
        weak.append(f"only {rare} labelled rows of one class, expected at least {MIN_OF_CLASS}")
    return weak
