"""Clients of a running ``limrank serve``: by handle inside its Ray cluster, by HTTP outside.

A server scores whole queries and returns no tokens, so a client is a ``Judge`` and not an ``Engine``.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from limrank import loops
from limrank.config import DEFAULT_SEED, EngineConfig, ModelConfig, ScoringConfig
from limrank.engines.base import Judge, Limits, RemoteSource, RequestLimiter, Usage, record_usage
from limrank.engines.openai_answers import count_of, fault_of, quoted, tokens_of
from limrank.engines.retries import Pace, requested_wait, retrying
from limrank.errors import EndpointError, LimrankError, RowError, UserError, first_line
from limrank.parsing import parse_json
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving.protocol import API, APP, MAX_DOCUMENTS, SCORER, Served
from limrank.uris import split_query

if TYPE_CHECKING:
    import httpx

_IN_FLIGHT = 32
"""Queries at a time. With ten documents each they fill an engine's batch."""

_ATTEMPTS = 8
"""About half a minute in all: a server with other users may be full for so long."""

_HEALTH_CHECK_S = 30.0
"""Pause between the health checks of a server while a request waits for its answer."""

_CHECK_S = 10.0
"""Time limit for a server's health and its model's card."""


@dataclass(frozen=True)
class ServedReranker(RemoteSource):
    """An engine source that opens as a client of a running server."""

    model: ModelConfig
    engine: EngineConfig
    scoring: ScoringConfig
    seed: int = DEFAULT_SEED

    def open(self) -> Judge:
        client = HttpClient if self.engine.base_url else HandleClient
        return client(Served.of(self.model, self.scoring, self.seed), self.engine)

    def check(self) -> None:
        """Check the server once, within seconds. Without a ``base_url`` Ray must be connected.

        Raises:
            UserError: the server cannot be reached, has no engine up, or its scoring differs from
                the recipe's.
        """

        async def ask() -> None:
            client = self.open()
            try:
                await client.check()
            finally:
                await client.aclose()

        loops.run(ask())


class _PassingError(Exception):
    """The server answers, but cannot score now."""


class _LostError(Exception):
    """The server does not answer."""


class _Client(ABC):
    """The common base: queries in flight, retries, and health checks.

    A request has no time limit while the server is healthy, since nobody knows how long a query's
    chains become. A server that is not healthy for ``engine.request_timeout_s`` is given up.
    """

    def __init__(self, recipe: Served, engine: EngineConfig, name: str, max_documents: int | None) -> None:
        self.limits = Limits(recipe.max_model_len or 32768, engine.max_in_flight or _IN_FLIGHT)
        self.limiter = RequestLimiter(self.limits.in_flight)
        self._recipe = recipe
        self._name = name
        self._max_documents = max_documents
        self._patience_s = engine.request_timeout_s
        self._pace = Pace()

    async def judge(self, query: Query, texts: Sequence[str]) -> list[Judgment]:
        size = self._max_documents or max(len(texts), 1)
        if len(texts) > size and self._recipe.mode == "cascade":
            raise RowError(f"a cascade compares all {len(texts)} candidates of a query, and a request holds {size}")
        judgments: list[Judgment] = []
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            try:
                async with self.limiter:
                    judged, usage = await self._ask(query, batch)
            except RowError as error:
                judged, usage = [Judgment("", None, ScoreStatus.FAILED, error=error) for _ in batch], Usage()
            record_usage(usage.prompt, usage.cached_prompt, usage.generated)
            judgments += judged
        return judgments

    async def check(self) -> None:
        """Raises UserError: see :meth:`ServedReranker.check`."""
        served = await self._served()
        served.check(self._recipe, self._name)

    async def _ask(self, query: Query, texts: Sequence[str]) -> tuple[list[Judgment], Usage]:
        def attempts(error: BaseException) -> int:
            return _ATTEMPTS if isinstance(error, (_PassingError, _LostError)) else 1

        try:
            async for attempt in retrying(attempts):
                with attempt:
                    return await self._while_healthy(self._send(query, list(texts)))
        except _PassingError as error:
            # Wait for an engine that is being replaced: the other queries need it, too.
            if not await self._becomes_healthy():
                raise EndpointError(f"{self._name}: no engine came back up: {error}") from error
            raise RowError(
                f"the server failed {_ATTEMPTS} times: {error}", retryable=True, attempts=_ATTEMPTS
            ) from error
        except _LostError as error:
            raise EndpointError(f"{self._name}: is gone: {error}") from error

    async def _while_healthy(self, request: Awaitable[Any]) -> Any:
        """Wait for a request, as long as the server is healthy. An answer or an error counts
        even if it arrives while the server is not healthy."""
        sent = asyncio.ensure_future(request)
        check: asyncio.Future[bool] | None = None
        try:
            while not (await asyncio.wait({sent}, timeout=_HEALTH_CHECK_S))[0]:
                check = asyncio.ensure_future(self._becomes_healthy())
                await asyncio.wait({sent, check}, return_when=asyncio.FIRST_COMPLETED)
                if not sent.done() and not check.result():
                    raise EndpointError(f"{self._name}: was not healthy for {self._patience_s:g} s")
            return sent.result()
        finally:
            sent.cancel()
            if check is not None:
                check.cancel()

    async def _becomes_healthy(self) -> bool:
        deadline = time.monotonic() + self._patience_s
        while not await self._is_healthy():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(1)
        return True

    @abstractmethod
    async def _send(self, query: Query, texts: list[str]) -> tuple[list[Judgment], Usage]:
        """Send one request. Raises _PassingError or _LostError where a retry may succeed."""

    @abstractmethod
    async def _is_healthy(self) -> bool: ...

    @abstractmethod
    async def _served(self) -> Served:
        """The server's card. Raises UserError where no server answers."""

    @abstractmethod
    async def aclose(self) -> None: ...


