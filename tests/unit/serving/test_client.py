"""The HTTP client against the real API on a real socket, over the fake engine."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.backend import EngineBackend
from helpers.beir import write_beir
from helpers.endpoint import Endpoint
from helpers.served import serving_api
from limrank.config import EngineConfig, ModelConfig, RerankJob, ScoringConfig
from limrank.config.recipe import parse_config
from limrank.engines import meter, open_engine, retries
from limrank.engines.base import Judge
from limrank.errors import EndpointError, RowError, UserError
from limrank.records import Candidate, Query, ScoreStatus
from limrank.reranking.job import run
from limrank.reranking.reranker import Reranker
from limrank.scoring import score_query
from limrank.scoring.calibration import Platt, calibrated
from limrank.serving import client as serve_client
from limrank.serving.api import build_api
from limrank.serving.client import ServedReranker
from limrank.serving.errors import ApiError, engine_unavailable, overloaded
from limrank.serving.limits import too_many_documents
from limrank.serving.protocol import MAX_DOCUMENTS, Served
from limrank.serving.settings import ApiSettings

MODEL, BUDGET = ModelConfig(id="small"), ScoringConfig(mode="budget", max_think_tokens=30)
QUERY = Query("q1", "merge sorted feeds", "only Python")


class Backend(EngineBackend):
    """Scores by ``scoring``. ``errors`` are raised first, one a request; ``asked`` counts."""

    def __init__(self, scoring=BUDGET, errors=(), **engine):
        super().__init__(**engine)
        self.scoring = scoring
        self.errors = list(errors)
        self.asked = []

    async def score(self, query, texts, options=None):
        self.asked.append(len(texts))
        if self.errors:
            raise self.errors.pop(0)
        candidates = [Candidate("", text, rank, 0.0) for rank, text in enumerate(texts, start=1)]
        return await score_query(query, candidates, self.engine, self.scoring)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(serve_client, "_HEALTH_CHECK_S", 0.1)


@contextmanager
def served(backend, scoring=None, model=MODEL, **settings):
    """The URL of the API over a backend, in a thread."""
    with serving_api(build_api(backend, Served.of(model, scoring or backend.scoring), ApiSettings(**settings))) as url:
        yield url


@contextmanager
def nobody():
    """A URL where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def source(url, scoring=BUDGET, model=MODEL, **engine):
    return ServedReranker(model, EngineConfig(kind="serve", base_url=url, **engine), scoring)


def asked(url, call, **settings):
    """What ``call(client)`` gives, on a client that is opened and closed around it."""

    async def go():
        client = source(url, **settings).open()
        try:
            return await call(client)
        finally:
            await client.aclose()

    return asyncio.run(go())


def judged(url, texts, **settings):
    return asked(url, lambda client: client.judge(QUERY, texts), **settings)


def scored(texts, engine, scoring=BUDGET):
    """Judgments of limrank's own scoring, through ``score_query``."""
    candidates = [Candidate(f"d{rank}", text, rank, 0.0) for rank, text in enumerate(texts, start=1)]
    return score_query(QUERY, candidates, engine, scoring)


def directly(texts, scoring=BUDGET, **engine):
    async def go():
        return await scored(texts, open_engine(MODEL, EngineConfig(kind="fake", **engine)), scoring)

    return asyncio.run(go())


# ---- judging -------------------------------------------------------------------------


def test_judgments_and_costs_are_those_of_scoring_here():
    texts = [" with blanks \n", "passage two", "ünïcode 漢字"]
    with meter() as here:
        expected = directly(texts)
    with served(Backend()) as url, meter() as there:
        found = asked(url, lambda client: scored(texts, client))
    assert found == expected
    assert [judgment.doc_id for judgment in found] == ["d1", "d2", "d3"]
    assert (there.prompt, there.cached_prompt, there.generated) == (here.prompt, here.cached_prompt, here.generated)
    assert there.requests == 1


def test_more_documents_than_a_request_holds_are_several_requests():
    texts = [f"passage {number}" for number in range(2 * MAX_DOCUMENTS + 3)]
    backend = Backend(ScoringConfig())
    with served(backend) as url:
        found = judged(url, texts, scoring=ScoringConfig())
    assert backend.asked == [MAX_DOCUMENTS, MAX_DOCUMENTS, 3]
    expected = directly(texts, ScoringConfig())
    assert [judgment.score for judgment in found] == [judgment.score for judgment in expected]


