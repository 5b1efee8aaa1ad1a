"""The objects of the sandbox org: Salesforce's standard ones as far as the house reads them, typed as Salesforce types
them, and the demo org's custom fields and object (Web_Visit__c).

Deletions cascade as in Salesforce: an Account takes its contacts, opportunities, orders, contracts, assets and
activities along, but one with cases cannot be deleted; a Product2 on an order or opportunity cannot either.
"""

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
    history_type,
    object_type,
    reference,
)  # fmt: skip
from crmray.salesforce.sandbox.standard_sales import SOURCES, sales_objects

INDUSTRIES = (
    "Agriculture", "Apparel", "Banking", "Construction", "Consulting", "Education", "Finance", "Healthcare",
    "Hospitality", "Insurance", "Manufacturing", "Retail", "Technology", "Telecommunications", "Transportation",
    "Other",
)  # fmt: skip
RATINGS = ("Hot", "Warm", "Cold")
PRIORITIES = ("High", "Normal", "Low")
LEAD_STATUS = ("Open - Not Contacted", "Working - Contacted", "Closed - Converted", "Closed - Not Converted")
TASK_STATUS = ("Not Started", "In Progress", "Completed", "Waiting on someone else", "Deferred")
CHANNELS = ("Email", "Phone", "Web", "MailingAddress", "Social")
CONSENT = ("Seen", "OptIn", "OptOut", "NotSeen")
PERSON_NAME = "concat_ws(' ', {FirstName}, {LastName})"


def _address(prefix: str) -> list[Field]:
    return [
        Field(name=f"{prefix}Street", type="textarea"),
        Text(name=f"{prefix}City", length=40),
        Text(name=f"{prefix}State", length=80),
        Text(name=f"{prefix}PostalCode", length=20),
        Text(name=f"{prefix}Country", length=80),
    ]


def _person(prefix: str) -> list[Field]:
    """What Contact and Lead have of a person."""
    return [
        Text(name="LastName", length=80, required=True),
        Text(name="FirstName", length=40),
        Pick(name="Salutation", length=40, values=("Mr.", "Ms.", "Mrs.", "Dr.", "Prof.")),
        Text(name="Name", length=121, name_field=True, formula=PERSON_NAME, **FIXED),
        *_address(prefix),
        Field(name="Phone", type="phone"),
        Field(name="MobilePhone", type="phone"),
        Field(name="Email", type="email", tracked=True),
        Text(name="Title", length=128),
        LongText(name="Description"),
        Check(name="HasOptedOutOfEmail"),
        Check(name="DoNotCall"),
        reference("IndividualId", "Individual", child_relationship=None),
    ]


def _account() -> ObjectType:
    return object_type(
        "Account",
        "001",
        [
            Text(name="Name", required=True, name_field=True),
            Pick(
                name="Type",
                values=("Prospect", "Customer", "Customer - Direct", "Customer - Channel", "Partner", "Other"),
                tracked=True,
            ),
            reference("ParentId", "Account", child_relationship="ChildAccounts"),
            *_address("Billing"),
            *_address("Shipping"),
            Field(name="Phone", type="phone"),
            Text(name="AccountNumber", length=40),
            Field(name="Website", type="url"),
            Pick(name="Industry", values=INDUSTRIES, tracked=True),
            Money(name="AnnualRevenue"),
            Field(name="NumberOfEmployees", type="int", precision=8, tracked=True),
            Pick(name="Rating", values=RATINGS, tracked=True),
            LongText(name="Description"),
            Check(name="Mail_Opt_In__c"),
            Field(name="Price_Level__c", type="double", scale=4, tracked=True),
        ],
        plural="Accounts",
        history="AccountHistory.AccountId",
    )


def _contact() -> ObjectType:
    return object_type(
        "Contact",
        "003",
        [
            reference("AccountId", "Account", on_delete="cascade", child_relationship="Contacts"),
            *_person("Mailing"),
            reference("ReportsToId", "Contact"),
            Text(name="Department", length=80),
            Pick(name="LeadSource", values=SOURCES),
            Day(name="Birthdate"),
        ],
        history="ContactHistory.ContactId",
    )


