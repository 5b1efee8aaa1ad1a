"""What the sandbox org's store answers: rows of a query, what became of each row written, and its errors."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from crmray.errors import CrmrayError


class SoqlError(CrmrayError):
    """A query that Salesforce refuses: `code` as in errorCode, `message` in Salesforce's wording."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.args = (code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NoSuchObject(CrmrayError, KeyError):
    """An object or field that the sandbox org does not have (NOT_FOUND over REST)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """All rows of a query."""

    object: str
    """the object of FROM, as describe spells it"""
    columns: list[str]
    """as in SELECT, spelled as describe spells them: "Id", "Order.AccountId", or "expr0" and aliases of aggregates"""
    types: list[str]
    """Salesforce type of each column ("id", "string", "datetime", …), as in describe"""
    table: pa.Table
    """the rows; datetimes are timestamp[us, UTC], dates date32, without columns for COUNT()"""
    count: int | None = None
    """for COUNT() alone: the number of rows"""
    aggregate: bool = False
    """rows are AggregateResults"""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The rows of a query, read as they are asked for: a snapshot of the moment it began. Close `batches` when done."""

    object: str
    """the object of FROM"""
    columns: list[str]
    """as in Result"""
    types: list[str]
    """as in Result"""
    batches: pa.RecordBatchReader
    """the rows, bounded in memory"""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What became of one row written."""

    id: str | None
    """its record id, if known"""
    success: bool
    """whether it was written"""
    created: bool = False
    """whether it is new"""
    errors: list[dict] = field(default_factory=list)
    """[{"statusCode": …, "message": …, "fields": […]}], Salesforce's codes and wording"""

    @classmethod
    def refused(cls, id_: str | None, code: str, message: str) -> RowResult:
        """A row that was not written, for one reason that lies in none of its fields."""
        return cls(id=id_, success=False, errors=[{"statusCode": code, "message": message, "fields": []}])