def test_a_cascade_is_not_split_into_requests():
    backend = Backend(ScoringConfig())
    with served(backend) as url, pytest.raises(RowError, match="compares all 1001 candidates"):
        judged(url, ["a"] * (MAX_DOCUMENTS + 1), scoring=ScoringConfig(mode="cascade"))
    assert not backend.asked


def test_no_documents_are_no_request():
    backend = Backend()
    with served(backend) as url:
        assert judged(url, []) == []
    assert not backend.asked


def test_failed_pairs_are_failed_pairs():
    texts = [str(number) for number in range(20)]
    with served(Backend(ScoringConfig(), fail_rate=0.5)) as url:
        found = judged(url, texts, scoring=ScoringConfig())
    expected = directly(texts, ScoringConfig(), fail_rate=0.5)
    assert [judgment.score for judgment in found] == [judgment.score for judgment in expected]
    failed = [judgment for judgment in found if judgment.status == ScoreStatus.FAILED]
    assert 0 < len(failed) < 20
    assert {str(judgment.error) for judgment in failed} == {
        "the fake engine failed this request (engine.fault.fail_rate)"
    }


def test_nothing_but_failed_pairs_is_no_dead_engine():
    with served(Backend(fail_rate=1.0)) as url:
        found = judged(url, ["a", "b"])
    assert [(judgment.score, judgment.status) for judgment in found] == [(None, ScoreStatus.FAILED)] * 2
    assert "(engine.fault.fail_rate)" in str(found[0].error)


def test_so_many_queries_are_in_flight():
    async def go(client):
        assert isinstance(client, Judge)
        tasks = [asyncio.create_task(client.judge(QUERY, ["a"])) for _ in range(5)]
        while backend.waiting < 2:
            await asyncio.sleep(0.01)
        held = (client.limits.in_flight, backend.waiting, client.limiter.requests)
        backend_loop.call_soon_threadsafe(backend.gate.set)
        await asyncio.gather(*tasks)
        return held, client.limiter.requests

    class Gated(EngineBackend):
        async def score(self, query, texts, options=None):
            nonlocal backend_loop
            backend_loop = asyncio.get_running_loop()
            return await super().score(query, texts)

    backend_loop = None
    backend = Gated()
    backend.gate.clear()
    with served(backend, ScoringConfig()) as url:
        assert asked(url, go, max_in_flight=2) == ((2, 2, 5), 0)


# ---- what goes wrong -------------------------------------------------------------------


@pytest.mark.parametrize("error", [overloaded(), engine_unavailable(), ApiError(429, "busy", "busy")])
def test_a_passing_failure_is_tried_again(error):
    backend = Backend(errors=[error, error])
    with served(backend) as url:
        (judgment,) = judged(url, ["a"])
    assert judgment.score is not None
    assert backend.asked == [1, 1, 1]


FULL = ApiError(429, "overloaded", "too many requests are waiting; try again later")


def test_waiting_for_room_in_a_full_server_is_no_attempt():
    limited = ApiError(429, "rate_limited", "this key may score 10 pairs a minute")
    backend = Backend(errors=[FULL, limited] * 10)
    with served(backend) as url:
        (judgment,) = judged(url, ["a"])
    assert judgment.score is not None
    assert len(backend.asked) == 21


def test_a_server_that_is_full_and_becomes_sick_is_gone():
    class Filling(Backend):
        async def score(self, query, texts, options=None):
            self.asked.append(len(texts))
            self.dead = len(self.asked) > 10
            raise FULL

    with served(Filling()) as url, pytest.raises(EndpointError, match="was not healthy for 0.1 s"):
        judged(url, ["a"], request_timeout_s=0.1)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            too_many_documents(400, 100, "documents"),
            "got 400: raise serving.max_documents of the server, or give a query fewer",
        ),
        (ApiError(413, "body_too_large", "large"), "413: large: raise serving.max_body_bytes of the server, and the"),
        (
            ApiError(413, "any", "a proxy's"),
            "413: a proxy's: raise serving.max_body_bytes of the server, and the limit of",
        ),
    ],
)
def test_a_limit_of_the_server_that_refuses_the_candidates_ends_the_job(error, fix):
    backend = Backend(errors=[error])
    with served(backend) as url, pytest.raises(EndpointError, match=fix):
        judged(url, ["a"])
    assert len(backend.asked) == 1


