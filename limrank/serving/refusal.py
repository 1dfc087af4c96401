"""How a request is refused before the application sees it.

Everything in front of the application is pure ASGI: it needs no task of its own, so a client that leaves still
cancels the request. ``Scope``, ``Receive`` and ``Send`` are ASGI's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from limrank.serving.errors import ApiError

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LINGER_S = 2.0
"""A client that is still sending its body has this time to read the answer. If the connection closed at once, the
rest of the body would make the system drop the answer too."""

_POLICY_VIOLATION = 1008
"""WebSocket's close code for a refusal. A socket that was never accepted is closed with HTTP's 403."""


def header_values(scope: Scope, name: bytes) -> list[str]:
    """The values of a header, in order. ``name`` is in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def has_body(scope: Scope) -> bool:
    """Whether a request has a body, by its headers."""
    return bool(header_values(scope, b"transfer-encoding")) or any(
        length.strip() != "0" for length in header_values(scope, b"content-length")
    )


async def refuse(scope: Scope, receive: Receive, send: Send, error: ApiError, *, linger: bool = True) -> None:
    """Answer with an error in the one shape, without reading the body.

    Where the request has a body, the connection is closed after the answer: nobody reads the rest.

    Args:
        linger: drop what the client still sends, for at most two seconds.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    unread = has_body(scope)
    await send({"type": "http.response.start", "status": error.status, "headers": _headers(error, close=unread)})
    await send({"type": "http.response.body", "body": _body(error), "more_body": unread and linger})
    if unread and linger:
        await _drop_rest(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def raw_response(error: ApiError) -> bytes:
    """The same answer as HTTP/1.1, for a request whose headers are not complete. The connection closes after it."""
    phrase = {408: "Request Timeout", 431: "Request Header Fields Too Large"}.get(error.status, "Error")
    lines = [b"HTTP/1.1 %d %s" % (error.status, phrase.encode())]
    lines += [name + b": " + value for name, value in _headers(error, close=True)]
    return b"\r\n".join([*lines, b"", _body(error)])


async def _drop_rest(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass  # the client goes on sending, and its connection is closed


def _body(error: ApiError) -> bytes:
    return json.dumps(error.body(), ensure_ascii=False).encode()


def _headers(error: ApiError, *, close: bool) -> list[tuple[bytes, bytes]]:
    headers: Iterable[tuple[str, str]] = {
        "content-type": "application/json",
        "content-length": str(len(_body(error))),
        **error.headers,
        **({"connection": "close"} if close else {}),
    }.items()
    return [(name.lower().encode(), value.encode()) for name, value in headers]
