"""The model card of a bundle in Markdown, from what bundle.json holds (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render(bundle: Mapping[str, Any]) -> str:
    """Markdown text.

    `bundle`: task, candidate, features_version, seed (required); settings, metrics {candidate: {figure: number}},
    baselines {name: {figure: number}}, best_possible {figure: number}, decision, data, rounds (optional).
    """
    parts = [f"# {bundle['task']}: {bundle['candidate']}", _facts(bundle)]
    table = _figures({**bundle.get("metrics", {}), **bundle.get("baselines", {})}, bundle.get("best_possible"))
    if table:
        said = "Champion first. Test rows are read once, for this table."
        parts += ["## Figures", said, _champion_first(table, bundle["candidate"])]
    for title, field in (("Settings", "settings"), ("Data", "data"), ("Decision", "decision")):
        if bundle.get(field):
            parts += [f"## {title}", _listing(bundle[field])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(bundle: Mapping[str, Any]) -> str:
    names = ("version", "features_version", "rounds", "seed")
    return "\n".join(f"- {name.replace('_', ' ')}: {bundle[name]}" for name in names if bundle.get(name) is not None)


def _figures(rows: Mapping[str, Mapping[str, Any]], best_possible: Mapping[str, Any] | None) -> str:
    if best_possible:
        rows = {**rows, "best possible": best_possible}
    numbers = {name: {k: v for k, v in row.items() if _is_number(v)} for name, row in rows.items()}
    columns = list(dict.fromkeys(column for row in numbers.values() for column in row))
    if not columns:
        return ""
    lines = [["model", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_number(row.get(column)) for column in columns)] for name, row in numbers.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _champion_first(table: str, champion: str) -> str:
    head, rule, *rows = table.split("\n")
    return "\n".join([head, rule, *sorted(rows, key=lambda row: not row.startswith(f"| {champion} |"))])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _listing(fields: Mapping[str, Any], indent: str = "") -> str:
    """Nested bullet points; long lists are counted, not printed."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {name}:", _listing(value, indent + "  ")] if value else [f"{indent}- {name}: none"]
        elif isinstance(value, (list, tuple)) and len(value) > 12:
            lines.append(f"{indent}- {name}: {len(value)} values")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else _scalar(value)
            lines.append(f"{indent}- {name}: {shown}")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    return _number(value) if _is_number(value) else "none" if value is None else str(value)
