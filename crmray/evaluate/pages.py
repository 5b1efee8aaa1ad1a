"""Reports as HTML pages that need nothing else: plotly.js is in the page once, nothing is fetched.

A page holds figures, names of models, features, classes and groups; no row, no id and no text of anybody. Strings of a
task's own results are left out unless they are names (keys of the JSON, or a field `name`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any

from crmray.evaluate import card, charts
from crmray.evaluate.charts import Chart
from crmray.evaluate.page_parts import page, picture, table
from crmray.evaluate.words import FIGURES, TABLES, intervals_of, is_figure, meaning_of, name_of, setting_of, text_of

SHOWN_APART = ("curves", "confusion", "names", "intervals", "classes", "by_horizon")
LABELLED = ("name", "aspect")
"""fields of the lines of a list whose text is a name"""
HEADLINES = 8
BESIDE = (
    "base_rate", "rows", "threshold", "mean_truth", "majority_share", "average_effect", "rate_control",
    "backtest_origins", "num_segments", "num_items",
)  # fmt: skip
"""what the rows are, not how good the model is"""


def bundle_page(report: Mapping[str, Any], pictures: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
    """The page of one bundle; `report` as crmray.train.evaluation makes it, pictures name -> SVG."""
    test, metric = report["test"], report["metric"]
    rows, measured = report["evaluated"]["rows"], test.get("rows")
    where = f"{rows:,} test rows" if measured in (None, rows) else f"{measured:,.0f} of {rows:,} test rows"
    if report["evaluated"]["as_of"]:
        where += f" of {', '.join(report['evaluated']['as_of'])}"
    state = "the champion" if report["is_champion"] else "not the champion"
    intro = [
        f"<p class=soft>{escape(report['about'])}</p>",
        f"<p>Model <b>{escape(report['candidate'])}</b>, version <code>{report['version']}</code> ({state}), trained "
        f"{report['trained_at'][:10]}; figures on {where}. Validation chose by {escape(name_of(metric))}.</p>",
        _cards(test, metric),
    ]
    sections: list[tuple[str, list[str | Chart]]] = [
        ("Figures", [_figures(test), _drifted(report), *_extras(test)]),
        ("Charts", list(charts.curves(test))),
        ("Classes", [table(test.get("classes") or {}, "class", "Each class against the rest")]),
        ("Models compared", _models(report)),
        ("Learning curves", list(_learning(report["learning"]))),
        ("Pictures", [picture(name, content) for name, content in pictures.items()]),
        ("Limits", [_bullets(card.limits(report)), *(f"<p>{escape(one)}</p>" for one in card.use(report))]),
        ("Data and settings", [_facts(report)]),
    ]
    return page(f"{report['task']}: {report['candidate']}", intro, sections)


def all_page(report: Mapping[str, Any]) -> bytes:
    """The page that compares all tasks, their models and baselines."""
    tasks = report["tasks"]
    intro = [
        "<p>The champion of every task beside the models it was chosen from. Validation chose; the test rows were read "
        "once. A plain model that wins is the champion.</p>",
        "<p class=soft>Best baseline: of the models beside the champion that are no neural network. Best rule of "
        "thumb: of those beside it that have nothing to tune. Best neural: of the neural networks, the champion "
        "included.</p>",
        table({name: _short(one) for name, one in tasks.items()}, "task", "Champions, on test rows", plain=True),
    ]
    neural = {
        name: {name_of(key): text_of(value, key) for key, value in one.items()}
        for name, one in report["neural"].items()
    }
    sections: list[tuple[str, list[str | Chart]]] = [
        (
            "Recurrent, convolutional and Transformer models",
            [
                "<p>Each at the threshold that its own validation rows gave (of several classes: the most probable; "
                "precision, recall and F1 are then means over the classes).</p>",
                table(neural, "task and model", "The neural models on test rows", plain=True),
            ]
            if neural
            else [],
        )
    ]
    sections += [(name, [f"<p class=soft>{escape(one['about'])}</p>", *_models(one)]) for name, one in tasks.items()]
    return page("All tasks", intro, sections)


# -- parts of a page -----------------------------------------------------------------------------------------------


def _cards(test: Mapping[str, Any], metric: str) -> str:
    """The first figures in large: the one that chose, then those that the page knows words for."""
    known = [name for name in test if is_figure(test[name]) and name in FIGURES and name not in (metric, *BESIDE)]
    shown = [name for name in (metric, *known) if name in test][:HEADLINES]
    cells = []
    for name in shown:
        ends = intervals_of(test).get(name)
        between = f"<br>95 %: {escape(' to '.join(text_of(end, name) for end in ends))}" if ends else ""
        words = f"{escape(name_of(name))}<b>{escape(text_of(test[name], name))}</b>"
        cells.append(f"<div class=card>{words}<span class=soft>{escape(meaning_of(name))}{between}</span></div>")
    return f"<div class=cards>{''.join(cells)}</div>"


def _figures(test: Mapping[str, Any]) -> str:
    intervals = intervals_of(test)
    rows = {}
    for name, value in test.items():
        if is_figure(value):
            low, high = intervals.get(name, (None, None))
            rows[name_of(name)] = {
                "value": text_of(value, name),
                "from": text_of(low, name),
                "to": text_of(high, name),
                "meaning": meaning_of(name),
            }
    words = "Test rows, with 95 % bootstrap intervals where they were drawn"
    return table(rows, "figure", words, plain=True)


def _drifted(report: Mapping[str, Any]) -> str:
    """The figures of the training's own test rows beside those on newer rows, if these are others."""
    before, now = report["at_training"], report["test"]
    if before is None:
        return ""
    both = {name_of(name): {"when trained": text_of(before[name], name), "now": text_of(now[name], name)}
            for name in before if is_figure(before[name]) and is_figure(now.get(name))}  # fmt: skip
    return table(both, "figure", "On newer rows than at its training", plain=True)


