"""What a pull has to know about persons before it may write anything: their names, and what they agreed to.

The rows learned here (Individual, Account, Contact, Lead, ContactPointTypeConsent) stay in memory; what an incremental
pull needs again of them is kept in the vault, where there is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.config import Consent
from crmray.privacy import redact
from crmray.privacy.vault import Vault

READS: dict[str, tuple[str, ...]] = {
    "Individual": (
        "Id", "IsDeleted", "FirstName", "LastName", "HasOptedOutProcessing", "HasOptedOutProfiling", "ShouldForget",
    ),
    "ContactPointTypeConsent": (
        "Id", "IsDeleted", "PartyId", "ContactPointType", "PrivacyConsentStatus", "EffectiveFrom", "EffectiveTo",
        "DataUsePurpose.Name",
    ),
    "Account": ("Id", "IsDeleted", "Name", "PersonIndividualId", "PersonHasOptedOutOfEmail", "PersonDoNotCall"),
    "Contact": (
        "Id", "IsDeleted", "AccountId", "FirstName", "LastName", "IndividualId", "HasOptedOutOfEmail",
        "HasOptedOutOfFax", "DoNotCall",
    ),
    "Lead": (
        "Id", "IsDeleted", "ConvertedAccountId", "FirstName", "LastName", "Company", "IndividualId",
        "HasOptedOutOfEmail", "HasOptedOutOfFax", "DoNotCall",
    ),
}  # fmt: skip
"""object -> fields that are read, as far as the org has them"""
_FLAGS = ("HasOptedOut", "PersonHasOptedOut", "DoNotCall", "PersonDoNotCall", "ShouldForget", "IsDeleted")
_CHANNELS = {
    "email": ("HasOptedOutOfEmail", "PersonHasOptedOutOfEmail"),
    "phone": ("DoNotCall", "PersonDoNotCall"),
    "fax": ("HasOptedOutOfFax",),
}
_POINTS = {"Email": "email", "Phone": "phone", "MailingAddress": "mail", "Social": "social", "Web": "web"}
"""ContactPointType -> channel; others by their name in lower case"""
_NAMES = pa.schema([("owner", pa.string()), ("name", pa.string())])
_STATE = "state"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Who withdrew what; record ids of persons, and of accounts that they bind."""

    processing: frozenset[str] = frozenset()
    """may not be processed at all, individuals included"""
    profiling: frozenset[str] = frozenset()
    """may not be profiled: no training, score, endpoint or write-back; contains `processing`"""
    channels: Mapping[str, frozenset[str]]
    """channel -> those who do not want to be addressed by it"""


class People:
    """Rows of persons, learned page by page, and what follows from them."""

    def __init__(self, vault: Vault | None, consent: Consent):
        self._vault, self._consent = vault, consent
        self._learned: dict[str, list[pa.Table]] = {}
        self._state: dict[str, pa.Table] = {}
        self._owners = np.empty(0, "S18")
        self._words = pa.array([], pa.string())
        self.ids: dict[str, pa.Array] = {}
        """record ids of the persons and accounts that were learned"""
        self.wishes = Wishes(channels={})
        self.returned = False
        """somebody's withdrawal was taken back: rows that were left out have to be read again"""
        self.renamed: frozenset[str] = frozenset()
        """record ids of those of whom names are known now that were not at the pull before"""

    def learn(self, object_: str, rows: pa.Table) -> None:
        """Take rows; later ones of an Id replace earlier ones."""
        self._learned.setdefault(object_, []).append(_conform(object_, rows))

    def settle(self, now: datetime | None = None) -> None:
        """Work out names and wishes of all that was learned, now or at earlier pulls."""
        tables = {name: self._merged(name) for name in READS}
        before = self._kept("names", _NAMES)
        found = pa.concat_tables([before, *_named(tables)]).group_by(["owner", "name"], use_threads=False).aggregate([])
        by_owner = _words(found)
        owners = by_owner["owner"].combine_chunks().cast(pa.binary()).cast(pa.binary(18))
        self._owners = np.frombuffer(owners.buffers()[1], "S18", len(owners), owners.offset * 18)
        self._words = by_owner["words"].combine_chunks()
        if before.num_rows:
            fresh = found.join(before, ["owner", "name"], join_type="left anti")
            self.renamed = frozenset(fresh["owner"].to_pylist())
        self.wishes = _wishes(tables, self._consent, now or datetime.now(timezone.utc))
        withheld = pa.table({"id": pa.array(sorted(self.wishes.processing), pa.string())})
        earlier = self._kept("withheld", withheld.schema)["id"].to_pylist()
        self.returned = bool(set(earlier) - self.wishes.processing)
        self._state = {**{name: tables[name] for name in self._learned}, "names": found, "withheld": withheld}
        self._learned = {}
        pa.default_memory_pool().release_unused()  # the joins' memory, which the pages of the pull need
        self.ids = {name: tables[name]["Id"].combine_chunks() for name in ("Account", "Contact", "Lead", "Individual")}

    @property
    def names_digest(self) -> str:
        """Of all names that are looked for in texts, and whose they are."""
        digest = hashlib.blake2b(self._owners.tobytes(), digest_size=8)
        for buffer in self._words.buffers():
            digest.update(buffer or b"")
        return digest.hexdigest()

    def save(self) -> None:
        """Keep in the vault what the next pull needs of this one; not before its rows are in the lake."""
        if self._vault is not None:
            for name, table in self._state.items():
                self._vault.write(f"{_STATE}/{name}", table)
        self._state = {}

    def words(self, ids: Sequence[str]) -> pa.StringArray:
        """For each record id what to look for in texts about it: words of the names of the account and its persons,
        spaces between; null where none is known."""
        wanted = np.array(ids, "S18")
        place = np.searchsorted(self._owners, wanted)
        there = place < len(self._owners)
        there[there] = self._owners[place[there]] == wanted[there]
        return self._words.take(pa.array(place, mask=~there))

    def _merged(self, name: str) -> pa.Table:
        """Last row of each Id of one object, those of earlier pulls included."""
        empty = _conform(name, pa.table({"Id": pa.array([], pa.string())}))
        parts = [self._kept(name, empty.schema), *self._learned.get(name, [])]
        rows = pa.concat_tables(parts)
        rows = rows.append_column("at", pa.array(np.arange(rows.num_rows)))
        last = rows.group_by("Id", use_threads=False).aggregate([("at", "max")])["at_max"]
        return rows.take(last).drop_columns(["at"])

    def _kept(self, name: str, schema: pa.Schema) -> pa.Table:
        if self._vault is None:
            return schema.empty_table()
        kept = self._vault.read(f"{_STATE}/{name}", schema)
        return kept.select(schema.names).cast(schema)


