"""The org file: one YAML per organisation, checked in full before anything runs.

Secrets never stand in it; they come from the environment or from files that it names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from crmray.errors import ConfigError
from crmray.sections import SECRETS, Part, Secret, explain
from crmray.sources import DemoSource, FilesSource, SalesforceSource, known_kind

DEMO_ORG = Path(__file__).with_name("demo.yaml")
"""org file of the demo"""


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
    previous_vault_keys: list[Secret] = Field(default_factory=list)
    """still accepted for reading, until the vault is written anew"""
    lake_key: Secret | None = None
    """32 bytes in hex; Parquet files of the lake are encrypted with it"""
    identifiers: dict[str, Literal["drop", "pseudonym", "keep"]] = Field(default_factory=dict)
    """`Object.Field` (source files: `table.column`) -> what becomes of it, beside what Salesforce's own types tell"""
    text: list[str] = Field(default_factory=list)
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
    fields: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]] = Field(default_factory=dict)
    """prediction column (and version, run_id) -> API name; default: all, as Crmray_<Task>_<Column>__c"""
    min_change: Annotated[float, Field(ge=0)] = 0.0
    """a number that moved by less is not written for that alone"""
    tasks: FollowUp | None = None
    """Tasks for chosen records"""
    campaign: CampaignFill | None = None
    """members of a campaign"""


class History(Part):
    """What is taken for the past of fields of which the source keeps the latest value alone."""

    insist: list[str] = Field(default_factory=list)
    """`Object.Field` (source files: `customers.column`) whose values of today stand at past dates too, where the
    history does not reach: only for what does not change, or is known not to be written because of the outcome"""


class Org(Part):
    """One organisation: where its data comes from, where its lake lies, which tasks it wants."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """short name: lower-case letters, digits, - and _"""
    storage: str
    """root of the lake: a folder (relative to the org file, or from ~) or a URL such as s3://bucket/prefix"""
    source: Annotated[DemoSource | FilesSource | SalesforceSource, Field(discriminator="kind")]
    """where the history comes from"""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """task name -> its settings (business facts); a task that is not named here is not run"""
    privacy: Privacy = Privacy()
    """pseudonyms, redaction, consent, encryption"""
    history: History = History()
    """attributes at past dates"""
    writeback: dict[str, Writeback] = Field(default_factory=dict)
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

    _kind = field_validator("source", mode="before")(known_kind)

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
        raise ConfigError(f"org file {path}: not valid YAML: {_fault(error)}") from None
    except (ValueError, LookupError, AttributeError):  # how PyYAML fails at `2026-13-01` and at `!!int x`
        raise ConfigError(f"org file {path}: got a value that is not of its type, such as a date 2026-13-01") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"org file {path}: got {type(data).__name__}, expected a mapping with name, storage and source"
        )
    data = _with_environment(data, path)
    try:
        return Org.model_validate({**data, "path": str(path.resolve())})
    except ValidationError as error:
        raise ConfigError(f"org file {path}: {explain(error)}") from None


def _fault(error: yaml.YAMLError) -> str:
    """What is wrong with the YAML, and where; not the line itself, nor a name in it: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())  # a character that is not allowed
    parts = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
    told = [
        re.sub(r"(alias|anchor|tag|handle) .*", r"\1", text)
        + (f" at line {mark.line + 1}, column {mark.column + 1}" if mark else "")
        for text, mark in parts
        if text
    ]
    return ": ".join(told)


def _with_environment(value: Any, path: Path, under: Any = "") -> Any:
    """Replace ${NAME} in every string by the environment variable NAME; under: key that the value belongs to.

    Not where a secret's variable is named: `env: ${NAME}` would be the secret itself, and told when it is not found.
    """
    if isinstance(value, dict):
        named = under in SECRETS
        return {
            key: part if named and key == "env" else _with_environment(part, path, key) for key, part in value.items()
        }
    if isinstance(value, list):
        return [_with_environment(part, path, under) for part in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(
                f"org file {path}: ${{{match[1]}}} is used but not set, expected an environment variable; set it"
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lookup, value)
