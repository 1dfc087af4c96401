"""Ids of requests, on every answer."""

import asyncio
import re

import httpx
import pytest

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving import request_ids
from limrank.serving.api import build_api
from limrank.serving.protocol import Served
from limrank.serving.settings import ApiSettings

SERVED = Served.of(ModelConfig(id="served"), ScoringConfig())
BODY = {"query": "q", "documents": ["a"]}
MADE = re.compile(r"[0-9a-f]{32}")


def ask(method="POST", path="/v1/rerank", backend=None, respond_ids=True, headers=None, **request):
    async def go():
        api = build_api(backend or EngineBackend(), SERVED, ApiSettings(respond_ids=respond_ids))
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, headers=headers, **request)

    return asyncio.run(go())


@pytest.mark.parametrize("given", ["a", "trace 7/a", "~" * 128, "{" + "x" * 30 + "}"])
def test_a_clients_id_is_taken(given):
    response = ask(json=BODY, headers={"X-Request-Id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert response.json()["id"] == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"\xff", "ü".encode(), b"a\x7f", b"a\tb", b"x" * 10_000])
def test_another_is_replaced(given):
    response = ask(json=BODY, headers={b"X-Request-Id": given})
    assert MADE.fullmatch(response.headers["x-request-id"])
    assert response.json()["id"] == response.headers["x-request-id"]


def test_each_request_has_its_own():
    first, second = (ask(json=BODY).json()["id"] for _ in range(2))
    assert first != second
    assert MADE.fullmatch(first)
    assert request_ids.current() == ""


def test_errors_have_it_too():
    class Broken(EngineBackend):
        async def score(self, query, texts, options):
            raise ZeroDivisionError

    dead = EngineBackend()
    dead.dead = True
    headers = {"X-Request-Id": "mine"}
    answers = [
        ask("GET", "/nothing", headers=headers),
        ask("DELETE", headers=headers),
        ask(content=b"{", headers=headers),
        ask(json=BODY, headers=headers, backend=dead),
        ask(json=BODY, headers=headers, backend=Broken()),
        ask("GET", "/healthz", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [404, 405, 400, 503, 500, 200]
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [["mine"]] * 6


def test_a_backend_can_read_it():
    class Reading(EngineBackend):
        async def score(self, *request):
            seen.append(request_ids.current())
            return await super().score(*request)

    seen = []
    ask(json=BODY, headers={"X-Request-Id": "mine"}, backend=Reading())
    assert seen == ["mine"]


@pytest.mark.parametrize("given", [b"mine", b"\xff", b"x" * 129])
def test_what_comes_after_reads_the_same_id(given):
    seen = []

    async def app(scope, receive, send):
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    scope = {"type": "http", "headers": [(b"x-request-id", given), (b"x-request-id", b"second")]}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(request_ids.RequestIds(app)(scope, None, send))
    assert [seen] == [[value for name, value in sent[0]["headers"] if name == b"x-request-id"]]
    assert len(seen) == 1 and (seen[0] == given if given == b"mine" else MADE.fullmatch(seen[0].decode()))


def test_an_error_behind_a_proxy_has_its_id_once():
    class Broken(EngineBackend):
        async def score(self, *request):
            raise ZeroDivisionError

    response = ask(json=BODY, backend=Broken(), respond_ids=False)
    assert response.status_code == 500 and "x-request-id" not in response.headers


def test_behind_a_proxy_that_sets_it_only_the_body_has_it():
    response = ask(json=BODY, headers={"X-Request-Id": "mine"}, respond_ids=False)
    assert "x-request-id" not in response.headers
    assert response.json()["id"] == "mine"
