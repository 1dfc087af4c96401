"""Every route and every error over HTTP, in one process: the API over a backend that waits to be told."""

import asyncio
import time

import httpx
import pytest

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.api import build_api
from limrank.serving.protocol import Served
from limrank.serving.settings import ApiSettings

SERVED = Served.of(ModelConfig(id="served"), ScoringConfig(mode="budget"))
BODY = {"query": "q", "documents": ["a", "b"]}


def client(backend, limit=None, min_score=None, **settings):
    api = build_api(backend, SERVED, ApiSettings(limit, min_score=min_score, **settings))
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def error_of(response):
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["code"]


def test_errors_have_one_shape():
    async def go():
        async with client(EngineBackend()) as http:
            posts = {
                "not json": {"content": b"{nope"},
                "no body": {"content": b""},
                "a list": {"json": [1]},
                "no query": {"json": {"documents": ["a"]}},
                "model": {"json": BODY | {"model": "another"}},
            }
            found = {name: error_of(await http.post("/v1/rerank", **post)) for name, post in posts.items()}
            found["path"] = error_of(await http.get("/v1/nothing"))
            wrong = await http.get("/v1/rerank")
            return found, error_of(wrong), wrong.headers["allow"]

    found, wrong_method, allow = asyncio.run(go())
    assert found == {
        "not json": (400, None, "invalid_json"),
        "no body": (400, None, "invalid_body"),
        "a list": (400, None, "invalid_body"),
        "no query": (400, "query", "missing"),
        "model": (404, "model", "model_not_found"),
        "path": (404, None, "unknown_path"),
    }
    assert (wrong_method, allow) == ((405, None, "method_not_allowed"), "POST")


def test_the_card_says_what_scores_depend_on():
    async def go():
        async with client(EngineBackend()) as http:
            return (await http.get("/v1/models")).json()["data"]

    (card,) = asyncio.run(go())
    assert (card["id"], card["owned_by"]) == ("served", "limrank")
    assert card["scoring"] == {
        "mode": "budget",
        "max_think_tokens": 256,
        "min_think_tokens": None,
        "compatibility": None,
        "prompt": SERVED.prompt,
        "cutoff": None,
        "band": None,
        "dtype": "auto",
        "max_model_len": None,
    }
    # sha256 of limrank/prompts/relevance.txt without its last line end, its first 16 digits.
    assert SERVED.prompt == "37b09ea9aeb9ca2d"


def test_nothing_is_relevant_where_no_score_reaches_the_threshold():
    async def go():
        found = []
        async with client(EngineBackend(), min_score=1.0) as http:
            for body in (BODY, BODY | {"min_score": 0}, BODY | {"min_score": 2}):
                found.append(await http.post("/v2/rerank", json=body))
        return found

    nothing, everything, wrong = asyncio.run(go())
    assert (nothing.status_code, nothing.json()["results"]) == (200, [])
    assert len(everything.json()["results"]) == 2
    assert error_of(wrong) == (400, "min_score", "less_than_equal")


def test_usage_is_what_the_engine_read_and_wrote():
    async def go():
        async with client(EngineBackend()) as http:
            return (await http.post("/v1/rerank", json=BODY)).json()

    answer = asyncio.run(go())
    # Each result's tokens are its own; a direct score is one token.
    assert [result["generated_tokens"] for result in answer["results"]] == [1, 1]
    assert answer["usage"]["completion_tokens"] == 2
    # A pair is read once: its prompt, and the close before the label.
    close = 2  # a line end and the mark
    assert answer["usage"]["prompt_tokens"] == sum(result["prompt_tokens"] + close for result in answer["results"])


def test_json_without_a_content_type_is_read():
    async def go():
        async with client(EngineBackend()) as http:
            return await http.post("/rerank", content=b'{"query": "q", "documents": ["a"]}')

    assert asyncio.run(go()).status_code == 200


