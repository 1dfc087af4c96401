"""Streams of Client and AsyncClient: against bytes that are made up, and against the real API over the fake engine."""

import asyncio
import json
import time

import httpx
import pytest

from helpers.backend import EngineBackend
from helpers.served import serving_api
from limrank import ApiStatusError, AsyncClient, Client, EndpointError, RerankUpdate, UserError
from limrank.config import ModelConfig, ScoringConfig
from limrank.engines import retries
from limrank.serving.api import build_api
from limrank.serving.errors import engine_unavailable
from limrank.serving.protocol import Served

URL = "http://127.0.0.1:8000"
DOCUMENTS = ["heapq.merge", "sorted", "ünïcode 漢字 🙂"]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.delenv("LIMRANK_API_KEY", raising=False)
    monkeypatch.setattr(retries.random, "uniform", lambda least, most: 0.001)


def result(index, score, status="direct", **fields):
    return {"index": index, "relevance_score": score, "status": status} | fields


def answer(*results, **fields):
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return {"id": "r1", "model": "small", "results": list(results), "usage": usage} | fields


def event(name, data):
    text = data if isinstance(data, str) else json.dumps(data)
    return f"event: {name}\ndata: {text}\n\n".encode()


def chains(finished, wanted=3):
    return {"chains": {"finished": finished, "wanted": wanted}}


RANKING = event("ranking", answer(result(1, 0.7), result(0, 0.5), result(2, 0.1)) | chains(0))
SCORES = event("scores", {"order": [0, 1, 2], "results": [result(0, 0.9, "complete", reasoning="yes")], **chains(1)})
DONE = event(
    "done",
    answer(
        result(0, 0.9, "complete", reasoning="yes"), result(2, 0.8, "forced"), result(1, None, "failed", error="no")
    ),
)
WHOLE = [b": hello\n\n", RANKING, SCORES, event("newer", {"x": 1}), DONE]


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = False

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self):
        for piece in self:
            yield piece

    def close(self):
        self.closed = True

    async def aclose(self):
        self.closed = True


