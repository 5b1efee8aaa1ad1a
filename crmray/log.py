"""Events and progress: text and bars on a terminal, one JSON line per event in job logs.

Events carry counts, names and durations; never ids of customers, texts or secrets.
"""

from __future__ import annotations

import json as _json
import logging
import sys
import time
from typing import Any

_logger = logging.getLogger("crmray")


class _Formatter(logging.Formatter):
    """One JSON object per line, or `time name field=value …` for people."""

    def __init__(self, json: bool):
        super().__init__()
        self.json = json

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        if self.json:
            line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
            return _json.dumps({**line, **fields}, default=str)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return " ".join([clock, record.getMessage(), *(f"{key}={short(value)}" for key, value in fields.items())])


def short(value: Any) -> str:
    """A field for people: floats with four digits, lists without brackets."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def setup(json: bool | None = None) -> None:
    """Send crmray's events to standard error; `json` defaults to "not a terminal". Called once by the ways in."""
    json = not sys.stderr.isatty() if json is None else json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(json))
    _logger.handlers = [handler]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def event(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields. Without `setup` (in a notebook, in a library) warnings alone are shown."""
    _logger.log(level, name, extra={"fields": fields})


def warn(name: str, **fields: Any) -> None:
    """Log one event at warning level."""
    event(name, level=logging.WARNING, **fields)


class Progress:
    """Counts work done; draws a bar on a terminal, writes an event every `every_s` seconds elsewhere."""

    def __init__(self, label: str, total: int | None, unit: str, every_s: float = 5.0):
        self.label, self.total, self.unit, self.every_s = label, total, unit, every_s
        self.done, self.started, self.told = 0, time.monotonic(), time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units."""
        self.done += n
        now = time.monotonic()
        every_s = 0.2 if sys.stderr.isatty() else self.every_s
        if now - self.told >= every_s:
            self.told = now
            self._tell(now)

    def _tell(self, now: float) -> None:
        elapsed = now - self.started
        left = elapsed / self.done * (self.total - self.done) if self.total and self.done else None
        if sys.stderr.isatty() and _logger.isEnabledFor(logging.INFO) and _logger.handlers:
            share = self.done / self.total if self.total else 0
            bar = "█" * int(share * 24)
            end = f" {left:.0f} s left" if left is not None else ""
            sys.stderr.write(f"\r{self.label} {bar:<24} {self.done}/{self.total or '?'} {self.unit}{end}\033[K")
            sys.stderr.flush()
            return
        fields: dict[str, Any] = {"done": self.done, "total": self.total, "unit": self.unit}
        if left is not None:
            fields["left_s"] = round(left, 1)
        event(f"{self.label}.progress", **fields)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if sys.stderr.isatty() and _logger.handlers:
            sys.stderr.write("\r\033[K")
        if exc[0] is None:
            seconds = time.monotonic() - self.started
            event(f"{self.label}.done", done=self.done, unit=self.unit, seconds=round(seconds, 2))


def progress(label: str, *, total: int | None = None, unit: str = "items") -> Progress:
    """A context that counts: `with progress("shard", total=8, unit="shards") as bar: bar.advance()`."""
    return Progress(label, total, unit)
