"""What can go wrong in a sandbox org, and how often. Imports nothing of the server: the command line reads it too."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any

from crmray.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What goes wrong. The default of each: nothing."""

    seed: int = 0
    """chooses the rows that are struck"""
    expire_tokens_after_calls: int = 0
    """every token is good for this many calls, then 401 INVALID_SESSION_ID"""
    error_503_every: int = 0
    """every nth call is answered 503 SERVER_UNAVAILABLE, with nothing done"""
    concurrent_limit_every: int = 0
    """every nth call is answered 403 REQUEST_LIMIT_EXCEEDED of the kind that passes: too many calls at the same time"""
    drop_connection_every: int = 0
    """every nth call loses its connection: in turn before it is done, after it is done but unanswered, and amid its
    answer's body"""
    request_limit: int = 0
    """API calls a day in place of the org's own limit; once they are used up: 403 REQUEST_LIMIT_EXCEEDED"""
    slow_page_s: float = 0.0
    """every page of query results takes this long"""
    lock_rows: float | tuple[str, ...] = 0.0
    """fraction of rows, or ids of rows, that answer UNABLE_TO_LOCK_ROW"""
    lock_times: int = 2
    """so many times for each such row; the next attempt gets through"""
    fail_rows: float = 0.0
    """fraction of rows that a validation rule always refuses"""
    drop_field: str = ""
    """`Object.Field` that is removed from the org"""
    drop_field_after_calls: int = 0
    """so many calls later"""
    mutate_during_pull: int = 0
    """before each page of Bulk results is sent, this many rows of its object are updated (a new SystemModstamp); from
    three on, one of them is deleted and one more is copied into a new row"""

    def __post_init__(self) -> None:
        for name in ("lock_rows", "fail_rows"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ConfigError(f"{name}: got {value}, expected a fraction from 0 to 1")
        if self.drop_field and self.drop_field.count(".") != 1:
            raise ConfigError(f"drop_field: got {self.drop_field!r}, expected Object.Field")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, tuple | str) and not 0 <= value < math.inf:
                raise ConfigError(f"{field.name}: got {value}, expected 0 (off) or more")


def documented() -> dict[str, str]:
    """Name of each setting -> its docstring line."""
    (body,) = [node.body for node in ast.parse(inspect.getsource(Settings)).body if isinstance(node, ast.ClassDef)]
    found = {}
    for field, doc in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(doc.value).split())
    return found


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some of them changed; ConfigError for a name or value that is not one."""
    defaults = dataclasses.asdict(Settings())
    typed = {}
    for name, value in changes.items():
        if name not in defaults:
            raise ConfigError(f"fault {name}: unknown, expected one of {', '.join(defaults)}")
        typed[name] = _typed(name, value, defaults[name])
    return dataclasses.replace(settings, **typed)


def _typed(name: str, value: Any, default: Any) -> Any:
    """A setting's value as JSON or Python give it, as the setting's type."""
    if name == "lock_rows" and isinstance(value, list | tuple) and all(isinstance(id_, str) for id_ in value):
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(default):
        return value
    raise ConfigError(f"fault {name}: got {value!r}, expected {type(default).__name__}")
