"""What every task must do, whatever it predicts: one planted org, and how to fit any candidate small.

The planted org: 240 customers buy about every 12 days and go through the products in a fixed order, so the next product
follows from the last one. After some purchases a case is opened; most of those customers then stay away for months. A
third of the customers buys for ten times as much as the others. What a case says goes by its rating and its reason. Of
360 leads those from a fair convert most often, those from a list hardly ever. Every two weeks half of the customers get
an offer, by lot; the French ones who have not gone away then buy within two days. So there is something to find for
every task, and more than a rule on recency, RFM bands, popularity or the commonest class can see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from crmray import schema
from crmray.data import splits

START = datetime(2022, 1, 1, tzinfo=timezone.utc)
NUM_DAYS, NUM_CUSTOMERS, NUM_PRODUCTS = 540, 240, 24
SETTINGS: dict[str, Any] = {"horizon_days": 30, "lookback_days": 180, "num_snapshots": 5}
"""of every task in the planted org, as far as it has these fields"""
REASONS = {
    "delivery": ("the parcel is late", "when does my order arrive", "the courier lost the box", "no delivery today"),
    "invoice": ("the bill shows a wrong sum", "please send the invoice", "I was charged twice", "which tax rate"),
    "defect": ("it broke", "the motor makes a noise", "the screen stays black", "a part is loose"),
}
TONES = {1: ("awful, I want my money back", "never again"), 3: ("thanks for a note", "kind regards"),
         5: ("otherwise a great service", "we love it, well done")}  # fmt: skip
SOURCES = {"fair": 0.8, "web": 0.4, "list": 0.05}
"""where a lead comes from -> share that converts"""
QUICK = {
    "max_epochs": 6, "hidden": 16, "num_trees": 30, "max_rounds": 100, "num_rounds": 40, "batch_size": 64,
    "dropout": 0.0, "num_layers": 1, "num_threads": 1, "lr": 5e-3, "num_segments": 3,
}  # fmt: skip
"""hyper-parameters of small fits, where a candidate has them"""


@cache
def planted() -> dict[str, pa.Table]:
    """Canonical tables of the planted org, sorted as the shard stage sorts them."""
    rng, words = np.random.default_rng(5), np.random.default_rng(6)
    lines, cases, visits, offers = [], [], [], _offers(np.random.default_rng(8))
    for number in range(NUM_CUSTOMERS):
        entity, price = f"c{number:04d}", 100.0 if number % 3 == 0 else 10.0
        day, product, before = float(rng.uniform(0, 12)), number, 0.0
        won = [offer[1] + 1.5 for offer in offers[entity] if offer[2] == "treatment" and number % 2 == 0]
        while day < NUM_DAYS:
            for own in [*(at for at in won if before < at < day and day - before < 20), day]:
                product = (product + 1) % NUM_PRODUCTS
                lines.append((entity, own, f"{entity}-{len(lines)}", f"p{product:02d}", 1.0, price))
            before = day
            visits.append((entity, max(0.0, day - 0.5), "visit", float(rng.uniform(10, 99))))
            if rng.random() < 0.08:
                cases.append((entity, day + 1, f"i{len(cases):05d}", "case", "inbound", *_case(words)))
                day += float(rng.uniform(60, 150)) if rng.random() < 0.9 else 0.0
            day += float(rng.uniform(6, 18))
    names = {
        "transactions": ("entity_id", "occurred_at", "order_id", "product_id", "num_units", "net_amount"),
        "interactions": (
            "entity_id",
            "occurred_at",
            "interaction_id",
            "channel",
            "direction",
            "reason",
            "rating",
            "text",
        ),
        "engagement": ("entity_id", "occurred_at", "kind", "seconds"),
    }
    rows = {"transactions": lines, "interactions": cases, "engagement": visits}
    tables = {name: _table(name, names[name], rows[name]) for name in names}
    products = [(f"p{i:02d}", f"Product {i}", "even" if i % 2 == 0 else "odd", 10.0 + i) for i in range(NUM_PRODUCTS)]
    tables["products"] = _table("products", ("product_id", "name", "category", "price_amount"), products)
    people = [(f"c{i:04d}", "UK" if i % 2 else "FR", START) for i in range(NUM_CUSTOMERS)]
    tables["customers"] = _table("customers", ("entity_id", "country", "created_at"), people)
    tables["leads"] = _leads(np.random.default_rng(7))
    sent = [offer for own in offers.values() for offer in own]
    tables["exposures"] = _table("exposures", ("entity_id", "occurred_at", "arm", "campaign_id"), sent)
    return tables


def _offers(rng: np.random.Generator) -> dict[str, list[tuple]]:
    """Customer -> an offer every two weeks, as (customer, day, arm, campaign)."""
    days = range(3, NUM_DAYS - 1, 14)
    return {
        entity: [(entity, float(day), ("treatment", "control")[rng.integers(2)], "offer") for day in days]
        for entity in (f"c{number:04d}" for number in range(NUM_CUSTOMERS))
    }


def _case(rng: np.random.Generator) -> tuple[str, float, str]:
    """Reason, rating and text of a case."""
    reason, rating = list(REASONS)[rng.integers(len(REASONS))], list(TONES)[rng.integers(len(TONES))]
    text = f"{rng.choice(REASONS[reason])}; {rng.choice(TONES[rating])}"
    return reason, float(rating), text


def _leads(rng: np.random.Generator) -> pa.Table:
    """360 leads, created at any time; those that convert do so within three weeks, and become a customer."""
    rows = []
    for number in range(360):
        source, created = list(SOURCES)[number % 3], float(rng.uniform(0, NUM_DAYS - 1))
        converted = created + float(rng.uniform(8, 21))
        won = rng.random() < SOURCES[source] and converted < NUM_DAYS
        at = START + timedelta(days=converted) if won else None
        rows.append(
            (f"l{number:04d}", START + timedelta(days=created), source, at, f"c{number % 240:04d}" if won else None)
        )
    return _table("leads", ("lead_id", "created_at", "source", "converted_at", "entity_id"), rows)


def _table(name: str, columns: tuple[str, ...], rows: list[tuple]) -> pa.Table:
    values = dict(zip(columns, zip(*rows, strict=True), strict=True))
    if "occurred_at" in values:
        values["occurred_at"] = tuple(START + timedelta(days=day) for day in values["occurred_at"])
    found = schema.check(name, pa.table({column: list(cells) for column, cells in values.items()}))
    keys = [key for key in (schema.TABLES[name].entity, schema.TABLES[name].time) if key]
    return found.select(list(columns)).sort_by([(key, "ascending") for key in keys])


def settings_of(task: Any) -> Any:
    """The task's settings in the planted org."""
    return task.Settings(**{name: value for name, value in SETTINGS.items() if name in task.Settings.model_fields})


