"""How a sandbox org can be told to misbehave: in process (`sandbox.faults.set(…)`) or by POST /sandbox/faults.

The faults are those of fault_settings.Settings; several may be on at once. Calls are counted from the moment that
settings change, over all clients, so a single client that repeats its calls meets the same faults again. Which rows are
struck depends on `seed` and the row's id (without one, on its values), never on the order in which rows come.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from crmray import log
from crmray.errors import ConfigError
from crmray.salesforce.sandbox.fault_settings import Settings, changed
from crmray.salesforce.sandbox.results import NoSuchObject, RowResult, SoqlError
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.translate import MAX_OFFSET
from crmray.salesforce.sandbox.wire import ApiError

DROPS = ("before", "after", "body")
"""moments at which connections are dropped, in turn: before the call is done, after it but unanswered, in mid-answer"""
KINDS = ("string", "textarea", "double", "currency", "picklist")
"""types of fields that mutate_during_pull changes, the most harmless first"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes wrong with one call."""

    error: ApiError | None = None
    """answered in place of doing it"""
    drop: str = ""
    """one of DROPS"""


class Faults:
    """The faults of one sandbox. Thread-safe."""

    def __init__(self, store: Store):
        self._store = store
        self._settings = Settings()
        self._lock = threading.Lock()
        self._calls = 0
        self._struck: Counter[str] = Counter()
        self._locked: Counter[str] = Counter()
        self._pages = 0

    @property
    def settings(self) -> Settings:
        """What is set now."""
        return self._settings

    @property
    def struck(self) -> dict[str, int]:
        """How often each fault has struck since the settings changed."""
        with self._lock:
            return dict(self._struck)

    def set(self, **changes: Any) -> None:
        """Change settings, leave the others, and count anew; ConfigError for a name or value that is not one."""
        settings = changed(self._settings, changes)
        if settings.drop_field:
            self._check_field(*settings.drop_field.split("."))
        with self._lock:
            self._settings, self._calls, self._pages = settings, 0, 0
            self._struck.clear()
            self._locked.clear()

    def _check_field(self, object_: str, field: str) -> None:
        """ConfigError for a field that cannot be dropped."""
        try:
            fields = self._store.describe(object_)["fields"]
        except NoSuchObject:
            raise ConfigError(f"drop_field: got object {object_}, expected one of the org's") from None
        if not any(one["name"] == field and one["custom"] for one in fields):
            raise ConfigError(f"drop_field: got {object_}.{field}, expected a custom field of the org")
        try:
            with self._store.transaction() as trial:
                self._store.drop_field(object_, field)
                trial.rollback()
        except ValueError as error:
            raise ConfigError(f"drop_field: {error}") from None

    def clear(self) -> None:
        """Behave again."""
        self.set(**dataclasses.asdict(Settings()))

    def begin_call(self) -> Plan:
        """Count one API call and say what goes wrong with it."""
        with self._lock:
            self._calls += 1
            number, settings = self._calls, self._settings
            drops_field = bool(settings.drop_field) and number > settings.drop_field_after_calls
            if drops_field:
                self._settings = dataclasses.replace(settings, drop_field="")
            plan = self._plan(number, settings)
        if drops_field:
            object_, field = settings.drop_field.split(".")
            self._store.drop_field(object_, field)
            self._count("drop_field")
        return plan

    def _plan(self, number: int, settings: Settings) -> Plan:
        if _is_nth(number, settings.error_503_every):
            self._struck["error_503_every"] += 1
            return Plan(error=ApiError(503, "SERVER_UNAVAILABLE", "Server temporarily unavailable: try again"))
        if _is_nth(number, settings.concurrent_limit_every):
            self._struck["concurrent_limit_every"] += 1
            message = "ConcurrentRequests (Concurrent API Requests) Limit exceeded."
            return Plan(error=ApiError(403, "REQUEST_LIMIT_EXCEEDED", message))
        if _is_nth(number, settings.drop_connection_every):
            self._struck["drop_connection_every"] += 1
            return Plan(drop=DROPS[(number // settings.drop_connection_every - 1) % len(DROPS)])
        return Plan()

    def row_errors(self, rows: Sequence[Mapping[str, object]], key_field: str) -> list[RowResult | None]:
        """For each row that is to be written the error that strikes it, or None; `key_field` names the row."""
        settings = self._settings
        if not settings.lock_rows and not settings.fail_rows:
            return [None] * len(rows)
        locked = frozenset(id_[:15] for id_ in settings.lock_rows) if isinstance(settings.lock_rows, tuple) else None
        return [self._row_error(row, str(row.get(key_field) or ""), settings, locked) for row in rows]

    def _row_error(
        self, row: Mapping[str, object], key: str, settings: Settings, locked: frozenset[str] | None
    ) -> RowResult | None:
        """`locked`: the rows that are locked, where they are named and not a fraction."""
        id_ = key if len(key) in (15, 18) and key.isalnum() else None
        name = id_[:15] if id_ else key or json.dumps(row, sort_keys=True, default=str)
        share = _share(settings.seed, "lock", name)
        is_locked = name in locked if locked is not None else share < float(settings.lock_rows)  # type: ignore[arg-type]
        if is_locked:
            with self._lock:
                self._locked[name] += 1
                if self._locked[name] <= settings.lock_times:
                    self._struck["lock_rows"] += 1
                    message = f"unable to obtain exclusive access to this record or 1 records: {id_ or ''}"
                    return RowResult.refused(id_, "UNABLE_TO_LOCK_ROW", message)
        if _share(settings.seed, "fail", name) < settings.fail_rows:
            self._count("fail_rows")
            return RowResult.refused(
                id_, "FIELD_CUSTOM_VALIDATION_EXCEPTION", "A validation rule of the sandbox refuses this row"
            )
        return None

    def before_page(self, object_: str, *, bulk: bool) -> None:
        """Wait, and change rows, before a page of query results is sent."""
        settings = self._settings
        if settings.slow_page_s:
            self._count("slow_page_s")
            time.sleep(settings.slow_page_s)
        if bulk and settings.mutate_during_pull:
            self._count("mutate_during_pull")
            self._mutate(object_, settings.mutate_during_pull)

    def _mutate(self, object_: str, num_rows: int) -> None:
        """Update rows, delete one of them, copy one. Objects that take no updates, as histories, stay as they are."""
        with self._lock:
            self._pages += 1
            page = self._pages
        fields = self._store.describe(object_)["fields"]
        changing = sorted((field for field in fields if _is_free(field)), key=lambda field: KINDS.index(field["type"]))
        if not changing:
            return
        try:
            total = self._store.query(f"SELECT COUNT() FROM {object_}").count or 0
            offset = page * num_rows % max(min(total, MAX_OFFSET) - num_rows, 1)
            found = self._store.query(f"SELECT Id FROM {object_} ORDER BY Id LIMIT {num_rows} OFFSET {offset}")
            ids = found.table["Id"].to_pylist()
            change = {changing[0]["name"]: _another_value(changing[0], page)}
            done = self._store.update(object_, [{"Id": id_, **change} for id_ in ids])
            if not all(result.success for result in done):
                codes = sorted({result.errors[0]["statusCode"] for result in done if not result.success})
                log.warn("sandbox.mutate", object=object_, why=", ".join(codes))
            if num_rows >= 3 and ids:
                self._copy(object_, ids[0], fields)
                self._store.delete(object_, [ids[-1]])
        except SoqlError as error:  # a field that the drop_field fault takes away at this moment
            log.warn("sandbox.mutate", object=object_, why=error.code)

    def _copy(self, object_: str, id_: str, fields: Sequence[Mapping[str, Any]]) -> None:
        """Insert a row with the values of another, but for those that must be unique."""
        names = [one["name"] for one in fields if one["createable"] and not one["unique"] and not one["externalId"]]
        (row,) = self._store.query(f"SELECT {', '.join(names)} FROM {object_} WHERE Id = '{id_}'").table.to_pylist()
        self._store.insert(object_, [{name: value for name, value in row.items() if value is not None}])

    def _count(self, name: str) -> None:
        with self._lock:
            self._struck[name] += 1


def _is_free(field: Mapping[str, Any]) -> bool:
    """Whether a field of describe can be changed without regard to other rows."""
    return field["updateable"] and not field["unique"] and not field["externalId"] and field["type"] in KINDS


def _another_value(field: Mapping[str, Any], number: int) -> object:
    """A value for a field of describe, another one for each number."""
    if field["type"] == "picklist":
        return field["picklistValues"][number % len(field["picklistValues"])]["value"]
    return number if field["type"] in ("double", "currency") else f"changed {number}"[: field["length"]]


def _is_nth(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _share(seed: int, purpose: str, name: str) -> float:
    """A number from 0 to 1 that depends on its arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