class HttpClient(_Client):
    """Client of a ``limrank serve`` by URL. It uses no proxy of the environment and sends no key,
    as the server takes none."""

    def __init__(self, recipe: Served, engine: EngineConfig) -> None:
        import httpx

        base, query = split_query(engine.base_url)
        super().__init__(recipe, engine, f"engine.base_url {base}", MAX_DOCUMENTS)
        # Reading has no time limit, so keepalive has to detect a server that has vanished.
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None), socket_options=_keepalive())
        try:
            self._http = httpx.AsyncClient(
                base_url=base, params=query, transport=transport, timeout=httpx.Timeout(_CHECK_S, read=None, pool=None)
            )
        except httpx.InvalidURL as error:
            raise UserError(f"{self._name}: {error}") from error

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _send(self, query: Query, texts: list[str]) -> tuple[list[Judgment], Usage]:
        import httpx

        request = {
            "model": self._recipe.model,
            "query": query.text,
            "instruction": query.instruction,
            "documents": texts,
            "return_documents": False,
            "return_reasoning": True,
            "min_score": 0,  # a result for each document, whatever the server leaves out by default
        }
        await self._pace.free()
        try:
            response = await self._http.post("/v1/rerank", json=request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _LostError(first_line(error)) from error
        status = response.status_code
        message = _message(response)
        answered = f"answered {status}: {message}"
        if status == 429 or status >= 500:
            # All requests of this client wait for as long as the server asks, up to the patience.
            self._pace.hold(min(requested_wait(response.headers) or 0.0, self._patience_s))
            raise _PassingError(answered)
        if status == 422:  # all pairs failed by faults of their own
            return [Judgment("", None, ScoreStatus.FAILED, error=RowError(message)) for _ in texts], Usage()
        if status >= 400 and status not in (401, 403, 404, 405):
            raise RowError(f"the server {answered}")
        if status != 200:
            raise EndpointError(f"{self._name}: {answered}")
        try:
            return _judgments(_body(response), len(texts))
        except (ValueError, UserError, KeyError, TypeError) as error:
            start = quoted(response.text[:5000], 80)
            raise EndpointError(f"{self._name}: does not answer as `limrank serve`: {start!r}") from error

    async def _is_healthy(self) -> bool:
        import httpx

        try:
            return (await asyncio.wait_for(self._http.get("/readyz", timeout=_CHECK_S), _CHECK_S)).status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False

    async def _served(self) -> Served:
        import httpx

        try:
            # httpx's time limit is for each read, not for the whole answer.
            async with asyncio.timeout(_CHECK_S):
                health = await self._http.get("/readyz", timeout=_CHECK_S)
                listed = await self._http.get("/v1/models", timeout=_CHECK_S)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise UserError(f"{self._name}: cannot be reached: {first_line(error)}") from error
        if health.status_code != 200:
            raise UserError(f"{self._name}: /readyz answered {health.status_code}: {_message(health)}")
        try:
            card, *_ = _body(listed)["data"]  # the others are its aliases
            return Served(model=card["id"], **card["scoring"])
        except (ValueError, UserError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._name}: does not say how it scores, unlike this version's `limrank serve`"
            ) from error


