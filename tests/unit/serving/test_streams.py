"""Streamed answers: their events in virtual time, over the fake engine: two requests at a time, 0.1 s each."""

import asyncio
import json

import httpx
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers import virtual_time
from helpers.backend import EngineBackend
from helpers.streams import stream, streamed
from limrank.config import ModelConfig, ScoringConfig
from limrank.errors import RowError
from limrank.records import Judgment, ScoreStatus
from limrank.scoring.calibration import Platt
from limrank.serving import access_log
from limrank.serving.api import build_api
from limrank.serving.errors import engine_unavailable
from limrank.serving.options import Update, stream_request
from limrank.serving.protocol import Served
from limrank.serving.settings import ApiSettings
from limrank.serving.streams import EVENTS

DOCUMENTS = [f"passage {index}" for index in range(6)]
BODY = {"query": "q", "documents": DOCUMENTS, "stream": True}
MODES = {
    "direct": ScoringConfig(),
    "budget": ScoringConfig(mode="budget", max_think_tokens=30),
    "think": ScoringConfig(mode="think", max_think_tokens=30),
    "cascade": ScoringConfig(mode="cascade", band=100, max_think_tokens=30),
    "some in doubt": ScoringConfig(mode="cascade", band=0.2, max_think_tokens=30),
    "none in doubt": ScoringConfig(mode="cascade", band=0, max_think_tokens=30),
}


def api_of(scoring=MODES["budget"], *, latency_ms=100, backend=EngineBackend, observers=(), settings=None, **fault):
    made = backend(max_in_flight=2, fault={"latency_ms": latency_ms, **fault})
    made.recipe = scoring
    api = build_api(made, Served.of(ModelConfig(id="served"), scoring), settings, observers=observers)
    api.backend = made
    return api


def plain(api, body, path="/v1/rerank"):
    """The status and the JSON of the same request without a stream."""
    answer = streamed(api, {name: value for name, value in body.items() if name != "stream"}, path=path)
    assert "text/event-stream" not in answer.headers["content-type"]
    return answer.status, json.loads(answer.body)


