"""The limits of one request, over raw ASGI messages and over the API."""

import asyncio
import time

import httpx
import pytest

from helpers import virtual_time
from helpers.asgi import Bodies, answer, sent_by
from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig, ServingConfig
from limrank.config.serving import MAX_DOCUMENTS
from limrank.records import Query
from limrank.serving import refusal
from limrank.serving.access import Access, Guard
from limrank.serving.api import build_api
from limrank.serving.errors import ApiError
from limrank.serving.keys import KeyRing
from limrank.serving.limits import MAX_HEADER_BYTES, MAX_HEADERS, BodyLimit, HeaderLimit, Limits
from limrank.serving.protocol import Served
from limrank.serving.settings import ApiSettings

SMALL = Limits(body_bytes=10, receive_timeout_s=0.2, documents=3, document_chars=5, query_chars=8)


def test_the_defaults_are_the_recipe_s():
    assert Limits.of(ServingConfig()) == Limits()
    assert Limits().documents == MAX_DOCUMENTS


@pytest.mark.parametrize("pieces", [[b""], [b"0123456789"], [b"01234", b"56789"], [b"", b"0123456789", b""]])
def test_a_body_within_the_limit_arrives_whole(pieces):
    app = Bodies()
    assert answer(BodyLimit(app, SMALL), pieces).status == 200
    assert app.received == [b"".join(pieces)]


def test_a_length_above_the_limit_is_refused_before_reading():
    app = Bodies()
    # The client waits for the answer before it sends anything: there is nothing to receive for two seconds.
    started = time.monotonic()
    found = answer(BodyLimit(app, SMALL), [b"0"], [("Content-Length", "11")], delay=0.01)
    assert (found.status, found.code) == (413, "body_too_large")
    assert "serving.max_body_bytes" in found.message and "10" in found.message
    assert found.headers["connection"] == "close"
    assert app.calls == 0 and time.monotonic() - started < 1


@pytest.mark.parametrize("length", ["9" * 18, "9" * 5000, "00000000000011"])
def test_a_length_of_many_digits(length):
    assert answer(BodyLimit(Bodies(), SMALL), headers=[("Content-Length", length)]).code == "body_too_large"


def test_a_streamed_body_is_refused_as_soon_as_it_is_too_long():
    app, read = Bodies(), []

    async def go():
        sent = []

        async def receive():
            # The answer's start comes before the rest of the body is read.
            read.append(bool(sent))
            return {"type": "http.request", "body": b"0123", "more_body": len(read) < 1000}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
        await BodyLimit(app, SMALL)(scope, receive, send)
        return sent

    sent = asyncio.run(go())
    assert sent[0]["status"] == 413 and app.calls == 0
    assert read.index(True) == 3  # 12 bytes are more than 10
    assert len(read) == 1000  # the rest is dropped, so that the client can read the answer


def test_a_client_that_never_stops_is_dropped(monkeypatch):
    monkeypatch.setattr(refusal, "_LINGER_S", 0.1)

    async def go():
        async def receive():
            await asyncio.sleep(0.001)
            return {"type": "http.request", "body": b"0" * 100, "more_body": True}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
        await asyncio.wait_for(BodyLimit(Bodies(), SMALL)(scope, receive, send), 2)
        return sent

    assert asyncio.run(go())[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize("pieces", [[], [b"{"], [b"{", b"}"]])
def test_a_half_sent_body_is_ended(pieces):
    app = Bodies()
    sent, took = virtual_time.run(sent_by_half(BodyLimit(app, SMALL), pieces))
    assert (sent[0]["status"], app.calls) == (408, 0)
    assert b"serving.receive_timeout_s" in sent[1]["body"] and b"receive_timeout" in sent[1]["body"]
    assert (b"connection", b"close") in sent[0]["headers"]
    assert took == pytest.approx(SMALL.receive_timeout_s)


async def sent_by_half(app, pieces):
    waiting, sent = list(pieces), []

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": waiting.pop(), "more_body": True}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "path": "/", "headers": [(b"content-length", b"9")]}, receive, send)
    return sent, asyncio.get_running_loop().time()


def test_a_slow_body_has_one_time_for_all_its_pieces():
    assert answer(BodyLimit(Bodies(), SMALL), [b"0"] * 9, delay=0.05).code == "receive_timeout"
    assert answer(BodyLimit(Bodies(), SMALL), [b"0"] * 9, delay=0.001).status == 200


def test_a_client_that_leaves_while_it_sends_is_not_answered():
    app = Bodies()
    assert asyncio.run(sent_by(BodyLimit(app, SMALL), [b"0"], then={"type": "http.disconnect"})) == []
    assert app.calls == 0


def test_the_application_still_learns_that_the_client_left():
    async def app(scope, receive, send):
        assert (await receive())["body"] == b"01"
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "seen"})

    async def go():
        messages = [
            {"type": "http.request", "body": b"01", "more_body": False},
            {"type": "http.disconnect"},
        ]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await BodyLimit(app, SMALL)({"type": "http", "path": "/", "headers": []}, receive, send)
        return sent

    assert asyncio.run(go()) == [{"type": "seen"}]


