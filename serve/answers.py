"""From requests to answers: those that wait together become one call of the model (dynamic batching)."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pyarrow as pa
from pydantic_core import to_json

from crmray.errors import DataError
from crmray.privacy import PERSONS
from crmray.tasks.contract import EntityRequest
from serve.champion import Champion, Served
from serve.errors import Refused, named_in

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
        if request.described is None and request.recent_events is None:
            return await self._batcher.ask(request)
        return await asyncio.get_running_loop().run_in_executor(self._described_pool, self.described, request)

    def known(self, requests: Sequence[EntityRequest]) -> list[bytes | Exception]:
        """A document, or what to refuse with, for each request for known ids. One version answers all of them."""
        served = self.champion.current()
        answers: list[bytes | Exception] = [b""] * len(requests)
        groups: dict[str, list[tuple[int, _Looked]]] = defaultdict(list)
        for number, request in enumerate(requests):
            try:
                looked = _look_up(served, request)
                groups[_options(request)].append((number, looked))
            except Refused as refused:
                answers[number] = refused
        for parts in groups.values():
            rows = served.known.take([position for _, looked in parts for position in looked.rows])
            try:
                predictions, start = _predict(served, requests[parts[0][0]], rows), 0
            except Refused as refused:
                answers = [refused if number in dict(parts) else answer for number, answer in enumerate(answers)]
                continue
            for number, looked in parts:
                part = slice(start, start + len(looked.rows))
                answers[number] = _document(served, rows, predictions, part, looked)
                start += len(looked.rows)
        return answers

    def described(self, request: EntityRequest) -> bytes:
        """The document for somebody described inline, or for a known one with recent events."""
        served = self.champion.current()
        if request.described is not None:
            subject = next(name for name in request.SUBJECTS if getattr(request, name) is not None)
            sent, looked = request.described, _Looked()
            rows = served.described(sent, subject, request.num_described)
        else:
            sent, looked = request.recent_events or {}, _look_up(served, request)
            rows = served.updated(served.lake_id(request.id or ""), sent)
        looked.unlisted.extend(served.not_listed(sent))
        return _document(served, rows, _predict(served, request, rows), slice(0, rows.num_rows), looked)


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """What became of the ids of one request."""

    rows: list[int] = field(default_factory=list)
    """row of each id that is known and may be used"""
    sent: list[str] = field(default_factory=list)
    """these ids as the client sent them"""
    unknown: list[str] = field(default_factory=list)
    """ids that are not in the data"""
    withheld: list[str] = field(default_factory=list)
    """ids of those who withdrew their consent"""
    unlisted: list[str] = field(default_factory=list)
    """ids of products and campaigns in rows that were sent which the tables of these lack"""


def _num_ids(request: EntityRequest) -> int:
    return 1 if request.ids is None else len(request.ids)


def _options(request: EntityRequest) -> str:
    """Requests with the same options can share a call of the model."""
    return json.dumps([request.explain, request.options()], sort_keys=True, default=str)


def _look_up(served: Served, request: EntityRequest) -> _Looked:
    """Rows of the ids, in their order. 404 when none is known; 403 when those that are known withdrew their consent."""
    looked = _Looked()
    for sent in request.ids if request.ids is not None else [request.id or ""]:
        entity_id = served.lake_id(sent)
        row = served.known.find(entity_id)
        owner = entity_id if row is None else served.known.owner(row)
        if owner in served.withheld.profiling:
            looked.withheld.append(sent)
        elif row is None:
            looked.unknown.append(sent)
        else:
            looked.rows.append(row)
            looked.sent.append(sent)
    if looked.rows:
        return looked
    entity, count = served.bundle.task.ENTITY, len(looked.unknown) + len(looked.withheld)
    field = "id" if request.ids is None else "ids"
    if looked.withheld:
        person = f"this {entity}" if entity in PERSONS else f"the customer whom this {entity} is about"
        which = person if count == 1 else f"those behind {len(looked.withheld)} of the {count} ids"
        message = f"{which} withdrew the consent to be profiled: nothing is predicted"
        raise Refused(403, "consent_withdrawn", message, field=field)
    raise Refused(404, f"unknown_{entity}", _unknown(served, request, looked.unknown), field=field)


def _unknown(served: Served, request: EntityRequest, sent: Sequence[str]) -> str:
    """Why none of these ids is answered, and what to do."""
    task, date = served.bundle.task, f" of {served.known.as_of:%Y-%m-%d}" if served.known.as_of else ""
    which = f"this {task.ENTITY} is not" if len(sent) == 1 else f"none of the {len(sent)} ids is"
    message = f"{which} among those that {task.NAME} answers for in the current data{date}"
    if len(sent) == 1 and task.ENTITY in ("series", "product"):
        message += served.known.like(sent[0])
    message += "; `crmray run ORG.yaml` takes up newer data"
    if {*request.SUBJECTS} - {"id", "ids"} and not hasattr(task, "gather"):
        message += ", and /docs says how to ask about one that is not in them"
    return message


def _predict(served: Served, request: EntityRequest, rows: pa.Table) -> pa.Table:
    """The predictions; 422 where an option asks for what is not there, which the message then begins with."""
    options = request.options()
    try:
        return served.bundle.predict(rows, explain=request.explain, **options)
    except DataError as error:
        named = named_in(str(error))
        raise Refused(422, "invalid_field", str(error), field=named if named in options else None) from None


def _document(served: Served, rows: pa.Table, predictions: pa.Table, part: slice, looked: _Looked) -> bytes:
    """The JSON answer for the rows of one request. Pseudonyms are for the lake: the client gets the ids it sent."""
    shown = predictions.slice(part.start, part.stop - part.start).to_pylist()
    if served.pseudonyms is not None and looked.sent:
        shown = [{**one, "entity_id": sent} for one, sent in zip(shown, looked.sent, strict=True)]
    answer = {
        "version": served.bundle.version,
        "as_of": rows["as_of"][part.start].as_py(),
        "data_age_days": served.known.age_days,
        "predictions": shown,
        "unknown": looked.unknown,
        "withheld": looked.withheld,
        "unlisted": looked.unlisted,
    }
    return to_json(answer, inf_nan_mode="null")
