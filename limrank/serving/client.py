"""A served reranker of ours as what judges: by handle inside its Ray cluster, by HTTP outside.

It is asked for whole queries, not for tokens, so it is a ``Judge`` and no ``Engine``.
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
from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines.base import Judge, Limits, RemoteSource, RequestLimiter, Usage, record_usage
from limrank.engines.openai_answers import count_of, fault_of, quoted, tokens_of
from limrank.engines.retries import Pace, retrying, told_wait
from limrank.errors import EndpointError, LimrankError, RowError, UserError, first_line
from limrank.parsing import parse_json
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving.protocol import API, APP, MAX_DOCUMENTS, SCORER, Served
from limrank.uris import split_query

if TYPE_CHECKING:
    import httpx

_IN_FLIGHT = 32
"""Queries at a time: with ten documents each they fill an engine's batch."""

_ATTEMPTS = 8
"""About half a minute in all: so long a server that others use too may be full."""

_LOOK_S = 30.0
"""How often a server that has not answered yet is asked whether it is well."""

_CHECK_S = 10.0
"""What a server may take to say something about itself."""


@dataclass(frozen=True)
class ServedReranker(RemoteSource):
    """An engine source: opens as a client of a server that runs already."""

    model: ModelConfig
    engine: EngineConfig
    scoring: ScoringConfig

    def open(self) -> Judge:
        client = HttpClient if self.engine.base_url else HandleClient
        return client(Served.of(self.model, self.scoring), self.engine)

    def check(self) -> None:
        """Ask the server once, within seconds. Without a ``base_url`` Ray must be connected.

        Raises:
            UserError: it cannot be reached, has no engine up, or scores otherwise than
                the recipe says.
        """

        async def ask() -> None:
            client = self.open()
            try:
                await client.check()
            finally:
                await client.aclose()

        loops.run(ask())


class _PassingError(Exception):
    """The server is there, and could not do it now."""


class _LostError(Exception):
    """No answer was to be had."""


class _Client(ABC):
    """What both ways have in common: queries in flight, patience, attempts.

    An answer may take as long as it does while the server is well: how long a query's
    chains are nobody knows. A server that is unwell for ``engine.request_timeout_s`` is gone.
    """

    def __init__(self, recipe: Served, engine: EngineConfig, where: str, most: int | None) -> None:
        self.limits = Limits(recipe.max_model_len or 32768, engine.max_in_flight or _IN_FLIGHT)
        self.limiter = RequestLimiter(self.limits.in_flight)
        self._recipe = recipe
        self._where = where
        self._most = most
        self._patience_s = engine.request_timeout_s
        self._pace = Pace()

    async def judge(self, query: Query, texts: Sequence[str]) -> list[Judgment]:
        most = self._most or max(len(texts), 1)
        if len(texts) > most and self._recipe.mode == "cascade":
            raise RowError(f"a cascade compares all {len(texts)} candidates of a query, and a request holds {most}")
        judgments: list[Judgment] = []
        for start in range(0, len(texts), most):
            part = texts[start : start + most]
            try:
                async with self.limiter:
                    judged, usage = await self._ask(query, part)
            except RowError as error:
                judged, usage = [Judgment("", None, ScoreStatus.FAILED, error=error) for _ in part], Usage()
            record_usage(usage.prompt, usage.cached_prompt, usage.generated)
            judgments += judged
        return judgments

    async def check(self) -> None:
        """Raises UserError: see :meth:`ServedReranker.check`."""
        served = await self._served()
        served.check(self._recipe, self._where)

    async def _ask(self, query: Query, texts: Sequence[str]) -> tuple[list[Judgment], Usage]:
        def attempts(error: BaseException) -> int:
            return _ATTEMPTS if isinstance(error, (_PassingError, _LostError)) else 1

        try:
            async for attempt in retrying(attempts):
                with attempt:
                    return await self._while_well(self._send(query, list(texts)))
        except _PassingError as error:
            # An engine that is being replaced is waited for: the other queries need it too.
            if not await self._becomes_well():
                raise EndpointError(f"{self._where}: no engine came up again: {error}") from error
            raise RowError(
                f"the server failed {_ATTEMPTS} times: {error}", retryable=True, attempts=_ATTEMPTS
            ) from error
        except _LostError as error:
            raise EndpointError(f"{self._where}: is gone: {error}") from error

    async def _while_well(self, request: Awaitable[Any]) -> Any:
        """What the request comes to. An answer, or an error, counts also while the server is not well."""
        sent = asyncio.ensure_future(request)
        looking: asyncio.Future[bool] | None = None
        try:
            while not (await asyncio.wait({sent}, timeout=_LOOK_S))[0]:
                looking = asyncio.ensure_future(self._becomes_well())
                await asyncio.wait({sent, looking}, return_when=asyncio.FIRST_COMPLETED)
                if not sent.done() and not looking.result():
                    raise EndpointError(f"{self._where}: was not well for {self._patience_s:g} s")
            return sent.result()
        finally:
            sent.cancel()
            if looking is not None:
                looking.cancel()

    async def _becomes_well(self) -> bool:
        deadline = time.monotonic() + self._patience_s
        while not await self._is_well():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(1)
        return True

    @abstractmethod
    async def _send(self, query: Query, texts: list[str]) -> tuple[list[Judgment], Usage]:
        """One request; raises _PassingError or _LostError where another may do better."""

    @abstractmethod
    async def _is_well(self) -> bool: ...

    @abstractmethod
    async def _served(self) -> Served:
        """Raises UserError where there is nobody to ask."""

    @abstractmethod
    async def aclose(self) -> None: ...


