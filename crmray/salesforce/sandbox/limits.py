"""The org's daily limit of API calls, and the other limits that /limits tells."""

from __future__ import annotations

import threading
import time
from typing import Any

from crmray.salesforce.sandbox.faults import Faults
from crmray.salesforce.sandbox.wire import ApiError

DAILY_CALLS = 100_000
"""of an Enterprise Edition org with no user licences counted"""
DAY_S = 86_400.0
OTHERS = {
    "DailyBulkApiBatches": 15_000,
    "DailyBulkV2QueryFileStorageMB": 976_562,
    "DailyBulkV2QueryJobs": 10_000,
    "DataStorageMB": 10_240,
    "FileStorageMB": 10_240,
}


class DailyCalls:
    """Calls of the last 24 hours, hour by hour as Salesforce counts them. Thread-safe."""

    def __init__(self, faults: Faults, *, daily: int = DAILY_CALLS):
        self._faults, self._daily = faults, daily
        self._by_hour: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """Calls allowed in 24 hours."""
        return self._faults.settings.request_limit or self._daily

    @property
    def used(self) -> int:
        """Calls of the last 24 hours."""
        with self._lock:
            return self._sum()

    def count(self) -> None:
        """One more call; 403 REQUEST_LIMIT_EXCEEDED when none is left."""
        with self._lock:
            if self._sum() >= self.limit:
                raise ApiError(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
            hour = int(time.time() // 3600)
            self._by_hour[hour] = self._by_hour.get(hour, 0) + 1

    def _sum(self) -> int:
        first = int((time.time() - DAY_S) // 3600)
        self._by_hour = {hour: calls for hour, calls in self._by_hour.items() if hour > first}
        return sum(self._by_hour.values())

    @property
    def header(self) -> str:
        """Value of Sforce-Limit-Info."""
        return f"api-usage={self.used}/{self.limit}"

    def limits(self) -> dict[str, Any]:
        """Body of /limits."""
        calls = {"Max": self.limit, "Remaining": max(self.limit - self.used, 0)}
        return {"DailyApiRequests": calls, **{name: {"Max": most, "Remaining": most} for name, most in OTHERS.items()}}
