"""Settling what an org holds: rows merged, counted against the org, and swept where counts differ, until they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.salesforce import merge, reconcile, withheld
from crmray.salesforce.changes import Asking
from crmray.salesforce.merge import Whole
from crmray.salesforce.reconcile import Slice
from crmray.salesforce.stage import Part, Plan

MOST_PROOFS = 4
"""counts before a pull is given up"""
MAX_PATCHED = 0.1
"""share of rows with another formula value above which the object is pulled anew"""


class AnewError(Exception):
    """So much has changed that the object is to be pulled as a whole."""


@dataclass(frozen=True, kw_only=True)
class Landed:
    """What was fetched, or became known, of an object."""

    parts: Sequence[Part]
    """in the order in which they were asked for"""
    gone: pa.Array
    """ids, as the lake has them, of rows that were deleted"""
    back: Sequence[pa.Table]
    """what is kept of withheld rows, besides those of the parts"""
    released: np.ndarray
    """hashes of rows that were withheld, and are no longer there or no longer withheld"""

    def whole(self, modstamp: str) -> Whole:
        """What stands of it."""
        found = merge.merged(self.parts, modstamp, self.gone, self.back)
        return replace(found, withheld=withheld.without(found.withheld, self.released))


def prove(
    asking: Asking, work: Plan, parts: Sequence[Part], back: Sequence[pa.Table], *, formulas: Sequence[str] = ()
) -> tuple[Whole, list[Slice]]:
    """Count, look at the ids of slices that differ, and count again; ReconcileError when that does not settle it.

    back: what is kept of withheld rows besides those of the parts; formulas: columns whose values are compared too,
    where AnewError tells that many differ.
    """
    plan = asking.plan
    asking.stage.clear_repairs()
    gone = asking.recycled(datetime.fromisoformat(work.since)) if plan.via == "bulk" else pa.array([], pa.string())
    landed = Landed(parts=parts, gone=gone, back=back, released=np.empty(0, np.uint64))
    for attempt in range(MOST_PROOFS):
        whole = landed.whole(plan.modstamp)
        until, by_time = datetime.fromisoformat(work.until), withheld.CREATED in plan.fields
        spans = reconcile.slices(whole, until, by_time=by_time, cap=reconcile.SLICE_ROWS)
        counted = list(reconcile.count(asking.client, plan.name, spans, plan.where, all_rows=plan.archived))
        odd = [span for span in counted if span.landed != span.there]
        if not (odd or formulas) or attempt == MOST_PROOFS - 1:
            break
        num_changed = 0
        for number, span in enumerate(counted if formulas else odd):
            landed, changed = _swept(asking, whole, landed, span, formulas, f"r{attempt}-{number:05d}")
            num_changed += changed
            if work.base and num_changed > MAX_PATCHED * whole.rows:
                raise AnewError
        formulas = ()
    reconcile.refuse(plan.name, counted)
    return whole, counted


def _swept(
    asking: Asking, whole: Whole, landed: Landed, span: Slice, formulas: Sequence[str], folder: str
) -> tuple[Landed, int]:
    """What is known after a look at the ids of a slice, and how many of its rows have other formula values."""
    found = asking.sweep(whole, span, formulas)
    dead, missing = len(found.dead), len(found.missing)
    if dead or missing:
        log.event("ingest.swept", object=asking.plan.name, slice=str(span), deleted=dead, missing=missing)
    fetched = asking.by_id([*found.missing, *found.changed], folder)
    here = [table["Id"] for part in fetched if part.rows for table in merge.row_groups(part, ["Id"])]
    alive = pa.chunked_array(here, pa.string()).combine_chunks()
    still_gone = landed.gone.filter(pc.invert(pc.is_in(landed.gone, value_set=alive)))
    still_released = np.setdiff1d(landed.released, found.withheld["hash"].to_numpy())
    known = Landed(
        parts=[*landed.parts, *fetched],
        gone=pa.concat_arrays([still_gone, found.dead]),
        back=[*landed.back, found.withheld],
        released=np.union1d(still_released, found.released),
    )
    return known, len(found.changed)
