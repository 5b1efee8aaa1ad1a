"""A first org file from what data files seem to be. Guesses are marked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from crmray.commands.look import Guess, attributes, unused
from crmray.data import files
from crmray.sources import TableSource


def render(name: str, guesses: Sequence[Guess], folder: Path, *, is_named: bool = True) -> str:
    """The draft as YAML text, every guess marked with what else was there. is_named: whether the user gave the name."""
    lines = [
        f"name: {_quoted(name)}" + ("" if is_named else "  # GUESS by the first file"),
        f"storage: lake-{name}  # GUESS a folder beside this file, of this org alone; s3://bucket/prefix works as well",
        "currency: USD  # GUESS",
        "source:",
        "  kind: files",
        "  tables:",
    ]
    for table in dict.fromkeys(guess.table for guess in guesses if guess.table):
        lines.append(f"    {table}:")
        for one in (guess for guess in guesses if guess.table == table):
            lines += _source_lines(one, _place(one, folder))
    if labelled := [one for one in guesses if one.label]:
        lines.append("    outcomes:  # of the same file, on purpose: what is predicted is no attribute")
        lines += [line for one in labelled for line in _outcome_lines(one, _place(one, folder))]
    lines += ["    " + _note("left out:", line) for line in left_out(guesses)]
    return "\n".join([*lines, *_task_lines(guesses)]) + "\n"


def _place(one: Guess, folder: Path) -> str:
    return one.path if os.path.isabs(one.path) else os.path.relpath(one.path, folder)


def _task_lines(guesses: Sequence[Guess]) -> list[str]:
    """The tasks that such columns can carry; those that take longest to train as a hint."""
    columns = {(guess.table, column) for guess in guesses for column in guess.columns}
    bought = ("transactions", "entity_id") in columns
    told = bought or any(table == "interactions" for table, _ in columns) or any(map(_is_described, guesses))
    outcomes = {guess.outcome for guess in guesses if guess.label and told}
    tasks = []
    if "churn" in outcomes:
        tasks.append('  churn: {label: "outcome:churn"}')
    elif bought:
        tasks.append("  churn: {}")
    tasks += [f"  custom.{name}: {{outcome: {{given: {name}}}}}" for name in sorted(outcomes - {"churn"})]
    tasks += ["  segmentation: {}"] if bought else []
    tasks += ["  recommendation: {}"] if ("transactions", "product_id") in columns else []
    labelled = {one.task: one for one in reversed(guesses) if one.topic}
    tasks += ["  sentiment: {}"] if ("interactions", "rating") in columns and "sentiment" not in labelled else []
    tasks += [_labelled(one) for one in labelled.values()]
    tasks += ["  leads: {}"] if ("leads", "converted_at") in columns else []
    if ("transactions", "net_amount") in columns or ("transactions", "unit_price_amount") in columns:
        tasks += [f"  # {name}: {{}}  # can be carried too" for name in ("value", "forecast")]
    note = "# GUESS what this data can carry; `crmray check` tells"
    return [f"tasks:  {note}", *tasks] if tasks else [f"tasks: {{}}  {note}", *_why_none(guesses)]


def _labelled(one: Guess) -> str:
    """The task of labelled texts; without dates they are split by customer, or by row."""
    by = ", by: part" if one.columns["occurred_at"] == files.ROW else ""
    return f"  {one.task}: {{label: {_quoted(f'attribute:{one.topic}')}{by}}}"


def _is_described(one: Guess) -> bool:
    """Whether a file says enough of customers to predict something of them by it: more than ids, an outcome, a date."""
    return one.table == "customers" and len(attributes(one)) + len({*one.columns} - {"entity_id", "created_at"}) > 0


def _why_none(guesses: Sequence[Guess]) -> list[str]:
    """What is missing for a task, and what a prediction of one's own would be."""
    lines = [
        "  # none fits yet: churn, segmentation and value need purchases (of a customer, at a date), recommendation "
        "their products,",
        "  # sentiment texts with a rating, leads the dates of creation and conversion",
    ]
    lines += [
        "  "
        + _note(one.label, "is an outcome, but nothing else is known of the customers: add columns, or their purchases")
        for one in guesses
        if one.label
    ]
    for one in guesses:
        if len(attributes(one)) > 1:
            lines += [
                f"  {_note('to predict', column)}:  custom.mine: "
                f"{{outcome: {{attribute: {_quoted(column)}, kind: {kind}}}}}"
                for column, kind in one.two_valued.items()
            ]
    return lines


