"""Client and AsyncClient: against answers that are made up, and against the real API over the fake engine."""

import asyncio
import datetime
import inspect
import json
import logging
import pickle
import ssl
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime
from types import SimpleNamespace

import httpx
import pytest

from helpers import REPOSITORY
from helpers.backend import EngineBackend
from helpers.served import serving_api
from limrank import ApiStatusError, AsyncClient, Client, Document, EndpointError, UserError
from limrank.config import ModelConfig, ScoringConfig
from limrank.engines import retries
from limrank.serving import connection, request_ids
from limrank.serving import http_client as http_client_module
from limrank.serving.api import build_api
from limrank.serving.protocol import Served

SECRET = "correct-horse-battery"
URL = "http://127.0.0.1:8000"
DOCUMENTS = ["heapq.merge", "sorted", "ünïcode 漢字 🙂"]


def result(index, score=0.5, **fields):
    return {"index": index, "relevance_score": score, "status": "direct"} | fields


def answer(*results, **fields):
    return {"id": "r1", "model": "small", "results": list(results), "usage": {"prompt_tokens": 7}} | fields


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that only waits move. ``waits`` are those of the clients."""
    fake = SimpleNamespace(now=1000.0, waits=[])

    def sleep(seconds):
        fake.waits.append(seconds)
        fake.now += seconds

    async def asleep(seconds):
        sleep(seconds)
        await asyncio.sleep(0)

    monkeypatch.delenv("LIMRANK_API_KEY", raising=False)
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: fake.now))
    monkeypatch.setattr(http_client_module, "time", SimpleNamespace(sleep=sleep))
    names = {name: getattr(asyncio, name) for name in ("timeout",)}
    monkeypatch.setattr(http_client_module, "asyncio", SimpleNamespace(sleep=asleep, **names))
    monkeypatch.setattr(retries.random, "uniform", lambda least, most: most)  # the longest of the random waits
    return fake


class Answers:
    """Answers in turn, the last one for ever: a body, a status, an exception, or a function of the request."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, Exception):
            raise given
        if callable(given):
            given = given(request)
        if isinstance(given, int):
            return httpx.Response(given)
        return given if isinstance(given, httpx.Response) else httpx.Response(200, json=given)

    @property
    def bodies(self):
        return [json.loads(request.content) for request in self.requests]


@pytest.fixture(params=["sync", "async"])
def call(request):
    """``call(answers, lambda client: client.rerank(…), **settings)`` by either client."""

    def by_client(answers, use, url=URL, **settings):
        with Client(url, transport=httpx.MockTransport(answers), **settings) as client:
            return use(client)

    def by_async_client(answers, use, url=URL, **settings):
        async def go():
            async with AsyncClient(url, transport=httpx.MockTransport(answers), **settings) as client:
                return await use(client)

        return asyncio.run(go())

    return by_client if request.param == "sync" else by_async_client


def rerank(client):
    return client.rerank("merge sorted feeds", DOCUMENTS)


def error_body(message, **fields):
    return {"error": {"message": message, "type": "server_error", "param": None, "code": "busy"} | fields}


# ---- requests and results ------------------------------------------------------------


def test_a_plain_request_has_nothing_that_was_not_asked_for(call):
    answers = Answers(answer(result(1), result(0)))
    response = call(answers, rerank)
    assert answers.bodies == [
        {"query": "merge sorted feeds", "documents": DOCUMENTS, "return_documents": False},
    ]
    (request,) = answers.requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/v1/rerank")
    assert "Authorization" not in request.headers and "X-Request-Id" not in request.headers
    assert request.headers["Content-Type"] == "application/json"
    assert [(each.index, each.document, each.relevance_score) for each in response.results] == [
        (1, "sorted", 0.5),
        (0, "heapq.merge", 0.5),
    ]
    assert (response.id, response.model, response.usage.prompt_tokens, response.request_id) == ("r1", "small", 7, None)