def without(answer, *names):
    return {name: value for name, value in answer.items() if name not in ("id", *names)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_events_end_with_the_plain_answer(mode, path):
    found = streamed(api_of(MODES[mode]), BODY, path=path)
    status, answer = plain(api_of(MODES[mode]), BODY, path)
    assert (status, found.status) == (200, 200)
    assert found.headers["content-type"].startswith("text/event-stream")
    assert (found.headers["cache-control"], found.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert found.ended
    # One ranking, perhaps scores around it, and the end.
    assert found.names[-1] == "done"
    assert [name for name in found.names if name != "scores"] == ["ranking", "done"]
    (done,) = found.data("done")
    if mode in ("budget", "think"):  # the direct scores are requests of their own
        extra = done["usage"]["completion_tokens"] - answer["usage"]["completion_tokens"]
        assert extra == len(DOCUMENTS)
        assert without(done, "usage") == without(answer, "usage")
    else:
        assert without(done) == without(answer)
    assert done["id"] == found.data("ranking")[0]["id"] == found.headers["x-request-id"]
    assert found.merged()[-1] == done["results"]


def test_direct_scores_are_there_before_any_chain():
    found = streamed(api_of(), BODY)
    _, direct = plain(api_of(), BODY | {"mode": "direct"})
    seconds, ranking = next((second, data) for second, name, data in found.events if name == "ranking")
    assert seconds == pytest.approx(0.3)
    assert ranking["results"] == direct["results"]
    assert ranking["usage"] == direct["usage"]
    assert ranking["chains"] == {"finished": 0, "wanted": 6}
    assert found.events[-1][0] == pytest.approx(0.9)
    later = [(second, data) for second, name, data in found.events if name == "scores" and second > seconds]
    assert len(later) >= 2
    assert all(data["results"] and len(data["results"]) < 6 for _, data in later)
    assert all(b - a > 0.099 for (a, _), (b, _) in zip(later, later[1:], strict=False))


def test_a_changed_result_has_what_changed():
    found = streamed(api_of(), BODY | {"return_reasoning": True})
    ranking = found.data("ranking")[0]
    assert all(set(result) >= {"document", "status"} for result in ranking["results"])
    after = [result for data in found.data("scores") if data["chains"]["finished"] for result in data["results"]]
    assert after
    for result in after:
        assert set(result) <= {"index", "relevance_score", "status", "generated_tokens", "reasoning", "error"}
        assert result["reasoning"]


@pytest.mark.parametrize("more", [{"top_n": 2}, {"min_score": 0.5}, {"top_n": 3, "min_score": 0.3}, {"top_n": 1000}])
@pytest.mark.parametrize("mode", ["budget", "some in doubt", "direct"])
def test_every_ranking_so_far_is_as_it_would_be_answered(mode, more):
    found = streamed(api_of(MODES[mode]), BODY | more)
    rankings = found.merged()
    for ranking in rankings:
        scores = [result["relevance_score"] for result in ranking]
        assert scores == sorted(scores, reverse=True)
        assert len(ranking) <= more.get("top_n", 6)
        assert all(score >= more.get("min_score", 0) for score in scores)
        assert all(result["document"] == {"text": DOCUMENTS[result["index"]]} for result in ranking)
    assert rankings[-1] == plain(api_of(MODES[mode]), BODY | more)[1]["results"]


@pytest.mark.parametrize("documents", [["ünïcode 漢字 🙂", "a\u2028b\u0085c\r\nd\n\ne", 'say "data: x"'], ["same"] * 5])
def test_any_text_is_one_line(documents):
    body = BODY | {"documents": documents}
    found = streamed(api_of(), body)
    assert [
        result["document"]["text"] for result in sorted(found.data("done")[0]["results"], key=lambda r: r["index"])
    ] == documents
    assert found.data("done")[0]["results"] == plain(api_of(), body)[1]["results"]


def test_each_event_is_as_documented():
    document = api_of().openapi()["paths"]["/v2/rerank"]["post"]["responses"]["200"]["content"]
    assert set(document) == {"application/json", "text/event-stream"}
    schemas = document["text/event-stream"]["x-events"]
    streams = [streamed(api_of(MODES[mode], fail_rate=0.3), BODY | {"return_reasoning": True}) for mode in MODES]
    streams.append(streamed(api_of(backend=Crashing), BODY))
    seen = set()
    for found in streams:
        for _, name, data in found.events:
            seen.add(name)
            jsonschema.validate(data, schemas[name])
    assert seen == set(EVENTS) == set(schemas)


def test_some_failed_pairs_are_null_and_all_are_an_error():
    for mode in ("budget", "cascade", "direct"):
        found = streamed(api_of(MODES[mode], fail_rate=0.4), BODY)
        assert found.data("done")[0]["results"] == plain(api_of(MODES[mode], fail_rate=0.4), BODY)[1]["results"]
        refused = streamed(api_of(MODES[mode], fail_rate=1.0), BODY)
        assert (refused.status, refused.error["code"]) == (422, "all_pairs_failed")


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"query": ""}, 400, "empty_query"),
        ({"documents": [7]}, 400, "string_type"),
        ({"model": "another"}, 404, "model_not_found"),
        ({"mode": "think"}, 400, "mode_not_allowed"),
        ({"stream": "perhaps"}, 400, "bool_parsing"),
        ({"stream": None}, 400, "bool_type"),
        ({"deadline_ms": 50}, 504, "deadline_exceeded"),
    ],
)
def test_an_error_before_the_first_event_has_its_status(more, status, code):
    found = streamed(api_of(), BODY | more)
    assert (found.status, found.headers["content-type"]) == (status, "application/json")
    assert found.error["code"] == code or code == "string_type"
    assert found.ended


