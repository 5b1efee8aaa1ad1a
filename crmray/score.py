"""Batch scoring: the champion's answer for every `now` row, by Ray Data actors.

    predictions/<task>/<run_id>/part-00000.parquet …   entity_id, as_of, version, the task's columns, reasons, scored_at
                                                       and, where the examples have it, customer_id: consent goes by it

Each actor maps the rows from its local disk and loads the bundle once. A part is a fixed range of rows under a fixed
name, so a run that died goes on with the parts that are missing.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from types import ModuleType
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.bundle import Bundle, load_bundle
from crmray.cluster import record, resources
from crmray.config import Org
from crmray.data.examples_shard import task_at
from crmray.errors import CorruptError
from crmray.privacy import Withheld
from crmray.privacy.consent import CUSTOMER
from crmray.registry import Ledger
from crmray.salesforce.held import Ids
from crmray.schema import TIME
from crmray.storage import Lake, Run, run_id
from crmray.tasks.contract import Task

FORMAT = 5
"""raised when the columns of predictions/, or the words of their reasons, change"""
PART_ROWS = 20_000
PREDICT_ROWS = 2_000
"""rows of one call of the model; bounds its memory"""
CPUS_PER_ACTOR = 1


def score(org: Org, lake: Lake, task: Task, *, explain: bool = True) -> Run:
    """Predict for all `now` rows of the current examples with the champion, or find it done.

    Needs a connection to Ray. NoChampionError before the first publish; BundleError when rows and champion do not fit.
    """
    version = Ledger(lake, task.NAME).champion()
    examples = lake.latest("examples", task.NAME)
    bundle = load_bundle(lake.run("bundles", task.NAME, version), task)
    manifest = bundle.check_run(examples)
    inputs = {"bundles": version, "examples": examples.run_id}
    withheld = Withheld.of(lake)
    inputs |= {"consent": withheld.run_id} if withheld.run_id else {}
    own = {"task": task.NAME, "explain": explain, "part_rows": PART_ROWS}
    run = lake.run("predictions", task.NAME, run_id("score", inputs=inputs, settings=own, seed=org.seed, format=FORMAT))
    with run.claim("score") as mine:
        if mine:
            _score_parts(run, examples, bundle, _now(examples).num_rows, withheld.run_id, explain)
            num_rows = sum(run.open_parquet(name).metadata.num_rows for name in run.files("part-*.parquet"))
            run.commit(task=task.NAME, version=version, rows=num_rows, as_of=manifest["as_of"]["now"], inputs=inputs)
    return run


def _score_parts(run: Run, examples: Run, bundle: Bundle, num_rows: int, consent: str | None, explain: bool) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    starts = {f"part-{index:05d}.parquet": start for index, start in enumerate(range(0, num_rows, PART_ROWS))}
    missing = {name: start for name, start in starts.items() if not run.has(name)}
    parts = [{"name": name, "start": at, "stop": min(at + PART_ROWS, num_rows)} for name, at in missing.items()]
    if not parts:
        return
    DataContext.get_current().enable_progress_bars = False  # ours counts rows
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    most = max(1, min(len(parts), int(resources().get("CPU", 1))))
    arguments = {
        "run": _address(run),
        "examples": _address(examples),
        "task": cast(ModuleType, bundle.task).__name__,
        "version": bundle.version,
        "consent": consent,
        "explain": explain,
    }
    scored = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _Scorer,
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=CPUS_PER_ACTOR,
        fn_constructor_kwargs=arguments,
    )
    total = sum(min(PART_ROWS, num_rows - start) for start in missing.values())
    with log.progress(f"score {bundle.task.NAME}", total=total, unit="rows") as bar:
        for batch in scored.iter_batches(batch_size=1, prefetch_batches=0):
            num_scored = int(batch["rows"][0])
            bar.advance(num_scored)
            record("crmray_rows_total", num_scored, stage="score", name=bundle.task.NAME)


def audience(org: Org, lake: Lake, task: Task, product: str, *, num_customers: int) -> pa.Table:
    """entity_id, as the org itself names it, and place of the customers whom a product fits best, by the champion: the
    task's `customers_for` over all `now` rows, without those who withdrew their consent. Needs no cluster.

    DataError for an unknown product; PrivacyError where the lake has pseudonyms and the vault's key is not there.
    """
    ids, withheld = Ids(org, lake, task.ENTITY), Withheld.of(lake)
    examples = lake.latest("examples", task.NAME)
    bundle = load_bundle(lake.run("bundles", task.NAME, Ledger(lake, task.NAME).champion()), task)
    bundle.check_run(examples)
    rows, found = bundle.check(_now(examples)), []
    for at in range(0, max(1, rows.num_rows), PREDICT_ROWS):
        block = rows.slice(at, PREDICT_ROWS)
        block = block.filter(pc.invert(withheld.mask(block)))
        one = cast(Any, task).customers_for(bundle.model, bundle.decision, block, product, num_customers=num_customers)
        found.append(one)
    best = pa.concat_tables(found).sort_by([("place", "ascending"), ("entity_id", "ascending")]).slice(0, num_customers)
    return best.set_column(0, "entity_id", ids.to_org(best["entity_id"].cast(pa.string()).combine_chunks()))


class _Scorer:
    """One actor: the bundle and the mapped rows; a batch is one part."""

    def __init__(
        self,
        *,
        run: tuple[str, ...],
        examples: tuple[str, ...],
        task: str,
        version: str,
        consent: str | None,
        explain: bool,
    ):
        which: Any = task_at(task)
        self.run, self.explain = _run(run), explain
        self.withheld = Withheld.from_run(self.run.lake.run("raw", "consent", consent)) if consent else Withheld()
        bundle = load_bundle(self.run.lake.run("bundles", which.NAME, version), which)
        self.bundle = bundle.without(self.withheld.profiling)
        self.rows = self.bundle.together(_now(_run(examples)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        start, stop = int(batch["start"][0]), int(batch["stop"][0])
        pieces = [self.rows.slice(at, min(PREDICT_ROWS, stop - at)) for at in range(start, stop, PREDICT_ROWS)]
        tables = [predictions(self.bundle, self._allowed(rows), explain=self.explain) for rows in pieces]
        self.run.write_table(str(batch["name"][0]), pa.concat_tables(tables))
        return {"rows": [stop - start]}

    def _allowed(self, rows: pa.Table) -> pa.Table:
        """Without those who withdrew their consent since the examples were made."""
        gone = self.withheld.mask(rows)
        return rows.filter(pc.invert(gone)) if pc.any(gone).as_py() else rows


def predictions(bundle: Bundle, rows: pa.Table, *, explain: bool = True) -> pa.Table:
    """The columns of predictions/ for some rows: what the endpoint answers, and version and scored_at."""
    answer = bundle.predict(rows, explain=explain)
    scored_at = pa.scalar(datetime.now(timezone.utc), TIME)
    head = {
        "entity_id": answer["entity_id"].cast(pa.string()),
        "as_of": rows["as_of"],
        "version": pa.repeat(pa.scalar(bundle.version), rows.num_rows),
    }
    head |= {CUSTOMER: rows[CUSTOMER]} if CUSTOMER in rows.column_names else {}
    body = {name: answer[name] for name in answer.column_names if name not in head}
    return pa.table({**head, **body, "scored_at": pa.repeat(scored_at, rows.num_rows)})


def _now(examples: Run) -> pa.Table:
    path = examples.lake.local(examples) / "now.arrow"
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(f"{path}: not a readable Arrow file ({error}); make the examples again") from None


def _address(run: Run) -> tuple[str, ...]:
    return run.lake.root, run.kind, run.name, run.run_id


def _run(address: tuple[str, ...]) -> Run:
    root, *rest = address
    return Lake(root).run(*rest)
