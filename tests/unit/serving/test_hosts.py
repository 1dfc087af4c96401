"""The Host header of a loopback server."""

import asyncio

import httpx
import pytest

from helpers.asgi import Bodies, answer, sent_by
from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig, ServingConfig
from limrank.serving.access import Access, Guard
from limrank.serving.api import build_api
from limrank.serving.hosts import HostCheck, Hosts, is_loopback
from limrank.serving.keys import KeyRing
from limrank.serving.protocol import Served
from limrank.serving.settings import ApiSettings

LOOPBACK = Hosts.of("127.0.0.1", ["Rerank.example.com", "10.0.0.7"])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:65535", "127.8.9.1", "[::1]", "[::1]:8000"]
    + ["rerank.example.com", "rerank.EXAMPLE.com:443", "rerank.example.com.", "10.0.0.7:8000", "localhost:"],
)
def test_accepted(host):
    assert LOOPBACK.accepts(host)


NOT_LOOPBACK = """example.com localhost.example.com notlocalhost 127.0.0.1.example.com 127.1 2130706433 0.0.0.0
10.0.0.8 [::2] ::1 localhost:80:80 localhost:abc localhost@example.com [::1 :80 localhost/x xrerank.example.com
rerank.example.com:1234567"""


@pytest.mark.parametrize("host", ["", " ", "localhost, example.com", "localhost\0", *NOT_LOOPBACK.split()])
def test_refused(host):
    found = answer(HostCheck(Bodies(), LOOPBACK), headers=[("Host", host)])
    assert (found.status, found.code) == (403, "host_not_allowed")
    assert "serving.allowed_hosts" in found.message


@pytest.mark.parametrize("headers", [[], [("Host", "localhost"), ("Host", "example.com")]], ids=["none", "two"])
def test_exactly_one_host(headers):
    assert answer(HostCheck(Bodies(), LOOPBACK), headers=headers).code == "host_not_allowed"


def test_a_refused_name_is_not_repeated():
    found = answer(HostCheck(Bodies(), LOOPBACK), headers=[("Host", "secret.example.com")])
    assert b"secret" not in found.body and "secret" not in str(found.headers)


def test_where_it_is_checked():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert is_loopback(host) and Hosts.of(host, []).checked
    assert not Hosts.of("0.0.0.0", []).checked
    elsewhere = Hosts.of("10.0.0.5", ["rerank.example.com"])
    assert elsewhere.checked
    assert [elsewhere.accepts(host) for host in ("10.0.0.5:80", "localhost", "rerank.example.com", "10.0.0.6")] == [
        True,
        True,
        True,
        False,
    ]
    assert not Hosts.of("0.0.0.0", ["rerank.example.com"]).accepts("0.0.0.0:8000")


def test_a_web_socket_is_refused_and_lifespan_passes():
    async def app(scope, receive, send):
        await send({"type": "passed"})

    guard = Guard(app, Access(hosts=LOOPBACK))
    for host in ("example.com", "localhost"):
        (sent,) = asyncio.run(sent_by(guard, headers=[("Host", host)], kind="websocket"))
        assert sent["type"] == "websocket.close"
    assert asyncio.run(sent_by(guard, kind="lifespan")) == [{"type": "passed"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": "http://localhost.example.com:8000"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_page_of_another_site_is_refused(headers):
    found = answer(HostCheck(Bodies(), LOOPBACK), headers=[("Host", "localhost"), *headers.items()])
    assert (found.status, found.code) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/rerank", {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}),
        ("/v1/rerank", {"Origin": "https://rerank.example.com"}),
        ("/", {"Sec-Fetch-Site": "cross-site"}),  # a link to the page
        ("/v1/models", {"Sec-Fetch-Site": "none"}),
    ],
)
def test_the_page_itself_and_programs_are_not(path, headers):
    given = [("Host", "localhost"), *headers.items()]
    assert answer(HostCheck(Bodies(), LOOPBACK), path=path, headers=given).status == 200


def test_an_ipv6_address_may_be_written_in_several_ways():
    hosts = Hosts.of("fe80::0001", ["2001:db8:0::7"])
    assert hosts.accepts("[fe80::1]:8000") and hosts.accepts("[2001:DB8::7]")
    assert not hosts.accepts("[fe80::2]")


def test_over_the_api_without_any_cors_header():
    async def go(base, **headers):
        served = Served.of(ModelConfig(id="served"), ScoringConfig())
        api = build_api(EngineBackend(), served, ApiSettings(access=Access.of(ServingConfig(), KeyRing())))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url=base) as http:
            return [await http.get("/healthz", headers=headers), await http.options("/v1/rerank", headers=headers)]

    refused, _ = asyncio.run(go("http://rebound.example.com"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
    asked = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    for answered in asyncio.run(go("http://localhost:8000", **asked)):
        assert not [name for name in answered.headers if name.startswith("access-control")]
    assert asyncio.run(go("http://[::1]:8000"))[0].status_code == 200