def test_too_many_waiting_requests_are_refused_and_the_rest_answered():
    async def go():
        backend = EngineBackend()
        backend.gate.clear()
        async with client(backend, limit=2) as http:
            held = [asyncio.create_task(http.post("/v1/rerank", json=BODY)) for _ in range(2)]
            while backend.waiting < 2:
                await asyncio.sleep(0.01)
            refused = await http.post("/v1/rerank", json=BODY)
            health = await http.get("/readyz")
            backend.gate.set()
            answered = [(await task).status_code for task in held]
            again = await http.post("/v1/rerank", json=BODY)
            return refused, health, answered, again

    refused, health, answered, again = asyncio.run(go())
    assert error_of(refused) == (429, None, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert health.status_code == 200
    assert answered == [200, 200]
    assert again.status_code == 200


def test_a_crashed_engine_is_reported():
    async def go():
        backend = EngineBackend()
        backend.dead = True
        async with client(backend) as http:
            return await http.post("/v1/rerank", json=BODY), await http.get("/readyz")

    for response in asyncio.run(go()):
        assert error_of(response) == (503, None, "engine_unavailable")


def test_some_failed_pairs_are_null_and_all_are_an_error():
    async def go(fail_rate):
        async with client(EngineBackend(fail_rate=fail_rate)) as http:
            return await http.post("/v1/rerank", json={"query": "q", "documents": [str(i) for i in range(40)]})

    results = asyncio.run(go(0.5)).json()["results"]
    scores = [result["relevance_score"] for result in results]
    scored = [score for score in scores if score is not None]
    assert 0 < len(scored) < 40
    assert scores == sorted(scored, reverse=True) + [None] * (40 - len(scored))
    assert [r["index"] for r in results[len(scored) :]] == sorted(r["index"] for r in results[len(scored) :])
    assert error_of(asyncio.run(go(1.0))) == (422, None, "all_pairs_failed")


def test_an_unexpected_error_is_json_and_tells_nothing():
    class Broken(EngineBackend):
        async def score(self, query, texts, options):
            raise ZeroDivisionError("a path of this machine")

    async def go():
        async with client(Broken()) as http:
            return await http.post("/v1/rerank", json=BODY)

    response = asyncio.run(go())
    assert error_of(response) == (500, None, "internal_error")
    assert "machine" not in response.text


def test_the_schema_can_be_made():
    async def go():
        async with client(EngineBackend()) as http:
            return (await http.get("/openapi.json")).json()

    paths = set(asyncio.run(go())["paths"])
    assert {"/v1/rerank", "/v2/rerank", "/v1/score", "/v1/models", "/healthz", "/readyz"} <= paths
    assert not {"/rerank", "/score"} & paths


def test_vllm_s_plain_path_of_scores_is_an_alias():
    body = {"text_1": "q", "text_2": ["a", "b"]}

    async def go():
        async with client(EngineBackend()) as http:
            return [await http.post(path, json=body) for path in ("/score", "/v1/score")]

    plain, versioned = asyncio.run(go())
    assert plain.status_code == 200
    assert plain.json()["data"] == versioned.json()["data"]


def ask(*requests, backend=None, **settings):
    """The answers to requests, one after another: paths to get, or bodies to rerank."""

    async def go():
        async with client(backend or EngineBackend(), **settings) as http:
            return [
                await (http.get(each) if isinstance(each, str) else http.post("/v1/rerank", json=each))
                for each in requests
            ]

    return asyncio.run(go())


def test_a_server_without_an_engine_is_alive_but_not_ready():
    backend = EngineBackend()
    backend.dead = True
    alive, ready = ask("/healthz", "/readyz", backend=backend)
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert error_of(ready) == (503, None, "engine_unavailable")
    assert [answer.json() for answer in ask("/healthz", "/readyz")] == [{"status": "ok"}] * 2


def test_the_card_has_its_modes_and_the_model_each_of_its_names():
    (answer,) = ask("/v1/models", modes={"budget": 30, "cascade": 30}, aliases=["rerank-v3.5", "served"])
    cards = answer.json()["data"]
    assert [(card["id"], card["root"]) for card in cards] == [("served", "served"), ("rerank-v3.5", "served")]
    assert [card["modes"] for card in cards] == [{"budget": 30, "cascade": 30}] * 2
    assert ask("/v1/models")[0].json()["data"][0]["modes"] == {"budget": 256, "direct": 0}


def test_an_alias_is_the_served_model():
    answers = ask(*(BODY | {"model": name} for name in ("served", "alias", "Alias")), BODY, aliases=["alias"])
    assert [answer.json().get("model") for answer in answers] == ["served", "alias", None, "served"]
    assert error_of(answers[2]) == (404, "model", "model_not_found")
    scores = [[result["relevance_score"] for result in answers[number].json()["results"]] for number in (0, 1, 3)]
    assert scores[0] == scores[1] == scores[2]


def test_a_request_chooses_its_mode():
    backend = EngineBackend()
    backend.recipe = ScoringConfig(mode="budget", max_think_tokens=30)
    modes = {"budget": 30, "direct": 0}
    own, direct, short, think, long = ask(
        BODY | {"return_reasoning": True},
        BODY | {"mode": "direct", "return_reasoning": True},
        BODY | {"max_think_tokens": 3, "return_reasoning": True},
        BODY | {"mode": "think"},
        BODY | {"max_think_tokens": 31},
        backend=backend,
        modes=modes,
    )
    assert {result["status"] for result in own.json()["results"]} <= {"complete", "forced"}
    assert {(result["status"], result["reasoning"]) for result in direct.json()["results"]} == {("direct", None)}
    assert all(len(result["reasoning"].split()) == 3 for result in short.json()["results"])
    assert error_of(think) == (400, "mode", "mode_not_allowed")
    assert "take budget or direct" in think.json()["error"]["message"]
    assert error_of(long) == (400, "max_think_tokens", "max_think_tokens_too_large")


def test_scores_also_choose_a_mode():
    async def go(mode):
        async with client(EngineBackend()) as http:
            return await http.post("/v1/score", json={"text_1": "q", "text_2": "a", "mode": mode})

    assert asyncio.run(go("direct")).status_code == 200
    assert error_of(asyncio.run(go("think"))) == (400, "mode", "mode_not_allowed")


def test_a_cut_document_says_so():
    (answer,) = ask({"query": "q", "documents": ["a", "long enough"], "max_tokens_per_doc": 4})
    assert {result["index"]: result["truncated"] for result in answer.json()["results"]} == {0: False, 1: True}


def test_past_the_deadline_the_best_order_so_far_is_the_answer():
    async def go(documents, deadline_ms):
        backend = EngineBackend(max_in_flight=2, fault={"latency_ms": 100})
        async with client(backend) as http:
            body = {"query": "q", "documents": documents, "deadline_ms": deadline_ms, "top_n": 5}
            started = time.monotonic()
            answer = await http.post("/v1/rerank", json=body)
            return answer, time.monotonic() - started, backend.engine.limiter.requests

    answer, seconds, running = asyncio.run(go(["same", "same", "other", "one", "two", "three"], 250))
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result["status"] for result in results] == ["direct"] * 4 + ["skipped"]
    assert (results[4]["index"], results[4]["relevance_score"]) == (4, None)
    assert "deadline passed" in results[4]["error"]
    indices = [result["index"] for result in results]
    assert indices.index(0) + 1 == indices.index(1)
    assert seconds < 0.5
    assert running == 0
    assert answer.json()["usage"]["completion_tokens"] == 4

    answer, seconds, running = asyncio.run(go(["a"], 20))
    assert error_of(answer) == (504, "deadline_ms", "deadline_exceeded")
    assert running == 0


