"""What lake and state need of a file system: names that match, whole files, errors in words."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import uuid
from pathlib import Path

from crmray.errors import StorageError


def matches(name: str, pattern: str) -> bool:
    """Glob match in which `*` does not cross a `/` and `**` does."""
    if pattern == "**":
        return True
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def write(path: str, data: bytes) -> None:
    """Write a file of the local disk and wait until it is there."""
    with open(path, "wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


def create(path: str, data: bytes) -> None:
    """Write a file of the local disk, whole or not at all; FileExistsError when there is one already."""
    draft = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        write(draft, data)
        os.link(draft, path)  # fails if the name is taken
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def write_private(path: Path, text: str) -> None:
    """Write or replace a file of the local disk that only its owner may read; it appears whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as sink:
        sink.write(text)
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(draft, path)


def error_of(path: str, error: OSError) -> StorageError:
    """What went wrong with a path, in words that say what to do."""
    reasons = {
        errno.ENOSPC: "no space left; free some and run again",
        errno.EDQUOT: "the quota is used up; free some and run again",
    }
    return StorageError(
        f"cannot write {path}: {reasons.get(error.errno or 0, error.strerror or error)}; nothing half-written is kept"
    )
