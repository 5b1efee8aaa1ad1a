"""The org file: one YAML per organisation, checked in full before anything runs.

Secrets never stand in it; they come from the environment or from files that it names.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from crmray.errors import ConfigError

DEMO_ORG = Path(__file__).with_name("demo.yaml")
"""org file of the demo"""
CONDITIONS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "matches", "missing")


class Part(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        """Pydantic refuses unknown keys as well, but does not say which there are."""
        unknown = sorted(map(str, set(values) - set(cls.model_fields))) if isinstance(values, dict) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            message = f"got {', '.join(map(repr, unknown))}, expected only {', '.join(cls.model_fields)}{hint}"
            raise PydanticCustomError("unknown_key", "{message}", {"message": message})
        return values


class TableSource(Part):
    """Where the rows of one canonical table come from, and how its columns are named there."""

    files: list[str] = []
    """paths or globs, relative to the org file (source `files`)"""
    object: str = ""
    """name of a raw object (sources `demo` and `salesforce`)"""
    columns: dict[str, str] = {}
    """canonical column -> source column"""
    values: dict[str, str | float | bool] = {}
    """canonical column -> one constant value for all rows"""
    drop: list[dict[str, Any]] = []
    """rows set aside: those that match all conditions of one entry; a condition is a value (equality) or one of
    {eq|ne|lt|le|gt|ge|in|matches|missing: …}"""
    attributes: list[str] | Literal["*"] = []
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


class Secret(Part):
    """Where a secret stands. The org file never holds one."""

    env: str = ""
    """name of an environment variable"""
    file: str = ""
    """path of a file, relative to the org file"""

    @model_validator(mode="after")
    def _one_place(self) -> Secret:
        if bool(self.env) == bool(self.file):
            raise ValueError("got both or neither of `env` and `file`, expected exactly one of them")
        return self

    def read(self, folder: Path) -> str:
        """The secret, without white space around it; ConfigError that names the place and never the value."""
        if self.env:
            value = os.environ.get(self.env, "").strip()
            if not value:
                raise ConfigError(f"environment variable {self.env}: not set or empty, expected a secret; set it")
            return value
        path = folder / Path(self.file).expanduser()
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"secret file {path}: got {reason}, expected a readable text file") from None
        if not value:
            raise ConfigError(f"secret file {path}: is empty, expected a secret")
        return value

    def read_key(self, folder: Path, num_bytes: int = 32, *, longer: bool = False) -> bytes:
        """The secret as bytes from hex; ConfigError when it is not hex or not of `num_bytes` (or more)."""
        text, place = self.read(folder), f"environment variable {self.env}" if self.env else f"secret file {self.file}"
        try:
            key = bytes.fromhex(text)
        except ValueError:
            raise ConfigError(f"{place}: got text that is not hex, expected {2 * num_bytes} hex digits") from None
        if len(key) != num_bytes and not (longer and len(key) > num_bytes):
            more = " or more" if longer else ""
            raise ConfigError(
                f"{place}: got {len(key)} bytes, expected {num_bytes}{more}; `openssl rand -hex 32` makes some"
            )
        return key


SECRETS = {
    "client_id", "client_secret", "password", "private_key", "pseudonym_key", "vault_key", "previous_vault_keys",
    "lake_key",
}  # fmt: skip
"""keys of the org file whose values are of Secret"""


class Login(Part):
    """How to log in to a Salesforce org: one of three OAuth 2.0 flows."""

    flow: Literal["jwt", "client_credentials", "password"]
    """jwt: client_id, username, private_key; client_credentials: client_id, client_secret; password: all but the key"""
    url: Annotated[str, Field(pattern=r"^https://[^/?#]+$")] = "https://login.salesforce.com"
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
    tables: dict[str, list[TableSource]] = {}
    """canonical table -> sources beside the standard mapping; one of an object that the standard mapping has for this
    table takes its place"""
    without: list[str] = []
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


class Consent(Part):
    """How the wishes of persons bind the customer that they belong to."""

    account: Literal["any", "all"] = "any"
    """whether one person who withdraws binds the whole account, or only when all of them do"""
    purpose: str = ""
    """name of the DataUsePurpose of ContactPointTypeConsent that counts; default: all of them"""


class Privacy(Part):
    """What may be known about persons, and how it is kept."""

    pseudonym_key: Secret | None = None
    """32 bytes or more in hex; ids of accounts, contacts, leads and persons become keyed pseudonyms"""
    vault_key: Secret | None = None
    """32 bytes in hex; encrypts the table from pseudonym to record id"""
    previous_vault_keys: list[Secret] = []
    """still accepted for reading, until the vault is written anew"""
    lake_key: Secret | None = None
    """32 bytes in hex; Parquet files of the lake are encrypted with it"""
    identifiers: dict[str, Literal["drop", "pseudonym", "keep"]] = {}
    """`Object.Field` (source files: `table.column`) -> what becomes of it, beside what Salesforce's own types tell"""
    text: list[str] = []
    """further free text that is redacted, `Object.Field`"""
    consent: Consent = Consent()
    """whose wish counts"""


