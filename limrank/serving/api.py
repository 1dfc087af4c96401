"""The HTTP side of the server: a FastAPI application over a :class:`Backend`.

It does not know Ray. Its backend is a deployment in ``app.py``, and an engine in tests.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from limrank.engines.base import Usage, meter
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving import request_ids
from limrank.serving.access import Guard
from limrank.serving.admission import Admission
from limrank.serving.errors import ApiError, engine_unavailable, invalid_request, unknown_model
from limrank.serving.limits import marked_truncated
from limrank.serving.metrics import CONTENT_TYPE, Metrics
from limrank.serving.openapi import OF_SCORING, described, docs_page
from limrank.serving.options import AS_RECIPE, ScoreOptions, Update
from limrank.serving.page import add_page
from limrank.serving.protocol import Served
from limrank.serving.rates import RateLimiter
from limrank.serving.request_records import Observer, Recorder
from limrank.serving.requests import RerankRequest, ScoreRequest
from limrank.serving.responses import (
    Health,
    ModelCard,
    ModelList,
    RerankResponse,
    ScoreResponse,
    rerank_response,
    score_response,
)
from limrank.serving.settings import ApiSettings
from limrank.serving.streams import EVENTS, EventStream, Feed
from limrank.version import __version__


class Backend(Protocol):
    async def score(self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE) -> list[Judgment]:
        """Judgments in the order of the texts. Their usage is recorded in the :func:`meter` around the call.

        Raises:
            ApiError: no engine is up, or the deadline passed first.
        """

    def stream(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> AsyncGenerator[Update, None]:
        """The same judgments while they come in. Closing the generator ends the work on them. Raises as ``score``."""

    async def healthy(self) -> bool: ...


def build_api(
    backend: Backend,
    served: Served,
    settings: ApiSettings | None = None,
    *,
    metrics: Metrics | None = None,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """The application: all routes, and all errors in one shape.

    Args:
        served: the model's card: its name, and what its scores depend on.
        settings: None: the defaults.
        metrics: what ``/metrics`` gives; None: those of an engine in this process.
        observers: get the record of each request, too: the access log, the traces.
    """
    settings = settings or ApiSettings()
    metrics = metrics or Metrics(served)
    routes = _Routes(backend, served, settings, metrics)
    # Some clients send JSON without its content type. FastAPI's own pages load scripts from elsewhere.
    api = FastAPI(title="limrank", version=__version__, strict_content_type=False, docs_url=None, redoc_url=None)
    rerank = described(RerankResponse, OF_SCORING, events=EVENTS)
    api.post("/v1/rerank", **rerank)(routes.rerank)
    api.post("/rerank", **rerank, include_in_schema=False)(routes.rerank)
    api.post("/v2/rerank", **rerank)(routes.rerank_v2)
    score = described(ScoreResponse, OF_SCORING)
    api.post("/v1/score", **score)(routes.score)
    api.post("/score", **score, include_in_schema=False)(routes.score)
    api.get("/v1/models", **described(ModelList, ()))(routes.models)
    api.get("/healthz", **described(Health, ()))(routes.healthz)
    api.get("/readyz", **described(Health, (503,)))(routes.readyz)
    api.get("/metrics", response_class=PlainTextResponse)(routes.metrics)
    api.get("/docs", include_in_schema=False)(lambda: HTMLResponse(docs_page(api.openapi())))
    add_page(api)
    api.exception_handler(ApiError)(_api_error)
    api.exception_handler(RequestValidationError)(_invalid_request)
    api.exception_handler(HTTPException)(_http_error)
    api.exception_handler(Exception)(partial(_internal_error, respond_id=settings.respond_ids))
    # The last one is the outermost: every answer has an id and is recorded, those of the guard, too. What the guard in
    # Ray Serve's proxy refuses does not come here.
    api.add_middleware(Guard, access=settings.access)
    api.add_middleware(Recorder, observers=[metrics, *observers])
    api.add_middleware(request_ids.RequestIds, respond=settings.respond_ids)
    return api


class _Routes:
    def __init__(self, backend: Backend, served: Served, settings: ApiSettings, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self._served = served
        self._model = served.model
        self._names = list(dict.fromkeys([served.model, *settings.aliases]))
        self._modes = settings.modes or {served.mode: served.max_think_tokens, "direct": 0}
        self._min_score = settings.min_score or 0.0
        self._limits = settings.access.limits
        self._rates = RateLimiter(settings.access.pairs_per_minute)
        self._admission = Admission(settings.max_requests, settings.max_pairs)
        self._started = int(time.time())

    async def rerank(self, request: RerankRequest) -> Any:
        """Rank documents by relevance, in the shapes of Jina's API and Cohere's v1."""
        return await self._rerank(request, return_documents=True)

    async def rerank_v2(self, request: RerankRequest) -> Any:
        """Rank documents in the shape of Cohere's v2, which returns documents only on request."""
        return await self._rerank(request, return_documents=False)

    async def score(self, request: ScoreRequest) -> dict[str, Any]:
        """Score texts against a query, in the shape of vLLM's API."""
        judgments, usage = await self._score(request, request.text_2, ("text_1", "text_2"))
        return score_response(judgments, usage, model=request.model or self._model)

    async def models(self) -> ModelList:
        """The served model under each of its names, its own first, in the shape of OpenAI's API."""
        return ModelList(data=[ModelCard.of(name, self._served, self._modes, self._started) for name in self._names])

    async def healthz(self) -> Health:
        """200 while the API answers, with or without an engine."""
        return Health()

    async def readyz(self) -> Health:
        """200 while an engine is up, else 503."""
        if not await self._backend.healthy():
            raise engine_unavailable()
        return Health()

    async def metrics(self) -> Response:
        """The server's metrics, in Prometheus' text form."""
        return Response(await self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _rerank(self, request: RerankRequest, *, return_documents: bool) -> dict[str, Any] | EventStream:
        render = partial(
            rerank_response,
            request,
            model=request.model or self._model,
            return_documents=return_documents,
            min_score=self._min_score,
        )
        if request.stream:
            return await EventStream.begun(partial(self._stream, request), Feed(len(request.documents)), render)
        return render(*await self._score(request, request.texts()))

    async def _stream(self, request: RerankRequest, feed: Feed) -> None:
        with self._admitted(request, request.texts(), ("query", "documents")) as work:
            feed.usage = work.usage
            async with aclosing(self._backend.stream(work.query, work.texts, work.options)) as updates:
                async for update in updates:
                    feed.put(update, work.cut)
            work.ended([judgment for judgment in feed.judgments if judgment is not None])

    async def _score(
        self,
        request: RerankRequest | ScoreRequest,
        texts: Sequence[str],
        names: tuple[str, str] = ("query", "documents"),
    ) -> tuple[list[Judgment], Usage]:
        with self._admitted(request, texts, names) as work:
            judgments = await self._backend.score(work.query, work.texts, work.options)
            work.ended(judgments)
            return marked_truncated(judgments, work.cut), work.usage

    @contextmanager
    def _admitted(
        self, request: RerankRequest | ScoreRequest, texts: Sequence[str], names: tuple[str, str]
    ) -> Iterator[_Work]:
        """A request that is fit to be scored, counted while the block runs. Raises ApiError: it is refused."""
        if request.model is not None and request.model not in self._names:
            raise unknown_model(request.model, self._model)
        options = request.options()
        options.check(self._modes)
        query = request.to_query()
        texts, cut = self._limits.fit(query, texts, names)
        mode = options.mode or self._served.mode
        with self._admission.admitted(len(texts)), meter() as usage:
            self._rates.take(len(texts))
            with self._metrics.scoring(mode, len(texts), usage) as judged:

                def ended(judgments: Sequence[Judgment]) -> None:
                    judged(judgments)
                    self._admission.finished(sum(judgment.status != ScoreStatus.SKIPPED for judgment in judgments))

                yield _Work(query, texts, cut, options, usage, ended)


@dataclass(frozen=True, slots=True)
class _Work:
    """A request that is being scored.

    Attributes:
        texts, cut: as it is scored, and the indices of those that the limits have cut.
        usage: is filled meanwhile.
        ended: takes its judgments.
    """

    query: Query
    texts: Sequence[str]
    cut: frozenset[int]
    options: ScoreOptions
    usage: Usage
    ended: Callable[[Sequence[Judgment]], None]


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


async def _internal_error(request: Request, _: Exception, *, respond_id: bool) -> JSONResponse:
    # Starlette re-raises the error after the answer, so it also appears in the log. It answers outside of every
    # middleware, so the id is added here.
    headers = {request_ids.HEADER: request_ids.of(request.scope)} if respond_id else {}
    error = ApiError(500, "internal_error", "the server failed; its log says why", headers=headers)
    return await _api_error(request, error)
