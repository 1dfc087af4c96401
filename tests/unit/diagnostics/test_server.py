"""`limrank doctor --url`, against the real API over the fake engine."""

import socket

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from helpers.backend import EngineBackend
from helpers.endpoint import serving as endpoint_serving
from helpers.served import serving_api
from limrank.cli import main
from limrank.config import ModelConfig, ScoringConfig
from limrank.diagnostics.server import examine_server
from limrank.errors import UserError
from limrank.serving.api import build_api
from limrank.serving.protocol import Served

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("LIMRANK_API_KEY", raising=False)


def api_of(backend, **scoring):
    return build_api(backend, Served.of(ModelConfig(id="small"), ScoringConfig(**scoring)))


def with_key(api, key):
    """The API behind a key, whose health needs none."""

    async def guarded(scope, receive, send):
        if scope["type"] == "http" and scope["path"] not in ("/healthz", "/readyz"):
            sent = dict(scope["headers"]).get(b"authorization", b"").decode()
            if sent != f"Bearer {key}":
                error = {"error": {"message": "no such key" if sent else "a key is needed", "code": "unauthorized"}}
                return await JSONResponse(error, 401)(scope, receive, send)
        return await api(scope, receive, send)

    return guarded


def found(url):
    return {finding.name: finding for finding in examine_server(url)}


def broken(findings):
    return [name for name, finding in findings.items() if finding.broken]


def test_a_server_that_is_well_passes_every_check(capsys):
    with serving_api(api_of(EngineBackend())) as url:
        findings = found(url)
        assert main(["doctor", "--url", url]) == 0
    assert [*findings] == ["reachable", "ready", "key", "model", "rerank", "agreement"]
    assert not broken(findings)
    assert findings["model"].state == "small, mode direct"
    assert findings["key"].state == "it asks for none"
    assert findings["rerank"].state.startswith("5 documents in ")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("ok       ") for line in lines)


