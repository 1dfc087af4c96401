"""The Ray Serve application: ``Api`` speaks HTTP, ``Scorer`` holds the engine.

They are two deployments so that HTTP does not depend on the engine: the API answers ``/healthz``
and ``/readyz`` under any load, and answers in JSON when an engine's process has crashed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from limrank.config import ScoringConfig, ServeJob
from limrank.engines import Engine, EngineSource
from limrank.engines.base import Usage, meter, record_usage
from limrank.errors import EngineError, UserError
from limrank.records import Judgment, Query
from limrank.scoring import check_labels, with_prompt_text
from limrank.scoring.calibration import Calibration, read_calibration
from limrank.serving.access import Access
from limrank.serving.access_log import AccessLog
from limrank.serving.api import build_api
from limrank.serving.client import scorer_runs
from limrank.serving.errors import deadline_exceeded, engine_unavailable
from limrank.serving.metrics import Metrics
from limrank.serving.network import listen_on_node_address
from limrank.serving.options import AS_RECIPE, ScoreOptions, Update, score_request, stream_request
from limrank.serving.protocol import API, APP, SCORER, Served
from limrank.serving.settings import ApiSettings, requests_per_replica
from limrank.serving.tracing import tracing

_UNLIMITED = 1_000_000
_DRAIN_S = 10.0
"""Time that a stopping replica has for its running requests."""

_GRACE_S = 2.0
"""Time after a deadline in which a replica's partial answer arrives."""


def application(
    config: ServeJob, source: EngineSource, served: Served, wanted: dict[str, float], access: Access
) -> serve.Application:
    """The application for ``serve.run``.

    Args:
        served: the model's card.
        wanted: the resources of one engine replica (num_cpus, num_gpus).
        access: limits, hosts and keys.
    """
    workers = config.workers
    ongoing = requests_per_replica(config)
    autoscaling = {"min_replicas": workers.min_replicas, "max_replicas": workers.max_replicas}
    grows = workers.min_replicas < workers.max_replicas
    stopping = {"graceful_shutdown_wait_loop_s": 0.2, "graceful_shutdown_timeout_s": _DRAIN_S}
    scorer = serve.deployment(
        Scorer,
        name=SCORER,
        **({"autoscaling_config": autoscaling} if grows else {"num_replicas": workers.min_replicas}),
        ray_actor_options=wanted,
        max_ongoing_requests=ongoing,
        max_constructor_retry_count=3,
        # Serve notices and replaces a crashed replica within this time.
        health_check_period_s=1.0,
        **stopping,
    )
    api = serve.deployment(
        Api, name=API, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=_UNLIMITED, **stopping
    )
    return api.bind(
        scorer.bind(
            source, with_prompt_text(config.scoring), config.seed, read_calibration(config.scoring.calibration)
        ),
        served,
        ApiSettings.of(config, access),
        ongoing,
        config.serving.access_log,
    )


