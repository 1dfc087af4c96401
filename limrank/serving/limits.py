"""Limits of one request: its headers, its body, the time to receive it, its documents and their characters.

:class:`HeaderLimit` and :class:`BodyLimit` hold the first three before the application runs. :meth:`Limits.fit` holds the
others, which are known once the body is parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limrank.serving.errors import ApiError
from limrank.serving.refusal import App, Receive, Scope, Send, header_values, refuse

if TYPE_CHECKING:
    from limrank.config import ServingConfig
    from limrank.records import Judgment, Query

MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024
"""As much as uvicorn with h11 takes. With httptools, which Ray Serve's proxy runs, uvicorn itself has no limit."""


@dataclass(frozen=True)
class Limits:
    """The limits of one request, as in the recipe's ``serving``.

    Attributes:
        body_bytes: the longest body.
        receive_timeout_s: seconds in which a request's headers must arrive, and then its body.
        documents: the most documents.
        document_chars: a longer document is cut to as many characters.
        query_chars: the most characters of a query and its instruction together.
    """

    body_bytes: int = 32 * 1024 * 1024
    receive_timeout_s: float = 30.0
    documents: int = 1000
    document_chars: int = 200_000
    query_chars: int = 20_000

    @classmethod
    def of(cls, serving: ServingConfig) -> Limits:
        return cls(
            serving.max_body_bytes,
            serving.receive_timeout_s,
            serving.max_documents,
            serving.max_document_chars,
            serving.max_query_chars,
        )

    def plan(self) -> dict[str, Any]:
        """The limits for a plan."""
        return {
            "body_bytes": self.body_bytes,
            "receive_timeout_s": self.receive_timeout_s,
            "documents_per_request": self.documents,
            "document_chars": self.document_chars,
            "query_chars": self.query_chars,
        }

    def fit(
        self, query: Query, texts: Sequence[str], names: tuple[str, str] = ("query", "documents")
    ) -> tuple[list[str], frozenset[int]]:
        """The texts cut to ``document_chars``, and the indices of those that lost their end.

        Args:
            names: the request's fields of the query and the documents, for messages.

        Raises:
            ApiError: 422 where the query has too many characters, or there are too many documents.
        """
        given = len(query.text) + len(query.instruction)
        if given > self.query_chars:
            raise ApiError(
                422,
                "query_too_long",
                f"{names[0]}: has {given} characters with its instruction, and at most {self.query_chars} are taken "
                "(serving.max_query_chars)",
                param=names[0],
            )
        if len(texts) > self.documents:
            raise too_many_documents(len(texts), self.documents, names[1])
        most = self.document_chars
        return [text[:most] for text in texts], frozenset(i for i, text in enumerate(texts) if len(text) > most)


def too_many_documents(given: int, most: int, param: str) -> ApiError:
    message = f"{param}: at most {most} are taken in one request (serving.max_documents), got {given}"
    return ApiError(422, "too_many_documents", message, param=param)


def marked_truncated(judgments: Sequence[Judgment], cut: frozenset[int]) -> list[Judgment]:
    """The judgments of texts that :meth:`Limits.fit` cut say so."""
    return [replace(each, truncated=True) if index in cut else each for index, each in enumerate(judgments)]


class HeaderLimit:
    """Refuses requests with too many headers, before anything reads one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            await refuse(scope, receive, send, headers_too_large())
            return
        await self._app(scope, receive, send)


class BodyLimit:
    """Receives a request's whole body before the application runs. It refuses a body that is too long by its
    ``Content-Length``, or as soon as it is exceeded, and one that does not arrive in time. It keeps at most
    ``body_bytes``. A client that leaves meanwhile ends the request."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_declared(scope)
            async with asyncio.timeout(self._limits.receive_timeout_s):
                body = await self._receive_body(receive)
        except ApiError as error:
            await refuse(scope, receive, send, error)
            return
        except TimeoutError:
            # A client this slow is not waited for again.
            await refuse(scope, receive, send, receive_timeout(self._limits.receive_timeout_s), linger=False)
            return
        if body is None:
            return
        waiting = [body]
        del body

        async def receive_once() -> dict[str, Any]:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()  # waits for the client to leave

        await self._app(scope, receive_once, send)

    def _check_declared(self, scope: Scope) -> None:
        for length in header_values(scope, b"content-length"):
            # The HTTP server refuses a length that is no number.
            if length.isdecimal() and (len(length) > 18 or int(length) > self._limits.body_bytes):
                raise self._too_large()

    async def _receive_body(self, receive: Receive) -> bytes | None:
        """The body; None where the client has left."""
        pieces, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > self._limits.body_bytes:
                pieces.clear()
                raise self._too_large()
            pieces.append(piece)
        return b"".join(pieces)

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        return ApiError(413, "body_too_large", f"the body may have at most {most} bytes (serving.max_body_bytes)")


def receive_timeout(seconds: float) -> ApiError:
    return ApiError(
        408, "receive_timeout", f"the request did not arrive within {seconds:g} s (serving.receive_timeout_s)"
    )


def headers_too_large() -> ApiError:
    message = f"a request may have {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all"
    return ApiError(431, "headers_too_large", message)