def test_a_lasting_failure_of_a_server_that_is_well_is_the_querys():
    backend = Backend(errors=[engine_unavailable()] * 20)
    with served(backend) as url:
        (judgment,) = judged(url, ["a"])
    assert (judgment.score, judgment.status) == (None, ScoreStatus.FAILED)
    assert "failed 8 times: answered 503: the engine" in str(judgment.error)
    assert judgment.error.retryable
    assert len(backend.asked) == 8


def test_a_wait_for_room_takes_no_attempt_from_a_failure():
    backend = Backend(errors=[FULL] * 10 + [engine_unavailable(), FULL] * 20)
    with served(backend) as url:
        (judgment,) = judged(url, ["a"])
    assert "failed 8 times: answered 503: the engine" in str(judgment.error)
    assert len(backend.asked) == 10 + 8 + 7


def test_a_server_whose_engine_does_not_come_back_is_gone():
    backend = Backend(errors=[engine_unavailable()] * 20)
    backend.dead = True
    with served(backend) as url, pytest.raises(EndpointError, match="no engine came back up: answered 503"):
        judged(url, ["a"], request_timeout_s=0.1)


def test_a_request_that_is_at_fault_is_the_querys_and_sent_once():
    backend = Backend(errors=[ApiError(400, "empty_query", "query: must not be empty", param="query")])
    with served(backend) as url:
        (judgment,) = judged(url, ["a"])
    assert "answered 400: query: must not be empty" in str(judgment.error)
    assert not judgment.error.retryable
    assert len(backend.asked) == 1


def test_a_request_that_fails_takes_no_other_of_its_query_along():
    backend = Backend(errors=[ApiError(400, "too_long", "too long")])
    with served(backend) as url:
        judgments = judged(url, ["a"] * (MAX_DOCUMENTS + 1))
    assert [judgment.score is None for judgment in judgments] == [True] * MAX_DOCUMENTS + [False]


def test_another_model_meanwhile_ends_the_job():
    with served(Backend()) as url, pytest.raises(EndpointError, match="answered 404: model 'other' is not served"):
        judged(url, ["a"], model=ModelConfig(id="other"))


def test_a_server_that_is_gone_ends_the_job():
    with nobody() as url, pytest.raises(EndpointError, match=f"engine.base_url {url}: is gone: "):
        judged(url, ["a"])


def test_an_answer_may_take_longer_than_the_patience_with_a_sick_server():
    with served(Backend(ScoringConfig(), latency_ms=600)) as url:
        (judgment,) = judged(url, ["a"], scoring=ScoringConfig(), request_timeout_s=0.1)
    assert judgment.score is not None


def test_a_sick_server_that_does_not_answer_is_gone():
    backend = EngineBackend()
    backend.gate.clear()
    backend.dead = True
    with served(backend, BUDGET) as url, pytest.raises(EndpointError, match="was not healthy for 0.1 s"):
        judged(url, ["a"], request_timeout_s=0.1)


# ---- what is no answer of ours ---------------------------------------------------------


def result(index, **fields):
    return {"index": index, "relevance_score": 0.5, "status": "direct"} | fields


def garbage(body, status=200, **headers):
    """A server that answers so to everything."""
    server = Endpoint()
    text = body if isinstance(body, str) else json.dumps(body)

    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text.encode())

    server.answers = [answer]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@contextmanager
def answering(body, status=200, **headers):
    with garbage(body, status, **headers) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
        server.shutdown()


