"""How many API calls a pull costs, before it is made: FORMULA, in code."""

from __future__ import annotations

from collections.abc import Mapping

from crmray.salesforce import reconcile, slices
from crmray.salesforce.catalogue import CONSENT, REST_ROWS, Catalogue, ObjectPlan

FORMULA = """for each object of R rows, of which C changed:
  full, by Bulk  J = R / 1,000,000 query jobs: one start, about 5 looks at the state and a list of every 5 pages each;
                 R / page_rows pages; 2 J counts to cut the slices, or 1 where one is enough
  changes        by Bulk where C is 10,000 or more, else C / 2,000 pages by REST
  formulas       ids and formula fields of all rows, where the object has any, as full
  both           2 counts of changes, 2 calls for the recycle bin, 1 describe, R / 250,000 counts as proof
  by REST        R / 2,000 pages and 1 count as proof, each time
for each object with persons: their wishes, read before the rest: 1 count and the pages of R or C rows
once per pull: the login, the org's time, two lists of objects, a describe and a count of each object of the mapping
Rows that change while a full pull runs, and what is asked again after faults, come on top."""
"""all quotients rounded up"""
LOOKS = 5
"""at the state of a query job until it is complete: the pauses between them grow; more where the org is slow"""
REST_PAGE_ROWS = 2_000
LISTED_PAGES = 5
"""addresses of result pages that one call lists"""
ONCE = 3
"""the login, the org's time, and a second list of objects"""
DAYS = 3 * 365


def full(catalogue: Catalogue, page_rows: int) -> dict[str, int]:
    """Calls of a pull of everything: object -> calls, and "" for what is asked once."""
    rows = {name: plan.rows for name, plan in catalogue.objects.items()}
    calls = {name: _full(plan, page_rows) for name, plan in catalogue.objects.items()}
    return {"": _once(catalogue, rows, page_rows)} | calls


def incremental(catalogue: Catalogue, page_rows: int, changed: Mapping[str, int]) -> dict[str, int]:
    """Calls of a pull of what changed; changed: object -> changed rows, 0 where it is not named."""
    calls = {"": _once(catalogue, changed, page_rows)}
    for name, plan in catalogue.objects.items():
        calls[name] = _incremental(plan, page_rows, changed.get(name, 0))
    return calls


def daily(catalogue: Catalogue) -> dict[str, int]:
    """A day's share of each object's rows, had they come evenly over three years: what changes may be about."""
    return {name: _ceil(plan.rows, DAYS) for name, plan in catalogue.objects.items()}


def _once(catalogue: Catalogue, rows: Mapping[str, int], page_rows: int) -> int:
    """The catalogue itself, and the persons."""
    persons = [rows.get(name, 0) for name in CONSENT if name in catalogue.objects]
    return ONCE + catalogue.calls + sum(1 + _some(count, page_rows) for count in persons)


def _full(plan: ObjectPlan, page_rows: int) -> int:
    if plan.via == "rest":
        return _by_rest(plan)
    jobs = _ceil(plan.rows, slices.SLICE_ROWS)
    return _both(plan) + (2 * jobs if jobs > 1 else 1) + _bulk(plan.rows, page_rows, jobs)


def _incremental(plan: ObjectPlan, page_rows: int, changed: int) -> int:
    if plan.via == "rest":
        return _by_rest(plan)
    rows = _some(changed, page_rows) if changed else 0
    sweeps = _ceil(plan.rows, reconcile.SLICE_ROWS)
    return _both(plan) + rows + (_bulk(plan.rows, page_rows, sweeps) if plan.formulas else 0)


def _both(plan: ObjectPlan) -> int:
    """Of every pull of an object that is read by Bulk."""
    return 2 + 2 + 1 + _ceil(plan.rows, reconcile.SLICE_ROWS)


def _by_rest(plan: ObjectPlan) -> int:
    return _some(plan.rows, REST_PAGE_ROWS) + 1


def _some(rows: int, page_rows: int) -> int:
    """Pages of a few rows by REST, or a job for many; an empty answer is a page too."""
    return _bulk(rows, page_rows, 1) if rows >= REST_ROWS else max(1, _ceil(rows, REST_PAGE_ROWS))


def _bulk(rows: int, page_rows: int, jobs: int) -> int:
    pages = _ceil(rows, page_rows)
    return jobs * (1 + LOOKS) + max(jobs, _ceil(pages, LISTED_PAGES)) + pages


def _ceil(rows: int, by: int) -> int:
    return -(-rows // by)
