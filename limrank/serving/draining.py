"""How a server ends: running requests are answered, new ones are told to come back. It runs inside Ray Serve's proxy,
which all requests pass. The server's own process asks for it by HTTP, with a secret that only the two know.
"""

from __future__ import annotations

import asyncio
import hmac
import math

from limrank.serving.errors import draining
from limrank.serving.refusal import App, Message, Receive, Scope, Send, header_values, refuse

PATH = "/-/limrank/drain"
SECRET, SECONDS = "X-Limrank-Secret", "X-Limrank-Seconds"
"""Headers of a request to drain: the secret, and the time for the running requests."""

_LIVE = "/healthz"


class Draining:
    """Once a drain was asked for, every request is refused with 503, except for ``/healthz``. The request to drain is
    answered when no other one runs. Those that still run after its time are cancelled and get 503, too."""

    def __init__(self, app: App, secret: str) -> None:
        self._app = app
        self._secret = secret.encode()
        self._drains = False
        self._running: set[asyncio.Task[object]] = set()
        self._cancelled: set[asyncio.Task[object]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == PATH and self._knows_secret(scope):
            await self._drain(_seconds(scope))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif self._drains and scope["path"] != _LIVE:
            await refuse(scope, receive, send, draining())
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        task, begun = asyncio.current_task(), False
        assert task is not None

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self._running.add(task)
        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if task not in self._cancelled or begun:
                raise
            task.uncancel()
            await refuse(scope, receive, send, draining(), linger=False)
        finally:
            self._running.discard(task)
            self._cancelled.discard(task)

    async def _drain(self, seconds: float) -> None:
        self._drains = True
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        for task in self._running:
            self._cancelled.add(task)
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)

    def _knows_secret(self, scope: Scope) -> bool:
        given = header_values(scope, SECRET.lower().encode())
        return any(hmac.compare_digest(each.encode(), self._secret) for each in given)


def _seconds(scope: Scope) -> float:
    """The time that is asked for. The request is the server's own, so anything else than a number is none."""
    try:
        seconds = float(header_values(scope, SECONDS.lower().encode())[0])
    except (IndexError, ValueError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
