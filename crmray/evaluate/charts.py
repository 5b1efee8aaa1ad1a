"""Charts of a report as Plotly's own JSON (traces and a layout), from the curves that `judge` gives.

Made as plain dicts: the page hands them to plotly.js as they are, so a report needs nothing of the Python package but
the script. Colours are those of Okabe and Ito (2008), told apart by all kinds of sight; every line also has a dash of
its own. What depends on light and dark is left to the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crmray.evaluate.words import name_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
HEIGHT = 360
SHARE = ".0%"
BEST = "best possible"
"""what stands among the models without being one"""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure of a page, with the words and the numbers of those who do not see it."""

    title: str
    """what it is"""
    words: str
    """how to read it, in plain words"""
    traces: Sequence[Mapping[str, Any]]
    """Plotly traces"""
    layout: Mapping[str, Any]
    """Plotly layout"""
    columns: Mapping[str, Sequence[Any]]
    """the numbers, as a table: column -> values"""


def curves(test: Mapping[str, Any]) -> list[Chart]:
    """The charts of what `judge` gave: those for which there are curves."""
    known: Mapping[str, Any] = test.get("curves") or {}
    found = [make(known[name], test) for name, make in CHARTS.items() if known.get(name)]
    return [*found, *_confusion(test), *_by_horizon(test)]


def _roc(curve: Mapping[str, Any], test: Mapping[str, Any]) -> Chart:
    x, y = curve["false_positive_rate"], curve["recall"]
    return _lines(
        "ROC curve",
        "From left to right more and more rows are called positive, the most probable first. The higher the line above "
        "the diagonal (chance), the better the ranking; the area under it is the ROC-AUC.",
        {"model": (x, y), "chance": ([0, 1], [0, 1])},
        ("false alarms among the negatives", "found among the positives"),
    )


def _pr(curve: Mapping[str, Any], test: Mapping[str, Any]) -> Chart:
    base = test["base_rate"]
    return _lines(
        "Precision and recall",
        "To find more of the positives (to the right) one has to accept more that are none (downwards). The level line "
        "is what picking at random gives.",
        {"model": (curve["recall"], curve["precision"]), "chance": ([0, 1], [base, base])},
        ("recall: found among the positives", "precision: right among those called"),
    )


def _calibration(bins: Sequence[Mapping[str, Any]], test: Mapping[str, Any]) -> Chart:
    x, y = ([one[name] for one in bins] for name in ("mean_probability", "rate"))
    chart = _lines(
        "Calibration",
        "Rows with a like probability are put together; their mean probability is beside the share that came true. On "
        "the diagonal a probability of 30 % means three in ten. Above it the model says too little, below too much.",
        {"model": (x, y), "perfect": ([0, 1], [0, 1])},
        ("probability given", "share that came true"),
        mode="lines+markers",
    )
    return replace(chart, columns={"probability": x, "came true": y, "rows": [one["rows"] for one in bins]})


def _gains(curve: Mapping[str, Any], test: Mapping[str, Any]) -> Chart:
    lines = {"model": (curve["share"], curve["found"]), "at random": ([0, 1], [0, 1])}
    if "ideal" in curve:
        lines["best possible order"] = (curve["share"], curve["ideal"])
    what = "of the total amount" if "ideal" in curve else "of all positives"
    return _lines(
        "Cumulative gains",
        f"How much {what} is found when only the top of the list is taken: for the highest-ranked tenth of the rows, "
        "look above 10 %.",
        lines,
        ("share of rows taken, from the top", f"share {what} found"),
    )


def _lift(tenths: Sequence[Mapping[str, Any]], test: Mapping[str, Any]) -> Chart:
    x = [f"{one['decile']}." for one in tenths]
    lift = [one["lift"] for one in tenths]
    columns = {"tenth": x, "rows": [one["rows"] for one in tenths], "mean": [one["mean"] for one in tenths]}
    if all("mean_prediction" in one for one in tenths):
        columns["mean prediction"] = [one["mean_prediction"] for one in tenths]
    layout = _layout(("tenth of the rows, from the top", "times the average"), legend=False)
    layout["xaxis"] |= {"type": "category"}
    return Chart(
        title="Lift by tenth",
        words="The rows in ten equal parts, the highest-ranked first: how many times the average each part holds. A "
        "good ranking falls from left to right; 1 is the average.",
        traces=[{"type": "bar", "x": x, "y": lift, "marker": {"color": COLOURS[0]}, "name": "lift"}],
        layout=layout,
        columns={**columns, "lift": lift},
    )


def _qini(curve: Mapping[str, Any], test: Mapping[str, Any]) -> Chart:
    share = curve["share"]
    return _lines(
        "Qini curve",
        "What is gained when the customers whom the offer moves most are treated first, per treated customer. The "
        "straight line is treating at random; where the curve falls, the offer does harm.",
        {"model": (share, curve["gain"]), "at random": (share, curve["random"])},
        ("share of customers treated", "gain"),
    )


CHARTS: dict[str, Callable[[Any, Mapping[str, Any]], Chart]] = {
    "roc": _roc,
    "pr": _pr,
    "calibration": _calibration,
    "gains": _gains,
    "lift": _lift,
    "qini": _qini,
}
"""curve of `judge` -> its chart"""


