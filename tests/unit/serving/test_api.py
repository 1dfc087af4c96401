"""Every route and every error over HTTP, in one process: the API over a backend that waits to be told."""

import asyncio

import httpx

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.api import build_api
from limrank.serving.protocol import Served

SERVED = Served.of(ModelConfig(id="served"), ScoringConfig(mode="budget"))
BODY = {"query": "q", "documents": ["a", "b"]}


def client(backend, limit=None, min_score=None):
    transport = httpx.ASGITransport(build_api(backend, SERVED, limit, min_score), raise_app_exceptions=False)
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

    assert {"/v1/rerank", "/v2/rerank", "/v1/score", "/v1/models", "/healthz", "/readyz"} <= set(
        asyncio.run(go())["paths"]
    )
