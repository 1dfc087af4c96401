"""The Ray Serve application: ``Api`` speaks HTTP, ``Scorer`` holds the engine.

They are two deployments so that HTTP stays well while an engine is not: the API answers
``/healthz`` under any load, and tells in JSON of an engine whose whole process is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from limrank import __version__
from limrank.config import ScoringConfig, ServeJob
from limrank.engines import Engine, EngineSource
from limrank.errors import EngineError, UserError
from limrank.records import Judgment, Query
from limrank.scoring import check_labels, score_query
from limrank.serving.errors import ApiError, engine_unavailable, invalid_request, overloaded, unknown_model
from limrank.serving.types import Health, ModelCard, ModelList, RerankRequest, RerankResponse, ScoreRequest
from limrank.serving.types import ScoreResponse, rerank_response, score_response, to_candidates

APP = "limrank"
SCORER = "Scorer"

_UNLIMITED = 1_000_000
_DRAIN_S = 10.0
"""How long a replica that is told to stop may finish what it works on."""


def application(config: ServeJob, source: EngineSource, model: str, wanted: dict[str, float]) -> serve.Application:
    """The application to hand to ``serve.run``.

    Args:
        model: the name it is served under.
        wanted: what one engine replica takes (num_cpus, num_gpus).
    """
    replicas, ongoing = config.workers.replicas, config.engine.max_in_flight
    shutdown = {"graceful_shutdown_wait_loop_s": 0.2, "graceful_shutdown_timeout_s": _DRAIN_S}
    scorer = serve.deployment(
        Scorer,
        name=SCORER,
        num_replicas=replicas,
        ray_actor_options=wanted,
        max_ongoing_requests=ongoing,
        max_constructor_retry_count=3,
        **shutdown,
    )
    # The API counts requests itself: Serve's own limit answers in plain text, counts
    # those that are only on their way to a free replica as waiting, and holds health
    # checks back too.
    waiting = config.serving.max_queued_requests
    limit = None if waiting < 0 else replicas * ongoing + waiting
    api = serve.deployment(
        Api, name="Api", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=_UNLIMITED, **shutdown
    )
    return api.bind(scorer.bind(source, config.scoring), model, limit)


class Scorer:
    """An engine replica. The engine has an event loop in a thread of its own: opening it
    takes a minute, in which Serve's loop must go on answering."""

    async def __init__(self, source: EngineSource, scoring: ScoringConfig) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine").start()
        self._scoring = scoring
        self._refused: UserError | None = None
        self._engine: Engine | None = None
        try:
            self._engine = await self._on_loop(_open(source))
        except UserError as error:
            self._refused = error  # told by ready(): raised here, Serve would try again, and it is no use

    async def ready(self) -> None:
        """Raises UserError where the engine refused its settings."""
        if self._refused is not None:
            raise self._refused

    async def score(self, query: Query, texts: Sequence[str]) -> list[Judgment]:
        """Judgments in the texts' order. Cancelling it aborts the engine's requests."""
        try:
            return await self._on_loop(score_query(query, to_candidates(texts), self._engine, self._scoring))
        except EngineError as error:
            # A dead engine stays dead, and a replica that fails at once draws the
            # traffic of the busy ones. With the process gone Serve starts another.
            logging.getLogger(__name__).error("engine lost, replica ends: %s", error)
            os._exit(70)

    async def __del__(self) -> None:
        # Serve awaits this when it stops a replica.
        if getattr(self, "_engine", None) is not None:
            await self._on_loop(self._engine.aclose())

    def _on_loop(self, coroutine: Awaitable[Any]) -> asyncio.Future:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


async def _open(source: EngineSource) -> Engine:
    engine = source.open()
    check_labels(engine.tokenizer)
    return engine


api = FastAPI(title="limrank", version=__version__, strict_content_type=False)


@serve.ingress(api)
class Api:
    def __init__(self, scorer: DeploymentHandle, model: str, limit: int | None) -> None:
        self._scorer = scorer
        self._model = model
        self._limit = limit
        self._in_flight = 0
        self._started = int(time.time())

    @api.post("/v1/rerank", response_model=None, responses={200: {"model": RerankResponse}})
    @api.post("/rerank", response_model=None, include_in_schema=False)
    async def rerank(self, request: RerankRequest) -> dict[str, Any]:
        """Order documents by relevance, in the shapes of Jina's API and Cohere's v1."""
        return await self._rerank(request, return_documents=True)

    @api.post("/v2/rerank", response_model=None, responses={200: {"model": RerankResponse}})
    async def rerank_v2(self, request: RerankRequest) -> dict[str, Any]:
        """The same in the shape of Cohere's v2: documents only come back where asked for."""
        return await self._rerank(request, return_documents=False)

    @api.post("/v1/score", response_model=None, responses={200: {"model": ScoreResponse}})
    async def score(self, request: ScoreRequest) -> dict[str, Any]:
        """Score texts against a query, in the shape of vLLM's API."""
        judgments = await self._score(request.model, request.to_query(), request.text_2)
        return score_response(judgments, model=self._model)

    @api.get("/v1/models")
    async def models(self) -> ModelList:
        return ModelList(data=[ModelCard(id=self._model, created=self._started)])

    @api.get("/healthz")
    async def healthz(self) -> Health:
        """200 where an engine replica is up, 503 otherwise."""
        if not await asyncio.to_thread(_running_scorers):
            raise engine_unavailable()
        return Health()

    async def _rerank(self, request: RerankRequest, *, return_documents: bool) -> dict[str, Any]:
        judgments = await self._score(request.model, request.to_query(), request.texts())
        return rerank_response(request, judgments, model=self._model, return_documents=return_documents)

    async def _score(self, model: str | None, query: Query, texts: list[str]) -> list[Judgment]:
        if model is not None and model != self._model:
            raise unknown_model(model, self._model)
        if self._limit is not None and self._in_flight >= self._limit:
            raise overloaded()
        self._in_flight += 1
        try:
            return await self._scorer.score.remote(query, texts)
        except (RayActorError, DeploymentUnavailableError) as error:
            raise engine_unavailable() from error
        except RayTaskError as error:
            logging.getLogger(__name__).exception("scoring failed")
            raise ApiError(500, "internal_error", "scoring failed; the server's log says why") from error
        finally:
            self._in_flight -= 1


def _running_scorers() -> int:
    applications = serve.status().applications
    scorer = applications[APP].deployments.get(SCORER) if APP in applications else None
    return scorer.replica_states.get("RUNNING", 0) if scorer else 0


# ---- every error leaves in one shape -------------------------------------------------


@api.exception_handler(ApiError)
async def _api_error(_: Any, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


@api.exception_handler(RequestValidationError)
async def _invalid_request(_: Any, error: RequestValidationError) -> JSONResponse:
    return await _api_error(_, invalid_request(error.errors()))


@api.exception_handler(HTTPException)
async def _http_error(request: Any, error: HTTPException) -> JSONResponse:
    """Of the router: an unknown path, a wrong method, a body that is not text."""
    known = {
        404: ("unknown_path", f"no such path: {request.url.path}"),
        405: ("method_not_allowed", f"{request.url.path} does not take {request.method}"),
    }
    code, message = known.get(error.status_code, ("invalid_body", str(error.detail)))
    return await _api_error(request, ApiError(error.status_code, code, message, headers=error.headers))


@api.exception_handler(Exception)
async def _internal_error(_: Any, error: Exception) -> JSONResponse:
    # Starlette raises it again once this is sent, so it also gets to the log.
    return await _api_error(_, ApiError(500, "internal_error", "the server failed; its log says why"))
