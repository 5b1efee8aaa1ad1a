"""The Python way in: an opened organisation, one method per station. Jobs, commands and notebooks call these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from crmray import config
from crmray.errors import ConfigError
from crmray.storage import Lake, Run

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

    from crmray.bundle import Bundle
    from crmray.salesforce.fields import Target
    from crmray.salesforce.writeback import Aim
    from crmray.tasks.contract import Task


class OpenOrg:
    """An organisation with its lake. Methods run a station and give the runs it made or found made.

    ConfigError for a task that there is not; of what makes rows, models, predictions or fields of a task also for one
    that the org file does not ask for.
    """

    def __init__(self, org: config.Org):
        self.config = org
        self.lake = Lake.of(org)

    @classmethod
    def load(cls, path: str | Path) -> OpenOrg:
        """Read and check the org file, the tasks' sections included; ConfigError names each wrong key."""
        from crmray import tasks

        org = config.load(path)
        for name in (*org.tasks, *org.writeback):
            tasks.settings(org, name)
        return cls(org)

    def __repr__(self) -> str:
        return f"OpenOrg({self.config.name!r}, {self.lake.root!r}, tasks={list(self.config.tasks)})"

    def _asked_for(self, task: str) -> tuple[Task, Any]:
        """The task and its settings; ConfigError for one that the org file does not ask for."""
        from crmray import tasks

        return tasks.task(task), tasks.settings(self.config, task)

    def ingest(self) -> dict[str, Run]:
        """Bring the source's objects into raw/; object -> run."""
        from crmray.data.ingest import ingest

        return ingest(self.config, self.lake)

    def shard(self) -> dict[str, Run]:
        """Type, clean and shard what was ingested into tables/ with Modin; canonical table -> run."""
        from crmray.cluster import connect
        from crmray.data.shard import shard

        connect()
        return shard(self.config, self.lake, _counting("shard", _rows_of_shard))

    def examples(self, task: str) -> Run:
        """Make the as-of rows of a task."""
        from crmray.cluster import connect
        from crmray.data.examples import examples

        which, settings = self._asked_for(task)
        connect()
        return examples(self.config, self.lake, which, settings, _counting("examples", _rows_of_examples, task))

    def trial(self, task: str) -> tuple[int, int]:
        """Find out what `examples` would refuse, without writing; how many shards had to be tried, of how many."""
        from crmray.cluster import connect, map_shards
        from crmray.data.examples import trial

        which, settings = self._asked_for(task)
        connect()
        return trial(self.config, self.lake, which, settings, map_shards)

    def train(self, task: str, **options: Any) -> Run:
        """Fit every candidate of a task once with its defaults, refit the winner, write a bundle.

        options: candidates (names), overrides (hyper-parameter -> value), num_workers, concurrency.
        """
        return self._fit(task, grid=False, **options)

    def tune(self, task: str, **options: Any) -> Run:
        """Like `train`, over the candidates' grids. options: as there, and scheduler ("asha"), search ("optuna")."""
        return self._fit(task, grid=True, **options)

    def _fit(self, task: str, **options: Any) -> Run:
        from crmray.cluster import connect
        from crmray.train.fit import fit

        which, settings = self._asked_for(task)
        connect()
        return fit(self.config, self.lake, which, settings, **options)

    def evaluate(self, task: str = "", **options: Any) -> Run:
        """Write the report of the champion on the current test rows; without a task the comparison of all tasks.

        options: version (default: the champion); without a task none, else ConfigError. Needs no cluster.
        """
        from crmray import tasks
        from crmray.train.evaluation import evaluate, evaluate_all

        if task:
            return evaluate(self.config, self.lake, tasks.task(task), **options)
        if options:
            raise ConfigError("got --version without a task, expected the task that it is a version of")
        return evaluate_all(self.config, self.lake)

    def publish(self, task: str, **options: Any) -> dict[str, Any]:
        """Compare the current bundle with the champion and promote or refuse it; the ledger entry or the refusal.

        options: version (default: the current bundle), force (a reason, promotes whatever the comparison says). Where
        the task is served, ends when every replica answers with the new version; `replicas` says how many there are.
        ClusterError, and nothing is promoted, where the task is served for another org.
        """
        from crmray import tasks
        from crmray.registry import publish
        from serve import fleet

        fleet.check_org(task, self.config.name, self.lake)
        return _live(publish(self.lake, tasks.task(task), **options), task)

    def rollback(self, task: str, **options: Any) -> dict[str, Any]:
        """Make the champion before the present one champion again; the ledger entry. ClusterError as in `publish`."""
        from crmray import tasks
        from crmray.registry import rollback
        from serve import fleet

        fleet.check_org(task, self.config.name, self.lake)
        return _live(rollback(self.lake, tasks.task(task), **options), task)

    def score(self, task: str) -> Run:
        """Predict for all current rows of a task with the champion."""
        from crmray.cluster import connect
        from crmray.score import score

        which, _ = self._asked_for(task)
        connect()
        return score(self.config, self.lake, which)

    def audience(self, product: str, *, num_customers: int = 100) -> pa.Table:
        """The customers whom a product fits best: entity_id, and the product's place among all that each may be shown.

        By the champion of the recommendation, over all current rows; no cluster is needed.
        """
        from crmray.score import audience

        which, _ = self._asked_for("recommendation")
        return audience(self.config, self.lake, which, product, num_customers=num_customers)

    def writeback(self, task: str, *, dry_run: bool = False, undo: str = "") -> Run | dict[str, Any]:
        """Bring the current predictions into fields of the org's records; the receipt.

        dry_run: nothing is written; gives counts and samples. undo: run_id of a receipt whose previous values are
        restored where a field still holds what it wrote.
        """
        from crmray.salesforce import writeback

        if dry_run and undo:
            raise ConfigError("got --dry-run with --undo, expected one of them")
        where = self.aim(task)
        if dry_run:
            return writeback.preview(self.config, self.lake, where)
        if undo:
            return writeback.undo(self.config, self.lake, where, undo)
        return writeback.write(self.config, self.lake, where)

    def fields(self) -> dict[str, bytes]:
        """Metadata to deploy for the fields that the tasks' write-backs need; path -> content.

        Of the tasks that `writeback:` names; without that section of all whose rows are records. ConfigError where
        there is none.
        """
        from crmray import tasks
        from crmray.salesforce import fields, writeback

        of_records = [name for name in self.config.tasks if tasks.task(name).ENTITY in writeback.OBJECTS]
        aims = [self.aim(name) for name in self.config.writeback or of_records]
        if not aims:
            raise ConfigError(
                f"org file {self.config.path}: got no task whose rows are records, so no prediction that a field is "
                "needed for; expected `tasks:` with at least one, for example `churn: {}`, and `writeback:` with those "
                "that are written back"
            )
        wanted: dict[str, list[Target]] = {}
        for where in aims:
            wanted.setdefault(where.object, []).extend(where.targets)
        keys = {where.settings.tasks.key for where in aims if where.settings.tasks}
        return fields.metadata(wanted, sorted(keys), self._salesforce().api_version)

    def _salesforce(self) -> config.SalesforceSource:
        if not isinstance(self.config.source, config.SalesforceSource):
            raise ConfigError(
                f"org file {self.config.path}: got source kind {self.config.source.kind}, expected salesforce: only "
                "there are records with fields to write to; `crmray submit score` leaves predictions in the lake"
            )
        return self.config.source

    def aim(self, task: str) -> Aim:
        """The object and fields that the write-back of a task goes to; ConfigError where there can be none."""
        from crmray.salesforce import writeback

        self._salesforce()
        which, _ = self._asked_for(task)
        return writeback.aim(self.config, which.NAME, which.ENTITY, answer_of(which))

    def bundle(self, task: str, version: str | None = None) -> Bundle:
        """The champion's bundle, or that of a version; NoChampionError when nothing was published."""
        from crmray import tasks
        from crmray.bundle import load_bundle
        from crmray.registry import Ledger

        which = tasks.task(task)
        version = version or Ledger(self.lake, which.NAME).champion()
        return load_bundle(self.lake.run("bundles", which.NAME, version))

    def compare(self, task: str) -> list[dict[str, Any]]:
        """All versions of a task side by side, newest first."""
        from crmray import tasks
        from crmray.registry import compare

        return compare(self.lake, tasks.task(task))


