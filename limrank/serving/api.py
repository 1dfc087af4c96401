"""The HTTP side of the server: a FastAPI application over a :class:`Backend`.

It does not know Ray. Its backend is a deployment in ``app.py``, and an engine in tests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from limrank.engines.base import Usage, meter
from limrank.records import Judgment, Query
from limrank.serving.errors import ApiError, engine_unavailable, invalid_request, overloaded, unknown_model
from limrank.serving.metrics import CONTENT_TYPE, Metrics
from limrank.serving.protocol import Served
from limrank.serving.request_ids import RequestIds
from limrank.serving.request_records import Observer, Recorder
from limrank.serving.types import (
    Health,
    ModelCard,
    ModelList,
    RerankRequest,
    RerankResponse,
    ScoreRequest,
    ScoreResponse,
    rerank_response,
    score_response,
)
from limrank.version import __version__


class Backend(Protocol):
    async def score(self, query: Query, texts: Sequence[str]) -> list[Judgment]:
        """Judgments in the order of the texts. Their usage is recorded in the :func:`meter` around the call.

        Raises:
            ApiError: no engine is up.
        """

    async def healthy(self) -> bool: ...


def build_api(
    backend: Backend,
    served: Served,
    limit: int | None,
    min_score: float | None = None,
    *,
    metrics: Metrics | None = None,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """The application: all routes, and all errors in one shape.

    Args:
        served: the model's card: its name, and what its scores depend on.
        limit: scoring requests that may run or wait; None: any number.
        min_score: results with a lower score are left out, where a request has no number; None: none are.
        metrics: what ``/metrics`` gives; None: those of an engine in this process.
        observers: get the record of each request, too: the access log, the traces.
    """
    metrics = metrics or Metrics(served)
    routes = _Routes(backend, served, limit, min_score, metrics)
    # Some clients send JSON without its content type.
    api = FastAPI(title="limrank", version=__version__, strict_content_type=False)
    rerank = {"response_model": None, "responses": {200: {"model": RerankResponse}}}
    api.post("/v1/rerank", **rerank)(routes.rerank)
    api.post("/rerank", **rerank, include_in_schema=False)(routes.rerank)
    api.post("/v2/rerank", **rerank)(routes.rerank_v2)
    api.post("/v1/score", response_model=None, responses={200: {"model": ScoreResponse}})(routes.score)
    api.get("/v1/models")(routes.models)
    api.get("/healthz")(routes.healthz)
    api.get("/metrics", response_class=PlainTextResponse)(routes.metrics)
    api.exception_handler(ApiError)(_api_error)
    api.exception_handler(RequestValidationError)(_invalid_request)
    api.exception_handler(HTTPException)(_http_error)
    api.exception_handler(Exception)(_internal_error)
    # The last one added is the outermost: what refuses requests is added above these two.
    api.add_middleware(Recorder, observers=[metrics, *observers])
    api.add_middleware(RequestIds)
    return api


class _Routes:
    def __init__(
        self, backend: Backend, served: Served, limit: int | None, min_score: float | None, metrics: Metrics
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._min_score = min_score or 0.0
        self._served = served
        self._model = served.model
        self._limit = limit
        self._in_flight = 0
        self._started = int(time.time())

    async def rerank(self, request: RerankRequest) -> dict[str, Any]:
        """Rank documents by relevance, in the shapes of Jina's API and Cohere's v1."""
        return await self._rerank(request, return_documents=True)

    async def rerank_v2(self, request: RerankRequest) -> dict[str, Any]:
        """Rank documents in the shape of Cohere's v2, which returns documents only on request."""
        return await self._rerank(request, return_documents=False)

    async def score(self, request: ScoreRequest) -> dict[str, Any]:
        """Score texts against a query, in the shape of vLLM's API."""
        judgments, usage = await self._score(request.model, request.to_query(), request.text_2)
        return score_response(judgments, usage, model=self._model)

    async def models(self) -> ModelList:
        return ModelList(data=[ModelCard.of(self._served, self._started)])

    async def healthz(self) -> Health:
        """200 if an engine is up, else 503."""
        if not await self._backend.healthy():
            raise engine_unavailable()
        return Health()

    async def metrics(self) -> Response:
        """The server's metrics, in Prometheus' text form."""
        return Response(await self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _rerank(self, request: RerankRequest, *, return_documents: bool) -> dict[str, Any]:
        judgments, usage = await self._score(request.model, request.to_query(), request.texts())
        return rerank_response(
            request,
            judgments,
            usage,
            model=self._model,
            return_documents=return_documents,
            min_score=self._min_score,
        )

    async def _score(self, model: str | None, query: Query, texts: Sequence[str]) -> tuple[list[Judgment], Usage]:
        if model is not None and model != self._model:
            raise unknown_model(model, self._model)
        if self._limit is not None and self._in_flight >= self._limit:
            raise overloaded()
        self._in_flight += 1
        try:
            with meter() as usage, self._metrics.scoring(self._served.mode, len(texts), usage) as judged:
                judgments = await self._backend.score(query, texts)
                judged(judgments)
                return judgments, usage
        finally:
            self._in_flight -= 1


async def _api_error(_: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    return await _api_error(request, invalid_request(error.errors()))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    """The router's errors: an unknown path, a wrong method, a body that is not text."""
    known = {
        404: ("unknown_path", f"no such path: {request.url.path}"),
        405: ("method_not_allowed", f"{request.url.path} does not take {request.method}"),
    }
    code, message = known.get(error.status_code, ("invalid_body", str(error.detail)))
    return await _api_error(request, ApiError(error.status_code, code, message, headers=error.headers))


async def _internal_error(request: Request, _: Exception) -> JSONResponse:
    # Starlette re-raises the error after the answer, so it also appears in the log.
    return await _api_error(request, ApiError(500, "internal_error", "the server failed; its log says why"))
