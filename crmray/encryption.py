"""Parquet modular encryption of a lake: AES-GCM with a fresh 256-bit key per file, each wrapped with the lake's key.

`encryption.json` of the lake says where its key stands (an environment variable or a file, never the key itself) and
bears the key's fingerprint, so a worker that knows the root alone finds the key for itself. Only crmray.storage uses
this module.

Sources: Parquet format, "Parquet Modular Encryption"; NIST SP 800-38D (AES-GCM).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as pads
import pyarrow.parquet.encryption as pe
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crmray.config import Secret
from crmray.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from crmray.storage import Lake

MARK = "encryption.json"
_MASTER = "lake"
"""name that the wrapped keys in the files give to the lake's key"""
_NONCE = 12


def place_of(secret: Secret, folder: Path) -> dict[str, str]:
    """Where the key stands, for any process: the variable's name, or the absolute path of the file."""
    return {"env": secret.env} if secret.env else {"file": str((folder / Path(secret.file).expanduser()).resolve())}


def begin(lake: Lake, secret: Secret, folder: Path, in_use: bool) -> None:
    """Note in a lake that its Parquet files are encrypted with this key; again when the key stands elsewhere now.

    in_use: it holds runs already. PrivacyError when the key cannot be read, is another one, or the lake began without.
    """
    place = place_of(secret, folder)
    wanted = {"key": place, "key_id": _key_id(_read(place))}
    if not lake.list(MARK):
        if in_use:
            raise PrivacyError(
                f"{lake!r} holds files that are not encrypted, got privacy.lake_key; begin a new lake under another "
                "`storage`"
            )
        lake.create_exclusive(MARK, json.dumps(wanted).encode())
    told = json.loads(lake.read(MARK))
    if told["key_id"] != wanted["key_id"]:
        raise PrivacyError(f"privacy.lake_key is not the key that {lake!r} was encrypted with; set that one")
    if told != wanted:
        lake.write(MARK, json.dumps(wanted).encode())


class FileKeys:
    """What pyarrow needs to write and read the encrypted files of one lake."""

    def __init__(self, mark: bytes):
        """mark: content of MARK. PrivacyError when the key is not where it says, or is another one."""
        told = json.loads(mark)
        key = _read(told["key"])
        if _key_id(key) != told["key_id"]:
            raise PrivacyError(f"the lake's key in {_shown(told['key'])} is not the one of its files; set that one")
        self._factory = pe.CryptoFactory(lambda config: _Wrapping(key))
        self._connection = pe.KmsConnectionConfig()
        self._writing = pe.EncryptionConfiguration(
            footer_key=_MASTER, uniform_encryption=True, double_wrapping=False, data_key_length_bits=256
        )
        self._reading = pe.DecryptionConfiguration()

    def __reduce__(self) -> tuple:
        raise TypeError("a key does not travel: each process reads it where encryption.json says")

    def for_writing(self) -> Any:
        """encryption_properties of one ParquetWriter: a key of its own."""
        return self._factory.file_encryption_properties(self._connection, self._writing)

    def for_reading(self) -> Any:
        """decryption_properties of one ParquetFile."""
        return self._factory.file_decryption_properties(self._connection, self._reading)

    def format(self) -> pads.ParquetFileFormat:
        """format of a dataset."""
        config = pads.ParquetDecryptionConfig(self._factory, self._connection, self._reading)
        return pads.ParquetFileFormat(
            default_fragment_scan_options=pads.ParquetFragmentScanOptions(decryption_config=config)
        )


class _Wrapping(pe.KmsClient):
    """Wraps the keys of files in memory; pyarrow calls it from its own threads."""

    def __init__(self, key: bytes):
        super().__init__()
        self._cipher = AESGCM(key)

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, key_bytes, master_key_identifier.encode()))

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        sealed = base64.b64decode(wrapped_key)
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], master_key_identifier.encode())
        except InvalidTag:
            raise PrivacyError(
                "a Parquet file was encrypted with another key than the lake's; restore that file"
            ) from None


def _read(place: dict[str, str]) -> bytes:
    try:
        return Secret(**place).read_key(Path("/"))
    except ConfigError as error:
        raise PrivacyError(
            f"lake_key: {error}; Ray's workers look for it where their node started, so set it there too"
        ) from None


def _shown(place: dict[str, str]) -> str:
    return f"environment variable {place['env']}" if "env" in place else f"file {place['file']}"


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"crmray lake key" + key).hexdigest()[:16]