def test_a_full_server_and_a_missing_engine_have_their_status():
    full = streamed(api_of(settings=ApiSettings(max_requests=0)), BODY)
    assert (full.status, full.error["code"], full.headers["retry-after"]) == (429, "overloaded", "1")
    api = api_of()
    api.backend.dead = True
    dead = streamed(api, BODY)
    assert (dead.status, dead.error["code"]) == (503, "engine_unavailable")


class Crashing(EngineBackend):
    """Loses its engine after the ranking."""

    error = engine_unavailable()

    async def stream(self, query, texts, options):
        async for update in super().stream(query, texts, options):
            yield update
            if update.ranked:
                await asyncio.sleep(0.05)
                raise self.error


class Broken(Crashing):
    error = ZeroDivisionError("a path of this machine")


def test_an_error_after_the_first_event_is_the_last_event():
    found = streamed(api_of(backend=Crashing), BODY)
    assert (found.status, found.ended) == (200, True)
    assert found.names[-2:] == ["ranking", "error"]
    (error,) = found.data("error")
    assert error == engine_unavailable().body() | {"status": 503}
    broken = streamed(api_of(backend=Broken), BODY)
    assert broken.data("error")[0]["error"]["code"] == "internal_error"
    assert b"machine" not in broken.body and broken.ended


def test_all_chains_failed_is_an_error_after_the_ranking():
    class NoChains(EngineBackend):
        async def stream(self, query, texts, options):
            async for update in stream_request(query, texts, options, self.engine, self.recipe):
                if update.final:
                    failed = streamed_failures(texts)
                    update = Update(failed, 0, 6, True, True)
                yield update

    found = streamed(api_of(backend=NoChains), BODY)
    assert found.names[-1] == "error" and "ranking" in found.names
    assert (found.data("error")[0]["status"], found.data("error")[0]["error"]["code"]) == (422, "all_pairs_failed")


def streamed_failures(texts):
    return {index: Judgment("", None, ScoreStatus.FAILED, error=RowError("no")) for index in range(len(texts))}


def test_at_the_deadline_the_best_order_so_far_is_done():
    for mode in ("budget", "cascade"):
        found = streamed(api_of(MODES[mode]), BODY | {"deadline_ms": 750})
        assert found.seconds == pytest.approx(0.75, abs=0.01)
        results = found.data("done")[0]["results"]
        scores = [result["relevance_score"] for result in results]
        assert None not in scores and scores == sorted(scores, reverse=True)
        waiting = [result for result in results if result["status"] == "direct"]
        assert 0 < len(waiting) < 6
        assert all("deadline" in result["error"] for result in waiting)
    # Before all direct scores are there, the others are skipped, as without a stream.
    found = streamed(api_of(), BODY | {"deadline_ms": 150})
    assert "ranking" not in found.names
    assert [result["status"] for result in found.data("done")[0]["results"]] == ["direct"] * 2 + ["skipped"] * 4