def test_a_server_that_is_not_there_fails_one_check(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert main(["doctor", "--url", url]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"failed   reachable    {url}: gave no answer: ")
    assert line.endswith("→  start it: limrank serve RECIPE.yaml")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://me:secret12@host"])
def test_what_is_no_url_is_one_line(url, capsys):
    with pytest.raises(UserError, match="base_url"):
        examine_server(url)
    assert main(["doctor", "--url", url]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "answer", [PlainTextResponse("hello"), JSONResponse({"data": 7}), PlainTextResponse("no", 404)]
)
def test_another_server_is_told_apart(answer):
    with serving_api(answer) as url:
        findings = found(url)
    assert broken(findings) == ["reachable"]
    assert findings["reachable"].fix == "give the URL of a `limrank serve`, without /v1"


def test_a_name_that_the_server_does_not_accept_is_the_one_finding(capsys):
    error = {"message": "the Host header names neither a nor b", "code": "host_not_allowed"}
    with serving_api(JSONResponse({"error": error}, 403)) as url:
        assert main(["doctor", "--url", url]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"failed   reachable    {url}: answered 403: the Host header names neither")
    assert line.endswith("→  add the URL's name to serving.allowed_hosts in its recipe")


def test_a_proxy_s_limit_is_no_wrong_url():
    with serving_api(PlainTextResponse("slow down", 429)) as url:
        findings = found(url)
    assert [*findings] == broken(findings) == ["reachable"]
    assert "answered 429: slow down" in findings["reachable"].state
    assert findings["reachable"].fix == "wait, or raise the limit of the proxy before the server"


def test_a_server_without_an_engine_is_not_ready():
    backend = EngineBackend()
    backend.dead = True
    with serving_api(api_of(backend)) as url:
        findings = found(url)
    assert broken(findings) == ["ready", "rerank"]
    assert "answered 503: the engine is not up" in findings["rerank"].state


def test_the_key_is_asked_for_and_taken(monkeypatch):
    monkeypatch.setenv("LIMRANK_API_KEY", SECRET)
    with serving_api(with_key(api_of(EngineBackend()), SECRET)) as url:
        findings = found(url)
    assert not broken(findings)
    assert findings["key"].state == "it asks for one, and takes that of LIMRANK_API_KEY"


@pytest.mark.parametrize(
    ("ours", "state"),
    [
        (None, "it asks for one, and LIMRANK_API_KEY is not set: a key is needed"),
        ("another-key-1234", "it asks for one, and LIMRANK_API_KEY is set: no such key"),
    ],
)
def test_a_key_that_is_refused_ends_the_checks(monkeypatch, capsys, ours, state):
    if ours:
        monkeypatch.setenv("LIMRANK_API_KEY", ours)
    with serving_api(with_key(api_of(EngineBackend()), SECRET)) as url:
        findings = found(url)
        assert main(["doctor", "--url", url]) == 1
    assert [*findings] == ["reachable", "ready", "key"]
    assert findings["key"].broken and findings["key"].state.startswith(state)
    out = capsys.readouterr().out
    assert "export LIMRANK_API_KEY=…" in out and (ours or SECRET) not in out


@pytest.mark.parametrize(
    ("factor", "fails", "state"),
    [
        (1.0, False, "a pair's score in another request and order differs by 0.0e+00 at most"),
        (0.999, False, "at most, as by rounding of bfloat16 (model.dtype)"),
        (0.5, True, "in another request or order"),
    ],
)
def test_scores_that_differ_between_requests_are_found(factor, fails, state):
    class Moody(EngineBackend):
        answered = 0

        async def score(self, query, texts, options=None):
            judgments = await super().score(query, texts)
            self.answered += 1
            if self.answered == 1:
                return judgments
            return [
                judgment.__class__(judgment.doc_id, judgment.score * factor, judgment.status) for judgment in judgments
            ]

    with serving_api(api_of(Moody())) as url:
        findings = found(url)
    assert broken(findings) == (["agreement"] if fails else [])
    assert findings["agreement"].state.endswith(state)


def test_failed_pairs_are_found():
    with serving_api(api_of(EngineBackend(fail_rate=0.5))) as url:
        findings = found(url)
    assert broken(findings) == ["rerank"]
    assert "(engine.fault.fail_rate)" in findings["rerank"].state


def test_a_mode_that_a_card_offers_is_asked_for():
    """Direct scores do not depend on how chains were batched."""
    card = {"id": "small", "root": "small", "modes": {"think": 512, "direct": 0}, "scoring": {"mode": "think"}}
    alias = card | {"id": "rerank-v3.5"}
    result = {"relevance_score": 0.5, "status": "direct"}
    ranked = {"results": [result | {"index": index} for index in range(5)]}

    def answer(handler):
        handler.send(200, "application/json", ranked if "rerank" in handler.path else {"data": [card, alias]})

    with endpoint_serving() as server:
        server.answers = [answer]
        findings = found(server.url.removesuffix("/v1"))
    assert not broken(findings)
    assert findings["model"].state == "small, mode think (also direct), also named rerank-v3.5"
    assert [body["mode"] for path, _, body in server.requests if path == "/v1/rerank"] == ["direct", "direct"]


def holding_back(api):
    """The API behind a proxy that gives an answer once it is whole."""

    async def app(scope, receive, send):
        held = []

        async def keep(message):
            held.append(message)
            if message["type"] != "http.response.start" and not message.get("more_body", False):
                for each in held:
                    await send(each)

        await api(scope, receive, keep if scope["type"] == "http" else send)

    return app


@pytest.mark.parametrize("held", [False, True])
def test_events_that_something_holds_back_are_found(held):
    scoring = {"mode": "budget", "max_think_tokens": 30}
    backend = EngineBackend(max_in_flight=1, fault={"latency_ms": 200})
    backend.recipe = ScoringConfig(**scoring)
    api = api_of(backend, **scoring)
    with serving_api(holding_back(api) if held else api) as url:
        findings = found(url)
    assert broken(findings) == (["stream"] if held else [])
    assert "mode budget" in findings["stream"].state
    assert ("proxy_buffering off" in str(findings["stream"].fix)) == held


def test_a_server_that_cannot_stream_is_no_fault():
    scoring = {"mode": "budget", "max_think_tokens": 30}
    backend = EngineBackend()
    backend.recipe = ScoringConfig(**scoring)
    api = api_of(backend, **scoring)

    async def older(scope, receive, send):
        async def plain():
            message = await receive()
            body = message.get("body", b"")
            return message | {"body": body.replace(b',"stream":true', b"")} if body else message

        await api(scope, plain if scope["type"] == "http" else receive, send)

    with serving_api(older) as url:
        findings = found(url)
    assert findings["stream"].state == "it does not stream (an older version)"
    assert not broken(findings)