def answer_of(task: Task) -> type[BaseModel]:
    """The model of one prediction of a task."""
    (answer,) = get_args(task.Response.model_fields["predictions"].annotation)
    return answer


def _counting(stage: str, rows_of: Callable[[Any], int], name: str = "") -> Callable[..., Iterator[tuple]]:
    """`cluster.map_shards` that adds the rows of each result to crmray_rows_total as it comes.

    name: of the task; default: the table, from a label `shard.<table>`.
    """
    from crmray import cluster

    def counted(fn: Callable[[Any], Any], items: Any, *, label: str, **how: Any) -> Iterator[tuple]:
        for item, result in cluster.map_shards(fn, items, label=label, **how):
            cluster.record("crmray_rows_total", rows_of(result), stage=stage, name=name or label.split(".")[1])
            yield item, result

    return counted


def _rows_of_shard(result: Any) -> int:
    """Rows of a finished shard; 0 for the other maps of the stage."""
    return result["profile"]["rows"] if isinstance(result, dict) and "profile" in result else 0


def _rows_of_examples(result: Any) -> int:
    """Rows of one shard of all splits; 0 for the look at the attributes before."""
    if isinstance(result, tuple):  # what a task that spans customers gathers: its rows are made of all parts together
        return 0
    return sum(count["rows"] for by_date in result.get("counts", {}).values() for count in by_date.values())


def _live(entry: dict[str, Any], task: str) -> dict[str, Any]:
    """The entry once the fleet answers with its version; at once when the version was refused.

    A version that was champion before is waited for too: a publish that gave up waiting can be run again.
    """
    from serve import fleet

    if entry["promoted"] or entry["version"] == entry["previous"]:
        return {**entry, "replicas": fleet.wait_for(task, entry["version"])}
    return entry