def baseline_of(task: Any) -> str:
    """The task's rule of thumb: the first candidate that has nothing to tune."""
    return next(name for name, candidate in task.CANDIDATES.items() if not candidate.GRID)


def examples_of(task: Any, tables: Mapping[str, pa.Table], as_of: datetime | None, *, labels: bool) -> pa.Table:
    """The task's rows, from what it gathers of one shard where it spans customers."""
    settings = settings_of(task)
    if hasattr(task, "gather"):
        tables = task.combine([task.gather(tables, settings)], settings)
    return task.examples(tables, as_of, settings, labels=labels)


@cache
def rows_of(task: Any) -> dict[str, pa.Table]:
    """The task's train (that selection may see), validation, test and now rows of the planted org."""
    settings, tables = settings_of(task), planted()
    span = (START, START + timedelta(days=NUM_DAYS - 1))
    dates = getattr(task, "dates", splits.snapshots)(settings, span)
    train = pa.concat_tables([examples_of(task, tables, date, labels=True) for date in dates.train])
    return {
        "train": train.filter(pa.array(splits.selection(train["as_of"], dates))).combine_chunks(),
        "validation": examples_of(task, tables, dates.validation, labels=True),
        "test": examples_of(task, tables, dates.test, labels=True),
        "now": examples_of(task, tables, dates.now, labels=False),
    }


def changed_from(tables: Mapping[str, pa.Table], as_of: datetime) -> dict[str, pa.Table]:
    """The same history before as_of; every row at or after it goes to another customer, and a row at as_of is added."""
    changed = {}
    for name, rows in tables.items():
        time = schema.TABLES[name].time
        if time is None:
            changed[name] = rows
            continue
        late = pc.greater_equal(rows[time], pa.scalar(as_of, schema.TIME))
        after = rows.filter(late)
        key = schema.TABLES[name].entity
        ids = pa.array(after[key].to_pylist()[::-1], pa.string())
        after = after.set_column(0, key, ids)
        at = rows.slice(0, 1)
        at = at.set_column(at.schema.get_field_index(time), rows.schema.field(time), pa.array([as_of], schema.TIME))
        together = pa.concat_tables([rows.filter(pc.invert(late)), after, at])
        changed[name] = together.sort_by([(key, "ascending"), (time, "ascending")])
    return changed


def small(candidate: type) -> Any:
    """The candidate with hyper-parameters for a small fit."""
    point = candidate()
    return replace(point, **{f.name: QUICK[f.name] for f in fields(candidate) if f.name in QUICK})


def fit(candidate: Any, train: pa.Table, validation: pa.Table, *, seed: int = 0) -> Any:
    """Fit one candidate of any kind, without Ray: in memory, over two shards, or by a plain training loop."""
    if candidate.KIND == "memory":
        return candidate.fit(train, validation, seed=seed)
    if candidate.KIND == "shards":
        state, done = candidate.start(train, seed), False
        shards = [train.slice(0, train.num_rows // 2), train.slice(train.num_rows // 2)]
        while not done:
            state, done = candidate.reduce(state, [candidate.map(state, shard) for shard in shards])
        return candidate.fitted(state)
    return _fit_torch(candidate, train, seed)


def _fit_torch(candidate: Any, train: pa.Table, seed: int) -> Any:
    torch.manual_seed(seed)
    state = candidate.prepare(train)
    arrays, module = candidate.encode(state, train), candidate.module(state)
    optimizer = torch.optim.AdamW(module.parameters(), lr=candidate.lr)
    order = np.random.default_rng(seed)
    for _ in range(candidate.max_epochs):
        rows = order.permutation(train.num_rows)
        for start in range(0, len(rows), candidate.batch_size):
            loss = candidate.loss(module, candidate.batch(arrays, rows[start : start + candidate.batch_size])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return candidate.fitted(state, module.state_dict(), candidate.max_epochs)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], *, within: float = 0.0) -> bool:
    """Whether two answers are equal: numbers within a tolerance, everything else exactly."""
    if one.keys() != other.keys():
        return False
    return all(_equal(np.asarray(one[name]), np.asarray(other[name]), within) for name in one)


def _equal(one: np.ndarray, other: np.ndarray, within: float) -> bool:
    if one.shape != other.shape:
        return False
    if np.issubdtype(one.dtype, np.floating):
        return bool(np.allclose(one, other, rtol=0, atol=within, equal_nan=True))
    return one.tolist() == other.tolist()
