"""The way back from a pseudonym to its record id, and what a pull has to remember: AES-256-GCM files of the lake.

    vault/<name>.bin    magic, fingerprint of the key (8 bytes), nonce (12 bytes), then the encrypted Arrow table

The path of a file is its associated data, so files cannot be exchanged. Nonces are random, one a file and writing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crmray.config import Org
from crmray.errors import ConfigError, CorruptError, NotFoundError, PrivacyError
from crmray.storage import Lake

FOLDER = "vault"
_MAGIC, _FINGERPRINT, _NONCE = b"crmrayV1", 8, 12
_HEAD = len(_MAGIC) + _FINGERPRINT + _NONCE
_SHARDS = "abcdefghijklmnopqrstuvwxyz234567"
"""first character of a pseudonym after its `p`: one file each"""
_IDS = pa.schema([("pseudonym", pa.string()), ("id", pa.string())])


class Vault:
    """Encrypted tables by name, and the pairs of pseudonym and record id in them. One writer at a time."""

    def __init__(self, lake: Lake, key: bytes, previous: Sequence[bytes] = ()):
        self.lake = lake
        self._key_id = _fingerprint(key)
        self._keys = {_fingerprint(one): one for one in (*previous, key)}
        self._new: dict[str, list[pa.Table]] = {}

    def __repr__(self) -> str:
        return f"Vault({self.lake.root!r})"

    def __reduce__(self) -> tuple:
        raise TypeError("a key does not travel: open the vault from the org file where it is needed")

    @classmethod
    def open(cls, org: Org, lake: Lake) -> Vault:
        """With `privacy.vault_key` and the previous ones. PrivacyError without a key, or when none of them fits."""
        if org.privacy.vault_key is None:
            raise PrivacyError("privacy.vault_key: got none, expected the key of the table from pseudonym to record id")
        try:
            key = org.privacy.vault_key.read_key(org.folder)
            previous = [one.read_key(org.folder) for one in org.privacy.previous_vault_keys]
        except ConfigError as error:
            raise PrivacyError(f"privacy.vault_key: {error}") from None
        vault = cls(lake, key, previous)
        for name in vault.names()[:1]:
            vault.read(name)
        return vault

    # -- pairs -----------------------------------------------------------------------------------------------------

    def add(self, pseudonyms: pa.Array, ids: pa.Array) -> None:
        """Note pairs; `save` writes them."""
        pairs = pa.table([pseudonyms, ids], schema=_IDS).drop_null()
        first = pc.utf8_slice_codeunits(pairs["pseudonym"], 1, 2)
        for letter in pc.unique(first).to_pylist():
            self._new.setdefault(letter, []).append(pairs.filter(pc.equal(first, letter)))

    def save(self) -> int:
        """Write the pairs that were noted; how many pairs are new. Written files appear whole; it may be repeated."""
        added = 0
        for letter in sorted(self._new):
            before = self._pairs(letter)
            pairs = pa.concat_tables([before, *self._new[letter]]).group_by("pseudonym", use_threads=False)
            after = pairs.aggregate([("id", "last")]).rename_columns(_IDS.names).sort_by("pseudonym").cast(_IDS)
            if not after.equals(before):
                self.write(_shard(letter), after)
                added += after.num_rows - before.num_rows
        self._new = {}
        return added

    def ids_of(self, pseudonyms: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> pa.StringArray:
        """Record ids in the order of the pseudonyms; null where one is not known."""
        if isinstance(pseudonyms, pa.ChunkedArray):
            pseudonyms = pseudonyms.combine_chunks()
        wanted = pseudonyms if isinstance(pseudonyms, pa.Array) else pa.array(pseudonyms, pa.string())
        letters = [letter for letter in pc.unique(pc.utf8_slice_codeunits(wanted, 1, 2)).to_pylist() if letter]
        found = pa.concat_tables([self._pairs(letter) for letter in letters] or [_IDS.empty_table()])
        place = pc.index_in(wanted, found["pseudonym"].combine_chunks(), skip_nulls=True)
        return found["id"].combine_chunks().take(place)

    def forget(self, pseudonyms: pa.Array) -> int:
        """Remove pairs; how many there were."""
        gone = 0
        for letter in pc.unique(pc.utf8_slice_codeunits(pseudonyms, 1, 2)).to_pylist():
            before = self._pairs(letter) if letter else _IDS.empty_table()
            after = before.filter(pc.invert(pc.is_in(before["pseudonym"], pseudonyms)))
            if after.num_rows < before.num_rows:
                self.write(_shard(letter), after)
                gone += before.num_rows - after.num_rows
        return gone

    def _pairs(self, letter: str) -> pa.Table:
        return self.read(_shard(letter), _IDS) if letter in _SHARDS else _IDS.empty_table()

    # -- tables ----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the tables that are there."""
        paths = self.lake.list(f"{FOLDER}/**/*.bin")
        return [path.removeprefix(f"{FOLDER}/").removesuffix(".bin") for path in paths]

    def read(self, name: str, empty: pa.Schema | None = None) -> pa.Table:
        """One table; without rows where there is none and its schema is given. PrivacyError when no key fits."""
        path = _path(name)
        try:
            data = self.lake.read(path)
        except NotFoundError:
            if empty is None:
                raise
            return empty.empty_table()
        if not data.startswith(_MAGIC) or len(data) < _HEAD:
            raise CorruptError(f"{path}: is no file of a vault, expected one; restore it, or pull in full")
        key_id = data[len(_MAGIC) : len(_MAGIC) + _FINGERPRINT]
        if key_id not in self._keys:
            raise PrivacyError(
                f"{path}: was encrypted with another key than privacy.vault_key; set that one, or name it in "
                "privacy.previous_vault_keys"
            )
        try:
            plain = AESGCM(self._keys[key_id]).decrypt(data[_HEAD - _NONCE : _HEAD], data[_HEAD:], _bound(path, key_id))
        except InvalidTag:
            raise CorruptError(
                f"{path}: was changed or cut since it was written; restore it, or pull in full"
            ) from None
        with pa.ipc.open_stream(plain) as reader:
            return reader.read_all()

    def write(self, name: str, table: pa.Table) -> None:
        """Write or replace one table, with the current key."""
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        path, nonce = _path(name), os.urandom(_NONCE)
        plain = sink.getvalue().to_pybytes()
        sealed = AESGCM(self._keys[self._key_id]).encrypt(nonce, plain, _bound(path, self._key_id))
        self.lake.write(path, _MAGIC + self._key_id + nonce + sealed)

    def remove(self, name: str) -> None:
        """Delete one table, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.lake.fs.rm_file(f"{self.lake.base}/{_path(name)}")

    def rotate(self) -> int:
        """Write every file that is not under the current key with it; how many were. Can be repeated after a crash."""
        written = 0
        for name in self.names():
            if self.lake.read(_path(name))[len(_MAGIC) : len(_MAGIC) + _FINGERPRINT] != self._key_id:
                self.write(name, self.read(name))
                written += 1
        return written


def _path(name: str) -> str:
    return f"{FOLDER}/{name}.bin"


def _shard(letter: str) -> str:
    return f"ids/{letter}"


def _fingerprint(key: bytes) -> bytes:
    return hashlib.sha256(b"crmray vault key" + key).digest()[:_FINGERPRINT]


def _bound(path: str, key_id: bytes) -> bytes:
    """What the encryption vouches for beside the content."""
    return _MAGIC + key_id + path.encode()
