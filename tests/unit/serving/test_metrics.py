"""The server's metrics, as Prometheus reads them. The parser is Prometheus' own for Python."""

import asyncio
import threading
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.engines.base import record_usage
from limrank.records import Judgment, ScoreStatus
from limrank.serving import replica_states
from limrank.serving.api import build_api
from limrank.serving.metrics import Metrics
from limrank.serving.protocol import Served
from limrank.serving.replica_states import ReplicaStates
from limrank.serving.settings import ApiSettings
from limrank.version import __version__

SERVED = Served.of(ModelConfig(id="served"), ScoringConfig(mode="budget"))
BODY = {"query": "secretquery", "documents": ["secretdocument", "b"]}
SCORED = {"route": "/v1/rerank", "mode": "budget"}


class CountedBackend(EngineBackend):
    """Each pair costs 10 prompt tokens, 6 of them cached, and 2 generated ones. The second pair fails."""

    async def score(self, query, texts, options=None):
        self.waiting += 1
        await self.gate.wait()
        for _ in texts:
            record_usage(10, 6, 2)
        return [
            Judgment("", None if n == 1 else 0.5, ScoreStatus("failed" if n == 1 else "forced"))
            for n in range(len(texts))
        ]


def client(backend, metrics=None, limit=None):
    api = build_api(backend, SERVED, ApiSettings(limit), metrics=metrics)
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def parsed(text):
    """{(name, labels): value}; fails on text that Prometheus would refuse."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(found, name, **labels):
    return found.get((f"limrank_{name}", frozenset(labels.items())))


async def scraped(http):
    response = await http.get("/metrics")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(response.text)


def after(*requests, backend=None, metrics=None):
    """The metrics after requests, each (method, path, arguments)."""

    async def go():
        async with client(backend or CountedBackend(), metrics) as http:
            for method, path, arguments in requests:
                await http.request(method, path, **arguments)
            return await scraped(http)

    return asyncio.run(go())


RERANK = ("POST", "/v1/rerank", {"json": BODY})


def test_a_request_is_counted_with_its_pairs_tokens_and_time():
    found = after(RERANK, RERANK, ("POST", "/v1/score", {"json": {"text_1": "q", "text_2": ["a", "b", "c"]}}))
    assert value(found, "requests_total", status="200", **SCORED) == 2
    assert value(found, "requests_total", route="/v1/score", status="200", mode="budget") == 1
    assert value(found, "pairs_total", mode="budget", status="forced") == 4
    assert value(found, "pairs_total", mode="budget", status="failed") == 3
    tokens = {
        kind: value(found, "tokens_total", mode="budget", kind=kind)
        for kind in ("computed_prompt", "cached_prompt", "generated")
    }
    assert tokens == {"computed_prompt": 28, "cached_prompt": 42, "generated": 14}
    assert value(found, "prefix_cache_queries_total") == 70
    assert value(found, "prefix_cache_hits_total") == 42
    assert value(found, "request_duration_seconds_count", **SCORED) == 2
    assert value(found, "request_duration_seconds_bucket", le="120.0", **SCORED) == 2
    assert value(found, "request_pairs_bucket", mode="budget", le="1.0") == 0
    assert value(found, "request_pairs_bucket", mode="budget", le="2.0") == 2
    assert value(found, "request_pairs_sum", mode="budget") == 7


def test_the_build_is_named():
    assert value(after(), "build_info", version=__version__, model="served", mode="budget") == 1


def test_errors_are_counted_by_code_and_do_not_shorten_the_latency():
    found = after(
        RERANK,
        ("POST", "/v1/rerank", {"content": b"{nope"}),
        ("POST", "/v1/rerank", {"json": BODY | {"model": "another"}}),
        ("GET", "/v1/rerank", {}),
    )
    errors = {
        code: value(found, "request_errors_total", route="/v1/rerank", code=code)
        for code in ("invalid_json", "model_not_found", "method_not_allowed")
    }
    assert errors == dict.fromkeys(errors, 1)
    assert value(found, "requests_total", route="/v1/rerank", status="400", mode="none") == 1
    assert value(found, "request_duration_seconds_count", **SCORED) == 1
    assert value(found, "request_duration_seconds_count", route="/v1/rerank", mode="none") is None


def test_an_unexpected_error_is_counted():
    class Broken(EngineBackend):
        async def score(self, query, texts, options=None):
            raise ZeroDivisionError

    found = after(RERANK, backend=Broken())
    assert value(found, "requests_total", status="500", **SCORED) == 1
    assert value(found, "request_errors_total", route="/v1/rerank", code="internal_error") == 1
    assert value(found, "queue_size_pairs") == 0


def test_any_number_of_unknown_paths_is_one_series():
    paths = [("GET", f"/secretpath{number}", {}) for number in range(50)] + [("SECRET", "/v1/models", {})]
    found = after(*paths)
    assert value(found, "requests_total", route="other", status="404", mode="none") == 50
    assert value(found, "requests_total", route="/v1/models", status="405", mode="none") == 1
    assert {dict(labels)["route"] for name, labels in found if name == "limrank_requests_total"} == {
        "other",
        "/v1/models",
    }


def test_no_text_of_a_request_is_in_the_metrics():
    found = after(
        RERANK,
        (
            "POST",
            "/v1/rerank?secretparameter=1",
            {"json": BODY | {"model": "secretmodel"}, "headers": {"secretheader": "x"}},
        ),
        ("POST", "/v1/rerank", {"json": {"query": "q", "documents": [{"secretfield": 1}]}}),
        ("GET", "/secretpath", {}),
    )
    assert "secret" not in repr(found).lower()


def test_requests_beyond_the_engines_wait():
    async def go():
        backend = CountedBackend()
        backend.gate.clear()
        metrics = Metrics(SERVED, requests_per_replica=2, ask_replicas=lambda: {"running": 1})
        async with client(backend, metrics) as http:
            held = [asyncio.create_task(http.post("/v1/rerank", json=BODY)) for _ in range(5)]
            while backend.waiting < 5:
                await asyncio.sleep(0.01)
            busy = await scraped(http)
            held[0].cancel()
            await asyncio.sleep(0.01)
            one_left = await scraped(http)
            backend.gate.set()
            await asyncio.gather(*held[1:])
            return busy, one_left, await scraped(http)

    def state(found):
        return [value(found, name) for name in ("num_requests_running", "num_requests_waiting", "queue_size_pairs")]

    busy, one_left, idle = asyncio.run(go())
    assert [state(found) for found in (busy, one_left, idle)] == [[2, 3, 10], [2, 2, 8], [0, 0, 0]]
    assert value(busy, "replicas", state="running") == 1
    assert value(busy, "replicas", state="starting") == 0
    assert value(idle, "requests_total", status="499", **SCORED) == 1
    assert value(idle, "request_errors_total", route="/v1/rerank", code="client_closed") == 1


def test_every_number_of_a_replica_has_its_name():
    found = after(RERANK, metrics=Metrics(SERVED, replica="r1"))
    assert all(("replica", "r1") in labels for _, labels in found)


def test_the_process_is_measured_and_creation_times_are_left_out():
    names = {name for name, _ in after(RERANK)}
    assert "process_resident_memory_bytes" in names
    assert not [name for name in names if name.endswith("_created")]


def test_a_second_server_in_the_process_has_its_own_numbers():
    first, second = after(RERANK), after()
    assert value(first, "prefix_cache_queries_total") == 20
    assert value(second, "prefix_cache_queries_total") == 0


def test_serve_is_asked_once_in_five_seconds_and_one_question_at_a_time():
    asked = []

    async def go():
        states = ReplicaStates(lambda: asked.append(1) or {"running": 2})
        return [dict(await states.refreshed()) for _ in range(20)]

    assert asyncio.run(go()) == [{"running": 2}] * 20
    assert len(asked) == 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_serve_that_hangs_or_fails_blocks_no_scrape(monkeypatch, answers):
    monkeypatch.setattr(replica_states, "_WAIT_S", 0.02)
    monkeypatch.setattr(replica_states, "_ASK_AGAIN_S", 0.0)
    release, asked = threading.Event(), []

    def ask():
        asked.append(1)
        if answers:
            release.wait(5)
            return {"running": 1}
        raise ConnectionError

    async def go():
        metrics = Metrics(SERVED, ask_replicas=ask)
        async with client(EngineBackend(), metrics) as http:
            began = time.monotonic()
            found = [await scraped(http) for _ in range(3)]
            took = time.monotonic() - began
            release.set()
            return found, took

    found, took = asyncio.run(go())
    assert took < 1
    assert [value(each, "replicas", state="running") for each in found] == [None] * 3
    assert len(asked) == (1 if answers else 3)


def test_an_answer_that_is_a_minute_old_is_not_shown(monkeypatch):
    answers = [{"running": 1}]

    async def go():
        states = ReplicaStates(lambda: answers.pop())
        fresh = dict(await states.refreshed())
        monkeypatch.setattr(replica_states, "_ASK_AGAIN_S", 0.0)
        failed = dict(await states.refreshed())
        monkeypatch.setattr(replica_states, "_FORGET_S", 0.0)
        return fresh, failed, dict(await states.refreshed())

    assert asyncio.run(go()) == ({"running": 1}, {"running": 1}, {})