class HandleClient(_Client):
    """Client of the application on this Ray cluster."""

    def __init__(self, recipe: Served, engine: EngineConfig) -> None:
        super().__init__(recipe, engine, "engine.base_url null: the server on this Ray cluster", None)

    @cached_property
    def _scorer(self) -> Any:
        from ray import serve

        return serve.get_deployment_handle(SCORER, app_name=APP)

    async def aclose(self) -> None:
        """Does nothing: :func:`limrank.serving.job.serving` ends the application."""

    async def _send(self, query: Query, texts: list[str]) -> tuple[list[Judgment], Usage]:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import RayServeException

        try:
            scorer = self._scorer
        except (KeyError, RayServeException) as error:
            raise _LostError(f"it has no application {APP}") from error
        try:
            return await scorer.score.remote(query, texts)
        except (RayActorError, RayServeException) as error:  # a replica ended, or none is up
            raise _PassingError(first_line(error)) from error
        except RayTaskError as error:
            if isinstance(error.cause, LimrankError):
                raise error.cause from None
            raise RowError(f"the server failed: {first_line(error.cause)}") from error

    async def _is_healthy(self) -> bool:
        return await asyncio.to_thread(scorer_runs)

    async def _served(self) -> Served:
        from ray import serve
        from ray.exceptions import RayError

        if not await self._is_healthy():
            raise UserError(
                f"{self._name}: no `limrank serve` with an engine up is on it; "
                "start one there, or set engine.base_url to the URL of another one"
            )
        api = serve.get_deployment_handle(API, app_name=APP)
        try:
            return await asyncio.wait_for(api.served.remote(), _CHECK_S)
        except (TimeoutError, RayError) as error:
            raise UserError(f"{self._name}: does not answer: {first_line(error)}") from error


def scorer_runs() -> bool:
    """Whether an engine replica is up, by Serve's controller on the cluster that this process is
    connected to."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        applications = serve.status().applications
    except RayError:  # the controller is ending, or has ended
        return False
    scorer = applications[APP].deployments.get(SCORER) if APP in applications else None
    return scorer is not None and scorer.replica_states.get("RUNNING", 0) > 0


def _judgments(answer: dict[str, Any], count: int) -> tuple[list[Judgment], Usage]:
    """The results of a rerank answer in the order of the documents, and its usage. Missing token
    counts are 0.

    Raises:
        ValueError, KeyError, TypeError: a result is missing, comes twice, is for no document of the
            request, or has another server's shape.
    """
    results = {result["index"]: result for result in answer["results"] if type(result["index"]) is int}
    if len(results) != len(answer["results"]) or results.keys() != set(range(count)):
        raise ValueError(f"{len(answer['results'])} results for {count} documents")
    tokens = tokens_of(answer)
    usage = Usage(1, tokens.prompt, tokens.cached, tokens.generated)
    return [_judgment(results[index]) for index in range(count)], usage


def _judgment(result: dict[str, Any]) -> Judgment:
    score, status, reasoning = result["relevance_score"], ScoreStatus(result["status"]), result.get("reasoning")
    error = result.get("error")
    unscored = score is None and status in (ScoreStatus.FAILED, ScoreStatus.SKIPPED)
    if not unscored and (not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1):
        raise ValueError("a score that is not a probability")
    raw = result.get("raw_score")
    if raw is not None and (unscored or not isinstance(raw, int | float) or isinstance(raw, bool) or not 0 <= raw <= 1):
        raise ValueError("a raw score that is not a probability")
    if not isinstance(reasoning, str | None) or not isinstance(error, str | None):
        raise TypeError("a chain or an error that is not text")
    return Judgment(
        "",
        score,
        status,
        reasoning=reasoning,
        prompt_tokens=count_of(result.get("prompt_tokens")),
        generated_tokens=count_of(result.get("generated_tokens")),
        truncated=bool(result.get("truncated")),
        error=RowError(error) if error is not None else None,
        raw_score=raw,
    )


def _body(response: httpx.Response) -> Any:
    return parse_json(response.content, "the answer")


def _message(response: httpx.Response) -> str:
    """The message in an error's body, in our shape or in a proxy's."""
    try:
        return fault_of(_body(response), response.status_code).words
    except UserError:
        return quoted(response.text, 80)


def _keepalive() -> list[tuple[int, int, int]]:
    """Socket options: after a silent minute, probe the peer every 15 s."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):  # some systems lack it
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60))
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15))
    return options