def test_a_silent_stream_is_kept_alive_and_begins_before_its_first_score():
    found = streamed(api_of(latency_ms=12_000), BODY | {"documents": ["a"]})
    assert found.names[0] == ":"
    first = found.events[0][0]
    assert first == pytest.approx(10)
    assert found.names.count(":") >= 3 and found.names[-1] == "done"
    # The error of a stream that has begun is an event, whatever came before.
    late = streamed(api_of(latency_ms=30_000), BODY | {"deadline_ms": 15_000})
    assert late.names == [":", "error"]
    assert (late.data("error")[0]["status"], late.data("error")[0]["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("leaves_after", [0.05, 0.35, 0.62])
def test_a_client_that_leaves_frees_the_engine_at_once(leaves_after):
    records = []

    async def go():
        api = api_of(observers=[records.append])
        left = await stream(api, BODY, leaves_after=leaves_after)
        running = api.backend.engine.limiter.requests
        again = await stream(api, BODY | {"mode": "direct", "documents": ["a"]})
        return left, running, again

    left, running, again = virtual_time.run(go())
    assert running == 0
    assert again.seconds == pytest.approx(0.1) and again.names[-1] == "done"
    (record, _) = records
    assert (record.error, record.status) == ("client_closed", 200)
    # Before the first event nobody listens: the answer begins, and ends.
    assert record.seconds == pytest.approx(0, abs=5)
    assert not left.ended


def test_a_stream_holds_its_place_to_its_end():
    async def go():
        api = api_of(settings=ApiSettings(max_requests=1))
        first = asyncio.create_task(stream(api, BODY))
        await asyncio.sleep(0.5)
        refused = await stream(api, BODY)
        ended = await first
        after = await stream(api, BODY | {"mode": "direct"})
        return refused, ended, after

    refused, ended, after = virtual_time.run(go())
    assert refused.status == 429
    assert ended.names[-1] == after.names[-1] == "done"


def test_streams_are_recorded_to_their_end():
    records = []

    def observed(backend=EngineBackend, **more):
        found = streamed(api_of(backend=backend, observers=[records.append]), BODY | more)
        return found, records.pop()

    found, record = observed()
    done = found.data("done")[0]
    assert (record.status, record.error, record.mode, record.pairs, record.route) == (
        200,
        None,
        "budget",
        6,
        "/v1/rerank",
    )
    assert record.usage.prompt == done["usage"]["prompt_tokens"]
    assert record.usage.generated == done["usage"]["completion_tokens"]
    assert record.bytes_out == len(found.body)
    assert access_log.line(record)["request_id"] == done["id"]
    _, record = observed(backend=Crashing)
    assert (record.status, record.error) == (200, "engine_unavailable")
    _, record = observed(backend=Broken)
    assert (record.status, record.error) == (200, "internal_error")
    _, record = observed(deadline_ms=50)
    assert (record.status, record.error) == (504, "deadline_exceeded")


def test_streams_are_in_the_metrics():
    async def go():
        api = api_of()
        for body in (BODY, BODY | {"deadline_ms": 50}):
            await stream(api, body)
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return (await http.get("/metrics")).text

    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(virtual_time.run(go()))
        for sample in family.samples
    }

    def value(name, **labels):
        return samples.get((f"limrank_{name}", frozenset(labels.items())))

    assert value("requests_total", route="/v1/rerank", status="200", mode="budget") == 1
    assert value("request_duration_seconds_count", route="/v1/rerank", mode="budget") == 1
    assert (
        value("pairs_total", mode="budget", status="complete")
        + (value("pairs_total", mode="budget", status="forced") or 0)
        == 6
    )
    assert value("queue_size_pairs") == 0


def test_a_calibration_is_of_the_chains_and_not_of_the_scores_that_wait_for_one():
    class Calibrated(EngineBackend):
        def stream(self, query, texts, options):
            return stream_request(
                query, texts, options, self.engine, self.recipe, calibration=Platt(slope=2.0, intercept=1.0)
            )

    found = streamed(api_of(backend=Calibrated), BODY)
    ranking, done = found.data("ranking")[0], found.data("done")[0]
    assert all("raw_score" not in result for result in ranking["results"])
    assert all("raw_score" in result for result in done["results"])
    raw = [result["raw_score"] for result in done["results"]]
    assert raw == sorted(raw, reverse=True)
    assert found.merged()[-1] == done["results"]


def test_a_slow_reader_gets_fewer_events_and_the_same_end():
    async def go():
        api = api_of()
        original = []

        async def receive():
            if not original:
                original.append(1)
                return {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}
            return await asyncio.Event().wait()

        sent = []

        async def send(message):
            sent.append(message.get("body", b""))
            await asyncio.sleep(1)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/rerank",
            "raw_path": b"/v1/rerank",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
            "headers": [(b"host", b"localhost")],
            "state": {},
        }
        await api(scope, receive, send)
        return b"".join(sent).decode(), api.backend.engine.limiter.requests

    text, running = virtual_time.run(go())
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names[-1] == "done" and names.count("ranking") == 1 and len(names) <= 4
    assert running == 0
