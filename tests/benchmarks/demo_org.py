"""The demo org against what its generator knows: how far each task is from the best possible.

    python -m tests.benchmarks.demo_org [TASK …] [--folder F] [--seeds S …]

Runs the stations on the demo org and prints the table; exits 1 below a bar. One org is one draw of its generator: with
several seeds the mean distance from the ceilings over these orgs, with its standard error, stands below the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    value: str
    bar: str
    reached: bool
    distance: float | None = None
    """how far it is from the ceiling, as a share of it; above 0 is worse; None where no ceiling is known"""


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=[*CEILINGS, "segmentation"])
    parser.add_argument("--folder", help="where the lakes lie; default: a temporary folder")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="of the orgs; default: the demo's own")
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="crmray-demo-org-")
    log.setup()
    given = config.load(config.DEMO_ORG)
    seeds = arguments.seeds or [given.seed]
    rows = {
        (seed, task): told
        for seed in seeds
        for task, told in stations(given.model_copy(update={"seed": seed}), arguments.tasks, folder)
    }
    print("\n| seed | what | crmray | bar | reached |\n|---|---|---|---|---|")
    for (seed, _), told in rows.items():
        for row in told:
            print(f"| {seed} | {row.what} | {row.value} | {row.bar} | {'yes' if row.reached else 'no'} |")
    if len(seeds) > 1:
        print("\n| task | mean distance from the ceiling | standard error | orgs |\n|---|---|---|---|")
        for task in arguments.tasks:
            away = np.array([row.distance for seed in seeds for row in rows[seed, task] if row.distance is not None])
            print(f"| {task} | {away.mean():.2%} | {away.std(ddof=1) / len(away) ** 0.5:.2%} | {len(away)} |")
    return int(not all(row.reached for told in rows.values() for row in told))


def stations(given: config.Org, tasks: list[str], folder: str) -> Iterator[tuple[str, list[Row]]]:
    """Every task of one org and its rows of the table."""
    sections = {task: {**given.tasks.get(task, {}), **SECTIONS.get(task, {})} for task in tasks}
    org = OpenOrg(given.model_copy(update={"storage": f"{folder}/seed-{given.seed}", "tasks": sections}))
    org.ingest()
    org.shard()
    for task in tasks:
        org.examples(task)
        started = time.monotonic()
        run = org.train(task)
        bundle = json.loads(run.read_bytes("bundle.json"))
        told = segmentation(org, run.run_id, bundle) if task == "segmentation" else against_ceiling(task, bundle)
        minutes = (time.monotonic() - started) / 60
        yield task, [*told, Row(f"{task}: minutes of training", f"{minutes:.1f}", "15", minutes <= 15)]


def against_ceiling(task: str, bundle: dict[str, Any]) -> list[Row]:
    """The champion's figure beside the best possible one, its calibration, and the coverage of its intervals."""
    figure, test = CEILINGS[task], bundle["test"]
    if not bundle["best_possible"]:
        return [Row(f"{task} {figure}", f"{test[figure]:.4f}", "ceiling unknown: truth and test rows differ", False)]
    ceiling, value = bundle["best_possible"][figure], test[figure]
    smaller = figure == "pinball"
    bar = ceiling * (1 + SHARE if smaller else 1 - SHARE)
    told = ", ".join(
        f"{name} {values.get('refit', values['plain'])[figure]:.4f}"
        for name, values in bundle["test_candidates"].items()
    )
    reached = value <= bar if smaller else value >= bar
    away = (value / ceiling - 1) * (1 if smaller else -1)
    rows = [Row(f"{task} {figure} ({told})", f"{value:.4f}", f"{bar:.4f} (ceiling {ceiling:.4f})", reached, away)]
    if "ece" in test:
        rows.append(Row(f"{task} calibration error", f"{test['ece']:.4f}", f"{MOST_ECE}", test["ece"] <= MOST_ECE))
    if "coverage_80" in test:
        low, high = COVERAGE
        covered = test["coverage_80"]
        rows.append(
            Row(f"{task} coverage of 80 % intervals", f"{covered:.3f}", f"{low} to {high}", low <= covered <= high)
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
        Row(
            f"planted segments, adjusted Rand ({test['num_segments']:.0f} found)",
            f"{agreement:.3f}",
            f"{bar:.3f} (ceiling {ceiling:.3f})",
            agreement >= bar,
            1 - agreement / ceiling,
        ),
        Row(
            "stability over bootstrap fits",
            f"{test['stability']:.3f}",
            f"{LEAST_STABILITY}",
            test["stability"] >= LEAST_STABILITY,
        ),
        Row("segments differ in later spend (Kruskal-Wallis)", f"p = {p_value:.1e}", "p < 0.001", p_value < 0.001),
        *_transformer(bundle["test_candidates"].get("transformer", {}).get("plain", {})),
    ]


def _transformer(figures: dict[str, float]) -> list[Row]:
    """Its agreement with the fitted segments, on customers that it did not learn from; reported, no bar."""
    names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    return [Row(f"segments told from events: {name}", f"{figures[name]:.4f}", "-", True) for name in names if figures]


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
