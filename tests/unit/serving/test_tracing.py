"""Spans of requests, by OpenTelemetry's own exporter in memory."""

import asyncio
import subprocess
import sys

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.api import build_api
from limrank.serving.errors import engine_unavailable
from limrank.serving.protocol import Served
from limrank.serving.tracing import spans, tracing

SERVED = Served.of(ModelConfig(id="served"), ScoringConfig(mode="direct"))
BODY = {"query": "secretquery", "documents": ["secretdocument", "b"]}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def traced(*requests, backend=None):
    """The spans of requests, each (method, path, arguments), and the answers."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def go():
        api = build_api(backend or EngineBackend(), SERVED, observers=[spans(provider, "served")])
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.request(method, where, **arguments) for method, where, arguments in requests]

    found = asyncio.run(go())
    return exporter.get_finished_spans(), found


def test_a_request_is_a_span_below_the_client_s():
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "r-1"}
    (span,), (answer,) = traced(("POST", "/v1/rerank", {"json": BODY, "headers": headers}))
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (span.name, span.kind, span.status.status_code) == ("POST /v1/rerank", SpanKind.SERVER, StatusCode.UNSET)
    assert span.end_time > span.start_time
    usage = answer.json()["usage"]
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/rerank",
        "http.response.status_code": 200,
        "limrank.request_id": "r-1",
        "limrank.model": "served",
        "limrank.mode": "direct",
        "limrank.pairs": 2,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }


@pytest.mark.parametrize("header", ["", "00-0-0-01", "ff" * 600, "é"])
def test_a_broken_traceparent_starts_a_trace_of_its_own(header):
    (span,), (answer,) = traced(("POST", "/v1/rerank", {"json": BODY, "headers": {"traceparent": header.encode()}}))
    assert answer.status_code == 200
    assert span.parent is None


def test_an_error_of_the_server_is_an_error_and_one_of_the_client_is_not():
    backend = EngineBackend()
    backend.dead = True
    found, _ = traced(
        ("POST", "/v1/rerank", {"json": BODY}), ("POST", "/v1/rerank", {"content": b"{"}), backend=backend
    )
    assert [(span.attributes["error.type"], span.status.status_code) for span in found] == [
        ("engine_unavailable", StatusCode.ERROR),
        ("invalid_json", StatusCode.UNSET),
    ]


def test_routes_that_are_polled_have_no_span():
    assert traced(("GET", "/healthz", {}), ("GET", "/metrics", {}))[0] == ()


def test_a_client_that_wants_no_trace_gets_none():
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced(("POST", "/v1/rerank", {"json": BODY, "headers": headers}))[0] == ()


def test_a_span_has_no_text():
    headers = {"Authorization": "Bearer secretkey"}
    found, _ = traced(
        ("POST", "/v1/rerank?q=secretparameter", {"json": BODY, "headers": headers}), ("GET", "/secretpath", {})
    )
    assert len(found) == 2
    assert "secret" not in " ".join(span.to_json() for span in found)


def test_the_environment_turns_it_on(monkeypatch):
    assert tracing("served") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "  ")
    assert tracing("served") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing("served") is not None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing("served") is None


def test_a_bad_variable_is_a_warning_and_no_failure(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    assert tracing("served") is None
    assert [record.message for record in caplog.records] == ["no traces: max_queue_size must be a positive integer."]


def test_a_missing_exporter_is_a_warning_and_no_failure(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing("served") is None
    assert "opentelemetry-exporter-otlp" in caplog.text


def test_nothing_is_imported_where_the_environment_asks_for_nothing():
    code = (
        "import sys; from limrank.serving.tracing import tracing; assert tracing('m') is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stream_that_fails_is_an_error_though_its_status_is_200():
    class Crashing(EngineBackend):
        async def stream(self, query, texts, options):
            async for update in super().stream(query, texts, options):
                yield update
                if update.ranked:
                    await asyncio.sleep(0.01)
                    raise engine_unavailable()

    found = [
        traced(("POST", "/v1/rerank", {"json": BODY | {"stream": True}}), backend=backend)[0][0]
        for backend in (EngineBackend(), Crashing())
    ]
    assert [span.status.status_code for span in found] == [StatusCode.UNSET, StatusCode.ERROR]
    assert [span.attributes["http.response.status_code"] for span in found] == [200, 200]
    assert [span.attributes.get("error.type") for span in found] == [None, "engine_unavailable"]