def _extras(test: Mapping[str, Any]) -> Iterator[str]:
    """What a task reports beside the figures that all tasks share: its nested numbers as tables."""
    for name, value in test.items():
        if name not in SHOWN_APART:
            yield from _tables(name_of(name), value, TABLES.get(name, ""))


def _tables(name: str, value: Any, words: str) -> Iterator[str]:
    """Fields with figures are the lines of one table; fields of fields, and one alone, have tables of their own."""
    caption = name[:1].upper() + name[1:] + (f": {words}" if words else "")
    if isinstance(value, Mapping):
        nested = {key: one for key, one in value.items() if isinstance(one, Mapping)}
        lines = {key: one for key, one in nested.items() if any(is_figure(cell) for cell in one.values())}
        lines = lines if len(lines) > 1 else {}
        alone = {name_of(key): {"value": text_of(one, key)} for key, one in value.items() if is_figure(one)}
        yield table(alone, name, caption, plain=True)
        yield table({key: _flat(one) for key, one in lines.items()}, name, caption)
        for key, one in nested.items():
            if key not in lines:
                yield from _tables(f"{name}, {name_of(key)}", one, TABLES.get(key, ""))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        yield table({_label(one) or str(number): _flat(one) for number, one in enumerate(value, 1)}, name, caption)


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of fields, and of fields within them under both names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= {f"{name_of(name)}, {name_of(key)}": one for key, one in _flat(value).items()}
        elif is_figure(value):
            found[name] = value
    return found


def _label(line: Mapping[str, Any]) -> str | None:
    return next((line[field] for field in LABELLED if field in line), None)


