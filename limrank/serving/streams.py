"""A rerank answer as server-sent events: the ranking so far, what changes, and the ranking at the end.

``ranking`` is the whole answer once all direct scores are there. ``scores`` is what is new since the last event.
``done`` is the answer that the request has without ``stream``, and ``error`` an error after the stream has begun. The
format is that of the HTML standard, section 9.2.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from limrank.engines import base
from limrank.records import Judgment
from limrank.serving import request_records
from limrank.serving.errors import ApiError, ErrorBody
from limrank.serving.options import Update
from limrank.serving.responses import RerankResponse, RerankResult

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

KEEP_ALIVE_S = 10.0
"""Silence after which a comment is sent, so that no proxy takes the connection for dead."""

_KEEP_ALIVE = b": keep-alive\n\n"


class Chains(BaseModel):
    """How far the chains are. Both are 0 while direct scores are missing."""

    finished: int
    wanted: int = Field(description="pairs that get a chain")


class ResultChange(RerankResult):
    """A result that is new or has changed: its index, and its new and changed fields. A field that is gone is null."""

    relevance_score: float | None = None
    status: Any = None
    truncated: bool = False
    prompt_tokens: int = 0
    generated_tokens: int = 0


class RankingEvent(RerankResponse):
    """The answer by the direct scores, as soon as all are there. It has the documents that have a score or failed."""

    chains: Chains


class ScoresEvent(BaseModel):
    """What is new since the last event."""

    order: list[int] = Field(description="the indices of all results so far, best first, as top_n and min_score leave")
    results: list[ResultChange] = Field(description="merge each over what was sent of its index")
    chains: Chains


class ErrorEvent(ErrorBody):
    """An error after the stream has begun. It is the last event."""

    status: int = Field(description="the HTTP status that the error has before a stream begins")


EVENTS: dict[str, type[BaseModel]] = {
    "scores": ScoresEvent,
    "ranking": RankingEvent,
    "done": RerankResponse,
    "error": ErrorEvent,
}
"""The JSON in the data of each event."""

Render = Callable[[list[Judgment | None], base.Usage], dict[str, Any]]
"""The whole answer from the judgments that are there, and the usage so far."""


class Feed:
    """What is known of a streamed request. The work writes it, and the answer reads it once it can send more: a client
    that reads slowly gets fewer events.

    Attributes:
        judgments: in the request's order; None where there is none so far.
        usage: is filled by the work.
        ranked: whether all direct scores are there.
    """

    def __init__(self, count: int) -> None:
        self.judgments: list[Judgment | None] = [None] * count
        self.usage = base.Usage()
        self.chains = Chains(finished=0, wanted=0)
        self.ranked = False
        self.news = asyncio.Event()

    def put(self, update: Update, cut: frozenset[int] = frozenset()) -> None:
        """Take an update.

        Args:
            cut: indices of the documents that were cut before they were scored.
        """
        for index, judgment in update.changed.items():
            self.judgments[index] = replace(judgment, truncated=True) if index in cut else judgment
        self.chains = Chains(finished=update.chains_finished, wanted=update.chains_wanted)
        self.ranked = update.ranked
        self.news.set()

    @property
    def has_score(self) -> bool:
        return any(judgment is not None and judgment.score is not None for judgment in self.judgments)


class EventStream(Response):
    """The events of one request. It ends the request's work when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, work: asyncio.Task[None], events: AsyncGenerator[bytes, None], first: bytes) -> None:
        self.status_code = 200
        self.background = None
        # nginx would keep the events back.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._work = work
        self._events = events
        self._first = first

    @classmethod
    async def begun(cls, work: Callable[[Feed], Awaitable[None]], feed: Feed, render: Render) -> EventStream:
        """The stream of a request whose first event is there, or that has waited for ten seconds.

        Args:
            work: scores the request, and writes the feed.

        Raises:
            ApiError: the request failed before; it is answered with the error's status.
        """
        task = asyncio.ensure_future(work(feed))
        task.add_done_callback(lambda _: feed.news.set())
        events = _events(task, feed, render)
        try:
            return cls(task, events, await anext(events))
        except BaseException:
            await _end(task)
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                _record(request_records.CLIENT_LEFT)
        finally:
            await _end(sending, leaving, self._work)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send_part(send, self._first)
        try:
            async for part in self._events:
                await _send_part(send, part)
        except ApiError as error:
            await _send_part(send, _failure(error))
        except Exception:
            logging.getLogger("limrank.serving").exception("a stream failed")
            await _send_part(send, _failure(ApiError(500, "internal_error", "the server failed; its log says why")))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(task: asyncio.Task[None], feed: Feed, render: Render) -> AsyncGenerator[bytes, None]:
    """The events, as bytes. Raises the error of the work."""
    sent: dict[int, dict[str, Any]] = {}
    last: tuple[list[int], Chains] = [], Chains(finished=0, wanted=0)
    ranked = False
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                await feed.news.wait()
        except TimeoutError:
            yield _KEEP_ALIVE
            continue
        feed.news.clear()
        if ended := task.done():
            task.result()
        if feed.has_score and not (ended and (ranked or not feed.ranked)):
            answer = render(feed.judgments, feed.usage)
            results = {result["index"]: result for result in answer["results"]}
            changes = [_change(sent.get(index, {}), result) for index, result in results.items()]
            if feed.ranked and not ranked:
                ranked = True
                yield event("ranking", {**answer, "chains": feed.chains.model_dump()})
            elif any(changes) or (list(results), feed.chains) != last:
                data = {"order": list(results), "results": [*filter(None, changes)], "chains": feed.chains.model_dump()}
                yield event("scores", data)
            sent |= results
            last = list(results), feed.chains
        if ended:
            yield event("done", render(feed.judgments, feed.usage))
            return


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """An event of a stream. JSON on one line has no line end that would need another ``data``."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A result's index and its new and changed fields; empty if there are none."""
    gone = dict.fromkeys(before.keys() - now.keys())
    changed = {name: value for name, value in now.items() if name not in before or before[name] != value}
    return {"index": now["index"], **changed, **gone} if changed or gone else {}


def _failure(error: ApiError) -> bytes:
    _record(error.code)
    return event("error", {**error.body(), "status": error.status})


def _record(code: str) -> None:
    record = request_records.current()
    if record is not None:
        record.error = code


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