@pytest.mark.parametrize("usage", [None, [], "many", {"prompt_tokens": "x"}, {"prompt_tokens_details": None}])
def test_needless_fields_lose_no_score_and_the_order_is_the_documents(usage):
    results = [result(1, relevance_score=0.25, prompt_tokens=None), result(0, generated_tokens="x", more=1)]
    with answering({"results": results, "usage": usage}) as (url, _):
        assert [each.score for each in judged(url, ["a", "b"])] == [0.5, 0.25]


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "",
        "[" * 50000,
        [],
        {},
        {"results": None},
        {"results": []},
        {"results": [result(0)]},
        {"results": [result(0), result(0)]},
        {"results": [result(0), result(1), result(2)]},
        {"results": [result(0), result(1), result(1)]},
        {"results": [result(0), result(True)]},
        {"results": [result(0), result("1")]},
        {"results": [result(0), None]},
        {"results": [result(0), result(1, relevance_score=None)]},
        {"results": [result(0), result(1, relevance_score="0.5")]},
        {"results": [result(0), result(1, relevance_score=True)]},
        {"results": [result(0), result(1, relevance_score=float("nan"))]},
        {"results": [result(0), result(1, relevance_score=7)]},
        {"results": [result(0), result(1, status="new")]},
        {"results": [result(0), result(1, status=[])]},
        {"results": [result(0), result(1, reasoning=7)]},
    ],
    ids=str,
)
def test_an_answer_that_is_not_ours_ends_the_job(body):
    with answering(body) as (url, _):
        with pytest.raises(EndpointError, match="does not answer as `limrank serve`"):
            judged(url, ["a", "b"])
        with pytest.raises(UserError, match="does not say how it scores"):
            source(url).check()


@pytest.mark.parametrize("body", ["<html>", {"error": None}, {"error": "text"}, {"detail": [7]}, [], 7, None], ids=str)
def test_an_error_of_another_shape_is_reported(body):
    with answering(body, 400) as (url, _):
        (judgment,) = judged(url, ["a"])
        assert "answered 400: " in str(judgment.error)
        with pytest.raises(UserError, match="/readyz answered 400"):
            source(url).check()


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Length": "1000"}])
def test_an_answer_that_is_broken_is_nobodys(headers):
    with answering("{}", **headers) as (url, _):
        with pytest.raises(EndpointError, match="is gone"):
            judged(url, ["a"])
        with pytest.raises(UserError, match="cannot be reached"):
            source(url).check()


def test_an_answer_is_taken_while_the_server_is_not_well():
    """A request that is slower than the first look, of a server whose /readyz fails: it was waited on for
    ``engine.request_timeout_s`` though its answer, or its end, was there."""

    def slow(body, **headers):
        def answer(handler):
            if handler.path != "/readyz":
                time.sleep(0.4)
            handler.send_response(200 if handler.path != "/readyz" else 500)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(json.dumps(body).encode())

        return answer

    with answering({}) as (url, server):
        started = time.monotonic()
        server.answers = [slow({"results": [result(0)]})]
        assert [each.score for each in judged(url, ["a"])] == [0.5]
        server.answers = [slow({}, Content_Length="1000")]
        with pytest.raises(EndpointError, match="is gone"):
            judged(url, ["a"])
        assert time.monotonic() - started < 60


def test_a_full_server_is_asked_again_when_it_says():
    with answering({"error": {"message": "full"}}, 503, Retry_After="0.5") as (url, server):
        started = time.monotonic()

        async def go(client):
            first = asyncio.create_task(client._send(QUERY, ["a"]))
            await asyncio.wait([first])
            await asyncio.wait([asyncio.create_task(client._send(QUERY, ["a"]))])
            return first.exception()

        assert "full" in str(asked(url, go))
        assert time.monotonic() - started >= 0.5
        assert len(server.requests) == 2


def test_the_key_of_the_environment_is_sent(monkeypatch):
    with answering({"results": [result(0)]}) as (url, server):
        judged(url, ["a"])
        monkeypatch.setenv("LIMRANK_API_KEY", "correct-horse-battery")
        judged(url, ["a"])
    assert [headers["Authorization"] for _, headers, _ in server.requests] == [None, "Bearer correct-horse-battery"]


def test_a_key_that_is_refused_ends_the_job_and_is_not_displayed(monkeypatch):
    monkeypatch.setenv("LIMRANK_API_KEY", "correct-horse-battery")
    with answering({"error": {"message": "no key correct-horse-battery"}}, 401) as (url, _):
        with pytest.raises(EndpointError, match=r"answered 401: no key \*\*\*$"):
            judged(url, ["a"])
        with pytest.raises(UserError, match=r"/readyz answered 401: no key \*\*\*$"):
            source(url).check()


def test_a_redirect_is_not_followed():
    with answering({}, 307, Location="http://elsewhere.example/") as (url, server):
        with pytest.raises(EndpointError, match="answered 307: a redirect to http://elsewhere.example/: give the URL"):
            judged(url, ["a"])
        assert len(server.requests) == 1


# ---- check() -------------------------------------------------------------------------