def test_every_option_is_sent_by_its_name(call):
    options = {
        "top_n": 2,
        "instruction": "only Python",
        "mode": "think",
        "max_think_tokens": 1,
        "return_reasoning": True,
        "return_documents": True,
        "min_score": 0,
        "max_tokens_per_doc": 100,
        "deadline_ms": 1500,
    }
    answers = Answers(lambda request: httpx.Response(200, json=answer(), headers={"X-Request-Id": "r-1"}))
    response = call(answers, lambda client: client.rerank("q", ["a"], request_id="r-1", **options))
    assert answers.bodies == [{"query": "q", "documents": ["a"], **options}]
    assert answers.requests[0].headers["X-Request-Id"] == "r-1" == response.request_id


def test_the_longest_id_is_one_that_the_server_keeps(call):
    answers = Answers(answer())
    call(answers, lambda client: client.rerank("q", ["a"], request_id="r" * request_ids.LONGEST))
    assert answers.requests[0].headers["X-Request-Id"] == "r" * 128


def test_documents_are_texts_documents_or_mappings(call):
    given = ["plain", Document("d2", "body", "Title"), Document("d3", "no title"), {"text": "t", "title": "T", "id": 4}]
    answers = Answers(answer(*(result(index) for index in range(4))))
    response = call(answers, lambda client: client.rerank("q", given))
    assert answers.bodies[0]["documents"] == [
        "plain",
        {"text": "body", "title": "Title"},
        "no title",
        {"text": "t", "title": "T", "id": 4},
    ]
    assert [each.document for each in response.results] == given
    assert [each.doc_id for each in response.results] == [None, "d2", "d3", None]


def test_scores_are_in_the_order_of_the_documents(call):
    data = [{"index": 1, "score": None}, {"index": 0, "score": 0.25}]
    answers = Answers({"data": data})
    given = [Document("d1", "body", "Title"), {"text": "t", "title": "T"}]
    assert call(answers, lambda client: client.score("q", given, instruction="only")) == [0.25, None]
    assert answers.bodies == [{"text_1": "q", "text_2": ["Title body", "T t"], "instruction": "only"}]
    assert answers.requests[0].url.path == "/v1/score"


def test_models_are_listed_with_what_they_say(call):
    cards = [{"id": "small", "root": "small", "modes": {"direct": 0, "think": 512}, "scoring": {"mode": "direct"}}]
    (model,) = call(Answers({"data": [*cards]}), lambda client: client.models())
    assert (model.id, model.scoring["mode"], model.modes) == ("small", "direct", {"direct": 0, "think": 512})
    assert call(Answers({"data": [{"id": "old"}]}), lambda client: client.models())[0].modes == {}


@pytest.mark.parametrize(
    ("answers", "ready", "paths"),
    [
        ([{}], True, ["/readyz"]),
        ([503], False, ["/readyz"]),
        ([404, {}], True, ["/readyz", "/healthz"]),
        ([404, 503], False, ["/readyz", "/healthz"]),
        ([404], False, ["/readyz", "/healthz"]),
        ([httpx.ConnectError("refused")], False, ["/readyz"]),
        ([401], False, ["/readyz"]),
    ],
)
def test_ready_asks_once_and_an_older_server_its_health(call, answers, ready, paths):
    given = Answers(*answers)
    assert call(given, lambda client: client.ready()) is ready
    assert [request.url.path for request in given.requests] == paths


def test_a_base_url_may_have_a_path_and_a_query(call):
    answers = Answers(answer(result(0)))
    call(answers, rerank, url="https://gateway.example/limrank/?api-version=2")
    assert str(answers.requests[0].url) == "https://gateway.example/limrank/v1/rerank?api-version=2"


def test_both_clients_have_the_same_methods():
    for name in ("__init__", "rerank", "score", "models", "ready"):
        given, other = (inspect.signature(getattr(each, name)) for each in (Client, AsyncClient))
        assert [*given.parameters] == [*other.parameters]
        assert [each.default for each in given.parameters.values()] == [
            each.default for each in other.parameters.values()
        ]


