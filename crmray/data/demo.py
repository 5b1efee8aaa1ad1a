"""The demo org: Salesforce-shaped raw objects of made-up customers, written block by block, and their truth beside.

What a customer is and does is drawn in demo_world; demo_sales and demo_service put it into objects; demo_truth says
what only the evaluation may read. A block's rows depend on the settings and the block alone, so memory is bounded by
one block, and a run that died continues with the first part that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, timezone
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.config import DemoSource
from crmray.data import (
    demo_sales,
    demo_service,
    demo_truth,
    demo_truth_forecast,
    demo_truth_intent,
    demo_truth_leads,
    demo_truth_recommendation,
    demo_truth_sentiment,
    demo_truth_value,
)
from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import CATEGORIES
from crmray.data.demo_simulate import simulate
from crmray.data.demo_world import Block, World
from crmray.errors import ConfigError
from crmray.privacy import Pseudonyms
from crmray.salesforce import ids
from crmray.storage import Lake, Run, run_id

FORMAT = 4
SMALL: dict[str, Callable[[World], pa.Table]] = {"Product2": demo_sales.products, "Campaign": demo_service.campaigns}
"""objects that no customer owns: one part for all"""
OBJECTS = (
    "Product2", "Campaign", "Contact", "Order", "OrderItem", "Case", "EmailMessage", "Task", "CampaignMember",
    "Web_Visit__c", "Opportunity", "OpportunityFieldHistory", "AccountHistory", "Lead", "Account",
)  # fmt: skip
"""what `write` makes; Account is completed last"""
HORIZON_DAYS = 90
"""of the probabilities in the truth run"""
Truth = Callable[[World, Block, Sequence[datetime], int], pa.Table]
"""(world, block, dates, horizon_days) -> a row per date and entity of the block: entity_id, as_of, the task's label
columns (what came; null where the history ends earlier), and the raw predictions that are the best of all possible"""
TRUTHS: dict[str, Truth] = {
    "churn": demo_truth.of_block,
    "leads": demo_truth_leads.of_block,
    "recommendation": demo_truth_recommendation.of_month,
    "value": demo_truth_value.of_block,
    "sentiment": demo_truth_sentiment.of_block,
    "intent": demo_truth_intent.of_block,
    "forecast": demo_truth_forecast.of_block,
}
"""task -> what is known of its answers"""
PERSONS = ("001", "003", "00Q")
"""beginnings of the ids that become pseudonyms: accounts, contacts, leads"""


def world(source: DemoSource, seed: int) -> World:
    """The world that an org file describes; ConfigError for an end that is no date."""
    try:
        end = date.fromisoformat(source.end)
    except ValueError:
        raise ConfigError(f"source.end: got {source.end!r}, expected an ISO date such as 2026-10-01") from None
    return World(customers=source.customers, months=source.months, end=end, seed=seed)


def write(lake: Lake, source: DemoSource, seed: int) -> dict[str, Run]:
    """raw/<object>/<run_id>/part-NNNNN.parquet for every object, and truth/demo/<run_id>; object -> run.

    Equal settings give equal bytes. What is there already is not made again.
    """
    scene = world(source, seed)
    number = run_id("ingest", inputs={}, settings=source.model_dump(), seed=seed, format=FORMAT)
    runs = {name: lake.run("raw", name, number) for name in OBJECTS}
    hidden = lake.run("truth", "demo", number)
    with runs["Account"].claim("ingest") as mine:
        if mine:
            _write_all(scene, runs, hidden)
    for run in (*runs.values(), hidden):
        run.make_latest()
    return runs


def write_truth(lake: Lake, source: DemoSource, seed: int, pseudonyms: Pseudonyms | None) -> Run:
    """truth/demo/<run_id> alone, for a lake that pulls the demo org from elsewhere, its ids as pseudonyms if given."""
    scene = world(source, seed)
    settings = {**source.model_dump(), "pseudonyms": pseudonyms and pseudonyms.key_id}
    hidden = lake.run("truth", "demo", run_id("ingest", inputs={}, settings=settings, seed=seed, format=FORMAT))

    with hidden.claim("ingest") as mine:
        if mine:
            for index in range(scene.num_blocks):
                if not all(hidden.has(_truth(task, index)) for task in TRUTHS):
                    _write_truths(scene, simulate(scene, index), index, hidden, pseudonyms)
            _complete_truth(scene, hidden)
    return hidden


def _write_truths(scene: World, block: Block, index: int, hidden: Run, pseudonyms: Pseudonyms | None) -> None:
    def rows(truth: Truth) -> pa.Table:
        table = truth(scene, block, default_dates(scene), HORIZON_DAYS)
        known = table["entity_id"].combine_chunks()
        if pseudonyms is None or not pc.any(_is_person(known)).as_py():
            return table
        names = pc.if_else(_is_person(known), pseudonyms.of(known), known)
        return table.set_column(table.schema.get_field_index("entity_id"), "entity_id", names)

    for task, truth in TRUTHS.items():
        _keep(hidden, _truth(task, index), partial(rows, truth))


def _is_person(names: pa.Array) -> pa.Array:
    return pc.is_in(pc.utf8_slice_codeunits(names, 0, 3), value_set=pa.array(PERSONS))


def _complete_truth(scene: World, hidden: Run) -> None:
    _write_affinities(scene, hidden)
    hidden.commit(horizon_days=HORIZON_DAYS, segments=list(dw.SEGMENTS), customers=scene.customers)


def _write_all(scene: World, runs: dict[str, Run], hidden: Run) -> None:
    """Write what is missing of all runs, and complete them."""
    for name, make in SMALL.items():
        _keep(runs[name], _part(0), partial(make, scene))
    with log.progress("ingest.demo", total=scene.customers, unit="customers") as bar:
        for index in range(scene.num_blocks):
            _write_block(scene, index, runs, hidden)
            bar.advance(min(dw.BLOCK, scene.customers - index * dw.BLOCK))
    if not hidden.exists():
        _complete_truth(scene, hidden)
    for run in runs.values():
        if not run.exists():
            parts = [run.open_parquet(part) for part in run.files("*.parquet")]
            columns = {field.name: str(field.type) for field in parts[0].schema_arrow}
            rows = sum(part.metadata.num_rows for part in parts)
            run.commit(rows=rows, columns=columns, text=False, data_end=scene.end.isoformat())


def _write_block(scene: World, index: int, runs: dict[str, Run], hidden: Run) -> None:
    """The parts of one block, unless they are all there from a run that died."""
    owned = [name for name in OBJECTS if name not in SMALL]
    known = all(hidden.has(_truth(task, index)) for task in TRUTHS)
    if known and all(runs[name].has(_part(index)) for name in owned):
        return
    block = simulate(scene, index)
    made = tables(scene, block, index)
    for name in owned:
        _keep(runs[name], _part(index), partial(made.__getitem__, name))
    _write_truths(scene, block, index, hidden, None)


def _part(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _truth(task: str, index: int) -> str:
    return f"{task}-{index:05d}.parquet"


def _keep(run: Run, rel: str, make: Callable[[], pa.Table]) -> None:
    """Write a file unless it is there: files appear whole, and a second making would give the same bytes."""
    if not run.has(rel):
        run.write_table(rel, make())


def tables(scene: World, block: Block, index: int) -> dict[str, pa.Table]:
    """The rows of one block in every object that customers own."""
    streams = {name: scene.rng(index, purpose) for name, purpose in dw.STREAMS.items()}
    created = demo_sales.created_days(block, streams["created"])
    order, item = demo_sales.sales(scene, block, streams["sales"])
    case, email = demo_service.service(scene, block, streams["service"])
    opportunity, opportunity_history = demo_sales.opportunities(scene, block, streams["opportunities"])
    return {
        "Contact": demo_sales.contacts(scene, block, created, streams["contacts"]),
        "Order": order,
        "OrderItem": item,
        "Case": case,
        "EmailMessage": email,
        "Task": demo_service.tasks(scene, block, streams["tasks"]),
        "CampaignMember": demo_service.campaign_members(scene, block, streams["campaign_members"]),
        "Web_Visit__c": demo_service.visits(scene, block, streams["visits"]),
        "Opportunity": opportunity,
        "OpportunityFieldHistory": opportunity_history,
        "AccountHistory": demo_sales.account_history(scene, block),
        "Lead": demo_sales.leads(scene, block, created, streams["leads"]),
        "Account": demo_sales.accounts(scene, block, created, streams["accounts"]),
    }


def default_dates(scene: World) -> list[datetime]:
    """The dates of the truth run: the end, and one and two horizons before it."""
    midnight = datetime.combine(scene.end, datetime.min.time(), timezone.utc)
    dates = [midnight - timedelta(days=HORIZON_DAYS * back) for back in (2, 1, 0)]
    return [moment for moment in dates if moment.date() > scene.epoch]


def _write_affinities(scene: World, hidden: Run) -> None:
    """What is liked and what follows what, in the last era: P(product | taste, price-sensitive), P(next | product)."""
    catalogue = scene.catalogue
    num_tastes, num_products = catalogue.base.shape[1], len(catalogue.price)
    names = ids.make("01t", np.arange(num_products))
    taste, sensitive, product = (axis.ravel() for axis in np.indices((num_tastes, 2, num_products)))
    liked = {
        "taste": taste,
        "price_sensitive": sensitive == 1,
        "product_id": names.take(pa.array(product)),
        "category": pa.array(CATEGORIES).take(pa.array(catalogue.category[product])),
        "probability": catalogue.base[-1].ravel(),
    }
    hidden.write_table("liking.parquet", pa.table(liked))
    before, after = np.nonzero(catalogue.successors[-1])
    following = {
        "product_id": names.take(pa.array(before)),
        "next_product_id": names.take(pa.array(after)),
        "probability": catalogue.successors[-1][before, after],
    }
    hidden.write_table("following.parquet", pa.table(following))
