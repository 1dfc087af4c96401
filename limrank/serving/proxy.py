"""The checks inside Ray Serve's HTTP proxy, in front of everything that it keeps of a request.

The proxy receives a body as fast as it comes, without a limit, and passes it on to the replica, which keeps it, too.
So a limit in the replica comes too late. Serve calls :func:`middlewares` in the proxy's process, named by
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.

A request whose headers never end does not reach a middleware at all, and uvicorn waits for it for ever and keeps all
of it. :class:`HeaderLimits` is uvicorn's protocol with a limit for both.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from limrank.serving.access import Access, Guard
from limrank.serving.draining import Draining
from limrank.serving.errors import ApiError
from limrank.serving.limits import MAX_HEADER_BYTES, headers_too_large, receive_timeout
from limrank.serving.refusal import App, Receive, Scope, Send, raw_response
from limrank.serving.request_ids import RequestIds
from limrank.serving.resending import Resend

if TYPE_CHECKING:
    from starlette.middleware import Middleware

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_ACCESS = "LIMRANK_SERVING_ACCESS"
_SECRET = "LIMRANK_SERVING_SECRET"  # noqa: S105
_OF_SERVE = frozenset(
    {b"serve_multiplexed_model_id", b"x-session-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"}
)


def controller_options(access: Access, secret: str) -> dict[str, Any]:
    """Options for ``serve.start``: the environment of Serve's controller, which its proxies inherit.

    Args:
        secret: with it a request can drain the proxy.
    """
    variables = {
        _CALLBACK: f"{__name__}.{middlewares.__name__}",
        _ACCESS: access.to_json(),
        _SECRET: secret,
        # Serve gives up a proxy that is not up after three times this long: by default 5 s, which a busy machine exceeds.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    }
    return {"runtime_env": {"env_vars": variables}}


def middlewares() -> list[Middleware]:
    """What Serve puts in front of the proxy of a server of ours."""
    return stack(Access.from_json(os.environ[_ACCESS]), os.environ[_SECRET])


def stack(access: Access, secret: str) -> list[Middleware]:
    """The checks of a proxy, in this process.

    Args:
        secret: with it a request can drain the proxy.
    """
    from starlette.middleware import Middleware
    from uvicorn.protocols.http import auto

    # The proxy makes its server after this call, and its server takes the protocol from here.
    auto.AutoHTTPProtocol = header_limits(access.limits.receive_timeout_s)
    # The last one is the outermost: an answer of the guard has an id, too.
    return [
        Middleware(Resend),
        Middleware(OwnHeaders),
        Middleware(Guard, access=access),
        Middleware(Draining, secret=secret),
        Middleware(RequestIds),
    ]


class OwnHeaders:
    """Drops the headers by which a request would steer Ray Serve itself: its routing, its time limit, and whether a
    client that leaves is noticed."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in _OF_SERVE]
        await self._app(scope, receive, send)


def header_limits(timeout_s: float, most_bytes: int = MAX_HEADER_BYTES) -> type:
    """uvicorn's HTTP protocol, which ends a connection whose next request has no complete headers after ``timeout_s``
    seconds, or more than ``most_bytes`` of them or of trailers. A request is answered by 408 or 431; while another one
    is being answered, the connection just ends. uvicorn itself closes a connection that stays idle after an answer."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class HeaderLimits(HttpToolsProtocol):
        _timer: Any = None
        _pending = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            self._pending += len(data)  # the callbacks set it back
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self.transport.get_protocol() is not self:  # upgraded
                self._stop_timer()
                return
            answering = self.cycle is not None and not self.cycle.response_complete
            if self._pending <= most_bytes:
                self._stop_timer() if answering else self._expect_headers()
            elif answering:  # trailers, or the next request: an answer of ours would land inside the running one
                self._stop_timer()
                self.transport.close()
            else:
                self._end(headers_too_large())

        def on_headers_complete(self) -> None:
            self._pending = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._pending = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._pending = 0
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(timeout_s, self._end, receive_timeout(timeout_s))

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self, error: ApiError) -> None:
            said = self._pending > 0
            self._stop_timer()
            if not self.transport.is_closing():
                if said:
                    self.transport.write(raw_response(error))
                self.transport.close()

    return HeaderLimits
