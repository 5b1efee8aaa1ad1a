"""Tables, charts and the frame of a page as HTML: one file that fetches nothing, plotly.js in it once."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from crmray.evaluate.charts import Chart
from crmray.evaluate.page_style import SCRIPT, STYLE
from crmray.evaluate.words import is_figure, name_of, text_of

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
MAX_LINES = 40
"""of a table"""
MAX_CELL, WORDS = 24, " class=words"
"""longer cells are sentences, which begin at the left"""


def table(
    rows: Mapping[str, Mapping[str, Any]], first: str, caption: str, *, plain: bool = False, marked: str = ""
) -> str:  # fmt: skip
    """An HTML table, a line per row: name -> column -> value. An empty text for no rows.

    plain: values are texts already; else they are figures, and what is no number is left out. marked: name of the row
    that stands out.
    """
    shown = list(rows.items())[:MAX_LINES]
    keys = dict.fromkeys(key for _, row in shown for key in row)
    columns = {key: [_cell(row.get(key), key, plain) for _, row in shown] for key in keys}
    columns = {key: cells for key, cells in columns.items() if any(cells)}
    if not columns:
        return ""
    kinds = [WORDS if max(map(len, cells)) > MAX_CELL else "" for cells in columns.values()]
    names = [escape(key if plain else name_of(key)) for key in columns]
    heads = [f"<th scope=col{kind}>{name}</th>" for name, kind in zip(names, kinds, strict=True)]
    head = "".join([f"<th scope=col>{escape(first)}</th>", *heads])
    lines = []
    for (name, _), cells in zip(shown, zip(*columns.values(), strict=True), strict=True):
        mark = " class=champion" if marked and name == marked else ""
        told = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds, strict=True))
        lines.append(f"<tr{mark}><th scope=row>{escape(str(name))}</th>{told}</tr>")
    more = f" (the first {MAX_LINES} of {len(rows)})" if len(rows) > MAX_LINES else ""
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='{escape(caption, quote=True)}'><table>"
        f"<caption>{escape(caption)}{more}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        "</table></div>"
    )


def picture(name: str, svg: bytes) -> str:
    """A drawing inside the page, on white, since drawings are made for paper."""
    shown = base64.b64encode(svg).decode()
    words = escape(name.replace("_", " ").replace("-", ": ", 1), quote=True)
    return (
        f"<figure><h3>{words}</h3><div class=scroll tabindex=0 role=region aria-label='{words}'>"
        f"<img class=drawing alt='{words}' src='data:image/svg+xml;base64,{shown}'></div></figure>"
    )


def _cell(value: Any, key: str, plain: bool) -> str:
    if plain:
        return "" if value is None else str(value)
    return text_of(value, key) if is_figure(value) else ""


def _figure(chart: Chart, number: int) -> str:
    """A chart with its words, its numbers as a table, and its JSON for the script."""
    told = json.dumps({"data": list(chart.traces), "layout": dict(chart.layout)}, separators=(",", ":"))
    lines = list(zip(*chart.columns.values(), strict=True))[:MAX_LINES]
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in chart.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(text_of(v))}</td>" for v in line) + "</tr>" for line in lines)
    return (
        f"<figure><h3>{escape(chart.title)}</h3>"
        f"<div class=chart role=img aria-label='{escape(chart.title, quote=True)}' data-from=chart-{number}></div>"
        f"<script type='application/json' id=chart-{number}>{_inert(told)}</script>"
        f"<figcaption>{escape(chart.words)}</figcaption>"
        f"<details><summary>The numbers</summary><div class=scroll><table><caption>{escape(chart.title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details></figure>"
    )


def _inert(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c")


def page(title: str, intro: Sequence[str], sections: Sequence[tuple[str, Sequence[str | Chart]]]) -> bytes:
    """The page: intro, a list of links, sections of HTML texts and charts; empty sections are left out."""
    from plotly.offline import get_plotlyjs

    filled = [(name, [part for part in parts if part]) for name, parts in sections]
    filled = [(name, parts) for name, parts in filled if parts]
    number, body = 0, []
    for place, (name, parts) in enumerate(filled):
        texts, figures = [part for part in parts if isinstance(part, str)], []
        for part in parts:
            if isinstance(part, Chart):
                figures.append(_figure(part, number))
                number += 1
        drawn = f"<div class=pair>{''.join(figures)}</div>" if figures else ""
        body.append(f"<section id=s{place}><h2>{escape(name)}</h2>{''.join(texts)}{drawn}</section>")
    links = "".join(f"<li><a href='#s{place}'>{escape(name)}</a>" for place, (name, _) in enumerate(filled))
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta name=color-scheme content='light dark'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<nav aria-label='on this page'><ul>{links}</ul></nav>{''.join(intro)}{''.join(body)}</main>"
        f"<script>{get_plotlyjs()}</script><script>{SCRIPT}</script></body></html>"
    )
    return page.encode()
