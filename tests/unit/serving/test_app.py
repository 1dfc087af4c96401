"""What Ray Serve is given, and its own parts with ours in them, without a cluster."""

import asyncio
from types import SimpleNamespace

import pytest

from limrank.config import ServeJob
from limrank.engines import EngineSpec
from limrank.records import Query
from limrank.serving import routing
from limrank.serving.access import Access
from limrank.serving.deploying import Versions
from limrank.serving.protocol import Served
from limrank.serving.scaling import PAIRS

pytest.importorskip("ray.serve")

CONFIG = ServeJob(
    run_dir="unused", engine={"kind": "fake", "max_in_flight": 8}, workers={"replicas": [1, 3]}, serving={"port": 0}
)


def deployments(config=CONFIG, **options):
    from limrank.serving.app import application

    source = EngineSpec(config.model, config.engine, 1)
    app = application(
        config,
        source,
        Served.of(config.model, config.scoring),
        {"num_cpus": 1},
        Access(),
        Versions.of(config),
        **options,
    )
    api = app._bound_deployment
    return api.init_args[0]._bound_deployment, api


def test_the_pool_is_sized_by_pairs():
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingContext

    scorer, _ = deployments()
    config = scorer._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas, config.downscale_delay_s) == (1, 3, 300)
    policy = _apply_autoscaling_config(_resolve_policy_callable(config.policy))

    def decide(pairs, current_time, state):
        return policy(
            AutoscalingContext(
                deployment_id=None,
                deployment_name="Scorer",
                app_name="limrank",
                current_num_replicas=1,
                target_num_replicas=1,
                running_replicas=[],
                total_num_requests=1,
                total_queued_requests=0,
                aggregated_metrics={PAIRS: {"a": pairs}},
                raw_metrics=None,
                capacity_adjusted_min_replicas=1,
                capacity_adjusted_max_replicas=3,
                policy_state=state,
                last_scale_up_time=None,
                last_scale_down_time=None,
                current_time=current_time,
                config=config.model_copy(update={"upscale_delay_s": 0.0}),
            )
        )[0]

    assert decide(33, 0, {}) == 3  # two engines' 16 pairs, and one more
    assert decide(16, 0, {}) == 1


def test_a_fixed_pool_and_an_update():
    scorer, api = deployments(ServeJob(run_dir="unused", engine={"kind": "fake"}, workers={"replicas": 2}), surge=True)
    assert scorer._deployment_config.autoscaling_config is None
    assert scorer.num_replicas == 2
    assert (scorer._deployment_config.max_surge_percent, api._deployment_config.max_surge_percent) == (100, 100)
    assert deployments()[0]._deployment_config.max_surge_percent == 0
    assert scorer.version != api.version


class FakeReplica:
    """A replica as Serve's router sees it."""

    max_ongoing_requests = 2
    is_cross_language = False

    def __init__(self, name):
        self.replica_id = SimpleNamespace(unique_id=name)
        self.ongoing = 0

    async def get_queue_len(self, *, deadline_s):
        return self.ongoing


@pytest.fixture
def routed(monkeypatch):
    """Runs a coroutine function with a router of three replicas and the function that routes a request."""
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
    from ray.serve.request_router import PendingRequest

    found = routing.Routing()
    monkeypatch.setattr(routing, "ROUTING", found)
    scorer, _ = deployments()
    router_class = scorer._deployment_config.request_router_config.get_request_router_class()

    def run(test):
        async def main():
            router = router_class(
                deployment_id=DeploymentID("Scorer", "limrank"),
                handle_source=DeploymentHandleSource.REPLICA,
                use_replica_queue_len_cache=True,
            )
            replicas = [FakeReplica(name) for name in "abc"]
            for replica in replicas:
                replica.replica_id = _Id(replica.replica_id.unique_id)
            router.update_replicas(replicas)

            def route(query, pairs=10, http_request="r"):
                metadata = RequestMetadata(
                    request_id="x", internal_request_id=http_request, session_id=routing.prefix_key(query)
                )
                pending = PendingRequest(args=[query, ["text"] * pairs, None], kwargs={}, metadata=metadata)
                return router._choose_replica_for_request(pending)

            await asyncio.wait_for(
                test(router, route, found, {each.replica_id.unique_id: each for each in replicas}), 20
            )

        asyncio.run(main())

    return run


class _Id(str):
    """A replica's id."""

    __slots__ = ()

    @property
    def unique_id(self):
        return str(self)


def test_parts_of_one_http_request_go_to_different_replicas(routed):
    async def test(router, route, found, replicas):
        query = Query("", "q")
        chosen = await asyncio.gather(*(route(query) for _ in range(6)))
        names = sorted(replica.replica_id for replica in chosen)
        assert names == ["a", "a", "b", "b", "c", "c"]
        assert (found.up, found.load("a"), router.num_pending_requests) == (3, 20, 0)
        for replica in chosen:
            router.on_request_completed(replica.replica_id, "r")
        assert found.load("a") == found.load("b") == found.load("c") == 0
        home = (await route(query)).replica_id
        router.on_request_completed(home, "r")
        assert (await route(query)).replica_id == home

    routed(test)


def test_a_full_or_dead_replica_is_passed_over(routed):
    async def test(router, route, found, replicas):
        query = Query("", "q")
        home = (await route(query)).replica_id
        router.on_request_completed(home, "r")
        replicas[home].ongoing = 2
        router.on_new_queue_len_info(home, 2)
        other = (await route(query)).replica_id
        assert other != home
        router.on_request_completed(other, "r")
        router.on_replica_actor_died(other)
        assert found.up == 2
        assert (await route(query)).replica_id not in (home, other)

    routed(test)


def test_a_request_that_is_cancelled_while_it_waits_leaves_no_load(routed):
    async def test(router, route, found, replicas):
        for name, replica in replicas.items():
            replica.ongoing = 2
            router.on_new_queue_len_info(replica.replica_id, 2)
            assert found.load(name) == 0
        waiting = asyncio.ensure_future(route(Query("", "q")))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        replicas["b"].ongoing = 0
        assert (await route(Query("", "q"))).replica_id == "b"
        assert (found.load("a"), found.load("b"), found.load("c")) == (0, 10, 0)

    routed(test)