def dates_as_text(forms: Mapping[str, str]) -> list[str]:
    """A line for each way in which attributes write dates that are read as text. forms: column -> way."""
    columns: dict[str, list[str]] = {}
    for column, form in forms.items():
        columns.setdefault(form, []).append(column)
    return [
        f"dates as text ({form}), each a category of its own: {', '.join(names)}; write them in ISO 8601, as "
        "2024-01-31 (in Parquet as timestamps), and they count as days, or leave them out"
        for form, names in columns.items()
    ]


def left_out(guesses: Sequence[Guess]) -> list[str]:
    """A line for each reason, with the files that are left out by it and the columns of those that fit nothing."""
    reasons: dict[str, list[str]] = {}
    for one in (guess for guess in guesses if not guess.table):
        told = one.why if one.why != Guess.why else f"{one.why} {', '.join(one.seen)}"
        reasons.setdefault(told, []).append(one.path)
    return [f"{', '.join(paths)}: {told}" for told, paths in reasons.items()]


def _standard_lines(one: Guess, source: TableSource, place: str) -> list[str]:
    """A source of the standard mapping, of a file."""
    told = {"files": [place], **source.model_dump(exclude={"object"}, exclude_defaults=True), **one.settings}
    lines = yaml.safe_dump(told, sort_keys=False, default_flow_style=None, width=100).splitlines()
    return [f"      # Salesforce's {source.object}", f"      - {lines[0]}", *(f"        {line}" for line in lines[1:])]


def _source_lines(one: Guess, place: str) -> list[str]:
    if one.standard is not None:
        return _standard_lines(one, one.standard, place)
    others = unused(one)
    lines = [f"      - files: [{_quoted(place)}]", "        columns:"]
    for canonical, column in one.columns.items():
        note = "the file has none; the number of the row serves" if column == files.ROW else "GUESS by its name"
        lines.append(f"          {canonical}: {_quoted(column)}  # {note}")
    lines += _setting_lines(one)
    if one.table == "customers":
        kept = attributes(one)
        personal = [name for name in others if name not in kept]
        lines += ["        " + _note("personal, left out:", ", ".join(personal))] if personal else []
        lines += [f"        attributes: [{', '.join(map(_quoted, kept))}]  # GUESS all other columns"] if kept else []
        lines += ["        " + _note(line) for line in dates_as_text(one.dates)]
    elif one.topic:
        lines.append(f"        attributes: [{_quoted(one.topic)}]  # GUESS what the texts are labelled with")
    elif others:
        lines.append("        " + _note("not mapped:", ", ".join(others)))
    return lines


def _setting_lines(one: Guess) -> list[str]:
    return [f"        {key}: {_quoted(value)}  # GUESS from the first rows" for key, value in one.settings.items()]


def _outcome_lines(one: Guess, place: str) -> list[str]:
    assert one.label is not None
    return [
        f"      - files: [{_quoted(place)}]",
        "        columns:",
        f"          entity_id: {_quoted(one.columns['entity_id'])}",
        f"          value: {_quoted(one.label)}  # GUESS the label, by its name and its two values",
        f"        values: {{name: {one.outcome}}}  # GUESS",
        *_setting_lines(one),
    ]


def _quoted(text: str) -> str:
    """As YAML reads it back: a column may be called No, which is a bool there, or have a line break in its name."""
    if not text.isprintable():
        return yaml.safe_dump(text, default_style='"', width=math.inf).rstrip()
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text
    return text if is_plain else "'" + text.replace("'", "''") + "'"


def _note(*parts: str) -> str:
    """A comment, on one line whatever a header holds."""
    return " ".join(["#", *" ".join(parts).split()])
