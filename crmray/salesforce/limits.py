"""The ledger of API calls: how many were made, and that the org's daily limit keeps its reserve for others."""

from __future__ import annotations

import re
import threading
from collections import Counter
from urllib.parse import urlsplit

from crmray.errors import LimitError

_USAGE = re.compile(r"api-usage=(\d+)/(\d+)")


class CallLedger:
    """Counts calls by kind and knows the org's usage from the header Sforce-Limit-Info. Thread-safe.

    reserve: share (0..1) of the daily limit that is left to others.
    """

    def __init__(self, reserve: float = 0.2):
        self.reserve = reserve
        self.calls: Counter[str] = Counter()
        """calls made, by kind: describe, query, jobs/query, jobs/ingest, login, …"""
        self.used: int | None = None
        """calls of the last 24 hours by everyone, as the org says; None before the first answer"""
        self.limit: int | None = None
        """calls that the org allows in 24 hours"""
        self._lock = threading.Lock()

    def spend(self, kind: str) -> None:
        """Count one call before it is made; LimitError instead of touching the reserve."""
        with self._lock:
            if self.used is not None and self.limit is not None:
                allowed = int(self.limit * (1 - self.reserve))
                if self.used >= allowed:
                    raise LimitError(
                        f"API calls of the org in 24 hours: got {self.used} of {self.limit} used, expected fewer than "
                        f"{allowed} (source.calls_reserve {self.reserve:g} is left to others); go on later, what was "
                        "done is kept"
                    )
                self.used += 1  # calls in flight count before the org tells
            self.calls[kind] += 1

    def count(self, kind: str) -> None:
        """Count a call that does not touch the daily limit."""
        with self._lock:
            self.calls[kind] += 1

    def note(self, limit_info: str | None) -> None:
        """Take over what the header Sforce-Limit-Info of an answer says, for example `api-usage=18/5000`."""
        found = _USAGE.search(limit_info or "")
        if found:
            with self._lock:
                self.used, self.limit = int(found[1]), int(found[2])

    def total(self) -> int:
        """Calls made, of all kinds."""
        with self._lock:
            return sum(self.calls.values())


def kind_of(url: str) -> str:
    """Of a call, for the ledger: describe, query, jobs/query, jobs/ingest, limits, …"""
    parts = urlsplit(url).path.split("/")[4:]  # after /services/data/vXX.X
    if parts[:1] == ["jobs"]:
        return "/".join(parts[:2])
    if parts[:1] == ["sobjects"]:
        return "describe" if len(parts) == 1 or parts[-1] == "describe" else "sobjects"
    return parts[0] if parts and parts[0] else "other"