def forget(vault: Vault, ids: frozenset[str]) -> None:
    """Remove all rows that hold one of these record ids from what is remembered of pulls."""
    for name in vault.names():
        if name.startswith(f"{_STATE}/"):
            table = vault.read(name)
            keep = np.ones(table.num_rows, bool)
            for column in table.columns:
                if pa.types.is_string(column.type):
                    keep &= ~pc.is_in(column, pa.array(sorted(ids), pa.string())).to_numpy()
            if not keep.all():
                vault.write(name, table.filter(pa.array(keep)))


def _conform(object_: str, rows: pa.Table) -> pa.Table:
    """All fields of READS, flags as Booleans, the rest as text (times as ISO text); absent ones null or false."""
    columns = {}
    for name in READS[object_]:
        column = rows[name] if name in rows.column_names else pa.nulls(rows.num_rows)
        if name.startswith(_FLAGS):
            text = pa.types.is_string(column.type)
            flag = pc.equal(pc.utf8_lower(column), "true") if text else column.cast(pa.bool_())
            columns[name] = flag.fill_null(False)
        else:
            columns[name] = column.cast(pa.string())
    return pa.table(columns)


def _named(tables: Mapping[str, pa.Table]) -> list[pa.Table]:
    """(owner, name) of every person and account; the names of persons also under their account."""
    pairs = []
    for table, owner, names in (
        ("Account", "Id", ("Name",)),
        ("Contact", "Id", ("FirstName", "LastName")),
        ("Contact", "AccountId", ("FirstName", "LastName")),
        ("Lead", "Id", ("FirstName", "LastName", "Company")),
        ("Lead", "ConvertedAccountId", ("FirstName", "LastName", "Company")),
        ("Individual", "Id", ("FirstName", "LastName")),
    ):
        columns = [tables[table][name].combine_chunks() for name in names]
        # null_handling="skip" leaves rows out in which all are null (pyarrow 26), so nulls are replaced.
        whole = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*columns, " ", null_handling="replace"))
        pair = pa.table([tables[table][owner].combine_chunks(), whole], schema=_NAMES).drop_null()
        pairs.append(pair.filter(pc.not_equal(pair["name"], "")))
    return pairs


def _words(named: pa.Table) -> pa.Table:
    """(owner, words) sorted by owner, from (owner, name): the folded words of all names, with spaces between."""
    coded = named["name"].combine_chunks().dictionary_encode()
    words = pa.array([" ".join(sorted(redact.words_of([name]))) for name in coded.dictionary.to_pylist()], pa.string())
    pairs = pa.table({"owner": named["owner"], "word": words.take(coded.indices)})
    lists = pairs.group_by("owner").aggregate([("word", "list")]).sort_by("owner")
    lists = lists.filter(pc.equal(pc.binary_length(lists["owner"]), 18))  # what is no record id is never asked for
    return pa.table({"owner": lists["owner"], "words": pc.binary_join(lists["word_list"].combine_chunks(), " ")})


