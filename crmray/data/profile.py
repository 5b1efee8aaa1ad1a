"""What a table holds, in numbers that add up over parts: rows in and out, reasons, span, missing values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema


@dataclass(kw_only=True)
class Profile:
    """Counts over some rows of one table; `add` merges two."""

    rows_in: int = 0
    """rows as the source has them"""
    rows: int = 0
    """rows kept"""
    rejected: Counter[str] = field(default_factory=Counter)
    """reason -> rows set aside"""
    missing: Counter[str] = field(default_factory=Counter)
    """column -> rows kept without a value"""
    earliest: datetime | None = None
    """first time, where the table has one"""
    latest: datetime | None = None
    """last time"""

    @classmethod
    def of(cls, table: str, rows: pa.Table) -> Profile:
        """Rows, span and missing values of canonical rows."""
        time = schema.table(table).time
        span = pc.min_max(rows[time]).as_py() if time else {"min": None, "max": None}
        missing = Counter({name: count for name in rows.column_names if (count := rows[name].null_count)})
        return cls(rows=rows.num_rows, missing=missing, earliest=span["min"], latest=span["max"])

    def count(self, rejected: pa.Table) -> Profile:
        """Add rows set aside."""
        for entry in rejected["reason"].value_counts().to_pylist():
            self.rejected[entry["values"]] += entry["counts"]
        return self

    def add(self, other: Profile) -> Profile:
        """Add the counts of another part."""
        self.rows_in += other.rows_in
        self.rows += other.rows
        self.rejected.update(other.rejected)
        self.missing.update(other.missing)
        self.earliest = min(filter(None, (self.earliest, other.earliest)), default=None)
        self.latest = max(filter(None, (self.latest, other.latest)), default=None)
        return self

    def to_json(self) -> dict[str, Any]:
        """For a manifest: names sorted, times in ISO 8601."""
        return {
            "rows_in": self.rows_in,
            "rows": self.rows,
            "rejected": dict(sorted(self.rejected.items())),
            "missing": dict(sorted(self.missing.items())),
            "earliest": self.earliest.isoformat() if self.earliest else None,
            "latest": self.latest.isoformat() if self.latest else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Profile:
        """What `to_json` gave."""
        times = {name: datetime.fromisoformat(data[name]) if data[name] else None for name in ("earliest", "latest")}
        return cls(
            rows_in=data["rows_in"],
            rows=data["rows"],
            rejected=Counter(data["rejected"]),
            missing=Counter(data["missing"]),
            **times,
        )
