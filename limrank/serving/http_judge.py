"""A running ``limrank serve``, by URL, as the scorer of a rerank job."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx

from limrank.config import EngineConfig
from limrank.engines.base import Usage
from limrank.errors import ApiStatusError, EndpointError, RowError, UserError, first_line
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving.answers import RerankResponse, ScoredDocument
from limrank.serving.calls import Answer, Call, models_call, ready_call, rerank_call
from limrank.serving.client import CHECK_S, FullError, LostError, PassingError, ServerJudge
from limrank.serving.connection import NO_ANSWER, Server, passes, result_of
from limrank.serving.protocol import MAX_DOCUMENTS, Served
from limrank.uris import split_query

_REFUSES_ALL = (401, 403, 404, 405)
"""Statuses that every request of the job would get."""


class HttpClient(ServerJudge):
    """Client of a ``limrank serve`` by URL. It uses no proxy of the environment, and sends the key of
    ``LIMRANK_API_KEY`` if that is set."""

    def __init__(self, recipe: Served, engine: EngineConfig) -> None:
        name = f"engine.base_url {split_query(engine.base_url)[0]}"
        super().__init__(recipe, engine, name, MAX_DOCUMENTS)
        self._server = Server.at(engine.base_url, name=name)
        # Reading has no time limit, so keepalive has to detect a server that has vanished.
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None), socket_options=_keepalive())
        try:
            self._http = httpx.AsyncClient(
                base_url=self._server.base,
                params=self._server.params,
                headers=self._server.headers,
                transport=transport,
                timeout=httpx.Timeout(CHECK_S, read=None, pool=None),
            )
        except httpx.InvalidURL as error:
            raise UserError(f"{self._name}: {error}") from error

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _send(self, query: Query, texts: list[str]) -> tuple[list[Judgment], Usage]:
        call = rerank_call(
            query.text,
            texts,
            model=self._recipe.model,
            instruction=query.instruction,
            return_reasoning=True,
            min_score=0,  # a result for each document, whatever the server leaves out by default
        )
        await self._pace.free()
        try:
            answer = await self._answer(call)
        except NO_ANSWER as error:
            raise LostError(self._server.quoted(first_line(error))) from error
        try:
            response = result_of(call, answer, self._server)
        except ApiStatusError as error:
            if error.status == 422 and _raised_limit(error) is None:  # all pairs failed by faults of their own
                return [Judgment("", None, ScoreStatus.FAILED, error=RowError(error.words)) for _ in texts], Usage()
            raise self._fault(error) from error
        return self._judgments(response, len(texts))

    def _fault(self, error: ApiStatusError) -> Exception:
        answered = f"answered {error.status}: {error.words}"
        if passes(error.status):
            # All requests of this client wait for as long as the server asks, up to the patience.
            self._pace.hold(min(error.retry_after_s or 0.0, self._patience_s))
            return FullError(answered) if error.status == 429 else PassingError(answered)
        if limit := _raised_limit(error):  # the other queries would be refused, too
            return EndpointError(
                f"{self._name}: {answered}: raise {limit}, or give a query fewer candidates (first_stage.depth)"
            )
        if error.status >= 400 and error.status not in _REFUSES_ALL:
            return RowError(f"the server {answered}")
        return EndpointError(f"{self._name}: {answered}")

    async def _answer(self, call: Call[Any], **options: Any) -> Answer:
        response = await self._http.request(
            call.method, call.path, content=call.content(0.0), headers=call.headers, **options
        )
        return Answer(response.status_code, response.headers, response.content)

    def _judgments(self, response: RerankResponse, count: int) -> tuple[list[Judgment], Usage]:
        """The results in the order of the documents, and their usage. Raises EndpointError: one is missing, or has
        a status of another version."""
        results = sorted(response.results, key=lambda result: result.index)
        foreign = [result.status for result in results if not isinstance(result.status, ScoreStatus)]
        if len(results) != count or foreign:
            reason = f"a status {foreign[0]!r}" if foreign else f"{len(results)} results for {count} documents"
            raise EndpointError(f"{self._name}: does not answer as `limrank serve`: {reason}")
        usage = response.usage
        tokens = Usage(1, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return [_judgment(result) for result in results], tokens

    async def _is_healthy(self) -> bool:
        call = ready_call()
        try:
            answer = await asyncio.wait_for(self._answer(call, timeout=CHECK_S), CHECK_S)
            return bool(result_of(call, answer, self._server))
        except NO_ANSWER:
            return False

    async def _served(self) -> Served:
        health, models = Call("GET", "/readyz", lambda _: None), models_call()
        try:
            # httpx's time limit is for each read, not for the whole answer.
            async with asyncio.timeout(CHECK_S):
                answers = [await self._answer(call, timeout=CHECK_S) for call in (health, models)]
        except NO_ANSWER as error:
            raise UserError(f"{self._name}: cannot be reached: {self._server.quoted(first_line(error))}") from error
        try:
            result_of(health, answers[0], self._server)
            # A server lists other names of its model, too.
            (card,) = [each for each in result_of(models, answers[1], self._server) if each.root in (None, each.id)]
            return Served(model=card.id, **card.scoring)
        except ApiStatusError as error:
            path = health.path if answers[0].status != 200 else models.path
            raise UserError(f"{self._name}: {path} answered {error.status}: {error.words}") from error
        except (EndpointError, ValueError, TypeError) as error:
            raise UserError(
                f"{self._name}: does not say how it scores, unlike this version's `limrank serve`"
            ) from error


def _raised_limit(error: ApiStatusError) -> str | None:
    """The limit of the server that refuses a query's candidates; None for another error."""
    if error.status == 422 and error.code == "too_many_documents":
        return "serving.max_documents of the server"
    if error.status == 413:
        return "serving.max_body_bytes of the server, and the limit of a proxy before it"
    return None


def _judgment(result: ScoredDocument) -> Judgment:
    return Judgment(
        "",
        result.relevance_score,
        ScoreStatus(result.status),
        reasoning=result.reasoning,
        prompt_tokens=result.prompt_tokens,
        generated_tokens=result.generated_tokens,
        truncated=result.truncated,
        error=RowError(result.error) if result.error is not None else None,
        raw_score=result.raw_score,
    )


def _keepalive() -> list[tuple[int, int, int]]:
    """Socket options: after a silent minute, probe the peer every 15 s."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):  # some systems lack it
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60))
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15))
    return options
