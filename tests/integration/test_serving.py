"""The server as clients meet it: real Ray Serve, real HTTP, the fake engine."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import threading
import time

import httpx
import pytest

from limrank.config import RERANKER, ServeJob
from limrank.config.recipe import with_values
from limrank.engines import open_engine
from limrank.errors import UserError
from limrank.progress import open_progress
from limrank.records import Query
from limrank.scoring import rank_judgments, score_query
from limrank.serving import job
from limrank.serving.options import to_candidates

POISON = "kills the engine"
CONFIG = ServeJob(
    run_dir="unused",
    engine={"kind": "fake", "latency_ms": 50, "max_in_flight": 8, "poison": POISON},
    serving={"port": 0, "modes": ["budget", "cascade"], "aliases": ["rerank-v3.5"]},
)
NAME = RERANKER
DOCUMENTS = [f"passage {number}" for number in range(10)]


@pytest.fixture(scope="module")
def server(local_ray):
    with job.serving(CONFIG) as url:
        yield url


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    """Scores and order of limrank's own scoring on the same engine."""

    async def score():
        engine = open_engine(CONFIG.model, CONFIG.engine)
        candidates = to_candidates(DOCUMENTS)
        judgments = await score_query(Query("", "q"), candidates, engine, CONFIG.scoring)
        order = rank_judgments(candidates, judgments)
        return [(index, judgments[index].score) for index in order]

    return asyncio.run(score())


def ranking(response):
    assert response.status_code == 200, response.text
    return [(result["index"], result["relevance_score"]) for result in response.json()["results"]]


def test_run_serves_until_sigterm_and_leaves_nothing(local_ray, capsys):
    from ray import serve

    # As a script does it: wait for the line that tells the URL, use it, stop the process.
    seen = []

    def client():
        with contextlib.suppress(TimeoutError):
            url = _printed_url(capsys)
            seen.extend((url, httpx.get(f"{url}/v1/models", trust_env=False).status_code))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=client)
    thread.start()
    result = job.run(CONFIG, address="local", progress=open_progress())
    thread.join()
    assert result.failed == 0
    assert seen[1:] == [200]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not serve.status().proxies
    with socket.create_server(("127.0.0.1", int(seen[0].rsplit(":", 1)[1]))):
        pass


def test_it_is_up_and_says_what_it_serves(http):
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}
    models = http.get("/v1/models").json()
    assert models["object"] == "list"
    assert [(model["id"], model["object"]) for model in models["data"]] == [(NAME, "model"), ("rerank-v3.5", "model")]
    assert models["data"][0]["modes"] == {"direct": 0, "budget": 256, "cascade": 256}


def test_jinas_client(http, expected):
    body = {"model": NAME, "query": "q", "documents": [{"text": text} for text in DOCUMENTS], "top_n": 3}
    response = http.post("/v1/rerank", json=body, headers={"Authorization": "Bearer none"})
    assert ranking(response) == expected[:3]
    payload = response.json()
    assert payload["model"] == NAME
    assert payload["usage"]["completion_tokens"] == len(DOCUMENTS)  # one token a direct score
    for result in payload["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
        assert result["status"] == "direct"


def test_coheres_client(http, expected):
    body = {"model": NAME, "query": "q", "documents": DOCUMENTS, "max_tokens_per_doc": 4096}
    response = http.post("/v2/rerank", json=body)
    assert ranking(response) == expected
    ours = {"status", "truncated", "prompt_tokens", "generated_tokens"}
    assert set(response.json()["results"][0]) == {"index", "relevance_score"} | ours
    assert response.json()["id"]
    assert ranking(http.post("/rerank", json=body)) == expected


def test_vllms_score(http, expected):
    response = http.post("/v1/score", json={"model": NAME, "text_1": "q", "text_2": DOCUMENTS})
    data = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(10))
    assert {entry["index"]: entry["score"] for entry in data} == dict(expected)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "param", "code"),
    [
        ("POST", "/v1/rerank", b"{nope", 400, None, "invalid_json"),
        ("POST", "/v1/rerank", b'{"query": "q", "documents": []}', 400, "documents", "empty_documents"),
        ("POST", "/v1/rerank", b'{"query": "", "documents": ["a"]}', 400, "query", "empty_query"),
        ("POST", "/v1/rerank", b'{"query": "q", "documents": ["a"], "model": "x"}', 404, "model", "model_not_found"),
        ("POST", "/nowhere", b"", 404, None, "unknown_path"),
        ("DELETE", "/v1/score", b"", 405, None, "method_not_allowed"),
    ],
)
def test_errors_are_json(http, method, path, content, status, param, code):
    response = http.request(method, path, content=content)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("given", [{}, {"X-Request-Id": "search-17"}])