def _models(report: Mapping[str, Any]) -> list[str | Chart]:
    """Every family's best on validation and test, and a chart of the figure that chose."""
    metric, champion = report["metric"], report["candidate"]
    every = card.figures_of(one["test"] for one in report["models"].values())
    columns = [name for name in every if name not in BESIDE]
    rows: dict[str, dict[str, Any]] = {}
    for name, one in report["models"].items():
        figures = {f"{name_of(metric)}, validation": text_of(one["validation"].get(metric), metric)}
        figures |= {f"{name_of(column)}": text_of(one["test"].get(column), column) for column in columns}
        rows[name] = figures
    if report["best_possible"]:
        best = {name_of(column): text_of(report["best_possible"].get(column), column) for column in columns}
        rows[charts.BEST] = best
    words = (
        "Best of each family; test figures, of the refitted model where there is one. The champion is marked; "
        f"rules of thumb: {', '.join(report['baselines']) or 'none'}"
    )
    shown: list[str | Chart] = [_raw(report), table(rows, "model", words, plain=True, marked=champion)]
    known = [(name, one["test"][metric]) for name, one in report["models"].items() if metric in one["test"]]
    if known:
        ceiling = (report["best_possible"] or {}).get(metric)
        known += [(charts.BEST, ceiling)] if ceiling is not None else []
        shown.append(charts.compared(known, name_of(metric), meaning_of(metric), champion))
    if report["not_fitted"]:
        told = [f"{name}: {why}" for name, why in report["not_fitted"].items()]
        shown.append(f"<h3>Candidates without a model, and why</h3>{_bullets(told)}")
    return shown


def _raw(report: Mapping[str, Any]) -> str:
    """Why the champion has other figures among the models than for its answers, where it has; else nothing."""
    raw, answers = report["models"].get(report["candidate"], {}).get("test", {}), report["test"]
    if all(text_of(value, name) == text_of(answers.get(name, value), name) for name, value in raw.items()):
        return ""
    rows = " on the test rows of the training" if report["at_training"] else ""
    return (
        f"<p class=soft>These are figures of the models' raw scores{rows}, so that all are measured alike. The figures "
        "of the champion elsewhere are of its answers, which are calibrated where the task has probabilities: the two "
        "may differ.</p>"
    )


def _learning(learning: Mapping[str, Mapping[str, Any]]) -> Iterator[Chart]:
    for name, history in learning.items():
        series = {key: values for key, values in history.items() if key != "unit"}
        yield from charts.learning(series, name, history["unit"])


def _facts(report: Mapping[str, Any]) -> str:
    """Data, hyper-parameters, settings, what was left out: closed until somebody wants to know."""
    parts = []
    for title, field in (
        ("Data", "data"),
        ("Settings of the task", "settings"),
        ("Hyper-parameters", "hyperparameters"),
        ("Features left out, and why", "removed"),
        ("Features to be looked at: they nearly tell the answer alone", "suspects"),
        ("Training", "training"),
    ):
        if report.get(field):
            told = f"<details><summary>{title}</summary>{_nested(report[field])}</details>"
            parts.append(told)
    return "".join(parts)


def _nested(value: Any) -> str:
    if isinstance(value, Mapping):
        items = [f"<li>{escape(str(key))}: {_nested(one)}" for key, one in value.items()]
        return f"<ul>{''.join(items)}</ul>" if items else "none"
    return escape(setting_of(value))


def _short(one: Mapping[str, Any]) -> dict[str, str]:
    """A task's line in the comparison; what its columns mean, `all_page` says. `crmray run` ends with the same."""
    metric = one["metric"]
    test = {name: figures["test"].get(metric) for name, figures in one["models"].items()}
    known = {name: value for name, value in test.items() if value is not None}

    def best(names: set[str]) -> str:
        chosen = sorted(set(names) & set(known))
        if not chosen:
            return ""
        top = (max if one["mode"] == "max" else min)(chosen, key=lambda name: known[name])
        return f"{top} {text_of(known[top], metric)}"

    ends = intervals_of(one["test"]).get(metric) or ()
    neural = {name for name, figures in one["models"].items() if figures["neural"]}
    beside = set(one["models"]) - {one["candidate"]}
    return {
        "champion": one["candidate"],
        "figure": name_of(metric),
        "value": text_of(one["test"].get(metric), metric),
        "95 % interval": " to ".join(text_of(end, metric) for end in ends),
        "best baseline": best(beside - neural),
        "best rule of thumb": best(beside & set(one["baselines"])),
        "best neural": best(neural),
        "best possible": text_of((one["best_possible"] or {}).get(metric), metric),
        "published": "yes" if one["is_champion"] else "no",
    }


def _bullets(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}' for item in items)}</ul>"
