"""A running ``limrank serve`` as the scorer of a rerank job: by handle inside its Ray cluster, by HTTP outside.

A server scores whole queries and returns no tokens, so a client of it is a ``Judge`` and not an ``Engine``.
``http_judge`` has the one by HTTP; ``http_client`` has the clients that people call.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limrank import loops
from limrank.config import DEFAULT_SEED, EngineConfig, ModelConfig, ScoringConfig
from limrank.engines.base import Judge, Limits, RemoteSource, RequestLimiter, Usage, record_usage
from limrank.engines.retries import Pace, backoff_s, retrying
from limrank.errors import EndpointError, LimrankError, RowError, UserError, first_line
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving.protocol import API, APP, SCORER, Served

_IN_FLIGHT = 32
"""Queries at a time. With ten documents each they fill an engine's batch."""

_ATTEMPTS = 8
"""About half a minute in all. Waiting for room in a full server is no attempt."""

_HEALTH_CHECK_S = 30.0
"""Pause between the health checks of a server while a request waits for its answer."""

CHECK_S = 10.0
"""Time limit for a server's health and its model's card."""


@dataclass(frozen=True)
class ServedReranker(RemoteSource):
    """An engine source that opens as a client of a running server."""

    model: ModelConfig
    engine: EngineConfig
    scoring: ScoringConfig
    seed: int = DEFAULT_SEED

    def open(self) -> Judge:
        from limrank.serving.http_judge import HttpClient

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


class PassingError(Exception):
    """The server answers, but cannot score now."""


class FullError(Exception):
    """The server is well, and takes no more requests now."""


class LostError(Exception):
    """The server does not answer."""


class ServerJudge(ABC):
    """The common base: queries in flight, retries, and health checks.

    A request has no time limit while the server is healthy, since nobody knows how long a query's
    chains become. A server that is not healthy for ``engine.request_timeout_s`` is given up. A request waits for
    room in a full server in the same way.
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
            return _ATTEMPTS if isinstance(error, (PassingError, LostError)) else 1

        try:
            async for attempt in retrying(attempts):
                with attempt:
                    return await self._while_healthy(self._once_taken(query, list(texts)))
        except PassingError as error:
            # Wait for an engine that is being replaced: the other queries need it, too.
            if not await self._becomes_healthy():
                raise EndpointError(f"{self._name}: no engine came back up: {error}") from error
            raise RowError(
                f"the server failed {_ATTEMPTS} times: {error}", retryable=True, attempts=_ATTEMPTS
            ) from error
        except LostError as error:
            raise EndpointError(f"{self._name}: is gone: {error}") from error

    async def _once_taken(self, query: Query, texts: list[str]) -> tuple[list[Judgment], Usage]:
        """Send a request until the server has room for it."""
        refused = 0
        while True:
            try:
                return await self._send(query, texts)
            except FullError:
                refused += 1
                # Queries that were sent away together do not come back together.
                await asyncio.sleep(backoff_s(refused))

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
        """Send one request. Raises FullError, PassingError or LostError where a retry may succeed."""

    @abstractmethod
    async def _is_healthy(self) -> bool: ...

    @abstractmethod
    async def _served(self) -> Served:
        """The server's card. Raises UserError where no server answers."""

    @abstractmethod
    async def aclose(self) -> None: ...


class HandleClient(ServerJudge):
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
            raise LostError(f"it has no application {APP}") from error
        try:
            return await scorer.score.remote(query, texts)
        except (RayActorError, RayServeException) as error:  # a replica ended, or none is up
            raise PassingError(first_line(error)) from error
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
            return await asyncio.wait_for(api.served.remote(), CHECK_S)
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