def test_every_answer_has_one_request_id(http, given):
    body = {"query": "q", "documents": ["a"]}
    answers = [http.post("/v1/rerank", json=body, headers=given), http.post("/v1/rerank", headers=given)]
    for answer, status in zip(answers, (200, 400), strict=True):
        assert answer.status_code == status
        (request_id,) = answer.headers.get_list("x-request-id")
        assert request_id == given.get("X-Request-Id", request_id)
    assert answers[0].json()["id"] == answers[0].headers["x-request-id"]


def test_an_alias_and_a_mode(http):
    body = {"model": "rerank-v3.5", "query": "q", "documents": DOCUMENTS, "mode": "budget", "max_think_tokens": 5}
    answer = http.post("/v2/rerank", json=body | {"return_reasoning": True}).json()
    assert answer["model"] == "rerank-v3.5"
    assert all(len(result["reasoning"].split()) == 5 for result in answer["results"])
    refused = http.post("/v2/rerank", json=body | {"mode": "think"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "mode_not_allowed")


def test_past_the_deadline_the_best_order_so_far_is_the_answer(http, expected):
    # 100 pairs, 8 at a time, 50 ms each: 0.65 s of work.
    body = {"query": "q", "documents": DOCUMENTS * 10, "deadline_ms": 300}
    started = time.monotonic()
    answer = http.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert time.monotonic() - started < 0.6
    scored = [result for result in results if result["status"] == "direct"]
    assert 0 < len(scored) < 100
    assert results[: len(scored)] == scored
    assert {result["relevance_score"] for result in scored} <= set(dict(expected).values())
    assert {(result["status"], result["relevance_score"]) for result in results[len(scored) :]} == {("skipped", None)}
    # The engine is free at once: what was left is cancelled.
    started = time.monotonic()
    assert http.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 200
    assert time.monotonic() - started < 0.3


def test_a_deadline_in_a_queue_is_kept(server):
    """Nine requests of an engine that takes eight: the last one waits, and is told so."""

    async def send():
        async with httpx.AsyncClient(base_url=server, timeout=60, trust_env=False) as client:
            body = {"query": "q", "documents": DOCUMENTS * 10}
            held = [asyncio.create_task(client.post("/v1/rerank", json=body)) for _ in range(8)]
            await asyncio.sleep(0.5)
            started = time.monotonic()
            late = await client.post("/v1/rerank", json=body | {"deadline_ms": 200})
            return late, time.monotonic() - started, await asyncio.gather(*held)

    late, seconds, held = asyncio.run(send())
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert seconds < 2
    assert {answer.status_code for answer in held} == {200}


def test_twenty_requests_at_a_time(server, expected):
    async def send():
        async with httpx.AsyncClient(base_url=server, timeout=60, trust_env=False) as client:
            body = {"query": "q", "documents": DOCUMENTS}
            return await asyncio.gather(*(client.post("/v1/rerank", json=body) for _ in range(20)))

    assert [ranking(response) for response in asyncio.run(send())] == [expected] * 20


def test_a_client_that_leaves_frees_the_engine(http):
    # 800 pairs, 8 at a time, 50 ms each: 5 s of work, of which 1 s is done.
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS * 80}, timeout=1)
    started = time.monotonic()
    assert http.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 200
    assert time.monotonic() - started < 3


def test_a_port_in_use_is_refused(server):
    port = int(server.rsplit(":", 1)[1])
    config = with_values(CONFIG, {"serving.port": port})
    with pytest.raises(UserError, match=f"serving.port {port} is in use"), job.serving(config):
        pass


def test_a_second_server_on_the_cluster_is_refused(server):
    with pytest.raises(UserError, match="Ray Serve already runs"), job.serving(CONFIG):
        pass


def test_an_engine_that_dies_is_reported_and_replaced(http, expected):
    response = http.post("/v1/rerank", json={"query": "q", "documents": [POISON]})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert _status_becomes(http, 503)
    assert _status_becomes(http, 200)
    assert ranking(http.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS})) == expected


def _status_becomes(http, status, within_s=30):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if http.get("/readyz").status_code == status:
                return True
        time.sleep(0.05)
    return False


def _printed_url(capsys, within_s=90):
    deadline = time.monotonic() + within_s
    printed = ""
    while time.monotonic() < deadline:
        printed += capsys.readouterr().out
        if found := re.search(rf"^serving {NAME} at (http://127\.0\.0\.1:\d+)\n", printed, re.MULTILINE):
            return found.group(1)
        time.sleep(0.1)
    raise TimeoutError(printed)
