"""Files of a Salesforce export (Data Export, Data Loader: Account.csv, Order.csv, …) in a first org file.

Each file is an object, so the standard mapping says what its columns are. What reaches its customer through another
object (OrderItem by Order.AccountId) cannot be had so: files are not joined. Sales are the orders then, or the
opportunities that were won.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from crmray.commands.look import Guess, look
from crmray.data import files
from crmray.salesforce import mapping
from crmray.sources import TableSource

KEYS = {"id", "systemmodstamp"}
"""columns of every object of a Data Export, in small letters; of one that somebody made with fewer the ids are looked
at"""
RECORD_ID = r"^[0-9a][0-9A-Za-z]{14}([A-Z0-5]{3})?$"
"""15 or 18 letters and digits; a key prefix of three, the same for all records of an object, begins with a digit, that
of a custom object with an a (Salesforce help, "Object key prefixes")"""
HISTORIES = {part.object for part in mapping.every("changes")}
HISTORY_KEYS = {"id", "field", "newvalue"}
"""columns of a history, which is never written to again and so has no SystemModstamp"""
TABLES = tuple(table for table in {**mapping.STANDARD, **mapping.FURTHER} if table != "changes")
"""a history is of Salesforce's fields, not of a file's columns"""
SALES = {
    "Order": TableSource(
        object="Order",
        columns={"entity_id": "AccountId", "occurred_at": "EffectiveDate", "transaction_id": "Id", "order_id": "Id",
                 "net_amount": "TotalAmount"},
        drop=[mapping.DELETED, {"Status": "Draft"}, {"AccountId": {"missing": True}}],
    ),
    "Opportunity": TableSource(
        object="Opportunity",
        columns={"entity_id": "AccountId", "occurred_at": "CloseDate", "transaction_id": "Id", "order_id": "Id",
                 "net_amount": "Amount"},
        drop=[mapping.DELETED, {"IsWon": False}, {"AccountId": {"missing": True}}],
    ),
}  # fmt: skip
"""object -> whole sales, in place of their lines"""
NOTE = "a Salesforce export: order lines, campaign members, history and consent are read with `kind: salesforce` alone"
UNREAD = {
    "AccountContactRelation", "AccountContactRole", "AccountTeamMember", "AssetRelationship", "Attachment",
    "BusinessHours", "CampaignMemberStatus", "CaseComment", "CaseContactRole", "CaseSolution", "Contact",
    "ContactPointAddress", "ContactPointConsent", "ContactPointEmail", "ContactPointPhone", "ContactPointTypeConsent",
    "ContactRequest", "ContentDocument", "ContentDocumentLink", "ContentVersion", "ContractContactRole",
    "ContractLineItem", "Document", "EmailMessageRelation", "EmailTemplate", "Entitlement", "EventRelation",
    "FeedComment", "FeedItem", "Folder", "Group", "GroupMember", "Individual", "LiveChatTranscript", "MessagingSession",
    "Note", "OpportunityCompetitor", "OpportunityContactRole", "OpportunityLineItemSchedule", "OpportunityPartner",
    "OpportunitySplit", "OpportunityTeamMember", "Organization", "Partner", "Pricebook2", "PricebookEntry",
    "ProcessInstance", "Profile", "Quote", "QuoteDocument", "QuoteLineItem", "RecordType", "ReturnOrder",
    "ReturnOrderLineItem", "ServiceAppointment", "ServiceContract", "ServiceResource", "Solution", "TaskRelation",
    "Territory2", "User", "UserRole", "WorkOrder", "WorkOrderLineItem",
}  # fmt: skip
"""standard objects that fill no canonical table; by its Id and Name alone one would look like products"""
OBJECTS = {part.object for table in TABLES for part in mapping.every(table)} | {*SALES, *UNREAD, *HISTORIES}
"""those whose files are known by their names"""
NO_ROWS, UNUSED, JOINED, TWICE = (
    "no rows", "nothing of these objects is read", "reach their customer through another object; files are not joined",
    "a deal won and its order are the same sale",
)  # fmt: skip
"""why a file is left out"""


def guesses(path: str) -> list[Guess]:
    """What the standard mapping makes of an object's file, at least one; none for a file of another kind.

    A file is an object's by its name and keys, or its name and the ids of its records; names and columns are compared
    without case. DataError when it cannot be read.
    """
    source, bare = look(path)
    stem = Path(path).stem.split(".")[0].lower()
    name = next((name for name in OBJECTS if name.lower() == stem), "")
    id_ = next((column for column in bare.seen if column.lower() == "id"), None)
    if not name or id_ is None:
        return []
    first = next(files.batches(source, [id_]), None)
    keys = HISTORY_KEYS if name in HISTORIES else KEYS
    if not {column.lower() for column in bare.seen} >= keys and not (first and _are_record_ids(first[id_])):
        return []
    if first is None:
        return [replace(bare, why=NO_ROWS)]
    parts = [(table, part) for table in TABLES for part in mapping.every(table) if part.object == name]
    parts += [("transactions", SALES[name])] if name in SALES else []
    if not parts:
        return [replace(bare, why=UNUSED)]
    parts = [(table, _as_written(part, bare.seen)) for table, part in parts]
    fits = [(table, fit) for table, part in parts if (fit := mapping.fit(table, part, {name: bare.seen}))]
    if not fits:
        return [replace(bare, why=_lacking(*parts[0], bare.seen))]
    return [replace(bare, table=table, columns=dict(fit.columns), standard=fit) for table, fit in fits]


def _are_record_ids(values: pa.Array) -> bool:
    """Whether these are ids of records of one object, and not somebody's own numbers."""
    ids = values.drop_null().cast(pa.string())
    if not len(ids) or not pc.all(pc.match_substring_regex(ids, RECORD_ID)).as_py():
        return False
    is_one = pc.count_distinct(pc.utf8_slice_codeunits(ids, 0, 3)).as_py() == 1
    return is_one and not pc.all(pc.utf8_is_digit(ids)).as_py()


def _as_written(part: TableSource, seen: Iterable[str]) -> TableSource:
    """The source with the columns as this file writes them: the Data Loader may give ID, ACCOUNTID."""
    written = {name.lower(): name for name in seen}

    def own(column: str) -> str:
        return written.get(column.lower(), column)

    return part.model_copy(
        update={
            "columns": {name: own(column) for name, column in part.columns.items()},
            "drop": [{own(column): condition for column, condition in entry.items()} for entry in part.drop],
            "attributes": [own(column) for column in part.attributes],
        }
    )


def _lacking(table: str, part: TableSource, seen: Iterable[str]) -> str:
    """Why a file does not fit the source of its object."""
    required, asked = mapping.lacks(table, part, set(seen))
    if any("." in column for column in required):
        return JOINED
    return f"got no column {', '.join(required + asked)}, expected what the standard mapping needs; export it too"


def one_sale(found: Iterable[Guess]) -> list[Guess]:
    """Without the opportunities where there are orders."""
    found = list(found)
    objects = {guess.standard.object for guess in found if guess.standard}
    if not objects >= set(SALES):
        return found
    return [
        Guess(path=guess.path, seen=guess.seen, why=TWICE)
        if guess.standard and guess.standard.object == "Opportunity"
        else guess
        for guess in found
    ]