def test_an_error_can_be_sent_to_another_process():
    error = ApiStatusError(URL, 429, "full", code="overloaded", param="documents", request_id="r", retry_after_s=2.0)
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), vars(sent)) == (str(error), vars(error))


# ---- arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"query": None}, "query: should be a text"),
        ({"query": "\ud800"}, "query: is not valid Unicode"),
        ({"documents": "one text"}, "documents: should be a list"),
        ({"documents": {"text": "a"}}, "documents: should be a list"),
        ({"documents": None}, "documents: should be a list"),
        ({"documents": []}, "documents: should not be empty"),
        ({"documents": ["a", 7]}, r"documents\[1\]: should be a text, a Document or a mapping"),
        ({"documents": ["\udfff"]}, r"documents\[0\]: is not valid Unicode"),
        ({"documents": [{"text": {1, 2}}]}, r"documents\[0\]: cannot be sent as JSON"),
        ({"documents": [{"text": "a", "n": float("nan")}]}, r"documents\[0\]: cannot be sent as JSON"),
        ({"top_n": 0}, "top_n: should be a whole number from 1"),
        ({"top_n": True}, "top_n: should be a whole number"),
        ({"top_n": 1.5}, "top_n: should be a whole number"),
        ({"top_n": 10**400}, "top_n: should be a whole number"),
        ({"instruction": None}, "instruction: should be a text"),
        ({"mode": 7}, "mode: should be a text"),
        ({"max_think_tokens": 0}, "max_think_tokens: should be a whole number from 1"),
        ({"return_reasoning": 1}, "return_reasoning: should be True or False"),
        ({"return_documents": "yes"}, "return_documents: should be True or False"),
        ({"min_score": float("nan")}, "min_score: should be a number from 0 to 1"),
        ({"min_score": 1.1}, "min_score: should be a number from 0 to 1"),
        ({"min_score": 10**400}, "min_score: should be a number from 0 to 1"),
        ({"min_score": "0.5"}, "min_score: should be a number from 0 to 1"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc: should be a whole number from 1"),
        ({"deadline_ms": float("inf")}, "deadline_ms: should be a whole number"),
        ({"deadline_ms": 0}, "deadline_ms: should be a whole number from 1"),
        ({"request_id": "two words"}, "request_id: should be 1 to 128 visible"),
        ({"request_id": "a\r\nX-Evil: 1"}, "request_id: should be 1 to 128 visible"),
        ({"request_id": ""}, "request_id: should be 1 to 128 visible"),
        ({"request_id": "r" * 129}, "request_id: should be 1 to 128 visible"),
    ],
    ids=lambda value: str(value)[:60].encode("ascii", "replace").decode() if isinstance(value, dict) else None,
)
def test_an_argument_that_cannot_be_sent_is_named(call, arguments, fault):
    answers = Answers(answer())
    with pytest.raises(UserError, match=fault) as raised:
        call(answers, lambda client: client.rerank(**{"query": "q", "documents": ["a"], **arguments}))
    assert not answers.requests
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"url": "localhost:8000"}, "base_url 'localhost:8000': should be http://"),
        ({"url": ""}, "base_url '': should be http://"),
        ({"url": None}, "base_url None: should be http://"),
        ({"url": "http://host:99999"}, "base_url 'http://host:99999': should be"),
        ({"url": "http://me:password1@host"}, "base_url: holds credentials"),
        ({"timeout": 0}, "timeout: should be seconds above 0"),
        ({"timeout": float("nan")}, "timeout: should be seconds above 0"),
        ({"timeout": "60"}, "timeout: should be seconds above 0"),
        ({"max_retries": -1}, "max_retries: should be a whole number"),
        ({"max_retries": 1.0}, "max_retries: should be a whole number"),
        ({"api_key": "two words"}, "api_key should be a text of visible ASCII"),
        ({"api_key": "ключ"}, "api_key should be a text of visible ASCII"),
        ({"api_key": 7}, "api_key should be a text of visible ASCII"),
        ({"headers": ["a"]}, "headers: should be a mapping"),
        ({"headers": {"a b": "c"}}, "headers: 'a b' is no name"),
        ({"headers": {"A": "b\r\nc"}}, "headers: the value of A"),
        ({"headers": {"A": None}}, "headers: the value of A"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_named(call, settings, fault):
    with pytest.raises(UserError, match=fault):
        call(Answers(answer()), rerank, **settings)


# ---- the key -------------------------------------------------------------------------


def test_the_key_is_that_of_the_argument_or_of_the_environment(call, monkeypatch):
    answers = Answers(answer(result(0)))
    call(answers, rerank, api_key=SECRET)
    monkeypatch.setenv("LIMRANK_API_KEY", " of-the-environment\n")
    call(answers, rerank)
    call(answers, rerank, api_key=SECRET)
    call(answers, rerank, api_key="")
    call(answers, rerank, headers={"authorization": "Basic abc", "X-Team": "search"})
    sent = [request.headers.get("Authorization") for request in answers.requests]
    assert sent == [f"Bearer {SECRET}", "Bearer of-the-environment", f"Bearer {SECRET}", None, "Basic abc"]
    assert answers.requests[-1].headers["X-Team"] == "search"


@pytest.mark.parametrize("key", [SECRET, "ab12"])
def test_the_key_is_in_no_message_and_no_log(call, key, caplog):
    caplog.set_level(logging.DEBUG)
    shown = []

    def use(client):
        shown.append(repr(client) + str(vars(client)["_server"]))
        return rerank(client)

    echo = httpx.Response(401, json=error_body(f"wrong key {key}", code=f"bad_{key}", param=key))
    for answers in (Answers(echo), Answers(httpx.Response(200, text=f"<p>{key}")), Answers(httpx.ConnectError(key))):
        with pytest.raises((ApiStatusError, EndpointError)) as raised:
            call(answers, use, api_key=key, max_retries=0)
        error = raised.value
        shown += [str(error), repr(error), str(getattr(error, "code", "")), str(getattr(error, "words", ""))]
        shown.append(str(getattr(error, "param", "")))
    assert key not in "\n".join([*shown, caplog.text])


def test_a_request_without_a_key_says_where_one_goes(call):
    answers = Answers(httpx.Response(401, json=error_body("no key", code="missing_api_key")))
    with pytest.raises(ApiStatusError, match="answered 401: no key; set LIMRANK_API_KEY, or give api_key"):
        call(answers, rerank)
    with pytest.raises(ApiStatusError, match="answered 401: no key$"):
        call(answers, rerank, api_key=SECRET)
    assert len(answers.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_neither_key_nor_texts_elsewhere(call, status):
    answers = Answers(httpx.Response(status, headers={"Location": "https://elsewhere.example/v1/rerank"}), answer())
    with pytest.raises(
        ApiStatusError, match="a redirect to https://elsewhere.example/v1/rerank: give the URL"
    ) as found:
        call(answers, rerank, api_key=SECRET)
    assert found.value.status == status
    assert len(answers.requests) == 1


def test_a_proxy_is_asked_for_other_machines_only(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")

    def proxied(url):
        with Client(url) as client:
            return any(client._http._mounts.values())

    here = ["http://localhost:8000", "http://127.0.0.2:8000", "http://[::1]:8000", "http://0.0.0.0:8000"]
    assert not any(proxied(url) for url in here)
    assert proxied("http://search.example:8000")


# ---- retries -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_passes_is_tried_again(call, clock, status):
    answers = Answers(httpx.Response(status), httpx.Response(status), answer(result(0)))
    assert call(answers, rerank).results[0].index == 0
    assert clock.waits == [0.5, 1.0]
    assert answers.bodies[0] == answers.bodies[2]


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ConnectTimeout("")])
def test_a_connection_that_fails_is_tried_again(call, clock, error):
    answers = Answers(error, answer(result(0)))
    assert call(answers, rerank).results[0].index == 0
    assert clock.waits == [0.5]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_a_request_at_fault_is_sent_once(call, status):
    body = error_body("documents: too many", code="too_many", param="documents")
    answers = Answers(httpx.Response(status, json=body, headers={"X-Request-Id": "r-9"}))
    with pytest.raises(ApiStatusError) as raised:
        call(answers, rerank, api_key=SECRET)
    error = raised.value
    assert (error.status, error.code, error.param, error.request_id) == (status, "too_many", "documents", "r-9")
    assert str(error) == f"{URL}: answered {status}: documents: too many (request r-9)"
    assert len(answers.requests) == 1


def test_so_many_retries_and_no_more(call, clock):
    answers = Answers(httpx.Response(503, json=error_body("the engine is not up")))
    with pytest.raises(ApiStatusError, match="answered 503: the engine is not up"):
        call(answers, rerank)
    assert (len(answers.requests), clock.waits) == (5, [0.5, 1.0, 2.0, 4.0])
    with pytest.raises(ApiStatusError):
        call(answers, rerank, max_retries=0)
    assert len(answers.requests) == 6


def test_no_retry_is_sent_before_the_server_s_time(call, clock):
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    answers = Answers(
        httpx.Response(429, headers={"Retry-After": "7"}),
        httpx.Response(503, headers={"Retry-After": format_datetime(at, usegmt=True)}),
        httpx.Response(503, headers={"Retry-After": "soon"}),
        answer(result(0)),
    )
    call(answers, rerank)
    assert clock.waits == [7.5, pytest.approx(21, abs=1.5), 2.0]


def test_a_wait_beyond_the_time_limit_is_not_begun(call, clock):
    answers = Answers(httpx.Response(429, json=error_body("full"), headers={"Retry-After": "61"}))
    with pytest.raises(ApiStatusError, match="answered 429: full") as raised:
        call(answers, rerank)
    assert raised.value.retry_after_s == 61
    assert (len(answers.requests), clock.waits) == (1, [])


def test_all_attempts_share_the_time_limit(call, clock):
    def slow(request):
        clock.now += 20
        limits = request.extensions["timeout"]
        rests.append((limits["read"], limits["connect"]))
        return httpx.Response(503)

    rests = []
    with pytest.raises(ApiStatusError):
        call(Answers(slow), rerank, max_retries=100)
    assert rests == [(60.0, 10.0), (39.5, 10.0), (18.5, 10.0)]
    assert clock.now < 1000 + 62


def test_nothing_is_tried_again_after_the_caller_s_deadline(call, clock):
    def slow(request):
        clock.now += 0.4
        return httpx.Response(503)

    answers = Answers(slow)
    with pytest.raises(ApiStatusError):
        call(answers, lambda client: client.rerank("q", ["a"], deadline_ms=1000))
    assert [body["deadline_ms"] for body in answers.bodies] == [1000, 100]


def test_an_answer_after_the_deadline_is_taken(call, clock):
    def late(request):
        clock.now += 2
        return httpx.Response(200, json=answer(result(0)))

    response = call(Answers(late), lambda client: client.rerank("q", ["a"], deadline_ms=1000))
    assert len(response.results) == 1


def test_a_certificate_that_is_refused_once_is_refused_always(call):
    refused = httpx.ConnectError("certificate verify failed")
    refused.__cause__ = ssl.SSLCertVerificationError("self-signed")
    answers = Answers(refused)
    with pytest.raises(EndpointError, match="gave no answer: certificate verify failed"):
        call(answers, rerank)
    assert len(answers.requests) == 1


def test_a_slow_server_is_named_with_the_time_limit(call, clock):
    def slow(request):
        clock.now += 5
        raise httpx.ReadTimeout("timed out")

    with pytest.raises(EndpointError, match=f"{URL}: gave no answer within 5 s"):
        call(Answers(slow), rerank, timeout=5)


def test_an_answer_that_drips_ends_at_the_time_limit(clock):
    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            for _ in range(1000):
                clock.now += 1
                yield b" "

    answers = Answers(lambda request: httpx.Response(200, stream=Drip()))
    with (
        Client(URL, transport=httpx.MockTransport(answers)) as client,
        pytest.raises(EndpointError, match="within 60 s"),
    ):
        rerank(client)
    assert clock.now < 1062


# ---- answers that are none -----------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>", "not JSON"),
        ("", "not JSON"),
        ("[" * 50000, "the answer"),
        ([], "no list of results"),
        ({"results": {}}, "no list of results"),
        ({"results": [None]}, r"results\[0\] has no index"),
        ({"results": [{"index": 0, "status": "direct"}]}, r"results\[0\] has no relevance_score"),
        ({"results": [{"index": 0, "relevance_score": 0.5}]}, r"results\[0\] has no status"),
        ({"results": [result(3)]}, r"results\[0\] is for none of the 3 documents"),
        ({"results": [result(True)]}, "is for none of the 3 documents"),
        ({"results": [result(0), result(0)]}, "two results for one document"),
        ({"results": [result(0, None)]}, "is direct and has no score"),
        ({"results": [result(0, "0.5")]}, "no number from 0 to 1"),
        ({"results": [result(0, 1.5)]}, "no number from 0 to 1"),
        ('{"results": [{"index": 0, "relevance_score": NaN, "status": "direct"}]}', "the answer"),
        ({"results": [result(0, status=7)]}, "status is no text"),
        ({"results": [result(0, reasoning=7)]}, "reasoning is no text"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_malformed_answer_is_one_line(call, body, reason):
    text = body if isinstance(body, str) else json.dumps(body)
    answers = Answers(lambda request: httpx.Response(200, text=text))
    with pytest.raises(EndpointError, match=f"does not answer as `limrank serve`: .*{reason}") as raised:
        call(answers, rerank)
    assert len(answers.requests) == 1
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "body", [{"data": []}, {"data": [{"index": 0, "score": 0.5}] * 2}, {"results": []}, []], ids=str
)
def test_malformed_scores_are_one_line(call, body):
    with pytest.raises(EndpointError, match="does not answer as `limrank serve`"):
        call(Answers(lambda request: httpx.Response(200, json=body)), lambda client: client.score("q", ["a", "b"]))


def test_a_newer_server_s_fields_are_ignored(call):
    newer = result(0, None, status="postponed", more={"a": 1}, prompt_tokens="many", document="the text")
    response = call(Answers(answer(newer, result(1), usage=None, id=7, more=[1])), rerank)
    assert [each.status for each in response.results] == ["postponed", "direct"]
    assert response.results[0].document == Document("", "the text")
    assert (response.id, response.usage.total_tokens, response.results[0].prompt_tokens) == ("", 0, 0)


@pytest.mark.parametrize("body", ["<html>502 Bad Gateway</html>", "", "\x00\xff", '{"detail": [7]}'], ids=repr)
def test_an_error_of_another_shape_is_one_line(call, body):
    with pytest.raises(ApiStatusError, match="answered 502: ") as raised:
        call(Answers(httpx.Response(502, text=body)), rerank, max_retries=0)
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


# ---- against the real API ------------------------------------------------------------


@pytest.fixture
def backend():
    return EngineBackend()


@pytest.fixture
def api(backend):
    return build_api(backend, Served.of(ModelConfig(id="small"), ScoringConfig()))


def on_api(api, use, **settings):
    async def go():
        async with AsyncClient(URL, transport=httpx.ASGITransport(api), **settings) as client:
            return await use(client)

    return asyncio.run(go())


def test_the_api_s_answers_are_understood(api):
    async def use(client):
        given = [*DOCUMENTS, Document("d4", "bisect", "A title")]
        ranked = await client.rerank("merge sorted feeds", given, return_documents=True, return_reasoning=True)
        return (
            given,
            ranked,
            await client.score("merge sorted feeds", given),
            await client.models(),
            await client.ready(),
        )

    given, ranked, scores, (model,), ready = on_api(api, use)
    assert ready and model.id == "small" == ranked.model and model.scoring["mode"] == "direct"
    assert {each.index: each.relevance_score for each in ranked.results} == dict(enumerate(scores))
    found = [each.relevance_score for each in ranked.results]
    assert found == sorted(found, reverse=True)
    by_index = {each.index: each.document for each in ranked.results}
    assert by_index[2] == Document("", DOCUMENTS[2]) and by_index[3] == given[3]
    assert {each.status for each in ranked.results} == {"direct"}


def test_an_error_of_the_api_is_a_status_error(api):
    async def use(client):
        await client.rerank(" ", ["a"])

    with pytest.raises(ApiStatusError) as raised:
        on_api(api, use)
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, "empty_query", "query")


