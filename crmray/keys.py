"""Bearer keys of the endpoints: random, shown once, kept as SHA-256 in a file that only its owner can write.

A key holds 256 random bits, so a plain SHA-256 of it cannot be searched; a slow password hash would only slow requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from crmray import disk
from crmray.errors import AuthError
from crmray.head import home

PREFIX = "crmray_"
_FOREIGN_BITS = 0o027
"""group write and everything of others; group read stays allowed because Kubernetes mounts secrets so"""


def default_path() -> Path:
    """The key file: $CRMRAY_KEYS, else keys.json in $CRMRAY_HOME (~/.crmray)."""
    return Path(os.environ.get("CRMRAY_KEYS") or home() / "keys.json")


class KeyFile:
    """The keys in one file. `check` works on what `refresh` last read, so a request never touches the disk."""

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else default_path()
        self._seen: tuple[int, int, int] | None = None
        self._hashes: dict[str, bytes] = {}

    def add(self, name: str) -> str:
        """Create a key under a name and return it: the only time it can be seen. AuthError when the name is taken."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", name):
            raise AuthError(f"got key name {name!r}, expected letters, digits and . _ @ -, at most 63 of them")
        key = PREFIX + secrets.token_urlsafe(32)
        with self._edit() as entries:
            if any(entry["name"] == name for entry in entries):
                raise AuthError(f"a key named {name!r} exists already; revoke it first or take another name")
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entries.append({"name": name, "sha256": _sha256(key).hex(), "created_at": created})
        return key

    def revoke(self, name: str) -> None:
        """Remove a key; replicas refuse it within about two seconds. AuthError when there is none of that name."""
        with self._edit() as entries:
            kept = [entry for entry in entries if entry["name"] != name]
            if len(kept) == len(entries):
                names = ", ".join(entry["name"] for entry in entries) or "none"
                raise AuthError(f"got key name {name!r}, expected one of those in {self.path}: {names}")
            entries[:] = kept

    def entries(self) -> list[dict[str, str]]:
        """Name and creation time of each key, oldest first; never the key or its hash."""
        return [{"name": entry["name"], "created_at": entry["created_at"]} for entry in self._read()]

    def refresh(self) -> int:
        """Read the file again if it changed and return the number of keys; a file that is not there holds none."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return self.close()
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            self._hashes = {entry["name"]: bytes.fromhex(entry["sha256"]) for entry in self._read()}
            self._seen = seen
        return len(self._hashes)

    def close(self) -> int:
        """Let nobody in until a `refresh` succeeds; the number of keys that are left, 0."""
        self._seen, self._hashes = None, {}
        return 0

    def check(self, key: str) -> str | None:
        """Name of the key, or None. Compares with every stored hash in constant time, whichever matches."""
        presented, found = _sha256(key), None
        for name, expected in self._hashes.items():
            if hmac.compare_digest(presented, expected):
                found = name
        return found

    def _read(self) -> list[dict[str, str]]:
        try:
            with self.path.open(encoding="utf-8") as source:
                mode = os.fstat(source.fileno()).st_mode & 0o777
                if mode & _FOREIGN_BITS:
                    raise AuthError(f"key file {self.path}: got mode {mode:04o}, expected 0600; do chmod 600")
                entries = json.load(source)["keys"]
                return [{field: str(entry[field]) for field in ("name", "sha256", "created_at")} for entry in entries]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise AuthError(f"key file {self.path}: got {error.strerror}, expected a readable file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise AuthError(
                f"key file {self.path}: not a key file ({error}), expected one made by `crmray keys add`"
            ) from None

    @contextlib.contextmanager
    def _edit(self) -> Iterator[list[dict[str, str]]]:
        """The entries, written back whole when the block ends well; one editor at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self._read()
            yield entries
            disk.write_private(self.path, json.dumps({"keys": entries}, indent=1))
        finally:
            os.close(lock)


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