class HttpClient(_Client):
    """Of a ``limrank serve`` anywhere. No proxy of the environment's is used, and no key is
    sent: the server asks for none."""

    def __init__(self, recipe: Served, engine: EngineConfig) -> None:
        import httpx

        base, query = split_query(engine.base_url)
        super().__init__(recipe, engine, f"engine.base_url {base}", MAX_DOCUMENTS)
        # An answer is waited for without a limit, so a peer that vanished must show.
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None), socket_options=_keepalive())
        try:
            self._http = httpx.AsyncClient(
                base_url=base, params=query, transport=transport, timeout=httpx.Timeout(_CHECK_S, read=None, pool=None)
            )
        except httpx.InvalidURL as error:
            raise UserError(f"{self._where}: {error}") from error

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
            # As long as it asks for, but no longer than it may be unwell; all requests of this client wait.
            self._pace.hold(min(told_wait(response.headers) or 0.0, self._patience_s))
            raise _PassingError(answered)
        if status == 422:  # every pair failed, each by its own fault
            return [Judgment("", None, ScoreStatus.FAILED, error=RowError(message)) for _ in texts], Usage()
        if status >= 400 and status not in (401, 403, 404, 405):
            raise RowError(f"the server {answered}")
        if status != 200:
            raise EndpointError(f"{self._where}: {answered}")
        try:
            return _judgments(_body(response), len(texts))
        except (ValueError, UserError, KeyError, TypeError) as error:
            shown = quoted(response.text[:5000], 80)
            raise EndpointError(f"{self._where}: does not answer as `limrank serve`: {shown!r}") from error

    async def _is_well(self) -> bool:
        import httpx

        try:
            return (await asyncio.wait_for(self._http.get("/healthz", timeout=_CHECK_S), _CHECK_S)).status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False

    async def _served(self) -> Served:
        import httpx

        try:
            # The client's own limit is one for each piece of an answer.
            async with asyncio.timeout(_CHECK_S):
                health = await self._http.get("/healthz", timeout=_CHECK_S)
                listed = await self._http.get("/v1/models", timeout=_CHECK_S)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise UserError(f"{self._where}: cannot be reached: {first_line(error)}") from error
        if health.status_code != 200:
            raise UserError(f"{self._where}: /healthz answered {health.status_code}: {_message(health)}")
        try:
            (card,) = _body(listed)["data"]
            return Served(model=card["id"], **card["scoring"])
        except (ValueError, UserError, KeyError, TypeError) as error:
            raise UserError(f"{self._where}: does not say how it scores, as this version's `limrank serve`") from error