def _confusion(test: Mapping[str, Any]) -> list[Chart]:
    """The confusion matrix as a heat map of shares of the true class, with the counts written in it."""
    cells = test.get("confusion")
    if not cells:
        return []
    names = [str(name) for name in test.get("names") or ("no", "yes")]
    shares = [[value / max(sum(row), 1) for value in row] for row in cells]
    texts = [[f"{value:,}<br>{share:.0%}" for value, share in zip(*rows, strict=True)]
             for rows in zip(cells, shares, strict=True)]  # fmt: skip
    trace = {
        "type": "heatmap", "z": shares, "x": names, "y": names, "zmin": 0, "zmax": 1,
        "colorscale": [[0, "#ffffff"], [1, COLOURS[4]]], "showscale": False, "text": texts, "texttemplate": "%{text}",
        "textfont": {"color": "#000000"},
        "hovertemplate": "true %{y}, said %{x}: %{text}<extra></extra>",
    }  # fmt: skip
    layout = _layout(("what the model said", "what came"), legend=False, height=max(HEIGHT, 120 + 44 * len(names)))
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"type": "category"}
    layout["yaxis"] |= {"autorange": "reversed"}
    columns = {"what came": names} | {
        f"said {name}": [row[k] for row in cells] for k, name in enumerate(names)
    }  # fmt: skip
    words = "Rows are what came, columns what the model said; right answers lie on the diagonal. Shares are of the row."
    return [Chart(title="Confusion matrix", words=words, traces=[trace], layout=layout, columns=columns)]


def _by_horizon(test: Mapping[str, Any]) -> list[Chart]:
    """Error and coverage of a forecast by week ahead."""
    weeks = test.get("by_horizon")
    if not weeks:
        return []
    ahead = [one["week"] for one in weeks]
    figures = {"wape": "error (WAPE)", "coverage_80": "coverage of the 80 % interval"}
    lines = {told: (ahead, [one[name] for one in weeks]) for name, told in figures.items()}
    words = (
        "The further ahead, the harder: error as a share of what was sold, and how often the interval held what came "
        "(80 % is right)."
    )
    chart = _lines("By week ahead", words, lines, ("weeks ahead", "share"))
    chart.layout["xaxis"].pop("tickformat")
    return [chart]


def learning(history: Mapping[str, Sequence[float]], name: str, unit: str) -> list[Chart]:
    """Learning curves of a model: loss on training and validation, and the other figures on validation."""
    steps = history["step"]
    series = {key: values for key, values in history.items() if key != "step"}
    losses = {key.removesuffix("_loss"): (steps, values) for key, values in series.items() if key.endswith("_loss")}
    others = {name_of(key): (steps, values) for key, values in series.items() if not key.endswith("_loss")}
    found = []
    if losses:
        words = (
            "Loss after each step of training: lower is better. Where the line of validation turns up while that of "
            "training falls on, the model begins to learn the training rows by heart; the step with the best "
            "validation figure is kept."
        )
        found.append(_lines(f"{name}: loss", words, losses, (unit, "loss"), percent=False))
    if others:
        words = "The figure by which the best step is chosen, on rows that the model did not learn from."
        figures = ", ".join(others)
        found.append(_lines(f"{name}: {figures}", words, others, (unit, figures), percent=False))
    return found


def compared(rows: Sequence[tuple[str, float]], metric: str, words: str, champion: str) -> Chart:
    """One figure of several models as bars; the champion's and what is possible at best in colours of their own."""
    names, values = [name for name, _ in rows], [value for _, value in rows]
    special = {champion: COLOURS[5], BEST: COLOURS[2]}
    colours = [special.get(name, COLOURS[0]) for name in names]
    trace = {
        "type": "bar", "orientation": "h", "y": names, "x": values, "marker": {"color": colours},
        "text": [f"{value:.4g}" for value in values], "textposition": "auto", "name": metric,
    }  # fmt: skip
    layout = _layout((metric, ""), legend=False, height=max(180, 90 + 34 * len(names)))
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    return Chart(
        title=f"{metric} of every model", words=words, traces=[trace], layout=layout,
        columns={"model": names, metric: values},
    )  # fmt: skip


_Line = tuple[Sequence[float], Sequence[float]]


def _lines(
    title: str, words: str, lines: Mapping[str, _Line], axes: tuple[str, str], *, mode: str = "lines",
    percent: bool = True,
) -> Chart:  # fmt: skip
    traces = [
        {
            "type": "scatter", "mode": mode if number == 0 else "lines", "name": name, "x": list(x), "y": list(y),
            "line": {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)], "width": 2},
        }
        for number, (name, (x, y)) in enumerate(lines.items())
    ]  # fmt: skip
    shown = {name: line for name, line in lines.items() if len(line[0]) > 2}
    columns: dict[str, Sequence[Any]] = {}
    for name, (x, y) in shown.items():
        kept = _some(len(x))
        columns.setdefault(axes[0], [x[k] for k in kept])
        columns[axes[1] if len(shown) == 1 else name] = [y[k] for k in kept]
    return Chart(title=title, words=words, traces=traces, layout=_layout(axes, percent=percent), columns=columns)


def _some(count: int, most: int = 21) -> list[int]:
    """Places of about so many values, evenly spread, first and last included."""
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def _layout(
    axes: tuple[str, str], *, legend: bool = True, height: int = HEIGHT, percent: bool = False
) -> dict[str, Any]:
    axis = {"automargin": True, "fixedrange": True} | ({"tickformat": SHARE} if percent else {})
    return {
        "height": height,
        "margin": {"l": 64, "r": 32, "t": 16, "b": 64},
        "showlegend": legend,
        "legend": {"orientation": "h", "y": -0.25},
        "xaxis": {"title": {"text": axes[0]}, **axis},
        "yaxis": {"title": {"text": axes[1]}, **axis},
        "hovermode": "closest",
    }
