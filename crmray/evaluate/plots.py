"""Charts as SVG bytes: deterministic, no fonts or scripts from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence


def bar_chart(names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str) -> bytes:
    """Horizontal bars: one group per name, one bar per series; values are fractions 0..1, written as per cent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    with matplotlib.rc_context({"svg.hashsalt": "crmray", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.7 * len(names)), layout="constrained")
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
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return sink.getvalue()