def test_a_server_that_scores_as_the_recipe_says_passes(tmp_path):
    directory = ModelConfig(id=str(tmp_path / "small"), max_model_len=512)
    with served(Backend(), model=directory) as url:
        source(url).check()
        source(url, model=directory).check()


def test_a_server_with_aliases_is_known_by_its_own_card():
    with served(Backend(), aliases=["a-first-one", "rerank-v3.5"]) as url:
        source(url).check()
        (judgment,) = judged(url, ["a"])
    assert judgment.score is not None


@pytest.mark.parametrize(
    ("scoring", "model", "fault"),
    [
        ({"mode": "direct"}, {}, "its scoring.mode is budget, the recipe's direct"),
        ({"max_think_tokens": 31}, {}, "its scoring.max_think_tokens is 30, the recipe's 31"),
        ({"prompt": "mine.txt"}, {}, "its scoring.prompt, as a hash, is [0-9a-f]{16}, the recipe's [0-9a-f]{16}"),
        ({}, {"id": "large"}, "its model.id is small, the recipe's large"),
        ({}, {"max_model_len": 512}, "its model.max_model_len is None, the recipe's 512"),
        ({}, {"dtype": "float32"}, "its model.dtype is auto, the recipe's float32"),
    ],
)
def test_a_server_that_scores_otherwise_is_refused(tmp_path, scoring, model, fault):
    if "prompt" in scoring:
        scoring = {"prompt": str(tmp_path / scoring["prompt"])}
        Path(scoring["prompt"]).write_text("{{ query }} {{ passage }}")
    with served(Backend()) as url:
        wrong = source(url, BUDGET.model_copy(update=scoring), MODEL.model_copy(update=model))
        with pytest.raises(UserError, match=f"engine.base_url {url}: {fault}"):
            wrong.check()


@pytest.mark.parametrize(("key", "value", "found"), [("compatibility", "rank1", None), ("min_think_tokens", 0, None)])
def test_how_chains_are_made_is_compared_where_there_are_any(key, value, found):
    message = f"its scoring.{key} is {found}, the recipe's {value}"
    with served(Backend()) as url, pytest.raises(UserError, match=message):
        source(url, BUDGET.model_copy(update={key: value})).check()
    direct = ScoringConfig(mode="direct")
    with served(Backend(direct)) as url:
        source(url, direct.model_copy(update={key: value})).check()


def test_a_cascades_cutoff_is_compared_and_anothers_is_not():
    cascade = ScoringConfig(mode="cascade")
    with served(Backend(), cascade) as url:
        source(url, cascade).check()
        with pytest.raises(UserError, match="its scoring.cutoff is 10, the recipe's 5"):
            source(url, ScoringConfig(mode="cascade", cutoff=5)).check()
    with served(Backend()) as url:
        source(url, BUDGET.model_copy(update={"cutoff": 5})).check()


def test_a_client_gets_raw_scores_and_all_documents_of_a_server_that_calibrates(tmp_path):
    class Calibrating(Backend):
        async def score(self, query, texts, options=None):
            return calibrated(await super().score(query, texts), Platt(2.0, -1.0))

    with served(Calibrating()) as url:
        found = judged(url, ["a", "b", "c"])
    raw = directly(["a", "b", "c"])
    assert [each.raw_score for each in found] == [each.score for each in raw]
    assert [each.score for each in found] == [Platt(2.0, -1.0)(each.score) for each in raw]


@pytest.mark.parametrize("raw", ["0.5", True, -0.1, 1.1, [], {}], ids=repr)
def test_a_raw_score_that_is_none_is_not_taken(raw):
    result = {"index": 0, "relevance_score": 0.5, "status": "direct", "raw_score": raw}
    with answering({"results": [result]}) as (url, _), pytest.raises(EndpointError, match="does not answer as"):
        judged(url, ["a"])


def test_sampled_chains_are_those_of_the_recipe_s_seed():
    sampled = BUDGET.model_copy(update={"samples": 2})
    with served(Backend(), sampled) as url:
        source(url, sampled).check()
        with pytest.raises(UserError, match="its scoring.samples is 2, the recipe's 1"):
            source(url).check()
        with pytest.raises(UserError, match="its seed is 12345, the recipe's 7"):
            ServedReranker(MODEL, EngineConfig(kind="serve", base_url=url), sampled, seed=7).check()
    with served(Backend()) as url:
        ServedReranker(MODEL, EngineConfig(kind="serve", base_url=url), BUDGET, seed=7).check()


