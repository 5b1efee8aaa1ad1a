"""Raw objects of the demo org that tell who the customers are and what they bought: Account, Contact, Product2, Order,
OrderItem, Opportunity, Lead and the field histories.

Each function makes one block's rows of one object, with the columns a Bulk query gives: relationship columns are named
`Order.AccountId`, times are timestamp[us, UTC]. Names are made up. Everything drawn here is noise that depends on
nothing hidden; what depends on it was drawn in demo_world.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_world as dw
from crmray.data.demo_catalogue import CATEGORIES, TIERS
from crmray.data.demo_world import Block, World
from crmray.salesforce import ids
from crmray.schema import TIME

STRIDE = 20_000_000
"""serial numbers that a block has for each object"""
DAY_S = 86_400
RISE_S = 300.0
"""seconds into Monday at which a price rise is written"""
RETURNED = 0.02
"""share of lines that come back"""
RETURN_DAYS = (3, 21)
"""a line comes back so many days after its order: from, and before"""
REGIONS = ("North", "East", "South", "West")
STAGES = ("Prospecting", "Qualification", "Proposal", "Closed Won", "Closed Lost")
LEAD_SOURCES = ("Web", "Trade fair", "Referral", "Phone", "Purchased list")
RATINGS = ("Cold", "Warm", "Hot")
LEAD_LOGIT = -1.4
SOURCE_EFFECT = np.array([0.0, 0.3, 1.1, 0.2, -1.2])
RATING_EFFECT = np.array([-1.0, 0.0, 1.2])
"""log-odds of conversion: LEAD_LOGIT + effect of the source + effect of the rating"""


def moments(world: World, day: np.ndarray, seconds: np.ndarray | float = 0.0) -> pa.Array:
    """timestamp[us, UTC] from days since the epoch and seconds into the day, cut to whole seconds."""
    first = (world.epoch - type(world.epoch)(1970, 1, 1)).days
    whole = np.floor((np.asarray(day, float) + first) * DAY_S + seconds).astype(np.int64)
    return pa.array(whole * 1_000_000).cast(TIME)


def choose(names: Sequence[str], index: np.ndarray) -> pa.Array:
    """Names by index, null where it is negative."""
    return pa.array(names).take(pa.array(index, mask=np.asarray(index) < 0))


def serials(block: Block, count: int) -> np.ndarray:
    """Serial numbers of one object's rows in this block."""
    assert count <= STRIDE
    return block.first // dw.BLOCK * STRIDE + np.arange(count)


def account_ids(block: Block, customer: np.ndarray | None = None) -> pa.StringArray:
    """Account ids (N,) of these customers by their place in the block; of all of them by default."""
    return ids.make("001", block.first + (np.arange(len(block)) if customer is None else customer))


def product_ids(world: World, product: np.ndarray) -> pa.Array:
    """Product2 ids, null where the index is negative."""
    return choose(ids.make("01t", np.arange(len(world.catalogue.price))).to_pylist(), product)


def with_system(columns: dict[str, pa.Array], modified: pa.Array) -> pa.Table:
    """The columns, and what every Salesforce object has."""
    return pa.table({**columns, "SystemModstamp": modified, "IsDeleted": np.zeros(len(modified), bool)})


def products(world: World) -> pa.Table:
    """Product2: sold from the first week of its era."""
    catalogue = world.catalogue
    launched = np.where(catalogue.launch_era > 0, 7 * catalogue.era_weeks[catalogue.launch_era], -400)
    created = moments(world, launched)
    return with_system(
        {
            "Id": product_ids(world, np.arange(len(catalogue.price))),
            "Name": pa.array(catalogue.names()),
            "ProductCode": pa.array([f"P-{number:04d}" for number in range(len(catalogue.price))]),
            "Family": choose(CATEGORIES, catalogue.category),
            "Brand__c": choose([f"House {tier}" for tier in TIERS], catalogue.tier),
            "List_Price__c": catalogue.price,
            "IsActive": np.ones(len(catalogue.price), bool),
            "CreatedDate": created,
        },
        created,
    )


def created_days(block: Block, rng: np.random.Generator) -> np.ndarray:
    """(N,) days since the epoch, with fractions: in the week before a customer's first, or up to five years before."""
    back = np.where(block.first_week > 0, 7.0, 5 * 365.0) * rng.random(len(block))
    return 7 * block.first_week - np.maximum(back, 1e-3)


