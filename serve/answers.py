"""From requests to answers: those that wait together become one call of the model (dynamic batching)."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import pyarrow as pa
from pydantic_core import to_json

from crmray.salesforce.ids import normalize
from crmray.tasks.contract import EntityRequest
from serve.champion import Champion, Served
from serve.errors import Refused

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
_DESCRIBED_THREADS = 2


class Batcher(Generic[Ask, Answer]):
    """Gathers what arrives while the model is busy and gives it to `run` as one list, in a thread of its own.

    With nothing else waiting a request goes at once: batches grow with the load and cost no time without it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Ask]], Sequence[Answer | Exception]],
        *,
        size: Callable[[Ask], int],
        max_size: int,
        wait_s: float = 0.0,
    ):
        self.run, self.size, self.max_size, self.wait_s = run, size, max_size, wait_s
        self._queue: asyncio.Queue[tuple[Ask, asyncio.Future[Answer]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._task: asyncio.Task[None] | None = None

    async def ask(self, ask: Ask) -> Answer:
        """The answer, or the exception that `run` gave for this one."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((ask, future))
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            group = await self._gather()
            if not group:
                continue
            answers: Sequence[Answer | Exception]
            try:
                answers = await loop.run_in_executor(self._thread, self.run, [ask for ask, _ in group])
            except Exception as error:  # noqa: BLE001  raised again by each of those that wait
                answers = [error] * len(group)
            for (_, future), answer in zip(group, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _gather(self) -> list[tuple[Ask, asyncio.Future[Answer]]]:
        group = [await self._queue.get()]
        if self.wait_s:
            await asyncio.sleep(self.wait_s)
        total = self.size(group[0][0])
        while total < self.max_size and not self._queue.empty():
            group.append(self._queue.get_nowait())
            total += self.size(group[-1][0])
        return [(ask, future) for ask, future in group if not future.done()]  # some may have timed out meanwhile


class Answers:
    """Answers requests of one task with whatever version is champion at that moment; JSON documents as bytes."""

    def __init__(self, champion: Champion, *, max_batch_rows: int, batch_wait_s: float = 0.0):
        self.champion = champion
        self._described_pool = ThreadPoolExecutor(_DESCRIBED_THREADS, thread_name_prefix="describe")
        self._batcher: Batcher[EntityRequest, bytes] = Batcher(
            self.known, size=_num_ids, max_size=max_batch_rows, wait_s=batch_wait_s
        )

    async def answer(self, request: EntityRequest) -> bytes:
        """The document. Known ids share calls of the model; a description takes longer and is worked on beside them."""
        self.champion.current()
        if request.customer is None and request.recent_events is None:
            return await self._batcher.ask(request)
        return await asyncio.get_running_loop().run_in_executor(self._described_pool, self.described, request)

    def known(self, requests: Sequence[EntityRequest]) -> list[bytes | Exception]:
        """A document, or what to refuse with, for each request for known ids. One version answers all of them."""
        served = self.champion.current()
        answers: list[bytes | Exception] = [b""] * len(requests)
        groups: dict[str, list[tuple[int, list[int], list[str]]]] = defaultdict(list)
        for number, request in enumerate(requests):
            try:
                found, unknown = _positions(served, request)
                groups[_options(request)].append((number, found, unknown))
            except Refused as refused:
                answers[number] = refused
        for parts in groups.values():
            rows = served.known.take([position for _, found, _ in parts for position in found])
            predictions, start = _predict(served, requests[parts[0][0]], rows), 0
            for number, found, unknown in parts:
                answers[number] = _document(served, rows, predictions, slice(start, start + len(found)), unknown)
                start += len(found)
        return answers

    def described(self, request: EntityRequest) -> bytes:
        """The document for somebody described inline, or for a known one with recent events."""
        served = self.champion.current()
        if request.customer is not None:
            rows = served.described(request.customer)
        else:
            _positions(served, request)  # 404 for an unknown id
            rows = served.updated(normalize(request.id or ""), request.recent_events or {})
        return _document(served, rows, _predict(served, request, rows), slice(0, 1), [])


def _num_ids(request: EntityRequest) -> int:
    return 1 if request.ids is None else len(request.ids)


def _options(request: EntityRequest) -> str:
    """Requests with the same options can share a call of the model."""
    return json.dumps([request.explain, request.options()], sort_keys=True, default=str)


def _positions(served: Served, request: EntityRequest) -> tuple[list[int], list[str]]:
    """Rows of the ids that are known, in their order, and the ids that are not; 404 when none is known."""
    ids = request.ids if request.ids is not None else [request.id or ""]
    rows = [served.known.find(normalize(entity_id)) for entity_id in ids]
    found = [row for row in rows if row is not None]
    if found:
        return found, [entity_id for entity_id, row in zip(ids, rows, strict=True) if row is None]
    entity = served.bundle.task.ENTITY
    which = f"this {entity} is" if len(ids) == 1 else f"none of the {len(ids)} ids is"
    date = f" of {served.known.as_of:%Y-%m-%d}" if served.known.as_of else ""
    message = f"{which} in the current data{date}" if len(ids) > 1 else f"{which} not in the current data{date}"
    hint = f"describe the {entity} under `customer`, or make new examples"
    raise Refused(404, f"unknown_{entity}", f"{message}; {hint}", field="id" if request.ids is None else "ids")


def _predict(served: Served, request: EntityRequest, rows: pa.Table) -> pa.Table:
    return served.bundle.predict(rows, explain=request.explain, **request.options())


def _document(served: Served, rows: pa.Table, predictions: pa.Table, part: slice, unknown: list[str]) -> bytes:
    """The JSON answer for the rows of one request."""
    answer = {
        "version": served.bundle.version,
        "as_of": rows["as_of"][part.start].as_py(),
        "data_age_days": served.known.age_days,
        "predictions": predictions.slice(part.start, part.stop - part.start).to_pylist(),
        "unknown": unknown,
    }
    return to_json(answer, inf_nan_mode="null")
