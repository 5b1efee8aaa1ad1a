"""How the pages look and what little script they carry: light and dark, wide and narrow, screen and paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #59636e; --line: #d0d7de; --paper: #ffffff; --row: #f6f8fa;
  --mark: #0b5cad; --good: #0a6b48; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa7b4; --line: #3d444d; --paper: #0f1419;
  --row: #171d24; --mark: #6cb6ff; --good: #57d39b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem;
  border-bottom: 1px solid var(--line); padding-bottom: .25rem; } h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p, li { max-width: 46rem; } .soft { color: var(--soft); } a { color: var(--mark); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; background: var(--row); }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .card span { font-size: .85rem; }
.scroll { overflow-x: auto; }
table { min-width: min(100%, 30rem); border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; } th, td { padding: .3rem .7rem;
  text-align: right; border-bottom: 1px solid var(--line); }
  th:first-child, td:first-child, .words { text-align: left; } .words { min-width: 14rem; } th { font-weight: 600; }
tr.champion > * { font-weight: 700; } tbody tr:nth-child(even) { background: var(--row); }
figure { margin: 1rem 0; break-inside: avoid; } figcaption { color: var(--soft); max-width: 46rem; margin-top: .25rem; }
.chart { min-height: 12rem; }
.drawing { background: #fff; padding: .5rem; min-width: 40rem; max-width: none; }
summary { cursor: pointer; color: var(--mark); } details { margin: .25rem 0 1rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 1.5rem; }
.pair > figure { min-width: 0; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --row: #fff;
  --mark: #000; } nav, details > summary { display: none; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } table { font-size: .7rem; } th, td { padding: .15rem .35rem; } .words { min-width: 0; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; } figure { margin: .25rem 0; }
  .drawing { min-width: 0; max-width: 100%; } }
"""

SCRIPT = """
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const charts = () => document.querySelectorAll(".chart");
  function look(isDark) {
    const ink = isDark ? "#e6edf3" : "#1c2024", line = isDark ? "#3d444d" : "#d0d7de";
    const clear = "rgba(0,0,0,0)";
    return { "paper_bgcolor": clear, "plot_bgcolor": clear, "font.color": ink, "xaxis.gridcolor": line,
      "yaxis.gridcolor": line, "xaxis.zerolinecolor": line, "yaxis.zerolinecolor": line };
  }
  const told = chart => JSON.parse(document.getElementById(chart.dataset.from).textContent);
  const dress = (isDark, tallest = Infinity) => Promise.all([...charts()].map(chart =>
    Plotly.relayout(chart, { ...look(isDark), height: Math.min(told(chart).layout.height, tallest) })));
  Promise.all([...charts()].map(chart => {
    const { data, layout } = told(chart);
    return Plotly.newPlot(chart, data, layout, { displaylogo: false, responsive: true,
      displayModeBar: false });
  })).then(() => dress(dark.matches)).then(() => { document.documentElement.dataset.drawn = charts().length; });
  dark.addEventListener("change", event => dress(event.matches));
  addEventListener("beforeprint", () => dress(false, 260));  // two of them fit on a sheet
  addEventListener("afterprint", () => dress(dark.matches));
})();
"""
