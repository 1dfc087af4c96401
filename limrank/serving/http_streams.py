"""How a client reads a streamed answer: by either of httpx's clients, with the same errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing
from typing import Any

import httpx

from limrank.errors import EndpointError, UserError, first_line
from limrank.serving.answers import RerankResponse
from limrank.serving.calls import Answer, Call
from limrank.serving.connection import Attempts, Server, UnansweredError, result_of
from limrank.serving.updates import EVENT_STREAM, RerankUpdate, StreamError, UpdateReader


def updates(
    http: httpx.Client, server: Server, call: Call[RerankResponse], attempts: Attempts
) -> Generator[RerankUpdate, None, None]:
    """The updates of one request. Closing the generator closes its connection.

    Raises:
        ApiStatusError: the answer is an error, or ends with one.
        EndpointError: there is no whole answer, or none of ours.
    """
    with attempts.sending(server), closing(http.send(_request(http, call, attempts), stream=True)) as response:
        reading = _Reading(call, server, response)
        for chunk in attempts.in_time(response.iter_bytes()):
            yield from reading.feed(chunk)
            if reading.ended:
                return  # whatever follows
        yield from reading.end()


async def async_updates(
    http: httpx.AsyncClient, server: Server, call: Call[RerankResponse], attempts: Attempts
) -> AsyncGenerator[RerankUpdate, None]:
    """See :func:`updates`."""
    with attempts.sending(server):
        async with asyncio.timeout(attempts.left_s):
            response = await http.send(_request(http, call, attempts), stream=True)
        try:
            reading = _Reading(call, server, response)
            chunks = aiter(response.aiter_bytes())
            while True:
                async with asyncio.timeout(attempts.left_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                for update in reading.feed(chunk):
                    yield update
                if reading.ended:
                    return
            for update in reading.end():
                yield update
        finally:
            await response.aclose()


def _request(http: httpx.Client | httpx.AsyncClient, call: Call[Any], attempts: Attempts) -> httpx.Request:
    return http.build_request(
        call.method,
        call.path,
        content=call.content(attempts.elapsed_s),
        headers=call.headers,
        timeout=attempts.limits,
    )


class _Reading:
    """The updates of an answer. A server that does not stream gives one update, its whole answer."""

    def __init__(self, call: Call[RerankResponse], server: Server, response: httpx.Response) -> None:
        self._call = call
        self._server = server
        self._status, self._headers = response.status_code, response.headers
        is_stream = self._status == 200 and self._headers.get("Content-Type", "").lower().startswith(EVENT_STREAM)
        self._reader = UpdateReader(call, self._headers) if is_stream else None
        self._pieces: list[bytes] = []

    @property
    def ended(self) -> bool:
        return self._reader is not None and self._reader.ended

    def feed(self, chunk: bytes) -> Iterator[RerankUpdate]:
        if self._reader is None:
            self._pieces.append(chunk)
            return
        try:
            yield from self._reader.feed(chunk)
        except StreamError as error:
            result_of(self._call, error.answer, self._server)
        except (ValueError, UserError) as error:
            reason = self._server.quoted(first_line(error), 120)
            raise EndpointError(f"{self._server.name}: does not answer as `limrank serve`: {reason}") from error

    def end(self) -> Iterator[RerankUpdate]:
        if self._reader is None:
            whole = result_of(self._call, Answer(self._status, self._headers, b"".join(self._pieces)), self._server)
            yield RerankUpdate(whole, tuple(result.index for result in whole.results), final=True)
        else:
            raise UnansweredError(f"{self._server.name}: gave no answer: the stream ended before its last event")