class HandleClient(_Client):
    """Of the application on this Ray cluster."""

    def __init__(self, recipe: Served, engine: EngineConfig) -> None:
        super().__init__(recipe, engine, "engine.base_url null: the server on this Ray cluster", None)

    @cached_property
    def _scorer(self) -> Any:
        from ray import serve

        return serve.get_deployment_handle(SCORER, app_name=APP)

    async def aclose(self) -> None:
        """Nothing: the application belongs to whoever serves it."""

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

    async def _is_well(self) -> bool:
        return await asyncio.to_thread(scorer_runs)

    async def _served(self) -> Served:
        from ray import serve
        from ray.exceptions import RayError

        if not await self._is_well():
            raise UserError(
                f"{self._where}: no `limrank serve` with an engine up is on it; "
                "start one there, or give the URL of one elsewhere as engine.base_url"
            )
        api = serve.get_deployment_handle(API, app_name=APP)
        try:
            return await asyncio.wait_for(api.served.remote(), _CHECK_S)
        except (TimeoutError, RayError) as error:
            raise UserError(f"{self._where}: does not answer: {first_line(error)}") from error


def scorer_runs() -> bool:
    """Whether Serve's controller, on the cluster that this process is connected to, knows
    of an engine replica that is up."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        applications = serve.status().applications
    except RayError:  # the controller is going, or gone
        return False
    scorer = applications[APP].deployments.get(SCORER) if APP in applications else None
    return scorer is not None and scorer.replica_states.get("RUNNING", 0) > 0


def _judgments(answer: dict[str, Any], count: int) -> tuple[list[Judgment], Usage]:
    """A rerank answer's results in the order of the documents, and its tokens.

    Raises:
        ValueError, KeyError, TypeError: a result is missing, there twice, for no document of
            the request, or none of ours. Token counts are read where they are given.
    """
    results = {result["index"]: result for result in answer["results"] if type(result["index"]) is int}
    if len(results) != len(answer["results"]) or results.keys() != set(range(count)):
        raise ValueError(f"{len(answer['results'])} results for {count} documents")
    tokens = tokens_of(answer)
    spent = Usage(1, tokens.prompt, tokens.cached, tokens.generated)
    return [_judgment(results[index]) for index in range(count)], spent


def _judgment(result: dict[str, Any]) -> Judgment:
    score, status, reasoning = result["relevance_score"], ScoreStatus(result["status"]), result.get("reasoning")
    error = result.get("error")
    has_none = score is None and status in (ScoreStatus.FAILED, ScoreStatus.SKIPPED)
    if not has_none and (not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1):
        raise ValueError("a score that is no probability")
    if not isinstance(reasoning, str | None) or not isinstance(error, str | None):
        raise TypeError("a chain or an error that is no text")
    return Judgment(
        "",
        score,
        status,
        reasoning=reasoning,
        prompt_tokens=count_of(result.get("prompt_tokens")),
        generated_tokens=count_of(result.get("generated_tokens")),
        truncated=bool(result.get("truncated")),
        error=RowError(error) if error is not None else None,
    )


def _body(response: httpx.Response) -> Any:
    return parse_json(response.content, "the answer")


def _message(response: httpx.Response) -> str:
    """What an error's body says, in our shape or in a proxy's."""
    try:
        return fault_of(_body(response), response.status_code).words
    except UserError:
        return quoted(response.text, 80)


def _keepalive() -> list[tuple[int, int, int]]:
    """Socket options by which a silent peer is asked every 15 s, after a silent minute."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):  # not everywhere under this name
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60))
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15))
    return options
