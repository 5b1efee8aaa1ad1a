"""How commands write for people: tables in columns and job logs as short lines."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from crmray import log

_QUIET = {"time", "level", "event", "job", "task"}


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned columns under a header; numbers to the right, floats with four digits."""
    names = list(columns or (rows[0] if rows else ()))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) if cells else len(name) for i, name in enumerate(names)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    lines = [names, ["─" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _fields(closing: Mapping[str, Any]) -> str:
    """One field a line, however long it is."""
    return yaml.safe_dump(dict(closing), sort_keys=False, allow_unicode=True, width=math.inf).rstrip()


def cut(text: str, most: int) -> str:
    """The text, or its beginning up to the last blank and "…" where it has more characters."""
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0] or text[:most]} …"


def object_of(line: str) -> dict[str, Any] | None:
    """The JSON object that a line of a job's log is: an event or a closing line; None for other lines."""
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


class LogReader:
    """Cuts a job's log into lines, hands each to `read`, and shows events shortly: progress in place on a terminal.

    whole: the rest of the log is shown too, closing lines with one field a line.
    """

    def __init__(self, read: Callable[[str], None], indent: str = "    ", *, whole: bool = False):
        self.read, self.indent, self.whole, self._rest = read, indent, whole, ""
        self._in_place = sys.stdout.isatty()

    def __call__(self, chunk: str) -> None:
        *lines, self._rest = (self._rest + chunk).split("\n")
        for line in lines:
            self.read(line)
            self._show(line)

    def close(self) -> None:
        """Take what came after the last line break, and leave the line of progress."""
        if self._rest:
            self("\n")
        if self._in_place:
            print("\r\033[K", end="", flush=True)

    def _show(self, line: str) -> None:
        event = object_of(line)
        if event is None or "event" not in event:
            if self.whole:
                self._say(line if event is None else _fields(event))
            return
        name = event["event"]
        fields = " ".join(f"{key}={log.short(value)}" for key, value in event.items() if key not in _QUIET)
        if not name.endswith(".progress"):
            told = f"{self.indent}{name} {fields}"
            self._say(told if self.whole else cut(told, 200))
        elif self._in_place:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            print(f"\r{f'{self.indent}{name} {fields}'[:width]}\033[K", end="", flush=True)

    def _say(self, text: str) -> None:
        """Print what stays, over the line of progress."""
        print(("\r\033[K" if self._in_place else "") + text, flush=True)
