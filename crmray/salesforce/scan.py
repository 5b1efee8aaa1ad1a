"""Rows of a query straight into memory, page by page: for what is looked at and not kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import pyarrow as pa

from crmray import log
from crmray.errors import ReconcileError
from crmray.salesforce import bulk, pages
from crmray.salesforce.client import Client

REST_ROWS = 2_000
"""queries for fewer rows are asked by REST: one call instead of five"""


def scan(
    client: Client,
    name: str,
    fields: Sequence[str],
    types: Mapping[str, str],
    *,
    where: str,
    rows: int,
    all_rows: bool = False,
) -> Iterator[pa.Table]:
    """Tables with some fields of an object's rows that meet a condition.

    types: SOQL path -> Salesforce's type; rows: expected, to choose the API; all_rows: deleted and
    archived ones too.
    """
    soql = f"SELECT {', '.join(fields)} FROM {name}" + (f" WHERE {where}" if where else "")
    if rows <= REST_ROWS:
        records = client.query(soql, all_rows=all_rows)
        while block := list(islice(records, REST_ROWS)):
            yield pages.from_records(name, block, fields, types)
        return
    job_id = bulk.start_query(client, soql, all_rows=all_rows)
    bulk.wait(client, "query", job_id)
    urls, complete = bulk.page_urls(client, job_id, client.source.page_rows)
    while urls:
        tables, following = _page(client, name, urls.pop(0), fields, types)
        yield from tables
        if not complete and following:
            urls = [following]


def _page(
    client: Client, name: str, url: str, fields: Sequence[str], types: Mapping[str, str]
) -> tuple[list[pa.Table], str | None]:
    """One page in memory, and the address of the next one."""
    for _ in range(bulk.TRIES):
        try:
            with bulk.open_page(client, url) as page:
                if page.rows == 0:
                    return [], page.next_url
                tables = list(pages.from_csv(name, page, fields, types))
        except bulk.PageBrokenError as error:
            log.warn("ingest.page_again", object=name, why=str(error))
            continue
        if page.rows in (None, sum(table.num_rows for table in tables)):
            return tables, page.next_url
    raise ReconcileError(f"object {name}: a page of a query came short {bulk.TRIES} times; pull again")
