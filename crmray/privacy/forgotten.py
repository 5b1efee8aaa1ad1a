"""Tombstones: keyed hashes of the ids of those who were erased, so that no pull brings them back."""

from __future__ import annotations

import hashlib
import hmac
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.config import Org
from crmray.errors import ConfigError, NotFoundError, PrivacyError
from crmray.privacy.vault import Vault
from crmray.storage import Lake

FILE = "forgotten.json"
_IN_VAULT = "tombstones"
_KEYS = pa.schema([("key", pa.binary())])


class Tombstones:
    """Hashes of ids as they stand in the lake. Without any, `bool()` is false and nothing costs time."""

    def __init__(self, lake: Lake, key: bytes | None, hashes: frozenset[str]):
        self._lake, self._key, self._hashes = lake, key, hashes
        self._seen: dict[str, bool] = {}

    @classmethod
    def open(cls, org: Org, lake: Lake) -> Tombstones:
        """Those of the lake. PrivacyError when there are some and the org file lacks the key they were made with."""
        key = _key(org, lake)
        try:
            kept = json.loads(lake.read(FILE))
        except NotFoundError:
            return cls(lake, key, frozenset())
        if key is None or _key_id(key) != kept["key"]:
            raise PrivacyError(
                f"{FILE} of {lake!r} was made with another key; set privacy.pseudonym_key or privacy.vault_key to what "
                "they were at `crmray forget`"
            )
        return cls(lake, key, frozenset(kept["hashes"]))

    def __bool__(self) -> bool:
        return bool(self._hashes)

    @property
    def digest(self) -> str:
        """Of all tombstones; differs when one is added."""
        return hashlib.sha256("".join(sorted(self._hashes)).encode()).hexdigest()[:16] if self._hashes else ""

    def add(self, ids: list[str]) -> None:
        """Write tombstones of ids as they stand in the lake. PrivacyError without a key."""
        if self._key is None:
            raise PrivacyError("forget needs privacy.vault_key or privacy.pseudonym_key for its tombstones; set one")
        self._hashes |= {self._hash(id_) for id_ in ids}
        content = {"key": _key_id(self._key), "hashes": sorted(self._hashes)}
        self._lake.write(FILE, json.dumps(content).encode())

    def mask(self, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which ids, as they stand in the lake, are of somebody who was erased."""
        if not self._hashes:
            return np.zeros(len(ids), bool)
        flat = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        coded = pc.dictionary_encode(flat)
        found = np.array([*(self._is(one) for one in coded.dictionary.to_pylist()), False], bool)
        return found[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def _is(self, id_: str) -> bool:
        if id_ not in self._seen:
            if len(self._seen) > 200_000:
                self._seen = {}
            self._seen[id_] = self._hash(id_) in self._hashes
        return self._seen[id_]

    def _hash(self, id_: str) -> str:
        assert self._key is not None
        return hmac.digest(self._key, b"forgotten " + id_.encode(), "sha256").hex()[:32]


def _key(org: Org, lake: Lake) -> bytes | None:
    """privacy.pseudonym_key, else a key of its own that lies in the vault, so that a vault_key can be changed."""
    if org.privacy.pseudonym_key is not None:
        try:
            return org.privacy.pseudonym_key.read_key(org.folder, longer=True)
        except ConfigError as error:
            raise PrivacyError(f"privacy.pseudonym_key: {error}") from None
    if org.privacy.vault_key is None:
        return None
    vault = Vault.open(org, lake)
    kept = vault.read(_IN_VAULT, _KEYS)
    if not kept.num_rows:
        kept = pa.table({"key": [os.urandom(32)]}, schema=_KEYS)
        vault.write(_IN_VAULT, kept)
    return kept["key"][0].as_py()


def _key_id(key: bytes) -> str:
    return hmac.digest(key, b"crmray tombstone key", "sha256").hex()[:16]
