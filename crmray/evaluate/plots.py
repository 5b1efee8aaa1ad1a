"""Charts as SVG bytes: deterministic, no fonts or scripts from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

MOST_NAMED = 4
"""categories written into one question of a tree"""
MOST_LEAVES = 30
"""of a dendrogram"""


def _svg(width: float, height: float, draw: Callable[[Any], None]) -> bytes:
    """What `draw(axes)` draws on a figure of so many inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "crmray", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return sink.getvalue()


def bar_chart(names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str) -> bytes:
    """Horizontal bars: one group per name, one bar per series; values are fractions 0..1, written as per cent."""
    from matplotlib.ticker import PercentFormatter

    def draw(axes: Any) -> None:
        height = 0.8 / len(series)
        for i, (label, values) in enumerate(series.items()):
            places = [row + i * height for row in range(len(names))]
            bars = axes.barh(places, values, height, label=label)
            axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=3)
        axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.margins(x=0.12)
        axes.set_title(title)
        axes.legend(loc="lower right")

    return _svg(9, 1.2 + 0.7 * len(names), draw)


def tree(
    estimator: Any, names: Sequence[str], classes: Sequence[str] | None, *,
    categories: Mapping[str, Sequence[str]] | None = None, max_depth: int = 4,
) -> bytes:  # fmt: skip
    """A fitted scikit-learn tree: questions, rows and what each leaf says; deeper than max_depth it is cut off.

    names: of the columns, in the order of the fit; classes: names of the classes, None for numbers; categories: of the
    columns that hold codes, what each code stands for.
    """
    from sklearn.tree import plot_tree

    def draw(axes: Any) -> None:
        boxes = plot_tree(estimator, max_depth=max_depth, feature_names=list(names), class_names=classes, filled=True,
                  rounded=True, impurity=False, proportion=True, precision=3, fontsize=8, ax=axes)  # fmt: skip
        for box in boxes:
            question, *rest = box.get_text().split("\n")
            box.set_text("\n".join([_question(question, categories or {}), *rest]))

    depth = min(max_depth, estimator.get_depth())
    return _svg(3.2 * 2**depth, 1.6 * (depth + 1), draw)


def dendrogram(linkage: np.ndarray, *, title: str) -> bytes:
    """The last merges of a hierarchy (N - 1, 4) in SciPy's form; a leaf is told by how many rows it stands for."""
    from scipy.cluster.hierarchy import dendrogram as of_scipy

    def draw(axes: Any) -> None:
        of_scipy(linkage, p=MOST_LEAVES, truncate_mode="lastp", ax=axes, color_threshold=0.0)
        axes.set_ylabel("distance at which two groups become one")
        axes.set_xlabel("customers in the group")
        axes.set_title(title)

    return _svg(11, 5, draw)


def _question(text: str, categories: Mapping[str, Sequence[str]]) -> str:
    """`plan <= 2.5` as `plan: (other), (missing), basic`, where plan holds codes; all other text as it is."""
    name, _, limit = text.partition(" <= ")
    if name not in categories:
        return text
    values = categories[name][: int(float(limit)) + 1]
    return f"{name}: {', '.join(values[:MOST_NAMED])}{' …' if len(values) > MOST_NAMED else ''}"
