"""What a SOQL query says: the tree that soql.parse makes and translate reads. Positions are characters of the query."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime


@dataclass(frozen=True)
class Path:
    """A field, through relationships: ("Order", "Account", "Name")."""

    names: tuple[str, ...]
    position: int


@dataclass(frozen=True)
class Call:
    """An aggregate; without a path only COUNT()."""

    function: str
    path: Path | None
    position: int


@dataclass(frozen=True)
class Item:
    """What is selected; `fields` is ALL, STANDARD or CUSTOM for FIELDS(…)."""

    operand: Path | Call | None
    alias: str | None = None
    fields: str | None = None
    position: int = 0


@dataclass(frozen=True)
class Literal:
    """A value: kind string (raw, still escaped), number, boolean, null, date, datetime (UTC, naive) or range."""

    kind: str
    value: str | float | bool | date | datetime | tuple[str, int] | None
    position: int


@dataclass(frozen=True)
class Compare:
    """A condition on one field; operators LIKE, IN and NOT IN too."""

    operand: Path | Call
    operator: str
    value: Literal | tuple[Literal, ...] | Query
    position: int


@dataclass(frozen=True)
class Both:
    """Conditions joined by AND or OR."""

    word: str
    """AND or OR"""
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Negation:
    """NOT."""

    part: Condition


Condition = Compare | Both | Negation


@dataclass(frozen=True)
class Order:
    """A key of ORDER BY."""

    operand: Path | Call
    descending: bool
    nulls_last: bool


@dataclass(frozen=True)
class Query:
    """A whole query."""

    text: str
    """as it was asked"""
    items: tuple[Item, ...]
    """what is selected"""
    object: str
    """of the FROM"""
    object_position: int
    """where its name stands in the text"""
    alias: str | None
    """of the object"""
    where: Condition | None
    group_by: tuple[Path, ...]
    having: Condition | None
    order_by: tuple[Order, ...]
    limit: int | None
    offset: int