def test_a_server_that_is_missing_unhealthy_or_another_is_refused():
    with nobody() as url, pytest.raises(UserError, match=f"engine.base_url {url}: cannot be reached"):
        source(url).check()
    with pytest.raises(UserError, match="engine.base_url localhost: cannot be reached: .*http"):
        source("localhost").check()
    backend = Backend()
    backend.dead = True
    with served(backend) as url, pytest.raises(UserError, match="/readyz answered 503: the engine is not up"):
        source(url).check()
    with served(Backend()) as url, pytest.raises(UserError, match="/readyz answered 404: no such path: /v1/readyz"):
        source(f"{url}/v1").check()


def test_other_names_of_the_served_model_are_no_other_models():
    card = {"id": "small", "root": "small", "scoring": Served.of(MODEL, BUDGET).scoring()}
    with answering({"data": [card, card | {"id": "rerank-v3.5"}]}) as (url, _):
        source(url).check()
    with (
        answering({"data": [card, card | {"id": "large", "root": "large"}]}) as (url, _),
        pytest.raises(UserError, match="does not say how it scores"),
    ):
        source(url).check()


def test_the_job_is_refused_before_it_starts(tmp_path):
    config = RerankJob(
        run_dir=str(tmp_path / "run"),
        data={"format": "beir", "path": str(write_beir(tmp_path / "data"))},
        model=MODEL,
        engine={"kind": "serve", "base_url": "replaced"},
    )
    with served(Backend()) as url:
        config = config.model_copy(update={"engine": source(url).engine})
        with pytest.raises(UserError, match="its scoring.mode is budget, the recipe's direct"):
            run(config, address="local", progress=None)
    assert not (tmp_path / "run").exists()


# ---- recipes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"job": "synthesize", "engine": {"kind": "serve"}}, "engine"),
        ({"job": "synthesize", "judge_engine": {"kind": "serve"}}, "judge_engine"),
        ({"job": "serve", "engine": {"kind": "serve"}}, "engine"),
        ({"job": "pipeline", "engine": {"kind": "serve"}}, "engine"),
    ],
)
def test_only_a_rerank_job_can_ask_a_server(values, key):
    with pytest.raises(UserError, match=f"{key}.kind=serve: only a rerank job"):
        parse_config(values | {"run_dir": "out"})
    assert parse_config({"job": "rerank", "run_dir": "out", "engine": {"kind": "serve"}}).engine.base_url is None


def test_a_runs_budget_cannot_be_kept_by_a_server():
    values = {"job": "rerank", "run_dir": "out", "engine": {"kind": "serve"}}
    with pytest.raises(UserError, match="scoring.token_budget is for a whole run"):
        parse_config(values | {"scoring": {"mode": "cascade", "token_budget": 1000}})
    assert parse_config(values | {"scoring": {"mode": "cascade"}})


def test_it_is_no_engine():
    with pytest.raises(UserError, match="engine.kind serve: only a rerank job and Reranker"):
        open_engine(MODEL, EngineConfig(kind="serve"))


def test_a_reranker_asks_a_server():
    texts = ["heapq.merge", "sorted", "bisect"]
    with served(Backend(ScoringConfig())) as url:
        settings = EngineConfig(kind="serve", base_url=url)
        with Reranker(MODEL, engine=settings) as reranker, Reranker("any", engine=EngineConfig(kind="fake")) as own:
            hits = reranker.rank("merge sorted feeds", texts, doc_ids=["a", "b", "c"])
            assert hits == own.rank("merge sorted feeds", texts, doc_ids=["a", "b", "c"])
            assert reranker.rank_many(["merge"], [texts]) == own.rank_many(["merge"], [texts])
        with pytest.raises(UserError, match="its scoring.mode is direct, the recipe's budget"):
            Reranker(MODEL, mode="budget", engine=settings)


def test_a_reranker_needs_the_server_s_url():
    with pytest.raises(UserError, match="engine.base_url is needed: the URL of a running `limrank serve`"):
        Reranker(MODEL, engine=EngineConfig(kind="serve"))
    with nobody() as url, pytest.raises(UserError, match="cannot be reached"):
        Reranker(MODEL, engine=EngineConfig(kind="serve", base_url=url))