def _lead() -> ObjectType:
    return object_type(
        "Lead",
        "00Q",
        [
            *_person(""),
            Text(name="Company", required=True),
            Field(name="Website", type="url"),
            Pick(name="LeadSource", values=SOURCES),
            Pick(name="Status", required=True, default=LEAD_STATUS[0], tracked=True, values=LEAD_STATUS),
            Pick(name="Industry", values=INDUSTRIES),
            Pick(name="Rating", values=RATINGS, tracked=True),
            Money(name="AnnualRevenue"),
            Field(name="NumberOfEmployees", type="int", precision=8),
            Check(name="IsConverted", required=True, updateable=False),
            Day(name="ConvertedDate", **FIXED),
            reference("ConvertedAccountId", "Account", **FIXED),
            reference("ConvertedContactId", "Contact", **FIXED),
            reference("ConvertedOpportunityId", "Opportunity", **FIXED),
        ],
        history="LeadHistory.LeadId",
    )  # fmt: skip


def _activity(*fields: Field) -> list[Field]:
    return [
        reference("WhoId", "Contact", "Lead"),
        reference("WhatId", "Account", "Opportunity", "Case", "Order", "Contract", "Asset", "Campaign", "Product2"),
        reference("AccountId", "Account", on_delete="cascade", **FIXED),
        Text(name="Subject", name_field=True),
        LongText(name="Description"),
        *fields,
    ]


def _service() -> list[ObjectType]:
    return [
        object_type("Case", "500", [
            Text(name="CaseNumber", length=30, name_field=True, auto_number=True, **FIXED),
            reference("ContactId", "Contact", child_relationship="Cases"),
            reference("AccountId", "Account", on_delete="restrict", child_relationship="Cases"),
            Pick(name="Type", values=("Complaint", "Question", "Problem", "Feature Request")),
            Pick(name="Status", default="New", values=("New", "Working", "Escalated", "Closed"), tracked=True),
            Pick(name="Reason", values=("Installation", "Performance", "Feedback", "Other")),
            Pick(name="Origin", values=("Email", "Phone", "Web")), Text(name="Subject"),
            Pick(name="Priority", default="Medium", values=("High", "Medium", "Low"), tracked=True),
            LongText(name="Description"), Moment(name="ClosedDate", **FIXED),
            Check(name="IsClosed", formula="coalesce({Status} = 'Closed', false)", **FIXED),
            Text(name="SuppliedName", length=80), Field(name="SuppliedEmail", type="email"),
            Field(name="Rating__c", type="double"),
        ], history="CaseHistory.CaseId"),
        object_type("EmailMessage", "02s", [
            reference("ParentId", "Case", on_delete="cascade", child_relationship="EmailMessages"),
            Text(name="Subject", length=3000, name_field=True), LongText(name="TextBody"), LongText(name="HtmlBody"),
            Text(name="FromName", length=1000), Field(name="FromAddress", type="email", length=1000),
            Field(name="ToAddress", type="string", length=4000), Check(name="Incoming"),
            Pick(name="Status", values=("New", "Read", "Replied", "Sent", "Forwarded", "Draft")),
            Moment(name="MessageDate"),
        ], owner=False),
        object_type("Task", "00T", _activity(
            Day(name="ActivityDate"),
            Pick(name="Status", required=True, default=TASK_STATUS[0], values=TASK_STATUS),
            Pick(name="Priority", required=True, default="Normal", values=PRIORITIES),
            Check(name="IsClosed", formula="coalesce({Status} = 'Completed', false)", **FIXED),
            Pick(name="TaskSubtype", updateable=False, default="Task", values=("Task", "Email", "Call", "ListEmail")),
            Field(name="CallDurationInSeconds", type="int", precision=8),
            Pick(name="CallType", values=("Internal", "Inbound", "Outbound")),
            Pick(name="Type", values=("Call", "Meeting", "Other")),
        )),
        object_type("Event", "00U", _activity(
            Moment(name="StartDateTime"), Moment(name="EndDateTime"), Day(name="ActivityDate"),
            Field(name="DurationInMinutes", type="int", precision=8), Text(name="Location"),
            Check(name="IsAllDayEvent"), Pick(name="Type", values=("Call", "Meeting", "Other")),
        )),
    ]  # fmt: skip