class Scorer:
    """An engine replica. The engine's event loop runs in a thread of its own: opening an engine
    takes a minute, and Serve's loop must answer meanwhile."""

    async def __init__(
        self, source: EngineSource, scoring: ScoringConfig, seed: int, calibration: Calibration | None = None
    ) -> None:
        listen_on_node_address()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine").start()
        self._scoring = scoring
        self._seed = seed
        self._calibration = calibration
        self._engine: Engine | None = None
        self._refused: UserError | None = None
        try:
            self._engine = await self._on_loop(_open(source, scoring))
        except UserError as error:
            # ready() raises it. An error here would make Serve retry, which cannot help.
            self._refused = error

    async def ready(self) -> None:
        """Raises UserError if the engine refused its settings."""
        if self._refused is not None:
            raise self._refused

    async def score(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> tuple[list[Judgment], Usage]:
        """Judgments in the order of the texts, and their usage. Cancelling it aborts the engine's requests."""
        try:
            return await self._on_loop(self._metered(query, texts, options))
        except EngineError as error:
            _end_replica(error)

    async def stream(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> AsyncGenerator[tuple[Update, Usage], None]:
        """The judgments of :meth:`score` while they come in, each with the usage so far."""
        here = asyncio.get_running_loop()
        found: asyncio.Queue[tuple[Update, Usage] | None] = asyncio.Queue()

        async def find() -> None:
            with meter() as usage:
                updates = stream_request(
                    query, texts, options, self._engine, self._scoring, seed=self._seed, calibration=self._calibration
                )
                async with aclosing(updates):
                    async for update in updates:
                        here.call_soon_threadsafe(found.put_nowait, (update, replace(usage)))

        work = self._on_loop(find())
        work.add_done_callback(lambda _: found.put_nowait(None))
        try:
            while (item := await found.get()) is not None:
                yield item
            await work
        except EngineError as error:
            _end_replica(error)
        finally:
            work.cancel()

    async def _metered(self, query: Query, texts: Sequence[str], options: ScoreOptions) -> tuple[list[Judgment], Usage]:
        with meter() as usage:
            judgments = await score_request(
                query, texts, options, self._engine, self._scoring, seed=self._seed, calibration=self._calibration
            )
        return judgments, usage

    async def __del__(self) -> None:
        # Serve awaits it when it stops a replica.
        if self._engine is not None:
            await self._on_loop(self._engine.aclose())

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


def _end_replica(error: EngineError) -> NoReturn:
    """A crashed engine cannot recover, and a replica that fails at once would attract the requests of the busy ones.
    When its process ends, Serve starts another replica."""
    logging.getLogger("ray.serve").error("engine lost, replica ends: %s", error)
    os._exit(70)


async def _open(source: EngineSource, scoring: ScoringConfig) -> Engine:
    engine = source.open()
    check_labels(engine.tokenizer, scoring.labels)
    return engine


@serve.ingress()
class Api:
    """The HTTP replica: the API over the engine replicas."""

    def __init__(
        self,
        scorer: DeploymentHandle,
        served: Served,
        settings: ApiSettings,
        requests_per_replica: int,
        access_log: str | None,
    ) -> None:
        listen_on_node_address()
        self._scorer = scorer
        self._served = served
        self._settings = settings
        self._requests_per_replica = requests_per_replica
        self._access_log = access_log

    def __serve_build_asgi_app__(self):
        # Serve calls it in the replica, so nothing of the HTTP side has to be pickled.
        metrics = Metrics(
            self._served,
            requests_per_replica=self._requests_per_replica,
            ask_replicas=_scorer_replicas,
            replica=serve.get_replica_context().replica_id.unique_id,
        )
        traces = tracing(self._served.model)
        observers = [AccessLog(self._access_log), *([traces] if traces else [])]
        return build_api(self, self._served, self._settings, metrics=metrics, observers=observers)

    async def served(self) -> Served:
        """The model's card, for clients inside the cluster. The scorer does not answer this: all its
        replicas may be busy."""
        return self._served

    async def score(self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE) -> list[Judgment]:
        left = options.seconds_left()
        response = self._scorer.score.remote(query, texts, options)
        try:
            # The replica keeps the deadline. This is for a request that waits for a replica longer than that.
            async with asyncio.timeout(None if left is None else left + _GRACE_S) as timer:
                judgments, usage = await response
        except TimeoutError:
            if not timer.expired():
                raise
            response.cancel()
            raise deadline_exceeded() from None
        except (RayActorError, DeploymentUnavailableError) as error:
            raise engine_unavailable() from error
        record_usage(usage.prompt, usage.cached_prompt, usage.generated)
        return judgments

    async def stream(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> AsyncGenerator[Update, None]:
        left = options.seconds_left()
        until = None if left is None else asyncio.get_running_loop().time() + left + _GRACE_S
        response = self._scorer.options(stream=True).stream.remote(query, texts, options)
        before = Usage()
        answered = False
        try:
            while not answered:
                async with asyncio.timeout_at(until) as timer:
                    update, usage = await anext(response)
                record_usage(
                    usage.prompt - before.prompt,
                    usage.cached_prompt - before.cached_prompt,
                    usage.generated - before.generated,
                )
                before, answered = usage, update.final
                yield update
        except TimeoutError:
            if not timer.expired():
                raise
            raise deadline_exceeded() from None
        except (RayActorError, DeploymentUnavailableError) as error:
            answered = True  # there is nothing to cancel
            raise engine_unavailable() from error
        finally:
            if not answered:
                response.cancel()

    async def healthy(self) -> bool:
        return await asyncio.to_thread(scorer_runs)


def _scorer_replicas() -> dict[str, int]:
    """Engine replicas by state, by Serve's controller."""
    states = serve.status().applications[APP].deployments[SCORER].replica_states
    return {state.lower(): count for state, count in states.items()}
