"""What the lake needs of a file system: names that match, whole files, errors in words."""

from __future__ import annotations

import errno
import fnmatch
import os

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


def error_of(path: str, error: OSError) -> StorageError:
    """What went wrong with a path, in words that say what to do."""
    reasons = {
        errno.ENOSPC: "no space left; free some and run again",
        errno.EDQUOT: "the quota is used up; free some and run again",
    }
    return StorageError(
        f"cannot write {path}: {reasons.get(error.errno or 0, error.strerror or error)}; nothing half-written is kept"
    )
