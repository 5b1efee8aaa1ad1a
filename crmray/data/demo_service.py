"""Raw objects of the demo org that tell of contact with the customers: Campaign, CampaignMember, Web_Visit__c, Case,
EmailMessage and Task. As demo_sales: one function makes one block's rows of one object."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import demo_text
from crmray.data import demo_world as dw
from crmray.data.demo_sales import account_ids, choose, contact_ids, moments, product_ids, serials, with_system
from crmray.data.demo_world import Block, World
from crmray.salesforce import ids

P_RATED = 0.8
"""share of closed cases that were rated"""
P_RATING = np.array([[0.5, 0.35, 0.12, 0.02, 0.01], [0.02, 0.13, 0.6, 0.2, 0.05], [0.0, 0.02, 0.08, 0.35, 0.55]])
"""P(rating 1..5 | tone)"""
P_NO_REASON, P_WRONG_REASON = 0.1, 0.06
"""share of cases without a reason, and of those with one that have another than that they are about"""
P_FOLLOW_UP = 0.5
"""share of cases with a second mail of the customer"""
PLANNED_WEEKS = 13
"""weeks after the end of the history for which campaigns are planned already"""
TASKS_PER_YEAR = 1.0
HOUR_S = 3600.0


def _campaign_ids(count: int) -> pa.StringArray:
    return ids.make("701", np.arange(count))


def campaigns(world: World) -> pa.Table:
    """Campaign: one mail every second week, a newsletter or a promotion in turn; the next PLANNED_WEEKS are planned."""
    weeks = np.arange(0, world.num_weeks + PLANNED_WEEKS, dw.MAIL_EVERY)
    kinds = choose(["Newsletter", "Promotion"], np.arange(len(weeks)) % 2)
    number = pc.cast(pa.array(1 + np.arange(len(weeks))), pa.string())
    made = moments(world, np.minimum(7 * weeks - 3, world.num_days - 1))
    return with_system(
        {
            "Id": _campaign_ids(len(weeks)),
            "Name": pc.binary_join_element_wise(kinds, number, " "),
            "Type": kinds,
            "Status": choose(["Completed", "Planned"], (7 * weeks >= world.num_days).astype(int)),
            "StartDate": moments(world, 7 * weeks),
            "EndDate": moments(world, 7 * weeks + 7),
            "CreatedDate": made,
        },
        made,
    )


def campaign_members(world: World, block: Block, rng: np.random.Generator) -> pa.Table:
    """CampaignMember: who was to get which mail, arm, and when it was opened and clicked, all on the Monday."""
    customer, week = np.nonzero(block.arm >= 0)
    inside = 7 * week < world.num_days
    customer, week = customer[inside], week[inside]
    opened, clicked = block.opened[customer, week], block.clicked[customer, week]
    open_s = 8 * HOUR_S + rng.exponential(2 * HOUR_S, len(week)).clip(60, 14 * HOUR_S)
    made = moments(world, 7 * week, 8 * HOUR_S)
    arm = block.arm[customer, week]
    return with_system(
        {
            "Id": ids.make("00v", serials(block, len(week))),
            "CampaignId": _campaign_ids(1 + world.num_weeks // dw.MAIL_EVERY).take(pa.array(week // dw.MAIL_EVERY)),
            "ContactId": contact_ids(block, customer),
            "Contact.AccountId": account_ids(block, customer),
            "Status": choose(["Held out", "Sent", "Responded"], np.where(clicked, 2, arm)),
            "Arm__c": choose(["control", "treatment"], arm),
            "HasResponded": clicked,
            "Opened_At__c": pc.if_else(pa.array(opened), moments(world, 7 * week, open_s), None),
            "FirstRespondedDate": pc.if_else(pa.array(clicked), moments(world, 7 * week, open_s + 120), None),
            "CreatedDate": made,
        },
        made,
    )


def visits(world: World, block: Block, rng: np.random.Generator) -> pa.Table:
    """Web_Visit__c, at any time of the day."""
    kept = np.flatnonzero(block.visit_day < world.num_days)
    made = moments(world, block.visit_day[kept], rng.uniform(6 * HOUR_S, 23 * HOUR_S, len(kept)))
    return with_system(
        {
            "Id": ids.make("a00", serials(block, len(kept))),
            "Account__c": account_ids(block, block.visit_customer[kept]),
            "Visited_At__c": made,
            "Seconds__c": np.round(np.exp(rng.normal(4.3, 0.9, len(kept))), 1),
            "Product__c": product_ids(world, block.viewed[kept]),
            "CreatedDate": made,
        },
        made,
    )


def service(world: World, block: Block, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Case and EmailMessage: the org's reply to each case, and often a second mail of the customer in the same tone."""
    cases, about = cases_of(world, block, rng)
    return cases, _emails(world, block, rng, cases, about)


