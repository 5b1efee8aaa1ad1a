"""Write-back that is stopped, killed, cut off or told to come back tomorrow: nothing twice, nothing left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from writing import ACCOUNTS, BAND, SCORE, World, kill_until_done, receipt, scores

from crmray.errors import LimitError, SalesforceError
from crmray.privacy import consent
from crmray.salesforce import client as client_module
from crmray.salesforce import sending
from crmray.salesforce.sandbox.deploy import deploy


def test_several_faults_at_once_change_nothing_of_the_result(world: World) -> None:
    org = world.org()
    world.predict(scores(world))
    world.server.faults.set(
        expire_tokens_after_calls=7, error_503_every=6, drop_connection_every=5, lock_rows=0.2, fail_rows=0.03
    )
    run = org.writeback("churn")
    struck = set(world.server.faults.struck)
    world.server.faults.clear()
    assert struck >= {"error_503_every", "drop_connection_every", "lock_rows", "fail_rows"}
    written = [row["entity_id"] for row in receipt(run) if row["state"] == "written"]
    assert world.written == Counter(written), "each once"
    assert {id_ for id_, row in world.held(SCORE).items() if row[0] is not None} == set(written)


def test_the_daily_limit_stops_it_and_the_next_day_goes_on(world: World) -> None:
    org = world.org()
    world.predict(scores(world))
    world.server.faults.set(request_limit=30)
    with pytest.raises(LimitError, match="go on later"):
        org.writeback("churn")
    before = world.written.copy()
    assert 0 < len(before) < ACCOUNTS
    world.server.faults.clear()
    run = org.writeback("churn")
    assert world.written == Counter(world.ids), "each once"
    assert run.manifest()["counts"]["fields"] == {"written": ACCOUNTS}


def test_a_field_that_disappears_stops_it_with_its_name(world: World) -> None:
    org = world.org()
    world.predict(scores(world))
    world.server.faults.set(drop_field=f"Account.{BAND}", drop_field_after_calls=20)
    with pytest.raises(SalesforceError, match=f"{BAND}.*run again"):
        org.writeback("churn")
    world.server.faults.clear()
    deploy(world.server.store, org.fields())
    assert org.writeback("churn").manifest()["counts"]["fields"] == {"written": ACCOUNTS}
    assert world.written == Counter(world.ids), "each once"


class Stopped(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_at_any_call_it_goes_on_from_there(world: World, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Start after start ends at one of its calls, before the org hears it or before we hear the answer."""
    monkeypatch.setattr(sending, "CHUNK_ROWS", 40)
    org = world.org()
    world.predict(scores(world))
    world.server.faults.set(fail_rows=0.03, lock_rows=0.05, lock_times=1)
    send, left = client_module.Client._send, 0

    def stopping(self: client_module.Client, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            raise Stopped
        answer = send(self, *arguments)
        if left == 0:
            raise Stopped
        return answer

    monkeypatch.setattr(client_module.Client, "_send", stopping)
    run = None
    for start in range(1, 100):
        left = 1 + start % 17
        try:
            run = org.writeback("churn")
            break
        except Stopped:
            continue
    assert run is not None
    assert start > 10, "it was stopped at many calls"  # how many looks at a job it takes hangs on the machine
    written = [row["entity_id"] for row in receipt(run) if row["state"] == "written"]
    assert world.written == Counter(written), "each once"
    assert 185 <= len(written) < 200
    assert {id_ for id_, row in world.held(SCORE).items() if row[0] is not None} == set(written)


def test_an_interrupted_write_back_of_older_predictions_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    org = world.org()
    world.predict(scores(world))
    with monkeypatch.context() as patch:
        results, calls = sending.bulk.results, iter(range(10))

        def failing(*arguments: Any) -> Any:
            if next(calls) == 1:
                raise Stopped
            return results(*arguments)

        patch.setattr(sending.bulk, "results", failing)
        with pytest.raises(Stopped):
            org.writeback("churn")
    world.predict(dict.fromkeys(world.ids, 0.9), "p2")
    newer = org.writeback("churn")
    older, _ = org.lake.runs("receipts", "writeback-churn")
    states = Counter(row["state"] for row in receipt(older))
    assert states == {"written": 128, "unsent": 72}, "two chunks of 64 were sent, and are known"
    assert {row["before." + SCORE] for row in receipt(newer)} >= {None, "0.005"}
    org.writeback("churn", undo=newer.run_id)
    org.writeback("churn", undo=older.run_id)
    assert set(world.held(SCORE).values()) == {(None,)}


def test_killed_at_random_it_neither_repeats_nor_skips(world: World) -> None:
    org = world.org()
    world.predict(scores(world))
    world.server.faults.set(fail_rows=0.03)
    assert kill_until_done(world, kills=3, longest_s=0.8, chunk_rows=8, seed=3) == 3
    (run,) = org.lake.runs("receipts", "writeback-churn")
    rows, held = receipt(run), world.held(SCORE)
    assert sorted(row["entity_id"] for row in rows) == sorted(world.ids)
    assert world.written == Counter(row["entity_id"] for row in rows if row["state"] == "written"), "each once"
    assert all((held[row["entity_id"]][0] is not None) == (row["state"] == "written") for row in rows)
    assert {row["before." + SCORE] for row in rows} == {None}, "what was there before the first start"
    org.writeback("churn", undo=run.run_id)
    assert set(world.held(SCORE).values()) == {(None,)}


def test_who_withdraws_before_it_goes_on_is_left_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    org = world.org()
    world.predict(scores(world))
    with monkeypatch.context() as patch:
        patch.setattr(sending.Delivery, "deliver", lambda self: _stop())
        with pytest.raises(Stopped):
            org.writeback("churn")
    run = org.lake.run("raw", consent.NAME, "c1")
    rows = [{"entity_id": world.ids[5], "processing": True, "profiling": False, "channels": []}]
    run.write_table("part-00000.parquet", pa.Table.from_pylist(rows, schema=consent.SCHEMA))
    run.commit()
    assert org.writeback("churn").manifest()["counts"]["fields"] == {"not_found": 1, "written": 199}
    assert world.held(SCORE)[world.ids[5]] == (None,)


def _stop() -> None:
    raise Stopped
