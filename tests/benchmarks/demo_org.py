"""The demo org against what its generator knows: how far churn is from the best possible, whether segments are found.

    python -m tests.benchmarks.demo_org [--folder F]

Runs the stations on the demo org and prints the table; exits 1 below a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow.compute as pc
from sklearn.metrics import adjusted_rand_score

from crmray import config, log
from crmray.org import OpenOrg

CEILING_GAP, LEAST = 0.02, 0.8


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where the lake lies; default: a temporary folder")
    folder = parser.parse_args().folder or tempfile.mkdtemp(prefix="crmray-demo-org-")
    log.setup()
    org = OpenOrg(config.load(config.DEMO_ORG).model_copy(update={"storage": folder}))
    org.ingest()
    org.shard()
    rows = [*churn(org), *segmentation(org)]
    print("\n| what | crmray | bar | reached |\n|---|---|---|---|")
    for what, value, bar, reached in rows:
        print(f"| {what} | {value} | {bar} | {'yes' if reached else 'no'} |")
    return int(not all(row[-1] for row in rows))


def churn(org: OpenOrg) -> list[tuple[str, str, str, bool]]:
    """AUC of the champion beside the exact probability of leaving."""
    org.examples("churn")
    bundle = json.loads(org.train("churn").read_bytes("bundle.json"))
    ceiling, auc = bundle["best_possible"]["auc"], bundle["test"]["auc"]
    figures = {name: values.get("refit", values["plain"])["auc"] for name, values in bundle["test_candidates"].items()}
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return [
        (f"churn AUC ({told})", f"{auc:.4f}", f"ceiling {ceiling:.4f} - {CEILING_GAP}", auc >= ceiling - CEILING_GAP)
    ]


def segmentation(org: OpenOrg) -> list[tuple[str, str, str, bool]]:
    """Agreement with the planted segments, stability, difference in later spend."""
    org.examples("segmentation")
    run = org.train("segmentation")
    test = json.loads(run.read_bytes("bundle.json"))["test"]
    agreement = adjusted_rand_score(*_segments(org, run.run_id))
    p_value = test["later_amount_p_value"]
    return [
        (
            f"planted segments, adjusted Rand ({test['num_segments']:.0f} found)",
            f"{agreement:.3f}",
            f"{LEAST}",
            agreement >= LEAST,
        ),
        ("stability over bootstrap fits", f"{test['stability']:.3f}", f"{LEAST}", test["stability"] >= LEAST),
        ("segments differ in later spend (Kruskal-Wallis)", f"p = {p_value:.1e}", "p < 0.001", p_value < 0.001),
    ]


def _segments(org: OpenOrg, version: str) -> tuple[list[Any], np.ndarray]:
    """Planted and found segments of the same customers on the same date."""
    examples = org.lake.latest("examples", "segmentation").read_table("test/*.parquet")
    truth = org.lake.latest("truth", "demo").read_table("leaving-*.parquet")
    truth = truth.filter(pc.equal(truth["as_of"], examples["as_of"][0]))
    row = pc.index_in(examples["entity_id"], value_set=truth["entity_id"].combine_chunks())
    planted = truth["segment"].take(row.combine_chunks()).to_pylist()
    return planted, org.bundle("segmentation", version).model.predict(examples)["segment"]


if __name__ == "__main__":
    sys.exit(main())
