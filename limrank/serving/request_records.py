"""What the server knows of a request when it has answered it: for its metrics, its access log and its traces.

A record holds no query, document, prompt, header or key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limrank.engines.base import Usage
from limrank.serving import request_ids
from limrank.serving.keys import KEY_STATE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER_ROUTE = "other"
"""The route of every path that the server does not have."""

NO_MODE = "none"
"""The mode of a request that reached no engine."""

CLIENT_CLOSED = 499
"""The status of a request whose client left before the answer began. nginx has the number; no client sees it."""

CLIENT_LEFT = "client_closed"
"""The error of a request whose client left before the answer's end."""

_TRACE_CONTEXT = (b"traceparent", b"tracestate")
_LONGEST_ERROR = 65_536
"""Bytes of an error's body that is read for its code."""


@dataclass(slots=True)
class RequestRecord:
    """A request and its answer.

    Attributes:
        path: without the query string.
        started_ns: when the request came in, in nanoseconds since 1970.
        seconds: from then until the last byte of the answer.
        route: the path of the route, or :data:`OTHER_ROUTE`.
        status: of the answer; 500 or :data:`CLIENT_CLOSED` where there was none.
        error: the ``code`` of an error, also of one that ended a stream, whose status is 200.
        key: the name of the client's API key.
        pairs: pairs that reached the engines.
        trace_context: the headers ``traceparent`` and ``tracestate``.
    """

    method: str
    path: str
    client: str | None
    started_ns: int
    trace_context: dict[str, str]
    seconds: float = 0.0
    route: str = OTHER_ROUTE
    status: int = 0
    error: str | None = None
    request_id: str | None = None
    key: str | None = None
    mode: str = NO_MODE
    pairs: int = 0
    usage: Usage = field(default_factory=Usage)
    bytes_in: int = 0
    bytes_out: int = 0


Observer = Callable[[RequestRecord], None]

_current: ContextVar[RequestRecord | None] = ContextVar("limrank_request_record", default=None)


def current() -> RequestRecord | None:
    """The record of the request that this code runs for; None outside a request."""
    return _current.get()


class Recorder:
    """ASGI middleware that records each request and gives the record to the observers. An observer that
    fails fails no request."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _begin(scope)
        began = time.perf_counter()

        async def counted_receive() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def recorded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.request_id = request_ids.current()
            elif message["type"] == "http.response.body":
                body = message.get("body", b"")
                if record.status >= 400 and not record.bytes_out:
                    record.error = _error_code(body) or f"http_{record.status}"
                record.bytes_out += len(body)
            await send(message)

        token = _current.set(record)
        try:
            await self._app(scope, counted_receive, recorded_send)
        except asyncio.CancelledError:
            # Serve cancels a request whose client has left.
            record.status, record.error = record.status or CLIENT_CLOSED, CLIENT_LEFT
            raise
        except Exception:
            # Starlette answers it outside all middleware.
            record.status, record.error = record.status or 500, "internal_error"
            raise
        finally:
            _current.reset(token)
            record.seconds = time.perf_counter() - began
            record.route = getattr(scope.get("route"), "path", OTHER_ROUTE)
            record.request_id = record.request_id or request_ids.current()
            record.key = scope.get("state", {}).get(KEY_STATE)
            self._tell(record)

    def _tell(self, record: RequestRecord) -> None:
        for observer in self._observers:
            try:
                observer(record)
            except Exception:
                logging.getLogger("limrank.serving").exception("a request was not recorded")


def _begin(scope: Scope) -> RequestRecord:
    client = scope.get("client")
    return RequestRecord(
        scope["method"],
        scope["path"],
        client[0] if client else None,
        time.time_ns(),
        {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_CONTEXT},
    )


def _error_code(body: bytes) -> str | None:
    """``error.code`` of an answer, whoever wrote it: a route, or a middleware that refused the request."""
    if len(body) > _LONGEST_ERROR:
        return None
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None
