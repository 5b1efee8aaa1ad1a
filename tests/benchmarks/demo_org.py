"""The demo org against what its generator knows: how far each task is from the best possible.

    python -m tests.benchmarks.demo_org [--folder F] [TASK …]

Runs the stations on the demo org and prints the table; exits 1 below a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import adjusted_rand_score

from crmray import config, log
from crmray.data import demo
from crmray.data.demo_simulate import simulate
from crmray.org import OpenOrg
from crmray.salesforce import ids
from tests.benchmarks import segments_ceiling

SHARE, LEAST_STABILITY, MOST_ECE, COVERAGE = 0.02, 0.8, 0.03, (0.76, 0.84)
"""a task may be so far from its ceiling; stability of segments; calibration; of 80 % intervals"""
CEILINGS = {
    "churn": "auc", "leads": "auc", "sentiment": "macro_f1", "intent": "macro_f1", "recommendation": "ndcg10",
    "value": "ngini", "forecast": "pinball",
}  # fmt: skip
"""task -> figure that the generator's own knowledge bounds"""
SECTIONS = {"forecast": {"known_ahead": ["Newsletter", "Promotion"]}}
"""business facts beside those of the demo's org file: mails go out every second week, planned ahead"""
Row = tuple[str, str, str, bool]
"""what, crmray's figure, the bar, whether it is reached"""


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=[*CEILINGS, "segmentation"])
    parser.add_argument("--folder", help="where the lake lies; default: a temporary folder")
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="crmray-demo-org-")
    log.setup()
    given = config.load(config.DEMO_ORG)
    sections = {task: {**given.tasks.get(task, {}), **SECTIONS.get(task, {})} for task in arguments.tasks}
    org = OpenOrg(given.model_copy(update={"storage": folder, "tasks": sections}))
    org.ingest()
    org.shard()
    rows: list[Row] = []
    for task in arguments.tasks:
        org.examples(task)
        started = time.monotonic()
        run = org.train(task)
        bundle = json.loads(run.read_bytes("bundle.json"))
        rows += segmentation(org, run.run_id, bundle) if task == "segmentation" else against_ceiling(task, bundle)
        rows.append((f"{task}: minutes of training", f"{(time.monotonic() - started) / 60:.1f}", "15", True))
    print("\n| what | crmray | bar | reached |\n|---|---|---|---|")
    for what, value, bar, reached in rows:
        print(f"| {what} | {value} | {bar} | {'yes' if reached else 'no'} |")
    return int(not all(row[-1] for row in rows))


def against_ceiling(task: str, bundle: dict[str, Any]) -> list[Row]:
    """The champion's figure beside the best possible one, its calibration, and the coverage of its intervals."""
    figure, test = CEILINGS[task], bundle["test"]
    if not bundle["best_possible"]:
        return [(f"{task} {figure}", f"{test[figure]:.4f}", "ceiling unknown: truth and test rows differ", False)]
    ceiling, value = bundle["best_possible"][figure], test[figure]
    smaller = figure == "pinball"
    bar = ceiling * (1 + SHARE if smaller else 1 - SHARE)
    told = ", ".join(
        f"{name} {values.get('refit', values['plain'])[figure]:.4f}"
        for name, values in bundle["test_candidates"].items()
    )
    reached = value <= bar if smaller else value >= bar
    rows = [(f"{task} {figure} ({told})", f"{value:.4f}", f"{bar:.4f} (ceiling {ceiling:.4f})", reached)]
    if "ece" in test:
        rows.append((f"{task} calibration error", f"{test['ece']:.4f}", f"{MOST_ECE}", test["ece"] <= MOST_ECE))
    if "coverage_80" in test:
        low, high = COVERAGE
        covered = test["coverage_80"]
        rows.append(
            (f"{task} coverage of 80 % intervals", f"{covered:.3f}", f"{low} to {high}", low <= covered <= high)
        )
    return rows


def segmentation(org: OpenOrg, version: str, bundle: dict[str, Any]) -> list[Row]:
    """Agreement with the planted segments, stability, difference in later spend, and what the Transformer finds."""
    test = bundle["test"]
    planted, found, best = _segments(org, version)
    agreement, ceiling = adjusted_rand_score(planted, found), adjusted_rand_score(planted, best)
    bar = ceiling * (1 - SHARE)
    p_value = test["later_amount_p_value"]
    return [
        (
            f"planted segments, adjusted Rand ({test['num_segments']:.0f} found)",
            f"{agreement:.3f}",
            f"{bar:.3f} (ceiling {ceiling:.3f})",
            agreement >= bar,
        ),
        (
            "stability over bootstrap fits",
            f"{test['stability']:.3f}",
            f"{LEAST_STABILITY}",
            test["stability"] >= LEAST_STABILITY,
        ),
        ("segments differ in later spend (Kruskal-Wallis)", f"p = {p_value:.1e}", "p < 0.001", p_value < 0.001),
        *_transformer(bundle["test_candidates"].get("transformer", {}).get("plain", {})),
    ]


def _transformer(figures: dict[str, float]) -> list[Row]:
    """Its agreement with the fitted segments, on customers that it did not learn from; reported, no bar."""
    names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    return [(f"segments told from events: {name}", f"{figures[name]:.4f}", "-", True) for name in names if figures]


def _segments(org: OpenOrg, version: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Planted segments, found ones, and the most likely ones given the generator, of the same customers at one date."""
    examples = org.lake.latest("examples", "segmentation").read_table("test/*.parquet")
    truth = org.lake.latest("truth", "demo").read_table("churn-*.parquet")
    truth = truth.filter(pc.equal(truth["as_of"], examples["as_of"][0]))
    row = pc.index_in(examples["entity_id"], value_set=truth["entity_id"].combine_chunks())
    planted = truth["segment"].take(row.combine_chunks()).to_pylist()
    assert isinstance(org.config.source, config.DemoSource)
    scene = demo.world(org.config.source, org.config.seed)
    blocks = [simulate(scene, index) for index in range(scene.num_blocks)]
    likely = [segments_ceiling.probabilities(scene, block, examples["as_of"][0].as_py()).argmax(1) for block in blocks]
    ours = [ids.make("001", block.first + np.arange(len(block))) for block in blocks]
    place = pc.index_in(examples["entity_id"], value_set=pa.concat_arrays(ours))
    found = org.bundle("segmentation", version).model.predict(examples)["segment"]
    return planted, found, np.concatenate(likely)[place.to_numpy()]


if __name__ == "__main__":
    sys.exit(main())
