"""``Client`` and ``AsyncClient``: a running ``limrank serve`` from Python, by URL.

Both build their requests, read the answers and decide on retries by the same code; they differ in how they send
and how they wait. They need neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Unpack

import httpx
from tenacity import AsyncRetrying, Retrying

from limrank.errors import EndpointError
from limrank.serving.answers import GivenDocument, RerankResponse, ServedModel
from limrank.serving.calls import Answer, Call, Value, models_call, ready_call, rerank_call, score_call
from limrank.serving.connection import CONNECT_S, Attempts, Server, checked_limits, checked_url, result_of
from limrank.serving.http_streams import async_updates, updates
from limrank.serving.updates import RerankOptions, RerankUpdate, stream_call

DEFAULT_URL = "http://127.0.0.1:8000"


class _Settings:
    """What both clients keep."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout: float | None,
        max_retries: int,
        headers: Mapping[str, str] | None,
        transport: Any,
    ) -> None:
        self._server = Server.at(checked_url(base_url), api_key, headers)
        self._timeout_s, self._max_retries = checked_limits(timeout, max_retries)
        self._options: dict[str, Any] = {
            "base_url": self._server.base,
            "params": self._server.params,
            "headers": self._server.headers,
            "trust_env": not self._server.is_here,
            "transport": transport,
            "follow_redirects": False,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._server.name!r})"

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(self._timeout_s, self._max_retries, call.deadline_ms)

    def _one_attempt(self) -> Attempts:
        return Attempts(min(self._timeout_s or CONNECT_S, CONNECT_S), 0)


