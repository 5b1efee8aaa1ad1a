"""One writer at a time on a run: a claim file, created exclusively, whose heartbeat shows that its owner lives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from crmray import log
from crmray.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from crmray.storage import Run

FILE = "claim.json"
STALE_S = 60.0
"""a claim whose heartbeat is older than this belongs to a dead process"""
HEARTBEAT_S = 5.0


@contextlib.contextmanager
def hold(run: Run, stage: str, *, timeout_s: float) -> Iterator[bool]:
    """Exclusive work on a run.

    Gives False when the run is complete, at once or because another process completed it while this one waited; what is
    awaited is told. A claim of a process that died is taken over. StorageError after `timeout_s` of waiting.
    """
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    rel = f"{run.kind}/{run.name}/{run.run_id}/{FILE}"
    if not _acquire(run, rel, owner, stage, timeout_s):
        run.make_latest()
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(run, rel, owner, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        _release(run, rel, owner)


def _acquire(run: Run, rel: str, owner: dict[str, Any], stage: str, timeout_s: float) -> bool:
    """Wait for the claim; False when the run became complete."""
    started, told = time.monotonic(), False
    while not run.exists():
        if run.lake.create_exclusive(rel, json.dumps({**owner, "beat": time.time()}).encode()):
            if run.exists():  # completed between the two looks
                _release(run, rel, owner)
                return False
            return True
        held = _holder(run, rel)
        if held is None:
            continue
        if _is_dead(held):
            if _take_over(run, rel, held, owner):
                log.warn("claim.taken_over", run=repr(run), host=held["host"], pid=held["pid"])
                if run.exists():  # completed just before its owner died
                    _release(run, rel, owner)
                    return False
                return True
            time.sleep(0.1)
            continue
        if not told:
            log.warn("claim.waiting", stage=stage, run=repr(run), host=held["host"], pid=held["pid"])
            told = True
        if time.monotonic() - started > timeout_s:
            raise StorageError(
                f"{run!r}: waited {timeout_s:.0f} s for pid {held['pid']} on {held['host']}, which does the same work; "
                "let it finish or end it, then run again"
            )
        time.sleep(0.5)
    return False


def _take_over(run: Run, rel: str, held: dict[str, Any], owner: dict[str, Any]) -> bool:
    """Put this owner's claim in the place of a dead one; False when another process does.

    Whoever creates `claim.<dead token>.taken.tmp` is the successor, so there is one; the claim is looked at again only
    then, because it may have changed hands. A successor that died before it wrote its claim is succeeded in turn.
    """
    data, dead = json.dumps({**owner, "beat": time.time()}).encode(), set()
    while _is_dead(held):
        dead.add(held["token"])
        mark = f"{rel.removesuffix('.json')}.{held['token']}.taken.tmp"
        if run.lake.create_exclusive(mark, data):
            now = _holder(run, rel)
            if now is not None and now["token"] in dead and _is_dead(now):
                run.lake.write(rel, data)  # the mark stays: the dead token is never succeeded twice
                return True
            with contextlib.suppress(FileNotFoundError):
                run.lake.fs.rm_file(f"{run.lake.base}/{mark}")
            return False
        successor = _holder(run, mark)
        if successor is None:
            return False
        held = successor
    return False


def _beat(run: Run, rel: str, owner: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            held = _holder(run, rel)
            if held is not None and held["token"] != owner["token"]:
                log.warn("claim.lost", run=repr(run), host=held["host"], pid=held["pid"])
                return
            run.lake.write(rel, json.dumps({**owner, "beat": time.time()}).encode())
        except StorageError as error:  # the next beat may get through; the claim goes stale only after STALE_S
            log.warn("claim.heartbeat", run=repr(run), why=str(error))


def _release(run: Run, rel: str, owner: dict[str, Any]) -> None:
    """Remove this owner's claim; one that another process has taken meanwhile stays."""
    held = _holder(run, rel)
    if held is None or held["token"] != owner["token"]:
        return
    with contextlib.suppress(FileNotFoundError):
        run.lake.fs.rm_file(f"{run.lake.base}/{rel}")


def is_held(run: Run) -> bool:
    """Whether a living process works on this run."""
    held = _holder(run, f"{run.kind}/{run.name}/{run.run_id}/{FILE}")
    return held is not None and not _is_dead(held)


def _holder(run: Run, rel: str) -> dict[str, Any] | None:
    try:
        return json.loads(run.lake.read(rel))
    except NotFoundError:
        return None


def _is_dead(held: dict[str, Any]) -> bool:
    if held["host"] == socket.gethostname():
        try:
            os.kill(held["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return time.time() - held["beat"] > STALE_S