class Server:
    """Streams or answers in turn, the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.streams = []

    def __call__(self, request):
        self.requests.append(request)
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, Exception):
            raise given
        if isinstance(given, httpx.Response):
            return given
        self.streams.append(Pieces(given))
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Request-Id": "r1"}
        return httpx.Response(200, headers=headers, stream=self.streams[-1])


@pytest.fixture(params=["sync", "async"])
def updates_of(request):
    """The updates that either client gives, and the error that ends them."""

    def by_client(server, most=None, **options):
        settings = {name: options.pop(name) for name in ("timeout", "max_retries") if name in options}
        found = []
        with Client(URL, transport=httpx.MockTransport(server), **settings) as client:
            try:
                for update in client.rerank_stream("merge", DOCUMENTS, **options):
                    found.append(update)
                    if len(found) == most:
                        break
            except (EndpointError, ApiStatusError) as error:
                return found, error
        return found, None

    def by_async_client(server, most=None, **options):
        settings = {name: options.pop(name) for name in ("timeout", "max_retries") if name in options}

        async def go():
            found = []
            async with AsyncClient(URL, transport=httpx.MockTransport(server), **settings) as client:
                updates = client.rerank_stream("merge", DOCUMENTS, **options)
                try:
                    async for update in updates:
                        found.append(update)
                        if len(found) == most:
                            break
                except (EndpointError, ApiStatusError) as error:
                    return found, error
                await updates.aclose()
            return found, None

        return asyncio.run(go())

    return by_client if request.param == "sync" else by_async_client


def scores(update):
    return [(each.index, each.relevance_score) for each in update.response.results]


def test_each_update_is_the_ranking_so_far(updates_of):
    server = Server(WHOLE)
    found, error = updates_of(server, top_n=3, mode="budget", return_reasoning=True)
    assert error is None
    assert [scores(update) for update in found] == [
        [(1, 0.7), (0, 0.5), (2, 0.1)],
        [(0, 0.9), (1, 0.7), (2, 0.1)],
        [(0, 0.9), (2, 0.8), (1, None)],
    ]
    assert [update.changed for update in found] == [(1, 0, 2), (0,), (2, 1)]
    assert [(update.chains_finished, update.chains_wanted) for update in found] == [(0, 3), (1, 3), (1, 3)]
    assert [update.final for update in found] == [False, False, True]
    assert all(update.response.model == "small" and update.response.usage.prompt_tokens == 7 for update in found)
    assert all(update.response.request_id == "r1" for update in found)
    assert found[1].response.results[0].reasoning == "yes"
    assert found[-1].response.results[0].document == DOCUMENTS[0]
    assert isinstance(found[0], RerankUpdate)
    (request,) = server.requests
    assert json.loads(request.content) == {
        "query": "merge",
        "documents": DOCUMENTS,
        "return_documents": False,
        "top_n": 3,
        "mode": "budget",
        "return_reasoning": True,
        "stream": True,
    }
    assert request.headers["Accept"] == "text/event-stream, application/json"


def test_bytes_may_be_split_anywhere(updates_of):
    content = b"".join(WHOLE).replace(b"\n", b"\r\n")
    found, error = updates_of(Server([content[place : place + 1] for place in range(len(content))]))
    assert error is None and len(found) == 3 and found[-1].final


def test_scores_may_come_before_the_ranking(updates_of):
    first = event("scores", {"order": [2], "results": [result(2, 0.1)], **chains(0, 0)})
    found, error = updates_of(Server([first, *WHOLE]))
    assert error is None
    assert [scores(update) for update in found][0] == [(2, 0.1)]
    assert found[0].response.model == "" and found[1].changed == (1, 0)


def test_a_server_that_does_not_stream_gives_the_final_update(updates_of):
    whole = httpx.Response(200, json=answer(result(1, 0.7), result(0, 0.5)))
    found, error = updates_of(Server(whole))
    assert error is None
    assert [(scores(update), update.final, update.changed) for update in found] == [
        ([(1, 0.7), (0, 0.5)], True, (1, 0))
    ]


def busy(status=503, **headers):
    error = {"message": "later", "type": "server_error", "param": None, "code": "overloaded"}
    return httpx.Response(status, json={"error": error}, headers=headers)


def test_what_fails_before_the_first_update_is_tried_again(updates_of):
    server = Server(busy(), busy(429), httpx.ConnectError("no"), [b": hello\n\n"], [httpx.ReadError("cut")], WHOLE)
    found, error = updates_of(server, max_retries=5)
    assert error is None and len(found) == 3
    assert len(server.requests) == 6
    server = Server([event("error", engine_unavailable().body() | {"status": 503})], WHOLE)
    found, error = updates_of(server)
    assert error is None and len(server.requests) == 2


def test_the_server_s_wait_is_kept(updates_of):
    began = time.monotonic()
    found, error = updates_of(Server(busy(429, **{"Retry-After": "1"}), WHOLE))
    assert error is None and len(found) == 3
    assert time.monotonic() - began > 1


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ([], "the stream ended before its last event"),
        ([httpx.ReadError("connection reset")], "connection reset"),
        ([DONE[:-1]], "the stream ended before its last event"),
        ([event("done", "{nope")], "does not answer as"),
        ([event("done", "[]")], "does not answer as"),
        ([event("done", "NaN")], "does not answer as"),
        ([event("done", {"results": 7})], "no list of results"),
        ([event("done", {"results": [7]})], "a result without an index"),
        ([event("done", {"results": [result(9, 0.5)]})], "is for none of the 3 documents"),
        ([event("done", {"results": [result(0, 0.5), result(0, 0.5)]})], "two results for one document"),
        ([event("scores", {"results": []})], "no order"),
        ([event("scores", {"order": [0, 0], "results": []})], "two results for one document"),
        ([event("scores", {"order": ["0"], "results": []})], "no order"),
        ([event("scores", {"order": [5], "results": []})], "no order"),
        ([event("scores", {"order": [0], "results": [result(True, 0.5)]})], "a result without an index"),
        ([event("scores", {"order": [0], "results": [{"index": 0, "relevance_score": 7}]})], "no number from 0 to 1"),
        ([event("scores", "[" * 100_000)], "does not answer as"),
    ],
)
def test_a_broken_stream_is_an_error_and_is_not_tried_again(updates_of, rest, words):
    server = Server([RANKING, *rest])
    found, error = updates_of(server)
    assert len(found) == 1 and len(server.requests) == 1
    assert isinstance(error, EndpointError) and not isinstance(error, ApiStatusError)
    assert words in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 400


@pytest.mark.parametrize("status", [503, "x", 200, 10**30, None])
def test_an_error_event_is_the_server_s_error(updates_of, status):
    failed = event("error", engine_unavailable().body() | {"status": status})
    server = Server([RANKING, failed, DONE])
    found, error = updates_of(server)
    assert len(found) == 1 and len(server.requests) == 1
    assert isinstance(error, ApiStatusError)
    assert (error.status, error.code, error.request_id) == (503 if status == 503 else 500, "engine_unavailable", "r1")


def test_who_stops_reading_closes_the_connection(updates_of):
    server = Server([RANKING, SCORES, DONE])
    found, error = updates_of(server, most=1)
    assert len(found) == 1 and error is None
    assert server.streams[0].closed


def test_a_bad_argument_is_told_at_once():
    with Client(URL) as client:
        with pytest.raises(UserError, match="top_n"):
            client.rerank_stream("q", ["a"], top_n=0)
        with pytest.raises(UserError, match="rerank_stream has no argument stream"):
            client.rerank_stream("q", ["a"], stream=True)
        with pytest.raises(UserError, match="documents"):
            client.rerank_stream("q", [])


def make_api(**engine):
    backend = EngineBackend(**engine)
    backend.recipe = ScoringConfig(mode="budget", max_think_tokens=30)
    api = build_api(backend, Served.of(ModelConfig(id="served"), backend.recipe))
    api.backend = backend
    return api


def test_the_real_api_streams_to_both_clients():
    api = make_api(max_in_flight=2, fault={"latency_ms": 60})
    documents = [f"passage {number}" for number in range(8)]
    with serving_api(api) as url, Client(url) as client:
        plain = client.rerank("q", documents, top_n=5)
        began, arrived, found = time.monotonic(), [], []
        for update in client.rerank_stream("q", documents, top_n=5):
            arrived.append(time.monotonic() - began)
            found.append(update)

        async def go():
            async with AsyncClient(url) as other:
                return [update async for update in other.rerank_stream("q", documents, top_n=5)]

        others = asyncio.run(go())
    for updates in (found, others):
        assert updates[-1].final and updates[-1].response.results == plain.results
        assert all(len(update.response.results) <= 5 for update in updates)
        assert len(updates) >= 4
    assert arrived[-1] - arrived[0] > 0.3


def test_leaving_the_real_api_frees_its_engine():
    api = make_api(max_in_flight=2, fault={"latency_ms": 50})
    with serving_api(api) as url, Client(url) as client:
        for _ in client.rerank_stream("q", [f"passage {number}" for number in range(100)]):
            break
        deadline = time.monotonic() + 1
        while api.backend.engine.limiter.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert api.backend.engine.limiter.requests == 0


def test_the_real_api_s_refusals_are_the_client_s_errors():
    with serving_api(make_api()) as url, Client(url, max_retries=0) as client:
        with pytest.raises(ApiStatusError) as caught:
            next(client.rerank_stream("q", ["a"], mode="think"))
        assert (caught.value.status, caught.value.code) == (400, "mode_not_allowed")