def test_a_thousand_documents_are_one_request(api):
    texts = [f"passage {number} ü" for number in range(1000)]

    async def use(client):
        return await client.rerank("q", texts), await client.score("q", texts)

    ranked, scores = on_api(api, use)
    assert sorted(each.index for each in ranked.results) == list(range(1000))
    assert len(scores) == 1000


def test_many_calls_are_in_flight_and_none_is_mixed_up(api, backend):
    async def use(client):
        async def one(number):
            texts = [f"{number}-{place}" for place in range(3)]
            return texts, (await client.rerank(f"query {number}", texts)).results

        backend.gate.clear()
        tasks = [asyncio.create_task(one(number)) for number in range(50)]
        while backend.waiting < 50:
            await asyncio.sleep(0)
        backend.gate.set()
        return await asyncio.gather(*tasks)

    for texts, results in on_api(api, use):
        assert {each.document for each in results} == set(texts)
        assert all(each.document == texts[each.index] for each in results)


def test_a_call_that_is_cancelled_leaves_the_client_usable(api, backend):
    async def use(client):
        backend.gate.clear()
        task = asyncio.create_task(client.rerank("q", ["a"]))
        while not backend.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.gate.set()
        return await client.rerank("q", ["a"])

    assert len(on_api(api, use).results) == 1