def cases_of(world: World, block: Block, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Case, and what lies behind each: customer (index into the block), day, kind, tone, reason (indices)."""
    kept = np.flatnonzero(block.case_day < world.num_days)
    customer, day, cell = block.case_customer[kept], block.case_day[kept], block.case_cell[kept]
    count = len(kept)
    kind, tone = cell // len(dw.TONES), cell % len(dw.TONES)
    opened_s = rng.uniform(7 * HOUR_S, 22 * HOUR_S, count)
    reason, subject, text = _texts(world, rng, kind, tone)
    closed_day = day + opened_s / 86_400 + rng.gamma(2.0, 1.5, count)
    closed = closed_day < world.num_days
    rated = closed & (rng.random(count) < P_RATED)
    rating = 1 + (rng.random((count, 1)) >= np.cumsum(P_RATING, 1)[tone][:, :-1]).sum(1)
    made = moments(world, day, opened_s)
    closing = pc.if_else(pa.array(closed), moments(world, closed_day), None)
    cases = with_system(
        {
            "Id": ids.make("500", serials(block, count)),
            "AccountId": account_ids(block, customer),
            "ContactId": contact_ids(block, customer),
            "Subject": subject,
            "Description": text,
            "Type": choose(["Complaint", "Question"], kind),
            "Reason": _reasons(rng, reason),
            "Priority": choose(
                ["High", "Medium", "Low"], np.where(kind == 0, rng.integers(0, 2, count), 1 + rng.integers(0, 2, count))
            ),
            "Origin": choose(["Email", "Phone", "Web"], rng.integers(0, 3, count)),
            "Status": choose(["New", "Closed"], closed.astype(int)),
            "Rating__c": pa.array(rating.astype(float), mask=~rated),
            "CreatedDate": made,
            "ClosedDate": closing,
        },
        pc.coalesce(closing, made),
    )
    at = day + opened_s / 86_400
    return cases, pa.table({"customer": customer, "day": at, "kind": kind, "tone": tone, "reason": reason})


def _reasons(rng: np.random.Generator, reason: np.ndarray) -> pa.Array:
    """What stands in the records: some cases have no reason, some a wrong one."""
    num_reasons = len(demo_text.REASONS)
    other = (reason + rng.integers(1, num_reasons, len(reason))) % num_reasons
    given = np.where(rng.random(len(reason)) < P_WRONG_REASON, other, reason)
    return pc.if_else(pa.array(rng.random(len(reason)) < P_NO_REASON), None, choose(demo_text.REASONS, given))


def _texts(
    world: World, rng: np.random.Generator, kind: np.ndarray, tone: np.ndarray
) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Reason, subject and text of each case, written cell by cell."""
    names = world.catalogue.names()
    product = rng.integers(0, len(names), len(kind))
    order, reasons, subjects, texts = [], [], [], []
    for k, kind_name in enumerate(dw.KINDS):
        for j, tone_name in enumerate(dw.TONES):
            rows = np.flatnonzero((kind == k) & (tone == j))
            reason, subject, text = demo_text.case_texts(rng, kind_name, tone_name, names, product[rows])
            order.append(rows)
            reasons.append(reason)
            subjects.append(subject)
            texts.append(text)
    place = np.argsort(np.concatenate(order))
    subject, text = (pa.concat_arrays(parts).take(pa.array(place)) for parts in (subjects, texts))
    return np.concatenate(reasons)[place], subject, text


def _emails(world: World, block: Block, rng: np.random.Generator, cases: pa.Table, about: pa.Table) -> pa.Table:
    customer, at, tone, reason = (about[name].to_numpy() for name in ("customer", "day", "tone", "reason"))
    answered = at + rng.uniform(0.05, 2.0, len(at))
    again = np.flatnonzero(rng.random(len(at)) < P_FOLLOW_UP)
    rows = np.concatenate([np.arange(len(at)), again])
    day = np.concatenate([answered, answered[again] + rng.uniform(0.05, 1.5, len(again))])
    written = np.empty(len(again), object)
    for j, name in enumerate(dw.TONES):
        mine = tone[again] == j
        written[mine] = demo_text.follow_ups(rng, name, int(mine.sum())).to_numpy(zero_copy_only=False)
    text = pa.concat_arrays([demo_text.replies(rng, reason), pa.array(written, pa.string())])
    incoming = np.arange(len(rows)) >= len(at)
    kept = np.flatnonzero(day < world.num_days)
    rows, day, incoming, text = rows[kept], day[kept], incoming[kept], text.take(pa.array(kept))
    case_ids, subject = cases["Id"].combine_chunks(), cases["Subject"].combine_chunks()
    made = moments(world, day)
    return with_system(
        {
            "Id": ids.make("02s", serials(block, len(rows))),
            "ParentId": case_ids.take(pa.array(rows)),
            "Parent.AccountId": account_ids(block, customer[rows]),
            "Incoming": incoming,
            "Status": choose(["Sent", "Read"], incoming.astype(int)),
            "Subject": pc.binary_join_element_wise("Re: ", subject.take(pa.array(rows)), ""),
            "TextBody": text,
            "MessageDate": made,
            "CreatedDate": made,
        },
        made,
    )


def tasks(world: World, block: Block, rng: np.random.Generator) -> pa.Table:
    """Task: calls and errands of the sales people, at random times."""
    live_days = world.num_days - 7.0 * block.first_week
    customer = np.repeat(np.arange(len(block)), rng.poisson(TASKS_PER_YEAR * live_days / 365))
    count = len(customer)
    day = np.floor(world.num_days - rng.random(count) * live_days[customer])
    made = moments(world, day, rng.uniform(8 * HOUR_S, 18 * HOUR_S, count))
    call = rng.random(count) < 0.6
    subject = choose(
        ["Call", "Send catalogue", "Prepare visit", "Check address"], np.where(call, 0, rng.integers(1, 4, count))
    )
    return with_system(
        {
            "Id": ids.make("00T", serials(block, count)),
            "AccountId": account_ids(block, customer),
            "WhatId": account_ids(block, customer),
            "Subject": subject,
            "Description": choose(
                ["Spoke about the season's range.", "No answer, will try again.", "Done."], rng.integers(0, 3, count)
            ),
            "TaskSubtype": choose(["Task", "Call"], call.astype(int)),
            "CallDurationInSeconds": pa.array(rng.integers(30, 900, count), mask=~call),
            "Status": choose(["Completed"], np.zeros(count, int)),
            "Priority": choose(["Normal"], np.zeros(count, int)),
            "CreatedDate": made,
        },
        made,
    )
