"""Keyed pseudonyms of record ids: HMAC-SHA-256, so that nobody without the key can tell or test whose they are."""

from __future__ import annotations

import base64
import hmac
import json
import re
import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.config import Org
from crmray.errors import ConfigError, DataError, NotFoundError, PrivacyError
from crmray.salesforce import ids
from crmray.storage import Lake

MARK = "privacy.json"
"""file of the lake that says with which key its pseudonyms were made (by a fingerprint of the key)"""
PATTERN = r"^p[a-z2-7]{26}$"
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)
_DIGITS, _BYTES = 26, 17
"""base32 digits of a pseudonym, 130 bits, and the bytes of a digest that they are taken from"""
_CACHED = 200_000


PERSONS = ("customer", "lead")
"""what rows are about when their ids are pseudonyms; cases, products and series keep their own ids and names"""


class Pseudonyms:
    """From record ids to pseudonyms: `p` and 26 characters of base32. Equal ids, equal pseudonyms. Safe for threads."""

    def __init__(self, key: bytes):
        self._key = key
        self.key_id = hmac.digest(key, b"crmray key id", "sha256").hex()[:16]
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Pseudonyms(key_id={self.key_id!r})"

    def __reduce__(self) -> tuple:
        raise TypeError("a key does not travel: make Pseudonyms from the org file where they are needed")

    @classmethod
    def of_org(cls, org: Org) -> Pseudonyms | None:
        """From `privacy.pseudonym_key`; None without one. PrivacyError when the key cannot be read."""
        if org.privacy.pseudonym_key is None:
            return None
        try:
            return cls(org.privacy.pseudonym_key.read_key(org.folder, longer=True))
        except ConfigError as error:
            raise PrivacyError(f"privacy.pseudonym_key: {error}") from None

    @classmethod
    def of_lake(cls, org: Org, lake: Lake) -> Pseudonyms | None:
        """Those of the lake; None where its ids are the org's own. PrivacyError when the org file lacks their key."""
        expected = _marked(lake)
        if expected is None:
            return None
        found = cls.of_org(org)
        if found is None:
            raise PrivacyError(
                f"{lake!r} holds pseudonyms, got no privacy.pseudonym_key in the org file, expected the one they were "
                "made with"
            )
        if found.key_id != expected:
            raise _other_key(lake)
        return found

    def mark(self, lake: Lake) -> None:
        """Note in the lake that its ids are pseudonyms of this key. PrivacyError when it holds others, or plain ids."""
        expected = _marked(lake)
        if expected is None:
            if lake.names("raw"):
                raise PrivacyError(
                    f"{lake!r} holds record ids that are no pseudonyms, which a key set later does not hide; "
                    "begin a new lake under another `storage`"
                )
            lake.create_exclusive(MARK, json.dumps({"pseudonyms": self.key_id}).encode())
            expected = _marked(lake)
        if expected != self.key_id:
            raise _other_key(lake)

    def of(self, values: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> pa.StringArray:
        """Pseudonyms of ids of 15 or 18 characters, or of any other text; null stays null. Each distinct id once."""
        column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, pa.string())
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        coded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
        made = self._distinct(coded.dictionary.cast(pa.string()).to_pylist())
        return made.take(coded.indices)

    def one(self, id_: str) -> str:
        """The pseudonym of one id; a pseudonym is given back as it is. DataError for an empty one."""
        if not id_.strip():
            raise DataError("got an empty id, expected one with characters")
        if re.match(PATTERN, id_.strip()):
            return id_.strip()
        digest = hmac.digest(self._key, ids.normalize(id_).encode(), "sha256")
        return "p" + base64.b32encode(digest)[:_DIGITS].decode().lower()

    def _distinct(self, texts: list[str]) -> pa.StringArray:
        known = self._known
        missing = [text for text in texts if text not in known]
        if missing:
            digests = [hmac.digest(self._key, ids.normalize(text).encode(), "sha256")[:_BYTES] for text in missing]
            made = dict(zip(missing, _base32(digests), strict=True))
            if len(made) == len(texts):
                result = pa.array([made[text] for text in texts], pa.string())
            else:
                result = pa.array([made.get(text) or known[text] for text in texts], pa.string())
            self._remember(made)
            return result
        return pa.array([known[text] for text in texts], pa.string())

    def _remember(self, made: dict[str, str]) -> None:
        """Keep what was made for the next page, within bounds. A new dict each time it is full: readers keep theirs."""
        with self._lock:
            if len(self._known) + len(made) > _CACHED:
                self._known = {}
            if len(made) <= _CACHED:
                self._known.update(made)


def _base32(digests: list[bytes]) -> list[str]:
    """26 base32 digits of each digest of 17 bytes."""
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _BYTES), axis=1)[:, : _DIGITS * 5]
    values = bits.reshape(-1, _DIGITS, 5) @ np.array([16, 8, 4, 2, 1], np.uint8)
    text = _LETTERS[values].tobytes().decode()
    return [f"p{text[start : start + _DIGITS]}" for start in range(0, len(text), _DIGITS)]


def _marked(lake: Lake) -> str | None:
    """Fingerprint of the key that the lake's pseudonyms were made with; None where its ids are the org's own."""
    try:
        return json.loads(lake.read(MARK))["pseudonyms"]
    except NotFoundError:
        return None


def _other_key(lake: Lake) -> PrivacyError:
    return PrivacyError(
        f"privacy.pseudonym_key is not the key that the pseudonyms of {lake!r} were made with; set that one, or begin "
        "a new lake under another `storage`"
    )
