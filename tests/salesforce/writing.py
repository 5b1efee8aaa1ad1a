"""A sandbox org with accounts and a lake with predictions for them; and the write-back, killed again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

import crmray
from crmray.org import OpenOrg
from crmray.salesforce.sandbox.deploy import deploy
from crmray.salesforce.sandbox.results import RowResult
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake, Run

AS_OF = datetime(2026, 10, 1, tzinfo=timezone.utc)
SCORE, BAND, REASONS = "Crmray_Churn_Score__c", "Crmray_Churn_Band__c", "Crmray_Churn_Reasons__c"
ACCOUNTS = 200
ROOT = Path(crmray.__file__).resolve().parents[1]


class World:
    """A sandbox org with accounts and a lake with predictions for them."""

    def __init__(self, server: Sandbox, folder: Path):
        self.server, self.folder = server, folder
        self.ids: list[str] = [str(row.id) for row in server.store.insert("Account", self._accounts())]
        self.written: Counter[str] = Counter()
        update = server.store.update

        def counting(object_: str, rows: Any) -> list[RowResult]:
            results = update(object_, rows)
            self.written.update(str(result.id) for result in results if result.success)
            return results

        server.store.update = counting  # type: ignore[method-assign]

    @staticmethod
    def _accounts() -> list[dict[str, str]]:
        return [{"Name": f"Company {i}"} for i in range(ACCOUNTS)]

    def org(self, *, deployed: bool = True, privacy: Mapping[str, Any] | None = None, **writeback: Any) -> OpenOrg:
        path = self.server.org_file(
            self.folder / "org.yaml",
            storage=str(self.folder / "lake"),
            tasks={"churn": {}},
            privacy=privacy or {},
            writeback={"churn": writeback},
        )
        org = OpenOrg.load(path)
        if deployed:
            deploy(self.server.store, org.fields())
        return org

    def predict(self, probabilities: Mapping[str, float], run_id: str = "p1") -> Run:
        """A run of predictions: band high from 0.5 on."""
        ids, values = list(probabilities), list(probabilities.values())
        table = pa.table(
            {
                "entity_id": ids,
                "as_of": pa.array([AS_OF] * len(ids), pa.timestamp("us", "UTC")),
                "version": ["v1"] * len(ids),
                "probability": pa.array(values, pa.float64()),
                "band": ["high" if value >= 0.5 else "low" for value in values],
                "will_churn": [value >= 0.5 for value in values],
                "reasons": [["fewer orders", "more complaints"]] * len(ids),
            }
        )
        run = Lake(str(self.folder / "lake")).run("predictions", "churn", run_id)
        if not run.exists():
            run.write_table("part-00000.parquet", table)
            run.commit(task="churn", rows=len(ids))
        return run.make_latest()

    def held(self, *fields: str) -> dict[str, tuple]:
        """What the org holds: id -> values."""
        table = self.server.store.query(f"SELECT Id, {', '.join(fields)} FROM Account").table
        id_, *columns = (column.to_pylist() for column in table.columns)
        return dict(zip(id_, zip(*columns, strict=True), strict=True))


def scores(world: World, *, plus: float = 0.0) -> dict[str, float]:
    """0, 0.005, 0.01 … for the accounts in order."""
    return {id_: i / ACCOUNTS + plus for i, id_ in enumerate(world.ids)}


def receipt(run: Run, step: str = "fields") -> list[dict[str, Any]]:
    return run.read_table(f"receipt-{step}.parquet").to_pylist()


_LAUNCHER = """
import os, sys
import crmray.org
from crmray.salesforce import sending, writeback
from jobs import writeback as job
sending.CHUNK_ROWS, sending.FIRST_WAIT_S = int(sys.argv[1]), 0.001
for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        os._exit(job.main(sys.argv[2:]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def kill_until_done(world: World, *, kills: int, longest_s: float, chunk_rows: int, seed: int) -> int:
    """Start the job again and again, each time in a process of its own, killed at a random moment; how often it was."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _LAUNCHER, str(chunk_rows), "churn", "--org", str(world.folder / "org.yaml")]
    draw, done = random.Random(seed), 0
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as launcher:
        assert launcher.stdin
        assert launcher.stdout
        while True:
            launcher.stdin.write("go\n")
            launcher.stdin.flush()
            pid = int(launcher.stdout.readline())
            timer = threading.Timer(draw.uniform(0.02, longest_s), os.kill, (pid, signal.SIGKILL))
            if done < kills:
                timer.start()
            code = int(launcher.stdout.readline())
            timer.cancel()
            if code != -signal.SIGKILL:
                assert code == 0
                launcher.stdin.close()
                return done
            done += 1
