"""The standard mapping: which Salesforce object and field fills which canonical table and column.

An org that uses the standard objects as Salesforce means them needs no mapping of its own; the demo org is one. Fields
that end in `__c` are the demo org's custom fields: `standard` leaves them out for an org that lacks them. A customer is
an Account; what hangs on contacts, cases and orders reaches it through the relationship (`Order.AccountId`). An org
that sells without orders has its sales in the products of opportunities that were won.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from crmray import schema
from crmray.sources import SalesforceSource, TableSource

DELETED = {"IsDeleted": {"eq": True}}
NOT_SENT = {"Arm__c": "control"}
EVENT_TABLES = ("transactions", "interactions", "engagement", "exposures", "changes")
"""tables of what happened; `since` cuts the objects that fill these alone"""
INSTEAD_OF = {("transactions", "OpportunityLineItem"): "OrderItem"}
"""(table, object) -> the object in whose absence it is used: a deal won and its order are the same sale"""

Objects = Mapping[str, Collection[str]]
"""the objects of an org, each with its fields (SOQL paths)"""


def _source(object_: str, columns: dict[str, str], *drop: dict, **more) -> TableSource:
    return TableSource(object=object_, columns=columns, drop=[DELETED, *drop], **more)


STANDARD: dict[str, list[TableSource]] = {
    "customers": [
        _source(
            "Account",
            {
                "entity_id": "Id", "created_at": "CreatedDate", "country": "BillingCountry", "region": "BillingState",
                "industry": "Industry", "segment": "Type", "modified_at": "LastModifiedDate",
            },
            attributes=["NumberOfEmployees", "Mail_Opt_In__c", "Price_Level__c"],
        ),
    ],
    "products": [
        _source(
            "Product2",
            {
                "product_id": "Id", "name": "Name", "category": "Family", "brand": "Brand__c",
                "price_amount": "List_Price__c", "launched_at": "CreatedDate", "active": "IsActive",
            },
        ),
    ],
    "transactions": [
        _source(
            "OrderItem",
            {
                "entity_id": "Order.AccountId", "occurred_at": "Order.EffectiveDate", "transaction_id": "Id",
                "order_id": "OrderId", "product_id": "Product2Id", "num_units": "Quantity",
                "unit_price_amount": "UnitPrice", "net_amount": "TotalPrice", "channel": "Order.Channel__c",
            },
            {"Order.Status": "Draft"},
            {"Order.AccountId": {"missing": True}},
        ),
    ],
    "interactions": [
        _source(
            "Case",
            {
                "entity_id": "AccountId", "occurred_at": "CreatedDate", "interaction_id": "Id", "subject": "Subject",
                "text": "Description", "reason": "Reason", "rating": "Rating__c", "status": "Status",
                "priority": "Priority", "closed_at": "ClosedDate",
            },
            {"AccountId": {"missing": True}},
            values={"channel": "case", "direction": "inbound"},
        ),
        *(
            _source(
                "EmailMessage",
                {
                    "entity_id": "Parent.AccountId", "occurred_at": "MessageDate", "interaction_id": "Id",
                    "subject": "Subject", "text": "TextBody", "status": "Status",
                },
                {"Incoming": not incoming},
                {"Parent.AccountId": {"missing": True}},
                values={"channel": "email", "direction": "inbound" if incoming else "outbound"},
            )
            for incoming in (True, False)
        ),
        *(
            _source(
                "Task",
                {
                    "entity_id": "AccountId", "occurred_at": "CreatedDate", "interaction_id": "Id",
                    "subject": "Subject", "text": "Description", "status": "Status", "priority": "Priority",
                },
                {"TaskSubtype": {"ne" if channel == "call" else "eq": "Call"}},
                {"AccountId": {"missing": True}},
                values={"channel": channel, "direction": "outbound"},
            )
            for channel in ("call", "task")
        ),
    ],
    "engagement": [
        _source(
            "Web_Visit__c",
            {
                "entity_id": "Account__c", "occurred_at": "Visited_At__c", "engagement_id": "Id",
                "product_id": "Product__c", "seconds": "Seconds__c",
            },
            {"Account__c": {"missing": True}},
            values={"kind": "visit"},
        ),
        *(
            _source(
                "CampaignMember",
                {"entity_id": "Contact.AccountId", "occurred_at": time, "campaign_id": "CampaignId"},
                NOT_SENT,
                {time: {"missing": True}},
                {"Contact.AccountId": {"missing": True}},
                values={"kind": kind},
            )
            for kind, time in (("send", "CreatedDate"), ("open", "Opened_At__c"), ("click", "FirstRespondedDate"))
        ),
    ],
    "campaigns": [
        _source(
            "Campaign",
            {"campaign_id": "Id", "name": "Name", "kind": "Type", "started_at": "StartDate", "ended_at": "EndDate"},
        ),
    ],
    "exposures": [
        _source(
            "CampaignMember",
            {
                "entity_id": "Contact.AccountId", "campaign_id": "CampaignId", "occurred_at": "CreatedDate",
                "arm": "Arm__c",
            },
            {"Contact.AccountId": {"missing": True}},
        ),
    ],
    "leads": [
        _source(
            "Lead",
            {
                "lead_id": "Id", "created_at": "CreatedDate", "source": "LeadSource", "industry": "Industry",
                "country": "Country", "status": "Status", "converted_at": "ConvertedDate",
                "entity_id": "ConvertedAccountId", "modified_at": "LastModifiedDate",
            },
            attributes=["Rating", "NumberOfEmployees"],
        ),
    ],
    "changes": [
        _source(
            f"{object_}{suffix}",
            {
                "entity_id": account, "record_id": f"{object_}Id", "field": "Field", "occurred_at": "CreatedDate",
                "old_value": "OldValue", "new_value": "NewValue",
            },
            {account: {"missing": True}},
            values={"object": object_},
        )
        for object_, suffix, account in (
            ("Account", "History", "AccountId"), ("Opportunity", "FieldHistory", "Opportunity.AccountId"),
        )
    ],
}  # fmt: skip
"""canonical table -> its sources, all of whose objects the demo org has"""

FURTHER: dict[str, list[TableSource]] = {
    "transactions": [
        _source(
            "OpportunityLineItem",
            {
                "entity_id": "Opportunity.AccountId", "occurred_at": "Opportunity.CloseDate", "transaction_id": "Id",
                "order_id": "OpportunityId", "product_id": "Product2Id", "num_units": "Quantity",
                "unit_price_amount": "UnitPrice", "net_amount": "TotalPrice",
            },
            {"Opportunity.IsWon": False},
            {"Opportunity.AccountId": {"missing": True}},
        ),
    ],
    "interactions": [
        _source(
            "Event",
            {
                # not when it is to take place: an invitation for next month is known today
                "entity_id": "AccountId", "occurred_at": "CreatedDate", "interaction_id": "Id", "subject": "Subject",
                "text": "Description",
            },
            {"AccountId": {"missing": True}},
            values={"channel": "meeting", "direction": "outbound"},
        ),
    ],
    "subscriptions": [
        _source(
            "Contract",
            {"entity_id": "AccountId", "subscription_id": "Id", "started_at": "StartDate", "ended_at": "EndDate"},
            {"Status": "Draft"},
            {"StartDate": {"missing": True}},
        ),
        _source(
            "Asset",
            {
                "entity_id": "AccountId", "subscription_id": "Id", "started_at": "PurchaseDate",
                "ended_at": "UsageEndDate", "plan": "Name", "monthly_amount": "Price",
            },
            {"AccountId": {"missing": True}},
            {"PurchaseDate": {"missing": True}},
        ),
    ],
    "changes": [
        _source(
            f"{object_}History",
            {
                "entity_id": entity, "record_id": f"{object_}Id", "field": "Field", "occurred_at": "CreatedDate",
                "old_value": "OldValue", "new_value": "NewValue",
            },
            {entity: {"missing": True}},
            values={"object": object_},
        )
        for object_, entity in (
            ("Case", "Case.AccountId"), ("Order", "Order.AccountId"), ("OrderItem", "OrderItem.Order.AccountId"),
            ("Contract", "Contract.AccountId"), ("Asset", "Asset.AccountId"), ("Contact", "Contact.AccountId"),
            ("Lead", "LeadId"),
        )
    ],
}  # fmt: skip
"""sources that a stock org may have beside those of STANDARD"""


def wanted(source: SalesforceSource) -> dict[str, list[TableSource]]:
    """All that would be read of an org that has everything: the standard mapping, and the org file's sources in it.

    A source of the org file takes the place of those that the standard mapping has of its object for that table.
    """
    result: dict[str, list[TableSource]] = {}
    for table in dict.fromkeys([*STANDARD, *FURTHER, *source.tables]):
        schema.table(table)
        own = source.tables.get(table, [])
        gone = {*source.without, *(part.object for part in own), *(_instead(table) if own else ())}
        if kept := [part for part in every(table) if part.object not in gone] + own:
            result[table] = kept
    return result


def tables(source: SalesforceSource, objects: Objects, *, empty: Collection[str] = ()) -> dict[str, list[TableSource]]:
    """The sources of each canonical table among these objects (object -> its columns); a table without one is left out.

    Of the standard mapping columns that are not there are left out, conditions on absent custom fields too; a source
    goes that lacks what its table requires or a standard field that its conditions look at. What the org file itself
    says stays as it stands there. empty: objects without rows, for INSTEAD_OF.
    """
    own = {id(part) for parts in source.tables.values() for part in parts}
    result: dict[str, list[TableSource]] = {}
    for table, parts in wanted(source).items():
        mine = [part for part in parts if id(part) in own and part.object in objects]
        cut = [fit(table, part, objects) for part in parts if id(part) not in own]
        fitting = _without_twins(table, [part for part in cut if part is not None], empty) + mine
        if fitting:
            result[table] = fitting
    return result


def every(table: str) -> list[TableSource]:
    """The sources of a table, STANDARD and FURTHER together."""
    return [*STANDARD.get(table, []), *FURTHER.get(table, [])]


def _instead(table: str) -> list[str]:
    """Objects that stand in for another one in this table."""
    return [object_ for name, object_ in INSTEAD_OF if name == table]


def _without_twins(table: str, sources: list[TableSource], empty: Collection[str]) -> list[TableSource]:
    """Of a source and the one that stands in for it only one: the first, unless it has no rows and the other has."""
    there = {source.object for source in sources}
    gone = set()
    for (name, second), first in INSTEAD_OF.items():
        if name == table and {first, second} <= there:
            gone.add(first if first in empty and second not in empty else second)
    return [source for source in sources if source.object not in gone]


def fit(table: str, source: TableSource, objects: Objects) -> TableSource | None:
    """The source cut down to the columns that its object has; None where it is not there or lacks what is needed."""
    if source.object not in objects:
        return None
    there = set(objects[source.object])
    if any(lacks(table, source, there)):
        return None
    columns = {name: column for name, column in source.columns.items() if column in there}
    drop = [entry for entry in source.drop if set(entry) <= there]
    attributes = [name for name in source.attributes if name in there]
    return source.model_copy(update={"columns": columns, "drop": drop, "attributes": attributes})


def lacks(table: str, source: TableSource, there: Collection[str]) -> tuple[list[str], list[str]]:
    """What an object with these columns lacks to be read: columns that the table requires, and standard fields beside
    them that the source's conditions look at."""
    required = [name for name in schema.table(table).required if name not in source.values]
    wanted = [source.columns.get(name, name) for name in required]
    asked = dict.fromkeys(column for entry in source.drop for column in entry)
    standard = [column for column in asked if not column.endswith("__c") and column != "IsDeleted"]
    missing = [name for name in wanted if name not in there]
    return missing, [name for name in standard if name not in {*there, *missing}]