def _campaigns() -> list[ObjectType]:
    member = {"on_delete": "cascade", "child_relationship": "CampaignMembers", "updateable": False}
    return [
        object_type("Campaign", "701", [
            Text(name="Name", length=80, required=True, name_field=True), reference("ParentId", "Campaign"),
            Pick(name="Type", values=("Newsletter", "Promotion", "Email", "Webinar", "Trade Show", "Other")),
            Pick(name="Status", values=("Planned", "In Progress", "Completed", "Aborted")),
            Day(name="StartDate"), Day(name="EndDate"), Money(name="BudgetedCost"), Money(name="ActualCost"),
            Check(name="IsActive"), LongText(name="Description"),
        ]),
        object_type("CampaignMember", "00v", [
            reference("CampaignId", "Campaign", required=True, **member), reference("LeadId", "Lead", **member),
            reference("ContactId", "Contact", **member),
            Pick(name="Status", default="Sent", values=("Held out", "Sent", "Responded")),
            Check(name="HasResponded", **FIXED), Day(name="FirstRespondedDate", **FIXED),
            Pick(name="Arm__c", values=("control", "treatment")), Moment(name="Opened_At__c"),
        ], owner=False),
        object_type("Web_Visit__c", "a00", [
            reference("Account__c", "Account", on_delete="cascade", child_relationship="Web_Visits__r"),
            reference("Product__c", "Product2", child_relationship="Web_Visits__r"),
            Moment(name="Visited_At__c"), Field(name="Seconds__c", type="double", scale=1),
        ]),
    ]  # fmt: skip


def _people() -> list[ObjectType]:
    flags = ("HasOptedOutTracking", "HasOptedOutProfiling", "HasOptedOutProcessing", "HasOptedOutSolicit",
             "ShouldForget", "SendIndividualData", "CanStorePiiElsewhere", "HasOptedOutGeoTracking")  # fmt: skip
    name = [
        Text(name="LastName", length=80, required=True),
        Text(name="FirstName", length=40),
        Text(name="Name", length=121, name_field=True, formula=PERSON_NAME, **FIXED),
    ]
    return [
        object_type("User", "005", [
            Text(name="Username", length=80, required=True, unique=True), *name,
            Field(name="Email", type="email", length=128, required=True), Text(name="Alias", length=8, required=True),
            Check(name="IsActive", default=True),
        ], owner=False, deletable=False),
        object_type("Organization", "00D", [
            Text(name="Name", length=80, required=True, name_field=True), Pick(name="OrganizationType"),
            Text(name="InstanceName", length=40), Check(name="IsSandbox"),
        ], owner=False, deletable=False, writable=False),
        object_type("Individual", "0PK", [
            *name, Day(name="BirthDate"),
            *(Check(name=name) for name in flags),
        ]),
        object_type("DataUsePurpose", "0ZW", [
            Text(name="Name", required=True, name_field=True), Text(name="Description"),
            Check(name="CanDataSubjectOptOut"),
        ]),
        object_type("ContactPointTypeConsent", "0ZX", [
            Text(name="Name", required=True, name_field=True),
            reference("PartyId", "Individual", required=True, on_delete="cascade",
                      child_relationship="ContactPointTypeConsents"),
            reference("DataUsePurposeId", "DataUsePurpose"),
            Pick(name="ContactPointType", required=True, restricted=True, values=CHANNELS),
            Pick(name="PrivacyConsentStatus", required=True, restricted=True, values=CONSENT),
            Moment(name="EffectiveFrom"), Moment(name="EffectiveTo"), Moment(name="CaptureDate"),
            Text(name="CaptureSource"),
        ]),
    ]  # fmt: skip


def standard_objects() -> dict[str, ObjectType]:
    """name -> object of a new sandbox org, with the history objects."""
    made = [_account(), _contact(), _lead(), *sales_objects(), *_service(), *_campaigns(), *_people()]
    for one in [one for one in made if one.history]:
        name, parent = str(one.history).split(".")
        link = reference(parent, one.name, required=True, on_delete="cascade", child_relationship="Histories", **FIXED)
        made.append(history_type(name, link, "008" if name == "OpportunityFieldHistory" else "017"))
    return {one.name: one for one in made}
