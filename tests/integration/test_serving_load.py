"""Several engine replicas under load, and what happens when a server's process dies, is replaced or is stopped: real Ray
Serve, real HTTP, the fake engine. The tests share one server, and the last ones change it."""

import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from limrank.config import EngineConfig, ModelConfig, ServeJob
from limrank.config.recipe import with_values
from limrank.engines.base import RemoteSource, record_usage
from limrank.engines.fake import FakeEngine
from limrank.errors import EngineError, UserError
from limrank.serving import job

POISON = "kills the engine"
CONFIG = ServeJob(
    run_dir="unused",
    engine={"kind": "fake", "latency_ms": 50, "max_in_flight": 8, "poison": POISON},
    serving={"port": 0, "spread_pairs": 40, "target_pairs_per_replica": 40, "scale_down_after_s": 1},
    workers={"replicas": 2, "cpus": 0.5},
)
WAIT_S = 120


class NamedEngine(FakeEngine):
    """Every score of it is the same number, and another one in each process."""

    async def label_logprobs(self, prompt, labels):
        _, length = await self._answer(prompt, 1)
        record_usage(length, 0, 1)
        share = (os.getpid() % 9973 + 1) / 9975
        return dict(zip(labels, (math.log(share), math.log(1 - share)), strict=True))


@dataclass(frozen=True)
class NamedSource(RemoteSource):
    model: ModelConfig
    engine: EngineConfig

    def open(self):
        return NamedEngine(self.model, self.engine)


@pytest.fixture(scope="module")
def server(local_ray):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with job.running(CONFIG, NamedSource(CONFIG.model, CONFIG.engine)) as found:
        yield found
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=WAIT_S, trust_env=False) as client:
        engines = server.config.workers.min_replicas
        wait_for(lambda: len(pids("Scorer")) >= engines and client.get("/readyz").status_code == 200, "the engines")
        yield client


def wait_for(condition, what, within_s=WAIT_S):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {within_s} s")


def pids(deployment):
    """The processes of a deployment's replicas that run, by Serve's controller."""
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ReplicaState

    client = _get_global_client()
    details = client.get_serve_details()["applications"]["limrank"]["deployments"][deployment]["replicas"]
    return {each["pid"] for each in details if each["state"] == ReplicaState.RUNNING and each["pid"]}


def documents(count, text="passage"):
    return [f"{text} {number}" for number in range(count)]


def post(http, query="q", count=10, **fields):
    return http.post("/v1/rerank", json={"query": query, "documents": documents(count), **fields})


def engines_of(answer):
    """The engines that a request's pairs were scored by."""
    assert answer.status_code == 200, answer.text
    return {round(result["relevance_score"], 6) for result in answer.json()["results"]}


@contextlib.contextmanager
def load(url, clients=4, **fields):
    """Clients that ask without a pause while the block runs. Gives the list of their answers, whole at its end."""
    answers, stop = [], threading.Event()

    def ask(number):
        with httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client:
            asked = 0
            while not stop.is_set():
                asked += 1
                answers.append(post(client, f"query {number} {asked}", **fields))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask, number) for number in range(clients)]
        wait_for(lambda: len(answers) >= clients, "the first answers")
        try:
            yield answers
        finally:
            stop.set()
        for each in running:
            each.result()


def all_answered(answers):
    assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers if a.status_code != 200][:3]


def test_a_query_seen_before_goes_to_the_same_replica(http):
    homes = {query: engines_of(post(http, query, 1)) for query in documents(20, "query")}
    assert {len(each) for each in homes.values()} == {1}
    assert len({engine for each in homes.values() for engine in each}) == 2
    assert {query: engines_of(post(http, query, 5)) for query in homes} == homes


def test_a_hot_query_does_not_queue_on_one_replica(server):
    async def send():
        async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, trust_env=False) as client:
            request = {"query": "hot", "documents": documents(30)}
            return await asyncio.gather(*(client.post("/v1/rerank", json=request) for _ in range(12)))

    found = [engines_of(answer) for answer in asyncio.run(send())]
    by_engine = [found.count(each) for each in ({engine} for engine in set.union(*found))]
    assert len(by_engine) == 2 and min(by_engine) >= 4


def test_a_large_request_is_spread_and_a_small_one_is_not(http):
    small, large = post(http, "small", 40), post(http, "large", 120)
    assert len(engines_of(small)) == 1
    assert len(engines_of(large)) == 2
    assert sorted(result["index"] for result in large.json()["results"]) == list(range(120))
    usage = large.json()["usage"]
    assert usage["completion_tokens"] == 120  # one token a direct score


