"""Between the source and the lake: rows of those who withdrew go, ids become pseudonyms, free text is redacted.

guard = Guard.open(org, lake, client.describe)
for object, paths in guard.reads().items(): guard.learn(object, rows …)      who persons are and what they wish
guard.settle()
plan = guard.plan("Case", paths);  table = guard.apply(rows, plan)           nothing is written before this
guard.finish()                                                               raw/consent
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.config import Org
from crmray.errors import PrivacyError
from crmray.privacy import consent, redact
from crmray.privacy.fields import Fields
from crmray.privacy.forgotten import Tombstones
from crmray.privacy.people import READS, People
from crmray.privacy.pseudonyms import Pseudonyms
from crmray.privacy.vault import Vault
from crmray.salesforce import ids
from crmray.storage import Lake, Run

_ID = r"^[0-9A-Za-z]{15}([0-9A-Za-z]{3})?$"
_VALUES = ("OldValue", "NewValue")
_AT_ONCE = 50_000


@dataclass(frozen=True, kw_only=True)
class GuardPlan:
    """What becomes of the columns of one object."""

    object: str
    """name of the object"""
    read: tuple[str, ...]
    """columns to ask the source for, in order"""
    dropped: tuple[str, ...] = ()
    """columns that are wanted but never read"""
    pseudonyms: tuple[str, ...] = ()
    """columns of ids that become pseudonyms"""
    texts: tuple[str, ...] = ()
    """columns of free text"""
    about: tuple[str, ...] = ()
    """columns of ids of those whom a row is about"""
    changes: Mapping[str, str] = field(default_factory=dict)
    """for a history object: name of a field that changed -> what becomes of its values; those of others go"""


class Guard:
    """One per pull. `apply` changes nothing in it, so threads may share it once it is settled."""

    def __init__(
        self,
        org: Org,
        lake: Lake,
        describe: Callable[[str], Mapping[str, Any]],
        pseudonyms: Pseudonyms | None,
        vault: Vault | None,
        tombstones: Tombstones,
    ):
        self._lake, self._pseudonyms, self._vault, self._tombstones = lake, pseudonyms, vault, tombstones
        self._fields = Fields(org.privacy, describe, pseudonyms=pseudonyms is not None)
        self._people = People(vault, org.privacy.consent)
        self._withheld: dict[bool, pa.Array] = {}
        self._renamed: dict[str, str] = {}
        told = org.privacy.model_dump(mode="json", include={"identifiers", "text", "consent"})
        self.fingerprint = {**told, "key": pseudonyms.key_id if pseudonyms else None, "forgotten": tombstones.digest}
        """settings and keys (by their fingerprint) that determine what `apply` does; belongs into run ids"""

    @classmethod
    def open(cls, org: Org, lake: Lake, describe: Callable[[str], Mapping[str, Any]]) -> Guard:
        """describe: the sObject describe of an object by name. PrivacyError for a key that is missing or wrong.

        Without a pseudonym_key ids stay what they are, which one warning event says.
        """
        pseudonyms = Pseudonyms.of_org(org)
        if pseudonyms is None:
            Pseudonyms.of_lake(org, lake)  # refuses plain ids among pseudonyms
            log.warn("privacy.no_pseudonyms", why="privacy.pseudonym_key is not set: record ids stand in the lake")
            if "pseudonym" in org.privacy.identifiers.values():
                raise PrivacyError("privacy.identifiers asks for pseudonyms, got no privacy.pseudonym_key; set one")
        else:
            pseudonyms.mark(lake)
        vault = Vault.open(org, lake) if org.privacy.vault_key else None
        if pseudonyms is not None and vault is None:
            log.warn("privacy.no_vault", why="privacy.vault_key is not set: predictions cannot be written back")
        return cls(org, lake, describe, pseudonyms, vault, Tombstones.open(org, lake))

    @property
    def remembers(self) -> bool:
        """Whether what was learned is kept for the next pull, so that it need learn only rows that changed."""
        return self._vault is not None and "state/names" in self._vault.names()

    @property
    def must_reread(self) -> bool:
        """Whether somebody took a withdrawal back, so that rows are missing in what was pulled before."""
        return self._people.returned

    @property
    def withholds(self) -> bool:
        """Whether there is anybody whose rows are withheld."""
        return bool(len(self._withheld[False])) or bool(self._tombstones)

    @property
    def renames(self) -> bool:
        """Whether names are known that the pull before did not know, so that texts in the lake are looked at again."""
        return bool(self._renamed)

    # -- before anything is written ----------------------------------------------------------------------------------

    def reads(self, objects: Sequence[str]) -> dict[str, list[str]]:
        """Object -> columns whose rows are for `learn` alone, among the objects that the org has.

        Whole, or with `remembers` those changed since the last pull, the deleted ones included.
        """
        found = {}
        for name in READS:
            if name in objects:
                paths = [path for path in READS[name] if self._fields.find(name, path) is not None]
                found[name] = paths
        return found

    def learn(self, object_: str, rows: pa.Table) -> None:
        """Take rows of persons and their wishes, in as many pieces as they come; later rows of an Id count."""
        self._people.learn(object_, rows)

    def settle(self) -> None:
        """Work out names and wishes, and write the pairs of pseudonym and record id into the vault."""
        self._people.settle()
        wishes = self._people.wishes
        self._withheld = {False: pa.array(sorted(wishes.processing), pa.string())}
        if self._pseudonyms is not None:
            self._withheld[True] = self._pseudonyms.of(self._withheld[False])
            renamed = sorted(self._people.renamed)
            self._renamed = dict(zip(self._pseudonyms.of(renamed).to_pylist(), renamed, strict=True))
            if self._vault is not None:
                for found in self._people.ids.values():
                    for start in range(0, len(found), _AT_ONCE):
                        part = found.slice(start, _AT_ONCE)
                        made = self._pseudonyms.of(part)
                        keep = pa.array(~self._tombstones.mask(made))
                        self._vault.add(made.filter(keep), part.filter(keep))
                self._vault.save()
        else:
            self._withheld[True] = self._withheld[False]
            self._renamed = {one: one for one in self._people.renamed}
        log.event("privacy.settled", withheld=len(wishes.processing), not_profiled=len(wishes.profiling))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def plan(self, object_: str, paths: Sequence[str]) -> GuardPlan:
        """What to read and do for the columns that are wanted of an object."""
        treatments = {path: self._fields.treatment(object_, path) for path in paths}
        kept = [path for path in paths if treatments[path] != "drop"]
        further = self._fields.further(object_, kept)
        treatments |= {path: self._fields.treatment(object_, path) for path in further}
        read = [path for path in (*kept, *further) if treatments[path] != "drop"]
        history = self._fields.history(object_)
        changes = {}
        if history is not None:
            names = {name.removesuffix("Id") if one["type"] == "reference" else name
                     for name, one in self._fields.of(history).items()}  # fmt: skip
            changes = {name: self._fields.of_change(history, name) for name in names}
        return GuardPlan(
            object=object_,
            read=tuple(read),
            dropped=tuple(path for path in paths if treatments[path] == "drop"),
            pseudonyms=tuple(path for path in read if treatments[path] == "pseudonym"),
            texts=tuple(path for path in read if treatments[path] == "text" and not (history and path in _VALUES)),
            about=tuple(path for path in read if self._fields.about(object_, path)),
            changes=changes,
        )

    def names_digest(self, plan: GuardPlan) -> str:
        """Of the names that `apply` takes out of the texts of these rows; empty where there are no texts."""
        return self._people.names_digest if plan.texts or plan.changes else ""

    def apply(self, rows: pa.Table, plan: GuardPlan) -> pa.Table:
        """Rows as the source has them, as they may lie in the lake. Rows withheld are gone."""
        rows = self._without(rows, plan, pseudonyms=False).drop_columns(
            [name for name in plan.dropped if name in rows.column_names]
        )
        words = self._words(rows, plan.about, self._people.words) if plan.texts or plan.changes else None
        rows = self._redact(rows, plan, words)
        if plan.changes:
            rows = self._changes(rows, plan, words)
        for name in [name for name in plan.pseudonyms if name in rows.column_names]:
            assert self._pseudonyms is not None
            rows = rows.set_column(rows.schema.get_field_index(name), name, self._pseudonyms.of(rows[name]))
        return rows

    def renew(self, rows: pa.Table, plan: GuardPlan) -> pa.Table:
        """Rows that lie in the lake, as `apply` would give them now: wishes and names may have come since."""
        rows = self._without(rows, plan, pseudonyms=True)
        if not self._renamed or not (plan.texts or plan.changes):
            return rows

        def words(ids_: Sequence[str]) -> pa.StringArray:
            return self._people.words([self._renamed.get(one, "") for one in ids_])

        found = self._words(rows, plan.about, words)
        rows = self._redact(rows, plan, found)
        return self._changes(rows, plan, found, renew=True) if plan.changes else rows

    def lake_ids(self, ids_: pa.ChunkedArray, plan: GuardPlan) -> pa.ChunkedArray:
        """Record ids of the rows of an object, as they lie in the lake."""
        if "Id" not in plan.pseudonyms or self._pseudonyms is None:
            return ids_
        return pa.chunked_array([self._pseudonyms.of(ids_)])

    def withheld(self, rows: pa.Table, plan: GuardPlan, *, pseudonyms: bool) -> pa.Array:
        """Mask of the rows that are about somebody who withdrew; pseudonyms: whether they lie in the lake already."""
        mask = np.zeros(rows.num_rows, bool)
        for name in plan.about:
            if name in rows.column_names:
                column = rows[name].cast(pa.string())
                mask |= pc.is_in(column, self._withheld[pseudonyms]).to_numpy()
                if self._tombstones:
                    made = column if pseudonyms or self._pseudonyms is None else self._pseudonyms.of(column)
                    mask |= self._tombstones.mask(made)
        return pa.array(mask)

    def _without(self, rows: pa.Table, plan: GuardPlan, *, pseudonyms: bool) -> pa.Table:
        if not len(self._withheld[pseudonyms]) and not self._tombstones:
            return rows
        mask = self.withheld(rows, plan, pseudonyms=pseudonyms)
        return rows.filter(pc.invert(mask)) if pc.any(mask).as_py() else rows

    def _words(
        self, rows: pa.Table, about: Sequence[str], of: Callable[[Sequence[str]], pa.StringArray]
    ) -> pa.StringArray | None:
        """Of each row, the words of the names of all that it is about, spaces between; None when nobody's are known."""
        found: pa.StringArray | None = None
        for name in about:
            if name in rows.column_names:
                coded = pc.dictionary_encode(rows[name].combine_chunks().cast(pa.string()))
                known = of([ids.normalize(one) for one in coded.dictionary.to_pylist()])
                if known.null_count < len(known):
                    own = known.take(coded.indices).fill_null("")
                    found = own if found is None else pc.binary_join_element_wise(found, own, " ")
        return found

    def _redact(self, rows: pa.Table, plan: GuardPlan, words: pa.Array | None) -> pa.Table:
        for name in plan.texts:
            if name in rows.column_names:
                rows = rows.set_column(rows.schema.get_field_index(name), name, redact.column(rows[name], words))
        return rows

    def _changes(self, rows: pa.Table, plan: GuardPlan, words: pa.Array | None, *, renew: bool = False) -> pa.Table:
        """Old and new values of a history object, each as its field is treated."""
        coded = pc.dictionary_encode(rows["Field"].combine_chunks().cast(pa.string()).fill_null(""))
        kinds = pa.array([plan.changes.get(one, "drop") for one in coded.dictionary.to_pylist()], pa.string())
        kind_of_row = kinds.take(coded.indices)
        by_kind = {kind: pc.equal(kind_of_row, kind) for kind in sorted(set(kinds.to_pylist()) - {"keep"})}
        for name in [name for name in _VALUES if name in rows.column_names]:
            values = rows[name].combine_chunks().cast(pa.string())
            for kind, mask in by_kind.items():
                if kind == "text":
                    own = None if words is None else words.filter(mask)
                    new = redact.column(values.filter(mask), own)
                elif renew:
                    continue
                else:
                    new = self._ids_alone(values.filter(mask), kind)
                values = pc.replace_with_mask(values, mask, new)
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return rows

    def _ids_alone(self, values: pa.Array, kind: str) -> pa.Array:
        """Ids as pseudonyms where `kind` is pseudonym; all else null: it is a name or an address."""
        if kind == "drop":
            return pa.nulls(len(values), pa.string())
        kept = pc.if_else(pc.match_substring_regex(values, _ID), values, None)
        return self._pseudonyms.of(kept) if self._pseudonyms is not None else kept

    # -- after everything is written -----------------------------------------------------------------------------------

    def finish(self) -> Run:
        """Keep what the next pull needs, and make raw/consent of what persons wish; the run."""
        run = consent.write(self._lake, self._people.wishes, self._pseudonyms, self._tombstones)
        self._people.save()
        return run
