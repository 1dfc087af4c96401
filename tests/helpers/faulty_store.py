"""A proxy before a store's server that answers some requests with an error, or leaves out their conditions."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_CONDITIONS = {"if-none-match", "if-match"}
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "date", "server"}

Rule = Callable[[BaseHTTPRequestHandler], "int | None"]
"""A request → the status to answer with; None: it is passed on; 0: the connection is closed."""


class FaultyStore:
    """Use as a context manager; ``host`` is its address.

    Attributes:
        rule: what happens to each request.
        conditional: False: conditions are not passed on, as by a store that ignores them.
        counts: statuses that the proxy answered with itself.
    """

    def __init__(self, target: str) -> None:
        self.rule: Rule = lambda request: None
        self.conditional = True
        self.counts: Counter[int] = Counter()
        self._client = httpx.Client(base_url=f"http://{target}", trust_env=False, timeout=60)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def _handle(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyStore:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def first(self, count: int, status: int) -> None:
        """Answer the next ``count`` requests with a status."""
        left = iter(range(count))
        self.rule = lambda request: status if next(left, None) is not None else None

    def share(self, share: float, status: int) -> None:
        """Answer a share of all requests, drawn at random, with a status."""
        drawn = random.Random(0)
        self.rule = lambda request: status if drawn.random() < share else None

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        status = self.rule(request)
        if status is None:
            answer = self._pass_on(request, body)
            headers = [each for each in answer.headers.multi_items() if each[0].lower() not in _HOP_BY_HOP]
            self._answer(request, answer.status_code, answer.content, headers, answer.headers.get("content-length"))
            return
        self.counts[status] += 1
        if status:
            self._answer(request, status, SLOW_DOWN, [("content-type", "application/xml")])
        else:
            request.close_connection = True
            request.connection.close()

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> httpx.Response:
        left_out = {"host", "connection", "content-length"} | (set() if self.conditional else _CONDITIONS)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in left_out]
        return self._client.request(request.command, request.path, headers=headers, content=body)

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: list[tuple[str, str]],
        length: str | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        is_head = request.command == "HEAD"
        request.send_header("Content-Length", length if is_head and length else str(0 if is_head else len(body)))
        request.end_headers()
        if not is_head:
            request.wfile.write(body)