def test_a_deadline_of_a_large_request(http):
    answer = post(http, "late", 800, deadline_ms=1500)
    if answer.status_code == 504:  # a machine under load
        return
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert {result["status"] for result in results} == {"direct", "skipped"}
    assert sorted(result["index"] for result in results) == list(range(800))


def test_a_client_that_leaves_frees_its_work(http):
    """1000 pairs take 3 s of both engines."""
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/rerank", json={"query": "left", "documents": documents(1000)}, timeout=0.5)
    left = time.monotonic()
    wait_for(lambda: "limrank_queue_size_pairs" in (text := http.get("/metrics").text) and queued(text) == 0, "the end")
    assert post(http, "next", 2).status_code == 200
    seconds = time.monotonic() - left
    print(f"the engines were free {seconds:.2f} s after a client had left")
    assert seconds < 2.5


def queued(metrics):
    (line,) = (line for line in metrics.splitlines() if line.startswith("limrank_queue_size_pairs{"))
    return float(line.rpartition(" ")[2])


@pytest.mark.parametrize("deployment", ["Scorer", "Api"])
def test_a_replicas_death_is_no_error(http, server, deployment):
    with load(server.url, count=20) as answers:
        before = pids(deployment)
        os.kill(next(iter(before)), signal.SIGKILL)
        wait_for(lambda: len(pids(deployment) - before) == 1, "the replacement")
    all_answered(answers)


def test_a_request_that_kills_engines_kills_two(http):
    before = pids("Scorer")
    answer = http.post("/v1/rerank", json={"query": "q", "documents": [POISON]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert answer.headers["Retry-After"] == "5"
    seen = set()

    def replaced():
        seen.update(found := pids("Scorer"))
        return len(found - before) == 2 and not found & before

    wait_for(replaced, "two other engines")
    assert post(http).status_code == 200
    assert seen - before <= pids("Scorer")  # no third one came and went


def test_an_update_has_no_failed_request(http, server):
    """It replaces the engines, whose scores then are the fake engine's."""
    engines, api = pids("Scorer"), pids("Api")
    with load(server.url) as answers:
        assert server.update(with_values(CONFIG, {"engine.fault.latency_ms": 20})) is True
        wait_for(lambda: not pids("Scorer") & engines, "new engines")
    all_answered(answers)
    assert not pids("Api") & api
    assert len(engines_of(post(http))) == 10


def test_a_faulty_update_leaves_the_old_one(http, server):
    before = pids("Scorer")
    for values, error, message in (
        ({"serving.port": 1}, UserError, "serving.port cannot change"),
        ({"serving.keys_file": "keys"}, UserError, "serving.keys_file cannot change"),
        ({"engine.fault.fail_start": True}, EngineError, "did not start"),
    ):
        with load(server.url) as answers, pytest.raises(error, match=message):
            server.update(with_values(server.config, values))
        all_answered(answers)
    assert pids("Scorer") == before
    assert server.update(server.config) is False


def test_the_pool_grows_with_pairs_and_shrinks_without_an_error(http, server):
    wide = with_values(server.config, {"workers.replicas": [1, 3], "engine.fault.latency_ms": 50})
    assert server.update(wide) is True
    wait_for(lambda: len(pids("Scorer")) == 1, "one engine")
    with (
        httpx.Client(base_url=server.url, timeout=WAIT_S, trust_env=False) as idle,
        load(server.url, 1, count=1) as few,
    ):
        assert idle.get("/healthz").status_code == 200
        with load(server.url, 2, count=400) as answers:
            wait_for(lambda: len(pids("Scorer")) == 3, "three engines")
        all_answered(answers)
        wait_for(lambda: len(pids("Scorer")) == 1, "one engine again")
    all_answered(few)


def test_at_its_end_a_server_answers_what_runs(http, server):
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(post, http, "last", 400)
        wait_for(lambda: queued(http.get("/metrics").text) == 400, "the request")
        drained = pool.submit(server.drain)
        refused = wait_for(lambda: (found := http.get("/readyz")).status_code == 503 and found, "the drain")
        assert (refused.json()["error"]["code"], refused.headers["Retry-After"]) == ("draining", "5")
        assert post(http).json()["error"]["code"] == "draining"
        assert http.get("/healthz").status_code == 200
        assert running.result().status_code == 200
        drained.result()
