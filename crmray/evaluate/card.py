"""The model card of a bundle in Markdown, from what bundle.json holds (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crmray.evaluate.words import intervals_of, is_figure, meaning_of, name_of, setting_of, text_of

WEAK_AUC = 0.05
"""an AUC so far below that of all rows makes a group worth a word"""
FEW_ROWS = 500


def render(bundle: Mapping[str, Any]) -> str:
    """Markdown text.

    `bundle`: task, candidate, features_version, seed (required); about, entity, settings, metrics {model: {figure:
    number}}, best_possible {figure: number}, not_fitted {candidate: why}, test (as the task's `evaluate` gives it),
    removed, decision, data, rounds (optional).
    """
    parts = [f"# {bundle['task']}: {bundle['candidate']}", _facts(bundle)]
    if bundle.get("about"):
        parts += ["## What it does", bundle["about"], "## Intended use", *use(bundle)]
    rows = dict(sorted(bundle.get("metrics", {}).items(), key=lambda row: row[0] != bundle["candidate"]))
    if figures_of(rows.values()):
        rows |= {"best possible": bundle["best_possible"]} if bundle.get("best_possible") else {}
        parts += [
            "## Figures",
            "Champion first; raw scores, before calibration. Test rows are read once, for this table.",
            markdown(rows, "model"),
        ]
    if bundle.get("not_fitted"):
        parts += ["## Candidates without a model, and why", _listing(bundle["not_fitted"])]
    if bundle.get("test"):
        parts += [
            "## The champion on the test rows",
            "Of its answers; probabilities are calibrated.",
            _on_test(bundle["test"]),
        ]
    if bundle.get("about"):
        parts += ["## Limits", "\n".join(f"- {one}" for one in limits(bundle))]
    if bundle.get("removed"):
        parts += ["## Left out, and why", _listing(bundle["removed"])]
    for title, field in (("Settings", "settings"), ("Data", "data"), ("Decision", "decision")):
        if bundle.get(field):
            parts += [f"## {title}", _listing(bundle[field])]
    return "\n\n".join(part for part in parts if part) + "\n"


def use(bundle: Mapping[str, Any]) -> list[str]:
    """What the answers are for, and what not."""
    return [
        f"One answer for each {bundle.get('entity', 'row')} of the population, for people who decide what to do with "
        "it: whom to call, what to offer, what to plan for. It orders and estimates; it does not say what causes what.",
        "Not for decisions with legal or similar effect on a person without somebody who looks at the case, and not "
        "for others than those it was trained on: another market, another business, another definition of the label.",
    ]


def limits(bundle: Mapping[str, Any]) -> list[str]:
    """What the figures do not say, from the figures themselves: one sentence each."""
    test, data = bundle.get("test") or {}, bundle.get("data") or {}
    rows, date = test.get("rows"), (data.get("as_of") or {}).get("test")
    said = []
    if rows and rows < FEW_ROWS:
        said.append(f"Measured on {rows:,.0f} rows only; the intervals are wide.")
    if date:
        said.append(f"Measured on one date, {date[:10]}: other seasons may be easier or harder.")
    elif data:
        said.append("Measured on held-out rows of the same time: how it fares on later data is not known.")
    both = (bundle.get("best_possible") or {}).get("auc"), test.get("auc")
    if all(both):
        said.append(
            f"The best that any model could reach on these rows is a ROC-AUC of {both[0]:.4f}; it has {both[1]:.4f}."
        )
    if test.get("ece", 0) > 0.03:
        said.append(f"Probabilities are off by {test['ece']:.1%} on average: good for ranking, less so as numbers.")
    weak = [
        f"{name} ({text_of(one['auc'], 'auc')} on {one['rows']:,} rows)"
        for name, one in (test.get("groups") or {}).items()
        if test.get("auc") and one.get("auc") is not None and one["auc"] < test["auc"] - WEAK_AUC
    ]
    if weak:
        said.append(f"Ranks less well (ROC-AUC, {test['auc']:.4f} for all) among: {'; '.join(weak)}.")
    attributes = (data.get("attributes") or {}).items()
    if date and (today := [name for name, how in attributes if how["used"] == "today's"]):
        said.append(
            f"The past of these attributes is not known, so they stand as they are today at every date: "
            f"{', '.join(today)}. One that is written when the outcome happens makes the figures too good."
        )
    if bundle.get("suspects"):
        said.append(f"Features that nearly tell the answer alone, to be looked at: {', '.join(bundle['suspects'])}.")
    said.append("The figures are of the past; they age as the business changes, so evaluate again on new data.")
    return said


def _facts(bundle: Mapping[str, Any]) -> str:
    names = ("version", "features_version", "rounds", "seed")
    return "\n".join(f"- {name.replace('_', ' ')}: {bundle[name]}" for name in names if bundle.get(name) is not None)


def _on_test(test: Mapping[str, Any]) -> str:
    """Figure, value, 95 % interval and meaning; then the groups, if there are any."""
    intervals = intervals_of(test)
    lines = ["| figure | value | 95 % interval | meaning |", "|---|---|---|---|"]
    for figure, value in test.items():
        if is_figure(value):
            ends = " to ".join(text_of(end, figure) for end in intervals.get(figure, ()))
            lines.append(f"| {name_of(figure)} | {text_of(value, figure)} | {ends} | {meaning_of(figure)} |")
    groups = test.get("groups") or {}
    if not figures_of(groups.values()):
        return "\n".join(lines)
    return "\n".join([*lines, "", "Among groups of rows:", "", markdown(groups, "group")])


def markdown(rows: Mapping[str, Mapping[str, Any]], first: str) -> str:
    """A Markdown table: a line per row, a column per figure, names as `words` has them."""
    columns = figures_of(rows.values())
    lines = [[first, *(name_of(column) for column in columns)], ["---"] * (len(columns) + 1)]
    lines += [[name, *(text_of(row.get(column), column) for column in columns)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures_of(rows: Sequence[Mapping[str, Any]] | Any) -> list[str]:
    """The figures that any of the rows has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if is_figure(value)))


def _listing(fields: Mapping[str, Any], indent: str = "") -> str:
    """Nested bullet points."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {name}:", _listing(value, indent + "  ")] if value else [f"{indent}- {name}: none"]
        else:
            lines.append(f"{indent}- {name}: {setting_of(value)}")
    return "\n".join(lines)
