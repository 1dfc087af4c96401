"""The Ray Serve application: ``Api`` speaks HTTP, ``Scorer`` holds the engine.

They are two deployments so that HTTP does not depend on the engine: the API answers ``/healthz``
and ``/readyz`` under any load, and answers in JSON when an engine's process has crashed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from limrank.config import ServeJob
from limrank.engines import EngineSource
from limrank.engines.base import Usage, record_usage
from limrank.records import Judgment, Query
from limrank.scoring import with_prompt_text
from limrank.scoring.calibration import read_calibration
from limrank.serving.access import Access
from limrank.serving.access_log import AccessLog
from limrank.serving.api import build_api
from limrank.serving.client import scorer_runs
from limrank.serving.deploying import Versions
from limrank.serving.errors import deadline_exceeded, engine_unavailable
from limrank.serving.metrics import Metrics
from limrank.serving.network import listen_on_node_address
from limrank.serving.options import AS_RECIPE, ScoreOptions, Update
from limrank.serving.prefix_router import PrefixRouter
from limrank.serving.protocol import API, APP, SCORER, Served
from limrank.serving.replicas import Deaths, LostReplicaError, Replicas, Scored
from limrank.serving.routing import ROUTING, prefix_key
from limrank.serving.scaling import autoscaling
from limrank.serving.scorer import Scorer
from limrank.serving.settings import ApiSettings, requests_per_replica, target_pairs
from limrank.serving.tracing import tracing

Result = TypeVar("Result")

_UNLIMITED = 1_000_000
_LONGEST_REQUEST_S = 60.0
"""Time that a stopping replica has for its running requests. What is left then is sent to another one."""

_GRACE_S = 2.0
"""Time after a deadline in which a replica's partial answer arrives."""


def application(
    config: ServeJob,
    source: EngineSource,
    served: Served,
    wanted: dict[str, float],
    access: Access,
    versions: Versions,
    *,
    update: bool = False,
    surge: bool = False,
) -> serve.Application:
    """The application for ``serve.run``.

    Args:
        served: the model's card.
        wanted: the resources of one engine replica (num_cpus, num_gpus).
        access: limits, hosts and keys.
        versions: Serve replaces replicas of another version.
        update: an engine that refuses its settings ends the update.
        surge: a new engine is up before an old one is stopped.
    """
    workers, serving = config.workers, config.serving
    ongoing = requests_per_replica(config)
    grows = workers.min_replicas < workers.max_replicas
    scaled = {
        "autoscaling_config": autoscaling(
            workers.min_replicas, workers.max_replicas, target_pairs(config), serving.scale_down_after_s
        )
    }
    # A replica that crashes or hangs is noticed and replaced within this time.
    watched = {"health_check_period_s": 1.0, "graceful_shutdown_wait_loop_s": 0.2}
    scorer = serve.deployment(
        Scorer,
        name=SCORER,
        **(scaled if grows else {"num_replicas": workers.min_replicas}),
        ray_actor_options=wanted,
        max_ongoing_requests=ongoing,
        max_constructor_retry_count=3,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        graceful_shutdown_timeout_s=_LONGEST_REQUEST_S,
        max_surge_percent=100 if surge else 0,
        **watched,
    ).options(version=versions.scorer, _internal=True)
    api = serve.deployment(
        Api,
        name=API,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=_UNLIMITED,
        graceful_shutdown_timeout_s=_LONGEST_REQUEST_S,
        max_surge_percent=100,
        **watched,
    ).options(version=versions.api, _internal=True)
    return api.bind(
        scorer.bind(
            source,
            with_prompt_text(config.scoring),
            config.seed,
            read_calibration(config.scoring.calibration),
            strict=update,
        ),
        served,
        ApiSettings.of(config, access),
        ongoing,
        config.serving.access_log,
    )


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
        self._replicas = Replicas(self._send, lambda: ROUTING.up, settings.spread_pairs, served.mode)
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
        judgments, usage = await self._replicas.score(query, texts, options)
        record_usage(usage.prompt, usage.cached_prompt, usage.generated)
        return judgments

    async def _send(self, query: Query, texts: Sequence[str], options: ScoreOptions) -> Scored:
        """Score on one replica. Cancelling it aborts the engine's requests."""
        response = self._scorer_for(query).score.remote(query, texts, options)
        return await _answer(response, response, _until(options))

    async def stream(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> AsyncGenerator[Update, None]:
        handle, until = self._scorer_for(query).options(stream=True), _until(options)

        async def begun() -> tuple[Any, tuple[Update, Usage]]:
            response = handle.stream.remote(query, texts, options)
            return response, await _answer(response, anext(response), until)

        response, (update, usage) = await self._replicas.retried(begun, options, Deaths())
        before = Usage()
        try:
            while True:
                record_usage(
                    usage.prompt - before.prompt,
                    usage.cached_prompt - before.cached_prompt,
                    usage.generated - before.generated,
                )
                before = usage
                yield update
                if update.final:
                    return
                update, usage = await _answer(response, anext(response), until)
        except LostReplicaError as error:
            raise engine_unavailable() from error
        except GeneratorExit:
            response.cancel()
            raise

    def _scorer_for(self, query: Query) -> DeploymentHandle:
        """The handle whose calls go to a replica that has the query's prefix."""
        return self._scorer.options(session_id=prefix_key(query))

    async def healthy(self) -> bool:
        return await asyncio.to_thread(scorer_runs)


def _scorer_replicas() -> dict[str, int]:
    """Engine replicas by state, by Serve's controller."""
    states = serve.status().applications[APP].deployments[SCORER].replica_states
    return {state.lower(): count for state, count in states.items()}


def _until(options: ScoreOptions) -> float | None:
    """The loop's time by which a replica has answered: it keeps the deadline. This one is for a request that waits
    for a replica longer than that."""
    left = options.seconds_left()
    return None if left is None else asyncio.get_running_loop().time() + left + _GRACE_S


async def _answer(response: Any, awaited: Awaitable[Result], until: float | None) -> Result:
    """What a call of a replica gives. The call ends where its time is over, or nobody waits for it.

    Raises:
        LostReplicaError: the replica ended.
        ApiError: no replica is up, or the deadline passed.
    """
    try:
        async with asyncio.timeout_at(until) as timer:
            return await awaited
    except TimeoutError:
        if not timer.expired():
            raise
        response.cancel()
        raise deadline_exceeded() from None
    except asyncio.CancelledError:
        response.cancel()
        raise
    except RayActorError as error:
        raise LostReplicaError(getattr(error, "actor_id", None)) from error
    except DeploymentUnavailableError as error:
        raise engine_unavailable() from error
