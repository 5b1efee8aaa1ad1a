"""The sandbox org's standard objects of what is sold: see standard."""

from __future__ import annotations

from crmray.salesforce.sandbox.metadata import (
    FIXED,
    Check,
    Day,
    Field,
    LongText,
    Moment,
    Money,
    ObjectType,
    Pick,
    Text,
    object_type,
    reference,
)  # fmt: skip

STAGES = {
    "Prospecting": 10, "Qualification": 10, "Needs Analysis": 20, "Value Proposition": 50, "Id. Decision Makers": 60,
    "Perception Analysis": 70, "Proposal": 75, "Proposal/Price Quote": 75, "Negotiation/Review": 90, "Closed Won": 100,
    "Closed Lost": 0,
}  # fmt: skip
"""opportunity stage -> probability in per cent"""
SOURCES = (
    "Web", "Phone Inquiry", "Partner Referral", "Purchased List", "Other", "Trade fair", "Referral", "Phone",
    "Purchased list",
)  # fmt: skip
"""where leads, contacts and opportunities come from"""
FAMILIES = (
    "Electronics", "Kitchen", "Garden", "Office", "Toys", "Sports", "Beauty", "Books", "Tools", "Textiles",
)  # fmt: skip
"""of products, as in the demo org"""


def _opportunity() -> ObjectType:
    probability = " ".join(f"WHEN '{stage}' THEN {percent}" for stage, percent in STAGES.items())
    chance = f"(CASE {{StageName}} {probability} ELSE 0 END)::DOUBLE"
    return object_type(
        "Opportunity",
        "006",
        [
            reference("AccountId", "Account", on_delete="cascade", child_relationship="Opportunities"),
            Text(name="Name", length=120, required=True, name_field=True),
            LongText(name="Description"),
            Pick(name="StageName", required=True, values=tuple(STAGES), tracked=True),
            Money(name="Amount", tracked=True),
            Field(name="Probability", type="percent", precision=3, formula=chance, **FIXED),
            Money(name="ExpectedRevenue", formula=f"{{Amount}} * {chance} / 100", **FIXED),
            Day(name="CloseDate", required=True, tracked=True),
            Pick(name="Type", values=("Existing Business", "New Business")),
            Text(name="NextStep"),
            Pick(name="LeadSource", values=SOURCES),
            Check(name="IsClosed", formula="coalesce({StageName} IN ('Closed Won', 'Closed Lost'), false)", **FIXED),
            Check(name="IsWon", formula="coalesce({StageName} = 'Closed Won', false)", **FIXED),
            reference("CampaignId", "Campaign", child_relationship="Opportunities"),
        ],
        plural="Opportunities",
        history="OpportunityFieldHistory.OpportunityId",
    )


def _line_fields(total: str) -> list[Field]:
    """What order and opportunity products have in common."""
    return [
        reference("Product2Id", "Product2", on_delete="restrict"),
        Field(name="Quantity", type="double", scale=2, required=True),
        Money(name="ListPrice", **FIXED),
        Money(name="UnitPrice"),
        Money(name="TotalPrice", formula=total, **FIXED),
        Text(name="Description"),
        Day(name="ServiceDate"),
    ]


def sales_objects() -> list[ObjectType]:
    """Opportunity, Product2, Order, OrderItem, OpportunityLineItem, Contract and Asset."""
    total = "round({UnitPrice} * {Quantity}, 2)"
    item = reference(
        "OrderId", "Order", required=True, updateable=False, on_delete="cascade", child_relationship="OrderItems"
    )
    line = reference("OpportunityId", "Opportunity", required=True, updateable=False, on_delete="cascade",
                     child_relationship="OpportunityLineItems")  # fmt: skip
    return [
        _opportunity(),
        object_type("Product2", "01t", [
            Text(name="Name", required=True, name_field=True), Text(name="ProductCode"),
            Field(name="Description", type="textarea", length=4000), Check(name="IsActive"),
            Pick(name="Family", values=FAMILIES),
            Text(name="Brand__c", length=80), Money(name="List_Price__c"),
        ], owner=False, label="Product"),
        object_type("Order", "801", [
            Text(name="OrderNumber", length=30, name_field=True, auto_number=True, **FIXED),
            reference("AccountId", "Account", on_delete="cascade", child_relationship="Orders"),
            reference("ContractId", "Contract", child_relationship="Orders"),
            Day(name="EffectiveDate", required=True), Day(name="EndDate"),
            Pick(name="Status", required=True, default="Draft", values=("Draft", "Activated"), tracked=True),
            Pick(name="Type"), Field(name="Description", type="textarea", length=32_000),
            Check(name="IsReductionOrder", updateable=False),
            reference("OriginalOrderId", "Order", updateable=False), Moment(name="ActivatedDate", **FIXED),
            Pick(name="Channel__c", values=("web", "phone", "store")), Check(name="Discounted__c"),
        ], history="OrderHistory.OrderId"),
        object_type("OrderItem", "802", [item, *_line_fields(total)], owner=False, label="Order Product"),
        object_type(
            "OpportunityLineItem", "00k", [line, *_line_fields(total)], owner=False, label="Opportunity Product",
        ),
        object_type("Contract", "800", [
            Text(name="ContractNumber", length=30, name_field=True, auto_number=True, **FIXED),
            reference("AccountId", "Account", required=True, on_delete="cascade", child_relationship="Contracts"),
            Day(name="StartDate"), Day(name="EndDate"), Field(name="ContractTerm", type="int", precision=4),
            Pick(name="Status", required=True, default="Draft", tracked=True,
                 values=("Draft", "In Approval Process", "Activated")),
            LongText(name="Description"),
        ], history="ContractHistory.ContractId"),
        object_type("Asset", "02i", [
            Text(name="Name", required=True, name_field=True),
            reference("AccountId", "Account", on_delete="cascade", child_relationship="Assets"),
            reference("ContactId", "Contact", child_relationship="Assets"), reference("Product2Id", "Product2"),
            Pick(name="Status", values=("Shipped", "Installed", "Registered", "Obsolete", "Purchased"), tracked=True),
            Day(name="InstallDate"), Day(name="PurchaseDate"), Day(name="UsageEndDate"), Money(name="Price"),
            Field(name="Quantity", type="double", scale=2), Text(name="SerialNumber", length=80),
        ], history="AssetHistory.AssetId"),
    ]  # fmt: skip