def test_a_call_ends_at_its_time_limit(api, backend):
    async def use(client):
        backend.gate.clear()
        await client.rerank("q", ["a"])

    with pytest.raises(EndpointError, match="gave no answer"):
        on_api(api, use, timeout=0.05, max_retries=0)


def test_over_a_socket_a_cancelled_call_is_noticed_by_the_server():
    """What the server does about it is its own; the client's part is to hang up at once."""
    left = []

    async def api(scope, receive, send):
        if scope["type"] == "http":
            await receive()
            left.append((await receive())["type"])

    async def use(url):
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.rerank("q", ["a"]))
            await asyncio.sleep(0.2)
            task.cancel()
            for _ in range(200):
                if left:
                    break
                await asyncio.sleep(0.01)

    with serving_api(api) as url:
        asyncio.run(use(url))
    assert left == ["http.disconnect"]


def test_over_a_socket_a_client_is_shared_by_threads(api):
    with serving_api(api) as url, Client(url) as client, ThreadPoolExecutor(8) as pool:
        texts = [[f"{number}-{place}" for place in range(3)] for number in range(40)]
        responses = list(pool.map(lambda each: client.rerank("q", each), texts))
        assert client.ready()
    for given, response in zip(texts, responses, strict=True):
        assert {each.document for each in response.results} == set(given)


def test_the_page_s_examples_run(api, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "client.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    assert len(blocks) >= 3
    with serving_api(api) as url:
        assert "http://127.0.0.1:8000" in page
        for block in blocks:
            exec(compile(block.replace("http://127.0.0.1:8000", url), "client.md", "exec"), {"__name__": "page"})
    assert "heapq.merge" in capsys.readouterr().out
