"""Privacy of files on their way into raw/: what `privacy` of the org file says of `table.column`, and what is erased.

With a pseudonym_key the columns that are mapped to entity_id (and lead_id) become pseudonyms and the text of
interactions is redacted. Names of customers are known from columns of `customers` that are dropped and have "name" in
their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray.config import Org
from crmray.data import parse
from crmray.errors import ConfigError, PrivacyError
from crmray.privacy import Pseudonyms, redact
from crmray.privacy.forgotten import Tombstones
from crmray.sources import TableSource
from crmray.storage import Lake

_IDS = ("entity_id", "lead_id")
_TEXTS = {"interactions": ("subject", "text")}


@dataclass(frozen=True, kw_only=True)
class FilesPlan:
    """What becomes of the columns of one source."""

    read: tuple[str, ...]
    """columns that are read"""
    names: tuple[str, ...] = ()
    """columns with names of customers, which are learned and not kept"""
    pseudonyms: tuple[str, ...] = ()
    """columns of ids that become pseudonyms"""
    texts: tuple[str, ...] = ()
    """columns of free text"""
    entity: str | None = None
    """column of the customer (or lead) that a row belongs to"""


@dataclass(kw_only=True)
class FilesGuard:
    """Privacy of the files of one org."""

    org: Org
    """the org"""
    pseudonyms: Pseudonyms | None
    """None: ids stay"""
    tombstones: Tombstones
    """those who were erased"""
    _words: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, org: Org, lake: Lake) -> FilesGuard:
        """PrivacyError for a key that is missing or wrong."""
        pseudonyms = Pseudonyms.of_org(org)
        if pseudonyms is not None:
            pseudonyms.mark(lake)
        else:
            Pseudonyms.of_lake(org, lake)  # refuses plain ids among pseudonyms
            if "pseudonym" in org.privacy.identifiers.values():
                raise PrivacyError("privacy.identifiers asks for pseudonyms, got no privacy.pseudonym_key; set one")
        return cls(org=org, pseudonyms=pseudonyms, tombstones=Tombstones.open(org, lake))

    def plan(self, table: str, source: TableSource, columns: list[str], there: Iterable[str]) -> FilesPlan:
        """For the columns that are kept of a source. ConfigError when a column is dropped that the mapping needs."""
        told = {name: self.org.privacy.identifiers.get(f"{table}.{name}") for name in there}
        for target, name in source.columns.items():
            if told.get(name) == "drop":
                raise ConfigError(
                    f"privacy.identifiers: {table}.{name}: got drop, but tables.{table} maps it to {target}; do one "
                    "or the other"
                )
        ids = [source.columns[one] for one in _IDS if one in source.columns]
        own = [*ids, *(name for name, how in told.items() if how == "pseudonym")] if self.pseudonyms else []
        texts = [source.columns[one] for one in _TEXTS.get(table, ()) if one in source.columns and self.pseudonyms]
        texts += [name for name in columns if f"{table}.{name}" in self.org.privacy.text]
        named = [name for name, how in told.items() if how == "drop" and "name" in name.lower()]
        return FilesPlan(
            read=tuple(name for name in columns if told.get(name) != "drop"),
            names=tuple(named) if table == "customers" and source.columns.get("entity_id") else (),
            pseudonyms=tuple(dict.fromkeys(name for name in own if name in columns and told.get(name) != "keep")),
            texts=tuple(dict.fromkeys(name for name in texts if told.get(name) != "keep")),
            entity=next(iter(ids), None),
        )

    def settings(self, plan: FilesPlan) -> Mapping[str, Any]:
        """What of all this a run's content depends on; empty where there is nothing to do."""
        key = self.pseudonyms.key_id if self.pseudonyms and (plan.pseudonyms or plan.texts) else None
        told = {"key": key, "texts": plan.texts, "pseudonyms": plan.pseudonyms, "forgotten": self.tombstones.digest}
        return {"privacy": told} if any(told.values()) else {}

    def learn(self, plan: FilesPlan, rows: pa.RecordBatch | pa.Table) -> None:
        """Take the names of customers."""
        assert plan.entity is not None
        owners = parse.ids(rows[plan.entity]).to_pylist()
        columns = [parse.text(rows[name]).to_pylist() for name in plan.names]
        for owner, *names in zip(owners, *columns, strict=True):
            if owner:
                self._words[owner] = self._words.get(owner, frozenset()) | redact.words_of(names)

    def apply(self, rows: pa.Table, plan: FilesPlan) -> pa.Table:
        """Rows of a file as they may lie in the lake. Rows of those who were erased are gone."""
        if plan.entity is not None and self.tombstones:
            owners = parse.ids(rows[plan.entity])
            shown = self.pseudonyms.of(owners) if self.pseudonyms and plan.entity in plan.pseudonyms else owners
            rows = rows.filter(pc.invert(pa.array(self.tombstones.mask(shown))))
        if plan.texts:
            words = None
            if plan.entity is not None and self._words:
                owners = parse.ids(rows[plan.entity]).to_pylist()
                words = pa.array([" ".join(self._words.get(one or "", ())) for one in owners], pa.string())
            for name in plan.texts:
                rows = rows.set_column(rows.schema.get_field_index(name), name, redact.column(rows[name], words))
        for name in plan.pseudonyms:
            assert self.pseudonyms is not None
            made = self.pseudonyms.of(parse.ids(rows[name]))
            rows = rows.set_column(rows.schema.get_field_index(name), name, made)
        return rows
