"""What the guard has to know before a row is written: the persons of the org and their wishes, read before the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from crmray.errors import NotFoundError
from crmray.privacy import Guard
from crmray.salesforce.catalogue import Describes
from crmray.salesforce.client import Client
from crmray.salesforce.scan import scan
from crmray.salesforce.slices import literal
from crmray.storage import Lake, Run

STATE = "_work/pull_state/_persons.json"


def learn(client: Client, guard: Guard, describes: Describes, lake: Lake, objects: Sequence[str]) -> None:
    """Let the guard learn: whole, or what changed since the last pull."""
    since = _since(lake) if guard.remembers else None
    for name, paths in guard.reads(objects).items():
        found = {path: describes.field(name, path)[0] for path in paths}
        types = {path: field["type"] for path, field in found.items() if field is not None}
        where = ""
        if since is not None and "SystemModstamp" in describes.fields(name):
            lookback = timedelta(minutes=client.source.lookback_minutes)
            where = f"SystemModstamp >= {literal(since - lookback)}"
        all_rows = bool(where)  # what was learned before may have been deleted since
        rows = client.count(name, where, all_rows=all_rows)
        for table in scan(client, name, list(types), types, where=where, rows=rows, all_rows=all_rows):
            guard.learn(name, table)
    guard.settle()


def finish(guard: Guard, lake: Lake, until: datetime) -> Run:
    """After all rows are written: what the guard keeps for the next pull; the run raw/consent. until: what it knows."""
    run = guard.finish()
    lake.write(STATE, json.dumps({"until": until.isoformat()}).encode())
    return run


def _since(lake: Lake) -> datetime | None:
    try:
        return datetime.fromisoformat(json.loads(lake.read(STATE))["until"])
    except NotFoundError:
        return None
