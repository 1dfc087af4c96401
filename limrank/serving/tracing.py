"""A span of OpenTelemetry for each request, where the environment asks for traces.

``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` turns it on, ``OTEL_SDK_DISABLED`` off; the
SDK and its exporter read their other variables themselves. A span holds no text of a request.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING

from limrank.serving.request_records import CLIENT_LEFT, Observer, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_UNTRACED = ("/healthz", "/readyz", "/metrics")
"""Routes that other programs poll."""


def tracing(model: str) -> Observer | None:
    """The observer that makes the spans; None where the environment asks for none or OpenTelemetry is not installed."""
    if _variable(*_ENDPOINTS) is None or (_variable("OTEL_SDK_DISABLED") or "").lower() == "true":
        return None
    try:
        provider = _provider()
    except ImportError as error:
        logging.getLogger("ray.serve").warning(
            "no traces: %s is not installed: pip install opentelemetry-sdk opentelemetry-exporter-otlp", error.name
        )
        return None
    except ValueError as error:  # of a variable that the exporter reads
        logging.getLogger("ray.serve").warning("no traces: %s", error)
        return None
    return spans(provider, model)


def spans(provider: TracerProvider, model: str) -> Observer:
    """The observer that gives a provider a span for each request. A span's parent is the client's ``traceparent``."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("limrank.serving")
    propagator = TraceContextTextMapPropagator()

    def observe(record: RequestRecord) -> None:
        if record.route in _UNTRACED:
            return
        attributes = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "limrank.request_id": record.request_id,
            "limrank.model": model,
            "limrank.mode": record.mode,
            "limrank.pairs": record.pairs,
            "gen_ai.usage.input_tokens": record.usage.prompt,
            "gen_ai.usage.cache_read.input_tokens": record.usage.cached_prompt,
            "gen_ai.usage.output_tokens": record.usage.generated,
            "error.type": record.error,
        }
        span = tracer.start_span(
            f"{record.method} {record.route}",
            propagator.extract(record.trace_context),
            SpanKind.SERVER,
            {name: value for name, value in attributes.items() if value is not None},
            start_time=record.started_ns,
        )
        failed_stream = record.status < 400 and record.error not in (None, CLIENT_LEFT)
        if record.status >= 500 or failed_stream:
            span.set_status(Status(StatusCode.ERROR))
        span.end(record.started_ns + int(record.seconds * 1e9))

    return observe


def _provider() -> TracerProvider:
    """A provider of this server's own, which sends its spans in batches from a thread."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    protocol = "grpc" if _variable(*_PROTOCOLS) == "grpc" else "http"
    exporter = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter")
    named = _variable("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {} if named else {"service.name": "limrank"}
    provider = TracerProvider(resource=Resource.create(name))
    provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter()))
    return provider


def _variable(*names: str) -> str | None:
    """The first of the variables that is set and not empty."""
    return next((os.environ[name] for name in names if os.environ.get(name, "").strip()), None)
