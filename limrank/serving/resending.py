"""A request whose API replica died is sent again, to the next one. It runs inside Ray Serve's proxy.

Serve's proxy sends nothing where the replica dies before the answer begins, and uvicorn then says ``Internal Server
Error``. Every request of ours is idempotent, so it is sent once more, after a replica answers ``/healthz`` again. What
Serve itself says in plain text becomes an error in the one shape.
"""

from __future__ import annotations

import asyncio
from typing import Any

from limrank.serving.errors import server_unavailable
from limrank.serving.refusal import App, Message, Receive, Scope, Send, refuse

REPLACEMENT_S = 30.0
"""Time that a request waits for another API replica."""

_ASK_AGAIN_S = 0.1
_ANSWER_S = 5.0
_OF_SERVE = "/-/"
"""The paths that Serve's proxy answers itself begin so."""


class Resend:
    """Sends a request at most twice.

    Args:
        wait_s: seconds that a request waits for another replica.
    """

    def __init__(self, app: App, wait_s: float = REPLACEMENT_S) -> None:
        self._app = app
        self._wait_s = wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_SERVE):
            await self._app(scope, receive, send)
            return
        request = _Request(receive)
        for retried in (False, True):
            answer = _Answer(send, request)
            await self._app({**scope, "headers": [*scope["headers"]]}, request.replayed(), answer.send)
            if _is_cancelled():
                raise asyncio.CancelledError
            if answer.begun or request.left:
                return
            if retried or not await self._replaced(scope, request):
                break
        if not request.left:
            await refuse(scope, receive, send, server_unavailable(), linger=False)

    async def _replaced(self, scope: Scope, request: _Request) -> bool:
        """Wait until a replica answers, for the time that a request waits at most."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not request.left:
                    if await self._answers(scope):
                        return True
                    await asyncio.sleep(_ASK_AGAIN_S)
        except TimeoutError:
            pass
        return False

    async def _answers(self, scope: Scope) -> bool:
        headers = [(name, value) for name, value in scope["headers"] if name.lower() in (b"host", b"x-request-id")]
        path = "/healthz"
        asked = {
            **scope,
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
        }
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
        statuses: list[int] = []

        async def receive() -> Message:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._app(asked, receive, send)
        except TimeoutError:
            return False
        return statuses == [200]


class _Request:
    """The messages of a request, kept until its answer begins."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] | None = []
        self.left = False

    def replayed(self) -> Receive:
        """A ``receive`` that gives the kept messages, then those that come."""
        kept = list(self._kept or ())

        async def receive() -> Message:
            if kept:
                return kept.pop(0)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.left = True
            elif self._kept is not None:
                self._kept.append(message)
            return message

        return receive

    def forget(self) -> None:
        self._kept = None


class _Answer:
    """Passes an answer on, unless it is Serve's own error."""

    def __init__(self, send: Send, request: _Request) -> None:
        self._send = send
        self._request = request
        self._dropped = False
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._dropped = _is_of_serve(message)
            if not self._dropped:
                self.begun = True
                self._request.forget()
        if not self._dropped:
            await self._send(message)


def _is_cancelled() -> bool:
    """Whether this task was cancelled: Serve's proxy takes that for a client that left, and returns."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_of_serve(start: dict[str, Any]) -> bool:
    """Whether an error is from Serve's proxy: the API's own errors are JSON."""
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return start["status"] >= 400 and not any(kind.startswith(b"application/json") for kind in kinds)