class FollowUp(Part):
    """Salesforce Tasks (next steps for people) that are created for chosen records."""

    when: Annotated[dict[str, Any], Field(min_length=1)]
    """prediction column -> value, list of values or {ge|gt|le|lt: number}; all of them must hold"""
    subject: Annotated[str, Field(min_length=1, max_length=255)]
    """of every Task"""
    due_days: Annotated[int, Field(ge=0)] = 7
    """days from the day of writing until it is due"""
    key: Annotated[str, Field(pattern=r"^[A-Za-z]\w*__c$")] = "Crmray_Key__c"
    """external id field of Task, so that no record gets the same Task twice"""


class CampaignFill(Part):
    """Members that a campaign gets from chosen records: leads themselves, or the contacts of accounts."""

    campaign_id: Annotated[str, Field(pattern=r"^701[0-9A-Za-z]{12}([0-9A-Za-z]{3})?$")]
    """record id of the Campaign"""
    when: Annotated[dict[str, Any], Field(min_length=1)]
    """prediction column -> value, list of values or {ge|gt|le|lt: number}; all of them must hold"""
    status: str = ""
    """of new members; default: the campaign's"""


class Writeback(Part):
    """Which fields of which records a task's predictions go to."""

    object: str = ""
    """API name; default: Account, for leads Lead, for interactions Case, for products Product2"""
    key: str = "Id"
    """field that holds the entity's id as the source has it: Id, or an external id"""
    fields: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]] = {}
    """prediction column (and version, run_id) -> API name; default: all, as Crmray_<Task>_<Column>__c"""
    min_change: Annotated[float, Field(ge=0)] = 0.0
    """a number that moved by less is not written for that alone"""
    tasks: FollowUp | None = None
    """Tasks for chosen records"""
    campaign: CampaignFill | None = None
    """members of a campaign"""


class History(Part):
    """What is taken for the past of fields of which the source keeps the latest value alone."""

    insist: list[str] = []
    """`Object.Field` (source files: `customers.column`) whose values of today stand at past dates too, where the
    history does not reach: only for what does not change, or is known not to be written because of the outcome"""


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


class Org(Part):
    """One organisation: where its data comes from, where its lake lies, which tasks it wants."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """short name: lower-case letters, digits, - and _"""
    storage: str
    """root of the lake: a folder (relative to the org file, or from ~) or a URL such as s3://bucket/prefix"""
    source: Annotated[DemoSource | FilesSource | SalesforceSource, Field(discriminator="kind")]
    """where the history comes from"""
    tasks: dict[str, dict[str, Any]] = {}
    """task name -> its settings (business facts); a task that is not named here is not run"""
    privacy: Privacy = Privacy()
    """pseudonyms, redaction, consent, encryption"""
    history: History = History()
    """attributes at past dates"""
    writeback: dict[str, Writeback] = {}
    """task name -> where its predictions go; default of each: to fields made for them"""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    """ISO 4217 code of every *_amount"""
    seed: int = 0
    """of everything random"""
    shards: Annotated[int, Field(ge=1, le=4096)] = 8
    """number of shards of every table; fixed for the life of the lake"""
    memory_gib: Annotated[float, Field(gt=0.1)] = 2.0
    """memory that one stage may use for data, in GiB"""
    path: str = Field(default="", exclude=True)
    """absolute path of the org file"""

    @property
    def folder(self) -> Path:
        """Folder of the org file: relative paths in it start here."""
        return Path(self.path).parent if self.path else Path.cwd()

    @property
    def root(self) -> str:
        """Root of the lake: an absolute folder or a URL."""
        if re.match(r"^[a-z][a-z0-9+.-]*://", self.storage):
            return self.storage.rstrip("/")
        return str((self.folder / Path(self.storage).expanduser()).resolve())


def load(path: str | Path) -> Org:
    """Read and check an org file. `${NAME}` in a value is replaced by the environment variable NAME.

    Raises ConfigError that names every wrong key with the value received and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"org file {path}: got {error.strerror}, expected a readable YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"org file {path}: got bytes that are not UTF-8, expected UTF-8 text") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"org file {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"org file {path}: got {type(data).__name__}, expected a mapping with name, storage and source"
        )
    data = _with_environment(data, path)
    try:
        return Org.model_validate({**data, "path": str(path.resolve())})
    except ValidationError as error:
        raise ConfigError(f"org file {path}: {explain(error)}") from None


def _with_environment(value: Any, path: Path) -> Any:
    """Replace ${NAME} in every string by the environment variable NAME."""
    if isinstance(value, dict):
        return {key: _with_environment(part, path) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_environment(part, path) for part in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(
                f"org file {path}: ${{{match[1]}}} is used but not set, expected an environment variable; set it"
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lookup, value)


def explain(error: ValidationError) -> str:
    """A pydantic error in one line: key, value received, value expected."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(step) for step in item["loc"]) or "(top level)"
        if SECRETS & set(item["loc"]) and not isinstance(item["input"], dict) and item["type"] != "missing":
            parts.append(
                f"{key}: got a value, expected {{env: NAME}} or {{file: PATH}}; take the secret out of the file"
            )
            continue
        if item["input"] is None and item["type"] in ("dict_type", "model_type"):
            parts.append(f"{key}: got nothing, expected settings; write `{{}}` behind it for the defaults")
            continue
        if item["type"] == "unknown_key":
            parts.append(f"{key}: {item['msg']}" if item["loc"] else item["msg"])
            continue
        got = "" if item["type"] == "missing" else f"got {item['input']!r:.80}, "
        parts.append(f"{key}: {got}{item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)
