"""The `source:` of an org file: the demo org, files or a Salesforce org, and which of their columns is which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from crmray import schema
from crmray.errors import did_you_mean
from crmray.sections import Part, Secret, shown, what

CONDITIONS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "matches", "missing")


class TableSource(Part):
    """Where the rows of one canonical table come from, and how its columns are named there."""

    files: list[str] = Field(default_factory=list)
    """paths or globs, relative to the org file (source `files`)"""
    object: str = ""
    """name of a raw object (sources `demo` and `salesforce`)"""
    columns: dict[str, str] = Field(default_factory=dict)
    """canonical column -> source column"""
    values: dict[str, str | float | bool] = Field(default_factory=dict)
    """canonical column -> one constant value for all rows"""
    drop: list[dict[str, Any]] = Field(default_factory=list)
    """rows set aside: those that match all conditions of one entry; a condition is a value (equality) or one of
    {eq|ne|lt|le|gt|ge|in|matches|missing: …}"""
    attributes: list[str] | Literal["*"] = Field(default_factory=list)
    """further source columns that are kept as typed attributes; "*" keeps all that are not mapped"""
    time_zone: str = "UTC"
    """IANA name of the zone of times that carry none"""
    date_format: str | None = None
    """strptime format of times; "ordinal" for integer positions (an order without a clock); default ISO 8601"""
    encoding: str = "utf-8"
    """of CSV files"""
    delimiter: str = ","
    """of CSV files"""
    decimal: Literal[".", ","] = "."
    """decimal mark of numbers in CSV files"""

    @model_validator(mode="after")
    def _one_origin(self) -> TableSource:
        if bool(self.files) == bool(self.object):
            raise ValueError("got both or neither of `files` and `object`, expected exactly one of them")
        for entry in self.drop:
            for column, condition in entry.items():
                unknown = set(condition) - set(CONDITIONS) if isinstance(condition, Mapping) else set()
                if unknown:
                    raise ValueError(
                        f"drop: column {column}: got condition {sorted(unknown)}, expected one of {CONDITIONS}"
                    )
        return self


def _single_source(data: Any) -> Any:
    """A table with one source may be written without a list."""
    if isinstance(data, dict) and isinstance(data.get("tables"), dict):
        tables = {name: [part] if isinstance(part, dict) else part for name, part in data["tables"].items()}
        return {**data, "tables": tables}
    return data


def _canonical(tables: dict[str, list[TableSource]]) -> dict[str, list[TableSource]]:
    """Refuse what no canonical table or column is called."""
    for name, sources in tables.items():
        if name not in schema.TABLES:
            raise ValueError(
                f"got table {name!r}, expected one of {', '.join(schema.TABLES)}{did_you_mean(name, schema.TABLES)}"
            )
        known = schema.TABLES[name].fields
        for column in (column for source in sources for column in (*source.columns, *source.values)):
            if column not in known:
                hint = did_you_mean(column, known) or "; what has no place there goes under `attributes:`"
                raise ValueError(f"{name}: got column {column!r}, expected one of {', '.join(known)}{hint}")
    return tables


KINDS = ("demo", "files", "salesforce")


def known_kind(source: Any) -> Any:
    """Refuse a section of no kind, or of another, before pydantic looks for the model by it."""
    if isinstance(source, Part):
        return source
    if not isinstance(source, dict):
        raise ValueError(f"got {what(source)}, expected a section that begins with `kind: {' | '.join(KINDS)}`")
    kind = source.get("kind")
    if kind not in KINDS:
        raise ValueError(f"got kind {shown(kind)}, expected one of {', '.join(KINDS)}{did_you_mean(str(kind), KINDS)}")
    return source


class DemoSource(Part):
    """The seeded demo org."""

    kind: Literal["demo"]
    customers: Annotated[int, Field(ge=100, le=1_000_000)] = 6_000
    """number of customers"""
    months: Annotated[int, Field(ge=24, le=60)] = 36
    """months of history"""
    end: str = "2026-10-01"
    """first day after the history, ISO date"""


class FilesSource(Part):
    """CSV or Parquet files mapped to the canonical tables."""

    kind: Literal["files"]
    tables: dict[str, list[TableSource]]
    """canonical table -> its sources"""

    _single = model_validator(mode="before")(_single_source)
    _names = field_validator("tables")(_canonical)


class Login(Part):
    """How to log in to a Salesforce org: one of three OAuth 2.0 flows."""

    flow: Literal["jwt", "client_credentials", "password"]
    """jwt: client_id, username, private_key; client_credentials: client_id, client_secret; password: all but the key"""
    url: Annotated[str, Field(pattern=r"^https://[^/?#@]+$")] = "https://login.salesforce.com"
    """where tokens are asked for: login or test .salesforce.com, or My Domain (client_credentials needs it)"""
    client_id: Secret
    """consumer key of the connected app"""
    client_secret: Secret | None = None
    """its consumer secret"""
    username: str = ""
    """the integration user"""
    password: Secret | None = None
    """with the security token at its end where the org asks for one"""
    private_key: Secret | None = None
    """RSA key in PEM; its certificate stands in the connected app"""

    @model_validator(mode="after")
    def _complete(self) -> Login:
        needed = {
            "jwt": ("username", "private_key"),
            "client_credentials": ("client_secret",),
            "password": ("client_secret", "username", "password"),
        }[self.flow]
        if missing := [name for name in needed if not getattr(self, name)]:
            raise ValueError(f"flow {self.flow}: {', '.join(missing)} missing, expected client_id, {', '.join(needed)}")
        return self


class SalesforceSource(Part):
    """A Salesforce org, read through its APIs."""

    kind: Literal["salesforce"]
    login: Login
    """how to log in"""
    api_version: Annotated[str, Field(pattern=r"^[0-9]{2,3}\.0$")] = "64.0"
    """of the REST and Bulk APIs; 58.0 at least"""
    tables: dict[str, list[TableSource]] = Field(default_factory=dict)
    """canonical table -> sources beside the standard mapping; one of an object that the standard mapping has for this
    table takes its place"""
    without: list[str] = Field(default_factory=list)
    """objects of the standard mapping that are not read"""
    since: str = ""
    """ISO date; rows of events created before it are not read; default: all there are"""
    ca_file: str = ""
    """PEM file of the certificate authority, relative to the org file; default: the usual ones"""
    proxy: str = ""
    """URL of an HTTPS proxy; default: none"""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """of one request without an answer"""
    calls_reserve: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """share of the org's daily API calls that is left to others"""
    lookback_minutes: Annotated[float, Field(ge=0)] = 10.0
    """overlap of an incremental pull with the one before, for transactions that commit late"""
    page_rows: Annotated[int, Field(ge=1000, le=1_000_000)] = 50_000
    """rows of one page of Bulk API results"""
    parallel_pages: Annotated[int, Field(ge=1, le=15)] = 3
    """pages fetched at the same time"""

    _single = model_validator(mode="before")(_single_source)
    _names = field_validator("tables")(_canonical)