def accounts(world: World, block: Block, created: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Account, one per customer of the block; created: as `created_days` has it."""
    count = len(block)
    low, high = np.array(dw.SIZES).T
    made = moments(world, created)
    weeks = block.rise.shape[1]
    last_rise = np.where(block.rise.any(1), weeks - 1 - np.argmax(block.rise[:, ::-1], 1), -1)
    raised = moments(world, 7 * last_rise, RISE_S)
    modified = pc.if_else(pc.greater(raised, made), raised, made)
    number = pc.cast(pa.array(block.first + np.arange(count)), pa.string())
    return with_system(
        {
            "Id": account_ids(block),
            "Name": pc.binary_join_element_wise("Demo Customer ", number, ""),
            "Type": choose(["Customer"], np.zeros(count, int)),
            "Industry": choose(dw.INDUSTRIES, block.industry),
            "NumberOfEmployees": rng.integers(low[block.size], high[block.size]),
            "BillingCountry": choose(dw.COUNTRIES, block.country),
            "BillingState": choose(REGIONS, rng.integers(0, len(REGIONS), count)),
            "Mail_Opt_In__c": block.opted_in,
            "Price_Level__c": _levels(block)[:, -1],
            "CreatedDate": made,
            "LastModifiedDate": modified,
        },
        modified,
    )


def contacts(world: World, block: Block, created: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Contact: a first one for each account, which gets the mail, and a second one for some."""
    customer = np.concatenate([np.arange(len(block)), np.flatnonzero(rng.random(len(block)) < 0.35)])
    made = moments(world, created[customer])
    number = pc.cast(pa.array(block.first + customer), pa.string())
    role = choose(["buyer", "office"], (np.arange(len(customer)) >= len(block)).astype(int))
    address = pc.binary_join_element_wise(role, number, "")
    return with_system(
        {
            "Id": contact_ids(block, np.arange(len(customer))),
            "AccountId": account_ids(block, customer),
            "LastName": pc.binary_join_element_wise("Contact ", number, ""),
            "Email": pc.binary_join_element_wise(address, "@customer.example", ""),
            "Title": choose(["Buyer", "Office manager"], (np.arange(len(customer)) >= len(block)).astype(int)),
            "CreatedDate": made,
        },
        made,
    )


def contact_ids(block: Block, number: np.ndarray) -> pa.StringArray:
    """Contact ids; the first N of a block are the first contacts of its customers."""
    return ids.make("003", serials(block, 1)[0] + number)


def _levels(block: Block) -> np.ndarray:
    """(N, W) price level of each customer in each week."""
    return (1 + dw.PRICE_RISE) ** np.cumsum(block.rise, 1)


def sales(world: World, block: Block, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Order and OrderItem, with the returns as reduction orders of negative quantity."""
    kept = block.order_day < world.num_days
    number = np.cumsum(kept) - 1
    seconds = rng.uniform(8, 20, len(kept)) * 3600
    channel = rng.choice(3, len(kept), p=[0.7, 0.2, 0.1])
    depth = np.where(block.discounted, rng.uniform(*dw.DISCOUNT, len(kept)), 0.0)
    line_order = block.line_order
    buyer, line_day = block.order_customer[line_order], block.order_day[line_order]
    listed = np.round(world.catalogue.price[block.product] * _levels(block)[buyer, line_day // 7], 2)
    paid = np.round(listed * (1 - depth[line_order]), 2)

    back_day = line_day + rng.integers(*RETURN_DAYS, len(line_order))
    back = np.flatnonzero((rng.random(len(line_order)) < RETURNED) & (back_day < world.num_days))
    bought = np.flatnonzero(kept[line_order])
    line = np.concatenate([bought, back])
    sign = np.where(np.arange(len(line)) < len(bought), 1.0, -1.0)
    num_orders = int(kept.sum())
    order = np.concatenate([number[line_order[bought]], num_orders + np.arange(len(back))])
    first = np.flatnonzero(kept)
    source = np.concatenate([first, line_order[back]])
    day = np.concatenate([block.order_day[first], back_day[back]])
    made = moments(world, day, seconds[source])
    order_ids = ids.make("801", serials(block, len(source)))
    heads = {
        "AccountId": account_ids(block, block.order_customer[source]),
        "EffectiveDate": moments(world, day),
        "Status": choose(["Activated"], np.zeros(len(source), int)),
        "Channel__c": choose(["web", "phone", "store"], channel[source]),
    }
    original = pa.array(np.concatenate([np.full(num_orders, -1), number[line_order[back]]]))
    orders = with_system(
        {
            "Id": order_ids,
            **heads,
            "ActivatedDate": made,
            "Discounted__c": block.discounted[source],
            "IsReductionOrder": np.arange(len(source)) >= num_orders,
            "OriginalOrderId": order_ids.take(pc.if_else(pc.less(original, 0), None, original)),
            "CreatedDate": made,
        },
        made,
    )
    at = pa.array(order)
    quantity = block.units[line] * sign
    items = with_system(
        {
            "Id": ids.make("802", serials(block, len(line))),
            "OrderId": order_ids.take(at),
            **{f"Order.{name}": values.take(at) for name, values in heads.items()},
            "Product2Id": product_ids(world, block.product[line]),
            "Quantity": quantity.astype(float),
            "ListPrice": listed[line],
            "UnitPrice": paid[line],
            "TotalPrice": np.round(paid[line] * quantity, 2),
            "CreatedDate": made.take(at),
        },
        made.take(at),
    )
    return orders, items


def opportunities(world: World, block: Block, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Opportunity and OpportunityFieldHistory: deals at random times, with the days on which their stage changed."""
    live_days = world.num_days - 7.0 * block.first_week
    customer = np.repeat(np.arange(len(block)), rng.poisson(0.2 * live_days / 365))
    count = len(customer)
    start = world.num_days - rng.random(count) * live_days[customer]
    steps = np.cumsum(rng.exponential(14.0, (count, 3)), 1) + start[:, None]
    won = rng.random(count) < 0.4
    done = (steps < world.num_days).sum(1)
    stage = np.where(done < 3, done, np.where(won, 3, 4))
    amount = np.round(np.exp(rng.normal(6.5, 0.8, count)), 2)
    own = ids.make("006", serials(block, count))
    made = moments(world, start)
    opportunity = with_system(
        {
            "Id": own,
            "AccountId": account_ids(block, customer),
            "Name": pc.binary_join_element_wise("Deal ", pc.cast(pa.array(serials(block, count)), pa.string()), ""),
            "StageName": choose(STAGES, stage),
            "Amount": amount,
            "CloseDate": moments(world, np.floor(steps[:, 2])),
            "IsClosed": stage >= 3,
            "IsWon": stage == 3,
            "CreatedDate": made,
        },
        made,
    )
    row, step = np.nonzero(steps < world.num_days)
    after = np.where(step < 2, step + 1, np.where(won[row], 3, 4))
    changed = moments(world, steps[row, step])
    history = with_system(
        {
            "Id": ids.make("008", serials(block, len(row))),
            "OpportunityId": own.take(pa.array(row)),
            "Opportunity.AccountId": account_ids(block, customer[row]),
            "Field": choose(["StageName"], np.zeros(len(row), int)),
            "OldValue": choose(STAGES, step),
            "NewValue": choose(STAGES, after),
            "CreatedDate": changed,
        },
        changed,
    )
    return opportunity, history


def account_history(world: World, block: Block) -> pa.Table:
    """AccountHistory: the price rises, each on the Monday of its week."""
    customer, week = np.nonzero(block.rise)
    level = _levels(block)[customer, week]
    made = moments(world, 7 * week, RISE_S)
    old, new = np.round(level / (1 + dw.PRICE_RISE), 4), np.round(level, 4)
    return with_system(
        {
            "Id": ids.make("017", serials(block, len(customer))),
            "AccountId": account_ids(block, customer),
            "Field": choose(["Price_Level__c"], np.zeros(len(customer), int)),
            "OldValue": pc.cast(pa.array(old), pa.string()),
            "NewValue": pc.cast(pa.array(new), pa.string()),
            "CreatedDate": made,
        },
        made,
    )


def leads(world: World, block: Block, created: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Lead: those that converted became an account of the block on the day it was created; the others never do."""
    count = len(block)
    source, rating = rng.integers(0, len(LEAD_SOURCES), count), rng.integers(0, len(RATINGS), count)
    odds = np.exp(LEAD_LOGIT + SOURCE_EFFECT[source] + RATING_EFFECT[rating])
    converts = rng.random(count) < odds / (1 + odds)
    free = rng.permutation(np.flatnonzero(created >= 0))
    account = np.full(count, -1)
    winners = np.flatnonzero(converts)[: len(free)]
    account[winners] = free[: len(winners)]
    kept = ~converts | (account >= 0)
    source, rating, account = source[kept], rating[kept], account[kept]
    known = account >= 0
    age_days = rng.gamma(2.0, 8.0, len(account))
    start = np.where(known, created[account] - age_days, rng.random(len(account)) * world.num_days)
    closed = choose(
        ["Closed - Not Converted", "Open - Not Contacted"], (start + age_days >= world.num_days).astype(int)
    )
    made = moments(world, start)
    converted = pc.if_else(pa.array(known), moments(world, created[account]), None)
    modified = pc.coalesce(converted, made)
    industry = np.where(known, block.industry[account], rng.integers(0, len(dw.INDUSTRIES), len(account)))
    number = pc.cast(pa.array(serials(block, len(account))), pa.string())
    return with_system(
        {
            "Id": ids.make("00Q", serials(block, len(account))),
            "Company": pc.binary_join_element_wise("Demo Prospect ", number, ""),
            "LeadSource": choose(LEAD_SOURCES, source),
            "Rating": choose(RATINGS, rating),
            "Industry": choose(dw.INDUSTRIES, industry),
            "Country": choose(dw.COUNTRIES, np.where(known, block.country[account], rng.integers(0, 5, len(account)))),
            "NumberOfEmployees": np.round(np.exp(rng.normal(3.0, 1.2, len(account)))).astype(int) + 1,
            "Status": pc.if_else(pa.array(known), "Closed - Converted", closed),
            "IsConverted": known,
            "ConvertedDate": converted,
            "ConvertedAccountId": pc.if_else(pa.array(known), account_ids(block, np.maximum(account, 0)), None),
            "CreatedDate": made,
            "LastModifiedDate": modified,
        },
        modified,
    )
