"""Pulls of sandbox orgs with limits so small that a small org has many slices and pages, for tests.

python tests/salesforce/pulling.py ORG.yaml        one such pull in a process of its own, to be killed
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from crmray import config
from crmray.data.ingest import ingest
from crmray.salesforce import catalogue, changes, reconcile, scan, slices, stage
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake, Run

SMALL = {
    (catalogue, "REST_ROWS"): 1_000,
    (scan, "REST_ROWS"): 100,
    (stage, "REST_ROWS"): 100,
    (changes, "REST_ROWS"): 100,
    (slices, "SLICE_ROWS"): 2_500,
    (reconcile, "SLICE_ROWS"): 1_500,
}


WITHOUT = [f"{name}History" for name in ("Case", "Order", "OrderItem", "Contract", "Asset", "Contact", "Lead")]
OTHERS = ["Contract", "Asset", "Task", "Event", "EmailMessage", "Lead", "OpportunityFieldHistory"]


def org_file(sandbox: Sandbox, folder: Path, *, lake: str = "lake", **source: object) -> Path:
    """An org file in a folder: pages of 1,000 rows, few objects unless told otherwise."""
    settings = {"page_rows": 1_000, "lookback_minutes": 0, "without": [*WITHOUT, *OTHERS], **source}
    return sandbox.org_file(folder / f"{lake}.yaml", storage=lake, source=settings)


def pull(path: Path) -> dict[str, Run]:
    """Ingest an org file."""
    org = config.load(path)
    return ingest(org, Lake.of(org))


def rows(run: Run) -> pa.Table:
    """All rows of a run by Id."""
    names = run.files("*.parquet")
    return run.read_table(names).sort_by("Id") if names else pa.table({"Id": pa.array([], pa.string())})


def there(sandbox: Sandbox, name: str, like: pa.Table) -> pa.Table:
    """Rows of the org as its database has them, with the columns and types of a table, by Id."""
    found = sandbox.store.query(f"SELECT {', '.join(like.column_names)} FROM {name}").table
    columns = {}
    for field in like.schema:
        column = found[field.name]
        if pa.types.is_timestamp(field.type):
            column = column.cast(pa.timestamp("us")).cast(field.type)
        columns[field.name] = column.cast(field.type)
    return pa.table(columns).sort_by("Id")


if __name__ == "__main__":
    for (module, name), value in SMALL.items():
        setattr(module, name, value)
    pull(Path(sys.argv[1]))