class Client(_Settings):
    """A client of a running ``limrank serve``.

    ::

        with Client() as client:
            for hit in client.rerank("merge sorted feeds", ["heapq.merge …", "sorted …"], top_n=1).results:
                print(hit.relevance_score, hit.document)

    A request that ends with 408, 429 or a status from 500, or without an answer, is sent again after a random wait
    that doubles, and not before the server's ``Retry-After``. Threads may share a client. Redirects are not followed.
    A proxy of the environment is used unless the server is on this machine.

    Args:
        base_url: the server's URL, without ``/v1``.
        api_key: sent as ``Authorization: Bearer``; None: the value of ``LIMRANK_API_KEY``, if it is set; empty: none.
        timeout: seconds for a call with all its retries; None: no limit.
        max_retries: requests after the first one; 0: none.
        headers: further headers of each request.
        transport: an ``httpx`` transport, such as one with your own certificates; None: the default.

    Raises:
        UserError: an argument cannot be used.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        max_retries: int = 4,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, headers, transport)
        self._http = httpx.Client(**self._options)

    def rerank(
        self,
        query: str,
        documents: Sequence[GivenDocument],
        *,
        top_n: int | None = None,
        instruction: str = "",
        mode: str | None = None,
        max_think_tokens: int | None = None,
        return_reasoning: bool = False,
        return_documents: bool = False,
        min_score: float | None = None,
        max_tokens_per_doc: int | None = None,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> RerankResponse:
        """Documents by relevance, best first. Documents that could not be scored come last, without a score.

        Args:
            documents: texts, ``limrank.Document``s, or mappings with ``text`` and perhaps ``title`` and ``id``.
            top_n: how many results to return; None: all.
            instruction: narrows what is relevant; it is appended to the query.
            mode, max_think_tokens: how the server scores, within what it allows; None: its own.
            return_reasoning: whether results have the model's chain.
            return_documents: whether results have the server's copy of the document.
            min_score: documents with a lower score are left out, which may be all; None: the server's own.
            max_tokens_per_doc: longer documents are truncated; None: the server's own.
            deadline_ms: milliseconds after which the server returns the best order so far; no retry begins later.
            request_id: an id for the logs of both sides.

        Raises:
            UserError: an argument cannot be sent.
            ApiStatusError: the server refused the request, or failed each time.
            EndpointError: the server cannot be reached, was too slow, or is no ``limrank serve``.
        """
        return self._call(
            rerank_call(
                query,
                documents,
                top_n=top_n,
                instruction=instruction,
                mode=mode,
                max_think_tokens=max_think_tokens,
                return_reasoning=return_reasoning,
                return_documents=return_documents,
                min_score=min_score,
                max_tokens_per_doc=max_tokens_per_doc,
                deadline_ms=deadline_ms,
                request_id=request_id,
            )
        )

    def rerank_stream(
        self, query: str, documents: Sequence[GivenDocument], **options: Unpack[RerankOptions]
    ) -> Generator[RerankUpdate, None, None]:
        """The ranking as it comes in: by direct scores first, then as chains end. The last update is ``final``.

        ::

            for update in client.rerank_stream("merge sorted feeds", documents):
                print(update.chains_finished, update.response.results[0].document)

        Retries end with the first update. ``timeout`` holds for the whole stream. A server that cannot stream gives the
        final update alone. Closing the generator closes the connection, and the server stops scoring.

        Args:
            options: the keyword arguments of :meth:`rerank`.

        Raises the errors of :meth:`rerank`; those of the server while the updates are read.
        """
        return self._updates(stream_call(query, documents, options))

    def score(self, query: str, documents: Sequence[GivenDocument], *, instruction: str = "") -> list[float | None]:
        """The scores of documents, in their order. A document that could not be scored has None.

        Raises the errors of :meth:`rerank`.
        """
        return self._call(score_call(query, documents, instruction=instruction))

    def models(self) -> list[ServedModel]:
        """The served models. Raises the errors of :meth:`rerank`."""
        return self._call(models_call())

    def ready(self) -> bool:
        """Whether the server is there and can score now. It is asked once, for at most ten seconds."""
        try:
            ready = self._attempt(ready_call(), self._one_attempt())
            if ready is None:  # an older server
                ready = self._attempt(ready_call("/healthz"), self._one_attempt())
            return bool(ready)
        except EndpointError:
            return False

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, call: Call[Value]) -> Value:
        attempts = self._attempts(call)
        return Retrying(sleep=time.sleep, **attempts.policy())(self._attempt, call, attempts)

    def _updates(self, call: Call[RerankResponse]) -> Generator[RerankUpdate, None, None]:
        attempts = self._attempts(call)

        def opened() -> tuple[RerankUpdate, Generator[RerankUpdate, None, None]]:
            found = updates(self._http, self._server, call, attempts)
            return next(found), found

        first, others = Retrying(sleep=time.sleep, **attempts.policy())(opened)
        with closing(others):
            yield first
            yield from others

    def _attempt(self, call: Call[Value], attempts: Attempts) -> Value:
        with attempts.sending(self._server):
            request = self._http.build_request(
                call.method,
                call.path,
                content=call.content(attempts.elapsed_s),
                headers=call.headers,
                timeout=attempts.limits,
            )
            with closing(self._http.send(request, stream=True)) as response:
                content = b"".join(attempts.in_time(response.iter_bytes()))
        return result_of(call, Answer(response.status_code, response.headers, content), self._server)


class AsyncClient(_Settings):
    """:class:`Client` for asynchronous code: the same arguments, methods and errors.

    ::

        async with AsyncClient() as client:
            response = await client.rerank("merge sorted feeds", ["heapq.merge …", "sorted …"])

    Many calls may be in flight at a time. A call that is cancelled closes its connection, and the server stops
    scoring for it. A client belongs to one event loop.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        max_retries: int = 4,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, headers, transport)
        self._http = httpx.AsyncClient(**self._options)

    async def rerank(
        self,
        query: str,
        documents: Sequence[GivenDocument],
        *,
        top_n: int | None = None,
        instruction: str = "",
        mode: str | None = None,
        max_think_tokens: int | None = None,
        return_reasoning: bool = False,
        return_documents: bool = False,
        min_score: float | None = None,
        max_tokens_per_doc: int | None = None,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> RerankResponse:
        """See :meth:`Client.rerank`."""
        return await self._call(
            rerank_call(
                query,
                documents,
                top_n=top_n,
                instruction=instruction,
                mode=mode,
                max_think_tokens=max_think_tokens,
                return_reasoning=return_reasoning,
                return_documents=return_documents,
                min_score=min_score,
                max_tokens_per_doc=max_tokens_per_doc,
                deadline_ms=deadline_ms,
                request_id=request_id,
            )
        )

    def rerank_stream(
        self, query: str, documents: Sequence[GivenDocument], **options: Unpack[RerankOptions]
    ) -> AsyncGenerator[RerankUpdate, None]:
        """See :meth:`Client.rerank_stream`; for ``async for``."""
        return self._updates(stream_call(query, documents, options))

    async def score(
        self, query: str, documents: Sequence[GivenDocument], *, instruction: str = ""
    ) -> list[float | None]:
        """See :meth:`Client.score`."""
        return await self._call(score_call(query, documents, instruction=instruction))

    async def models(self) -> list[ServedModel]:
        """See :meth:`Client.models`."""
        return await self._call(models_call())

    async def ready(self) -> bool:
        """See :meth:`Client.ready`."""
        try:
            ready = await self._attempt(ready_call(), self._one_attempt())
            if ready is None:  # an older server
                ready = await self._attempt(ready_call("/healthz"), self._one_attempt())
            return bool(ready)
        except EndpointError:
            return False

    async def aclose(self) -> None:
        """Close the connections. A second call does nothing."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def _call(self, call: Call[Value]) -> Value:
        attempts = self._attempts(call)
        return await AsyncRetrying(sleep=asyncio.sleep, **attempts.policy())(self._attempt, call, attempts)

    async def _updates(self, call: Call[RerankResponse]) -> AsyncGenerator[RerankUpdate, None]:
        attempts = self._attempts(call)

        async def opened() -> tuple[RerankUpdate, AsyncGenerator[RerankUpdate, None]]:
            found = async_updates(self._http, self._server, call, attempts)
            return await anext(found), found

        first: RerankUpdate
        others: AsyncGenerator[RerankUpdate, None]
        first, others = await AsyncRetrying(sleep=asyncio.sleep, **attempts.policy())(opened)
        async with aclosing(others):
            yield first
            async for update in others:
                yield update

    async def _attempt(self, call: Call[Value], attempts: Attempts) -> Value:
        with attempts.sending(self._server):
            async with asyncio.timeout(attempts.left_s):
                response = await self._http.request(
                    call.method,
                    call.path,
                    content=call.content(attempts.elapsed_s),
                    headers=call.headers,
                    timeout=attempts.limits,
                )
        return result_of(call, Answer(response.status_code, response.headers, response.content), self._server)