def _wishes(tables: Mapping[str, pa.Table], consent: Consent, now: datetime) -> Wishes:
    present = {name: rows.filter(pc.invert(rows["IsDeleted"])) for name, rows in tables.items()}
    individuals = present["Individual"]
    stopped = pc.or_(individuals["HasOptedOutProcessing"], individuals["ShouldForget"])
    unprofiled = pc.or_(stopped, individuals["HasOptedOutProfiling"])
    off = {
        "processing": _set(individuals["Id"].filter(stopped)),
        "profiling": _set(individuals["Id"].filter(unprofiled)),
    }
    by_point = _points(present["ContactPointTypeConsent"], consent.purpose, now)
    channels = sorted({*_CHANNELS, *by_point})
    off |= {channel: set(by_point.get(channel, ())) for channel in channels}
    found: dict[str, set[str]] = {name: set(ids) for name, ids in off.items()}
    links = []
    for name, individual, account in (
        ("Contact", "IndividualId", "AccountId"),
        ("Lead", "IndividualId", None),
        ("Account", "PersonIndividualId", "Id"),
    ):
        rows = present[name]
        for wish, ids in found.items():
            mask = pc.is_in(rows[individual], pa.array(sorted(off[wish]), pa.string()))
            for field in _CHANNELS.get(wish, ()):
                if field in rows.column_names:
                    mask = pc.or_(mask, rows[field])
            if name != "Account":  # an account goes by the rule over its persons
                ids |= _set(rows["Id"].filter(mask))
            if account:  # an account that is no person has no wish of its own, but may be told not to be mailed
                speaks = pc.or_(mask, pc.is_valid(rows[individual])) if name == "Account" else None
                links.append(
                    (wish, *(part if speaks is None else part.filter(speaks) for part in (rows[account], mask)))
                )
    bound = _bound(links, consent.account)
    for wish, ids in found.items():
        ids |= bound.get(wish, set())
    contacts = present["Contact"]
    for wish in ("processing", "profiling"):  # what binds an account binds all of its persons
        mask = pc.is_in(contacts["AccountId"], pa.array(sorted(bound.get(wish, ())), pa.string()))
        found[wish] |= _set(contacts["Id"].filter(mask))
    return Wishes(
        processing=frozenset(found["processing"]),
        profiling=frozenset(found["profiling"] | found["processing"]),
        channels={channel: frozenset(found[channel]) for channel in channels if found[channel]},
    )


def _bound(links: Sequence[tuple[str, pa.ChunkedArray, pa.ChunkedArray]], rule: str) -> dict[str, set[str]]:
    """Wish -> accounts that it binds: with `any` one person is enough, with `all` every person has to have it."""
    bound: dict[str, set[str]] = {}
    for wish in {wish for wish, _, _ in links}:
        accounts = pa.chunked_array(
            [chunk for one, ids, _ in links if one == wish for chunk in ids.chunks], pa.string()
        )
        masks = pa.chunked_array([chunk for one, _, mask in links if one == wish for chunk in mask.chunks], pa.bool_())
        grouped = pa.table({"account": accounts, "off": masks}).drop_null().group_by("account")
        found = grouped.aggregate([("off", rule)])
        bound[wish] = _set(found["account"].filter(found[f"off_{rule}"]))
    return bound


def _points(rows: pa.Table, purpose: str, now: datetime) -> dict[str, frozenset[str]]:
    """Channel -> parties of ContactPointTypeConsent that opted out of it, for the purpose that counts, as of now."""
    clock = now.strftime("%Y-%m-%d %H:%M:%S")
    begun = pc.less_equal(_clock(rows["EffectiveFrom"]), clock).fill_null(True)
    ended = pc.less_equal(_clock(rows["EffectiveTo"]), clock).fill_null(False)
    counts = pc.and_(pc.equal(rows["PrivacyConsentStatus"], "OptOut"), pc.and_not(begun, ended)).fill_null(False)
    if purpose:
        counts = pc.and_(counts, pc.equal(rows["DataUsePurpose.Name"], purpose).fill_null(False))
    found: dict[str, set[str]] = {}
    chosen = rows.filter(counts).select(["ContactPointType", "PartyId"])
    for kind, party in zip(*(column.to_pylist() for column in chosen.columns), strict=True):
        if kind and party:
            found.setdefault(_POINTS.get(kind, kind.lower()), set()).add(party)
    return {channel: frozenset(parties) for channel, parties in found.items()}


def _clock(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO times in UTC as `YYYY-MM-DD hh:mm:ss`, which sorts as time."""
    return pc.replace_substring(pc.utf8_slice_codeunits(times, 0, 19), "T", " ")


def _set(column: pa.ChunkedArray) -> set[str]:
    return set(column.drop_null().to_pylist())