def test_ties_are_in_input_order():
    (answer,) = ask({"query": "q", "documents": ["same"] * 20})
    assert [result["index"] for result in answer.json()["results"]] == list(range(20))


def test_too_many_waiting_pairs_are_refused():
    async def go():
        backend = EngineBackend()
        backend.gate.clear()
        async with client(backend, max_pairs=3) as http:
            held = asyncio.create_task(http.post("/v1/rerank", json=BODY))
            while backend.waiting < 1:
                await asyncio.sleep(0.01)
            refused = await http.post("/v1/rerank", json=BODY)
            fits = asyncio.create_task(http.post("/v1/score", json={"text_1": "q", "text_2": "a"}))
            while backend.waiting < 2:
                await asyncio.sleep(0.01)
            backend.gate.set()
            answered = [(await task).status_code for task in (held, fits)]
            large = await http.post("/v1/rerank", json=BODY | {"documents": ["a"] * 10})
            return refused, answered, large

    refused, answered, large = asyncio.run(go())
    assert error_of(refused) == (429, None, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert answered == [200, 200]
    assert large.status_code == 200


def test_a_request_that_is_at_fault_takes_no_place():
    class Counting(EngineBackend):
        asked = 0

        async def score(self, *request):
            self.asked += 1
            return await super().score(*request)

    backend = Counting()
    answers = ask(BODY | {"mode": "think"}, BODY | {"model": "x"}, BODY, backend=backend, limit=1, max_pairs=2)
    assert [answer.status_code for answer in answers] == [400, 404, 200]
    assert backend.asked == 1


def test_the_documentation_is_a_page_of_our_own():
    (page,) = ask("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for text in ("POST /v1/rerank", "GET /readyz", "max_tokens_per_doc", "RerankRequest", "504", "429"):
        assert text in page.text
    # No scripts, and nothing from another place.
    for mark in ("<script", "http://", "https://", "<link", "@import", "url("):
        assert mark not in page.text


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b'{"query": "q", "documents": [' + b"9" * 5000 + b"]}",
        b'{"query": "q", "documents": [{"text": "a", "x": NaN}]}',
        b'{"query": "q", "documents": [{"text": "a", "x": 1e999}]}',
        b'{"query": "q", "documents": [{"text": "a", "x": "\\ud800"}]}',
        b'{"query": "q", "documents": [{"text": "a", "\\ud800": 1}]}',
        b'{"query": "q", "documents": [{"text": "a", "x": ' + b"[" * 400 + b"]" * 400 + b"}]}",
        b'{"query": "q", "documents": [{"text": "a", "x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}]}",
        b'{"query": "q", "documents": ["a"], "rank_fields": ["\\ud800"]}',
        b'{"query": "q", "documents": ["a"], "deadline_ms": 1e308}',
        b'{"query": "q", "documents": ["a"], "top_n": Infinity}',
        b'{"query": "q", "documents": ["a"], "model": "\\ud800"}',
        b"null",
        b"[]",
    ],
    ids=lambda body: str(body[:60]),
)
def test_garbage_is_the_requests_fault_and_said_in_json(body):
    async def go():
        async with client(EngineBackend()) as http:
            return await http.post("/v1/rerank", content=body)

    status, _, _ = error_of(asyncio.run(go()))
    assert status in (400, 404)


def test_numbers_beyond_reason_are_numbers():
    huge = 10**40
    body = {"query": "q", "documents": [{"text": "a", "id": huge}], "top_n": huge, "max_tokens_per_doc": huge}
    (answer,) = ask(body | {"mode": "direct", "max_think_tokens": huge})
    assert answer.json()["results"][0]["document"] == {"text": "a", "id": huge}
