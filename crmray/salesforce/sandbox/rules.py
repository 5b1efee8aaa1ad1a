"""Fields that Salesforce fills in itself when a row is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa

from crmray.salesforce.sandbox.metadata import ObjectType
from crmray.salesforce.sandbox.org import Org

READS = {
    "Case": ("Status",),
    "Order": ("Status",),
    "CampaignMember": ("Status",),
    "Task": ("WhoId", "WhatId"),
    "Event": ("WhoId", "WhatId"),
}
"""object -> fields whose old values the rules look at"""
CLOSING = {"Case": ("Closed", "ClosedDate"), "Order": ("Activated", "ActivatedDate")}
"""object -> status that is dated, and where"""

Written = tuple[dict, dict]
"""a row's new values, to be added to, and its old ones ({} for a new row)"""


def on_write(org: Org, spec: ObjectType, rows: Sequence[Written], moment: datetime) -> None:
    """Add to the new values what follows from them: Case.ClosedDate, Order.ActivatedDate, CampaignMember.HasResponded
    and FirstRespondedDate, and the AccountId of a Task or Event."""
    if spec.name in CLOSING:
        status, dated = CLOSING[spec.name]
        for new, old in rows:
            if "Status" in new and new["Status"] != old.get("Status"):
                new[dated] = moment if new["Status"] == status else None
    elif spec.name == "CampaignMember":
        for new, old in rows:
            if "Status" in new and new["Status"] != old.get("Status"):
                new["HasResponded"] = new["Status"] == "Responded"
                new["FirstRespondedDate"] = moment.date() if new["HasResponded"] else None
    elif spec.name in ("Task", "Event"):
        _accounts(org, rows)


def _accounts(org: Org, rows: Sequence[Written]) -> None:
    """AccountId of activities: that of WhatId, else of WhoId."""
    links = [({**old, **new}, new) for new, old in rows if {"WhatId", "WhoId"} & new.keys()]
    found: dict[str, str | None] = {}
    for prefix in {link[name][:3] for link, _ in links for name in ("WhatId", "WhoId") if link.get(name)}:
        target = org.of_prefix(prefix)
        column = "Id" if target and target.name == "Account" else "AccountId"
        if target is None or target.get(column) is None:
            continue
        wanted = {
            link[name] for link, _ in links for name in ("WhatId", "WhoId") if (link.get(name) or "")[:3] == prefix
        }
        staged = pa.table({"id": pa.array(sorted(wanted), pa.string())})
        sql = f'SELECT "Id", "{column}" FROM "{target.name}" WHERE "Id" IN (SELECT id FROM staged)'
        found |= dict(org.rows(sql, staged=staged))
    for link, new in links:
        new["AccountId"] = found.get(link.get("WhatId") or "") or found.get(link.get("WhoId") or "")
