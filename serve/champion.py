"""The champion in a replica: loaded and warmed beside the one that answers, then swapped in one assignment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from crmray import log, schema, tasks
from crmray.bundle import Bundle, load_bundle
from crmray.config import Org
from crmray.data import asof_series
from crmray.data.asof import conform
from crmray.errors import CrmrayError, DataError, NoChampionError, NotFoundError
from crmray.privacy import PERSONS, Pseudonyms, Withheld
from crmray.privacy.consent import NAME as CONSENT
from crmray.registry import Ledger
from crmray.salesforce.ids import normalize
from crmray.storage import Lake, Run
from crmray.tasks.contract import Task
from serve.described import INLINE_ID, date_of, in_order, tables_of
from serve.errors import Refused
from serve.known import Known

_WARM_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version with the rows that it answers from: all of one answer comes from one of these."""

    whole: Bundle
    """the champion as it was published"""
    bundle: Bundle
    """the champion but for what it quotes of those who withdrew"""
    known: Known
    """the `now` rows that fit it"""
    schemas: dict[str, pa.Schema]
    """canonical tables of the org and their columns"""
    shared: dict[str, pa.Table]
    """tables that are not sharded, whole"""
    listed: dict[str, frozenset[str]]
    """product_id, campaign_id -> ids in the table of these"""
    withheld: Withheld = field(default_factory=Withheld)
    """who withdrew what"""
    pseudonyms: Pseudonyms | None = None
    """None: the ids of the rows are the org's own"""

    @property
    def names(self) -> tuple[str, str, str | None]:
        """Version, examples run and consent run: what a swap compares."""
        return self.bundle.version, self.known.run.run_id, self.withheld.run_id

    def lake_id(self, sent: str) -> str:
        """An id as a client sends it, of 15 or 18 characters, as it stands in the rows; of a customer in the name of a
        series too."""
        entity = self.bundle.task.ENTITY
        if entity == "series":
            return asof_series.in_lake(sent, self._person)
        return self._person(sent) if entity in PERSONS else normalize(sent)

    def _person(self, sent: str) -> str:
        return self.pseudonyms.one(sent) if self.pseudonyms and sent.strip() else normalize(sent)

    def described(self, rows: dict[str, list[dict[str, Any]]], field: str, count: int = 1) -> pa.Table:
        """The examples of what is described inline, under a field of the request. 422 where the description is wrong or
        has nothing to go by."""
        tables = tables_of(rows, self.schemas, field=field, entity_id=INLINE_ID)
        if "customers" in tables and not tables["customers"].num_rows:
            tables |= tables_of(
                {"customers": [{}]}, {"customers": self.schemas["customers"]}, field="", entity_id=INLINE_ID
            )
        return self._examples(tables, field, count)

    def updated(self, entity_id: str, events: dict[str, list[dict[str, Any]]]) -> pa.Table:
        """The example of a known one whose history is continued by recent events."""
        recent = tables_of(events, self.schemas, field="recent_events", entity_id=entity_id)
        history = self.known.history(entity_id)
        tables = {
            name: in_order(name, pa.concat_tables([conform(history[name], rows.schema), rows]))
            for name, rows in recent.items()
        }
        return self._examples(tables, "recent_events", 1)

    def _examples(self, tables: dict[str, pa.Table], field: str, count: int) -> pa.Table:
        task, manifest = self.bundle.task, self.known.manifest
        if hasattr(task, "gather"):
            message = f"{field}: got rows, but a {task.ENTITY} is made of all customers' rows; expected an id alone"
            raise Refused(422, "invalid_field", message, field=field)
        settings = tasks.check_settings(task, manifest["settings"])
        as_of: datetime | None = date_of(tables, self.known.as_of)
        try:
            rows = task.examples({**self.shared, **tables}, as_of, settings, labels=False)
        except DataError as error:
            raise Refused(422, "invalid_field", f"{field}: {error}", field=field) from None
        if rows.num_rows != count:
            message = f"{field}: {self._why_not(rows.num_rows, count, as_of, settings)}"
            raise Refused(422, "not_eligible", message, field=field)
        return conform(rows, self.known.rows.schema)

    def _why_not(self, found: int, count: int, as_of: datetime | None, settings: Any) -> str:
        """Why rows of a request make fewer examples, or more, than they should, and what to send."""
        task = self.bundle.task
        if found > count:
            return f"got rows from which {found} examples follow, expected those of one {task.ENTITY}"
        message = f"from these rows no {task.ENTITY} follows that {task.NAME}, as the org file sets it, answers for"
        if as_of is None or not hasattr(settings, "lookback_days"):
            return message
        first = as_of - timedelta(days=settings.lookback_days)
        dated = [f"{name}.{schema.TABLES[name].time}" for name in task.needs(settings).required
                 if schema.TABLES[name].time and name != "outcomes"]  # fmt: skip
        wanted = f"; send rows with {' and '.join(dated)} between these, or later" if dated else ""
        return f"{message}: it looks back from {as_of:%Y-%m-%d} (as_of) to {first:%Y-%m-%d}{wanted}"

    def not_listed(self, rows: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        """Ids of products and campaigns in rows of a request that the org's tables of these lack, as they were sent.

        They are answered all the same: in training, too, a purchase counts whose product is not in the table.
        """
        sent = [row for events in rows.values() for row in events]
        return [
            one
            for key, listed in self.listed.items()
            for one in sorted({row[key] for row in sent if row.get(key)} - listed)
        ]


class Champion:
    """Looks at the ledger and the examples; `served` is what answers now, None while nothing is published."""

    def __init__(self, lake: Lake, task: Task, org: Org | None = None):
        """org: where the key of the pseudonyms stands; not needed where the lake has none."""
        self.lake, self.task, self.org = lake, task, org
        self.served: Served | None = None
        self.problem = ""
        self._ledger = Ledger(lake, task.NAME)
        self._features_of: dict[str, str] = {}

    def poll(self) -> bool:
        """Load what is new, whole, before it answers. A version that cannot be loaded leaves the old one in place."""
        try:
            consent = self._heed()
            version = self._ledger.champion()
            if self.served is None or self.served.bundle.version != version:
                bundle = load_bundle(self.lake.run("bundles", self.task.NAME, version), self.task)
            else:
                bundle = self.served.whole
            run = self._examples(bundle)
            if self.served is not None and self.served.names == (version, run.run_id, consent):
                self.problem = ""
                return False
            served = self._load(bundle, run)
        except NoChampionError:
            self.served = None  # a version that was retired answers no longer
            return False
        except CrmrayError as error:
            if self.problem != str(error):
                log.warn("serve.load_failed", task=self.task.NAME, why=str(error))
            self.problem = str(error)
            return False
        except Exception as error:  # noqa: BLE001  a store's own errors: the old version answers on, the next poll may go well
            kind = type(error).__name__  # not the message, which may quote what was read
            if self.problem != kind:
                log.warn("serve.load_failed", task=self.task.NAME, kind=kind)
            self.problem = kind
            return False
        self.served, self.problem = served, ""
        log.event(
            "serve.swapped", task=self.task.NAME, version=version, examples=run.run_id, rows=served.known.rows.num_rows
        )
        return True

    def _heed(self) -> str | None:
        """Bring what answers now up to the current consent, whose run is given: a withdrawal does not wait for a
        version that cannot be loaded."""
        found = self.lake.latest("raw", CONSENT).run_id if self.lake.has("raw", CONSENT) else None
        if self.served is not None and self.served.withheld.run_id != found:
            withheld = Withheld.of(self.lake)
            bundle = self.served.whole.without(withheld.profiling)  # who consents again is quoted again
            self.served = replace(self.served, bundle=bundle, withheld=withheld)
            log.event("serve.consent", task=self.task.NAME, consent=found)
        return found

    def _examples(self, bundle: Bundle) -> Run:
        """The current examples, or the newest ones with the bundle's features where those are of other code."""
        latest = self.lake.latest("examples", self.task.NAME)
        if self._features(latest) == bundle.about["features_version"]:
            return latest
        for run in reversed(self.lake.runs("examples", self.task.NAME)):
            if self._features(run) == bundle.about["features_version"]:
                return run
        raise NotFoundError(
            f"{self.task.NAME}: no examples with features_version {bundle.about['features_version']!r}, which bundle "
            f"{bundle.version} expects; run the 'examples' job"
        )

    def _features(self, run: Run) -> str:
        """features_version of a run; runs never change, so each manifest is read once."""
        if run.run_id not in self._features_of:
            self._features_of[run.run_id] = json.loads(run.read_bytes("manifest.json"))["features_version"]
        return self._features_of[run.run_id]

    def _load(self, whole: Bundle, run: Run) -> Served:
        known, withheld = Known.open(run), Withheld.of(self.lake)
        bundle = whole.without(withheld.profiling)
        known = replace(known, rows=bundle.together(known.rows))
        shared = known.shared_tables()
        keys = {name: schema.TABLES[name].entity for name in shared}
        served = Served(
            whole=whole,
            bundle=bundle,
            known=known,
            schemas=known.schemas(),
            shared=shared,
            listed={key: frozenset(shared[name][key].to_pylist()) for name, key in keys.items()},
            withheld=withheld,
            pseudonyms=Pseudonyms.of_lake(self.org, self.lake) if self.org else None,
        )
        for count in (1, _WARM_ROWS):  # the first calls of a model are slow: they are made here, not by a client
            rows = known.rows.slice(0, count)
            if rows.num_rows:
                bundle.predict(rows, explain=count == 1)
        return served

    def current(self) -> Served:
        """What answers now; 503 while there is nothing."""
        if self.served is None:
            why = f": {self.problem}" if self.problem else "; run the 'publish' job after training"
            raise Refused(503, "no_champion", f"no version of {self.task.NAME} is served yet{why}")
        return self.served

    def status(self) -> dict[str, Any]:
        """For `publish`, which waits until every replica says the new version."""
        version, examples, _ = self.served.names if self.served else (None, None, None)
        return {"version": version, "examples": examples, "problem": self.problem}
