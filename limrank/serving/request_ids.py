"""The id of each request: the client's ``X-Request-Id``, or a made one, for answers, errors and logs."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"

LONGEST = 128
"""Characters of a client's id. A longer one is replaced."""

_NAME = HEADER.lower().encode()
_TAKEN = re.compile(rb"[ -~]{1,%d}" % LONGEST)

_current: ContextVar[str] = ContextVar("limrank_request_id", default="")


def current() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return _current.get()


def new() -> str:
    """An id that no other request has."""
    return uuid.uuid4().hex


def of(scope: Scope) -> str:
    """The id of the request with this ASGI scope, for code that runs outside of :class:`RequestIds`; may be empty."""
    return scope.get("state", {}).get("request_id", "")


class RequestIds:
    """ASGI middleware: sets :func:`current` while a request is answered, and gives the id back in its header, unless
    the answer has one.

    Args:
        respond: whether to set the header. Ray Serve's proxy sets it itself, and a client would read two.
    """

    def __init__(self, app: ASGIApp, *, respond: bool = True) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _NAME), b"")
        request_id = given.decode() if _TAKEN.fullmatch(given) else new()
        scope.setdefault("state", {})["request_id"] = request_id
        # What comes after reads the same id: Ray Serve's proxy gives back the header's, and fails at one that is no text.
        others = [(name, value) for name, value in scope["headers"] if name != _NAME]
        scope["headers"] = [*others, (_NAME, request_id.encode())]

        async def send_with_id(message: Message) -> None:
            if self._respond and message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                if all(name.lower() != _NAME for name, _ in headers):
                    message = {**message, "headers": [*headers, (_NAME, request_id.encode())]}
            await send(message)

        token = _current.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _current.reset(token)