def test_a_cancelled_request_cancels_the_application():
    cancelled = []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def go():
        task = asyncio.create_task(sent_by(BodyLimit(app, SMALL)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    assert cancelled == [True]


@pytest.mark.parametrize(
    "headers",
    [[("X-A", "a")] * (MAX_HEADERS + 1), [("X-A", "a" * MAX_HEADER_BYTES)]],
    ids=["too many", "too long"],
)
def test_headers_are_limited(headers):
    app = Bodies()
    found = answer(HeaderLimit(app), headers=headers)
    assert (found.status, found.code, app.calls) == (431, "headers_too_large", 0)
    assert answer(HeaderLimit(app), headers=[("X-A", "a")] * MAX_HEADERS).status == 200


def test_headers_are_counted_before_a_key_is_looked_for():
    ring = KeyRing({"a": "0" * 64})
    found = answer(Guard(Bodies(), Access(keys=ring)), headers=[("X-API-Key", "a")] * (MAX_HEADERS + 1))
    assert found.code == "headers_too_large"


def test_lifespan_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(BodyLimit(app, SMALL)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_documents_are_cut_and_counted():
    texts, cut = SMALL.fit(Query("", "q"), ["12345", "123456", "é" * 6])
    assert (texts, cut) == (["12345", "12345", "é" * 5], {1, 2})


@pytest.mark.parametrize(
    ("query", "count", "code", "param", "key"),
    [
        (Query("", "q" * 9), 1, "query_too_long", "text_1", "serving.max_query_chars"),
        (Query("", "q" * 4, "i" * 5), 1, "query_too_long", "text_1", "serving.max_query_chars"),
        (Query("", "q"), 4, "too_many_documents", "text_2", "serving.max_documents"),
    ],
)
def test_a_limit_names_itself(query, count, code, param, key):
    with pytest.raises(ApiError) as caught:
        SMALL.fit(query, ["a"] * count, ("text_1", "text_2"))
    error = caught.value
    assert (error.status, error.code, error.param) == (422, code, param)
    assert key in str(error) and "qqq" not in str(error)
    SMALL.fit(Query("", "q" * 4, "i" * 4), ["a"] * 3)


def post(path, body, limits=SMALL, **options):
    async def go():
        served = Served.of(ModelConfig(id="served"), ScoringConfig())
        access = Access(Limits(10_000, 5, limits.documents, limits.document_chars, limits.query_chars))
        api = build_api(EngineBackend(), served, ApiSettings(access=access))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as http:
            return await http.post(path, json=body, **options)

    return asyncio.run(go())


def test_a_cut_document_s_result_is_truncated_and_its_document_whole():
    answered = post("/v1/rerank", {"query": "q", "documents": ["12345", "123456"]})
    found = {each["index"]: (each["truncated"], each["document"]["text"]) for each in answered.json()["results"]}
    assert found == {0: (False, "12345"), 1: (True, "123456")}
    # The engine reads as many characters of both.
    assert len({each["relevance_score"] for each in answered.json()["results"]}) == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"query": "q" * 9, "documents": ["a"]}, "query"),
        ("/v2/rerank", {"query": "q", "documents": ["a"] * 4}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * (MAX_DOCUMENTS + 1)}, "documents"),
        ("/v1/score", {"text_1": "q", "text_2": ["a"] * 4}, "text_2"),
        ("/v1/score", {"text_1": "q" * 9, "text_2": "a"}, "text_1"),
    ],
)
def test_over_the_api(path, body, param):
    answered = post(path, body)
    assert (answered.status_code, answered.json()["error"]["param"]) == (422, param)
    assert "serving.max_" in answered.json()["error"]["message"]


def test_a_body_over_the_api():
    answered = post("/v1/rerank", {"query": "q", "documents": ["a" * 20_000]})
    assert (answered.status_code, answered.json()["error"]["code"]) == (413, "body_too_large")
