"""What the OpenAPI document says of every route, and the page at ``/docs`` that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from limrank.html import render
from limrank.serving import request_ids
from limrank.serving.errors import ErrorBody

_ERRORS = {
    400: "the request is at fault; param names the field",
    401: "no valid API key",
    403: "the Host header is not accepted",
    404: "no such model",
    408: "the request did not arrive in time",
    413: "the body is too large",
    422: "too many documents, a query that is too long, or every document failed by a fault of its own",
    429: "too many requests or pairs are waiting, or the key's rate is exceeded",
    431: "the headers are too large",
    500: "the server failed",
    503: "no engine is up, or every document failed for now",
    504: "deadline_ms passed before any document had a score",
}
"""What each status of an error means."""

OF_SCORING = (400, 404, 422, 429, 500, 503, 504)
"""Statuses of errors of the routes that score."""

OF_EVERY = (401, 403, 408, 413, 431)
"""Statuses of errors before a request reaches its route."""

_REQUEST_ID = {
    "description": f"the request's id: the client's, if it has 1 to {request_ids.LONGEST} printable ASCII characters",
    "schema": {"type": "string"},
}
_RETRY_AFTER = {
    "description": "seconds until a retry may succeed",
    "schema": {"type": "integer", "minimum": 1},
}


def described(
    answer: type[BaseModel],
    errors: tuple[int, ...],
    *,
    events: Mapping[str, type[BaseModel]] | None = None,
    **operation: Any,
) -> dict[str, Any]:
    """Keyword arguments of a FastAPI route that document its answer, its errors and its headers.

    Args:
        answer: the body of a 200.
        errors: the statuses of its own errors, besides :data:`OF_EVERY`.
        events: the data of each server-sent event, where a request may ask for them.
        operation: more of FastAPI's keyword arguments.
    """
    headers = {request_ids.HEADER: _REQUEST_ID}
    responses: dict[int, dict[str, Any]] = {200: {"model": answer, "headers": headers}}
    if events:
        responses[200]["content"] = {"text/event-stream": _stream_of(events)}
    for status in sorted({*errors, *OF_EVERY}):
        more = {"Retry-After": _RETRY_AFTER} if status == 429 else {}
        responses[status] = {"model": ErrorBody, "description": _ERRORS[status], "headers": headers | more}
    parameter = {"name": request_ids.HEADER, "in": "header", "required": False, **_REQUEST_ID}
    # FastAPI would check an answer against the model a second time, and add its defaults.
    return {
        "response_model": None,
        "responses": responses,
        "openapi_extra": {"parameters": [parameter]},
        **operation,
    }


def _stream_of(events: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """A stream of server-sent events. OpenAPI 3.1 has no schema for one, which some tools would check each event
    against; ``x-events`` has the JSON schema of each event's data."""
    return {"x-events": {name: model.model_json_schema(mode="serialization") for name, model in events.items()}}


def docs_page(document: dict[str, Any]) -> str:
    """An OpenAPI document as an HTML page without scripts, which loads no other files."""
    operations = [
        {
            "name": f"{method.upper()} {path}",
            "text": operation.get("description", operation["summary"]),
            "fields": _fields(document, operation.get("requestBody")),
            "answers": [
                {"status": status, "text": answer["description"], "fields": _fields(document, answer)}
                for status, answer in operation["responses"].items()
            ],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    objects = {
        name: _rows(schema) for name, schema in document["components"]["schemas"].items() if schema.get("properties")
    }
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    return render("serving/docs.html.j2", title=title, operations=operations, objects=objects)


def _fields(document: dict[str, Any], body: dict[str, Any] | None) -> str:
    """The name of a JSON body's object; empty for none."""
    schema = (body or {}).get("content", {}).get("application/json", {}).get("schema", {})
    return _kind(schema) if schema else ""


def _rows(schema: dict[str, Any]) -> list[dict[str, str]]:
    needed = schema.get("required", [])
    return [
        {
            "name": name,
            "kind": _kind(field),
            "needed": "needed" if name in needed else "",
            "text": field.get("description", ""),
        }
        for name, field in schema["properties"].items()
    ]


_BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


def _kind(schema: dict[str, Any]) -> str:
    """A schema in words: ``integer above 0, or null``."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return ", or ".join(map(_kind, choices))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = str(schema.get("const", schema.get("type", "any")))
    if kind == "array":
        kind = f"list of ({_kind(schema.get('items', {}))})"
    bounds = [words.format(schema[name]) for name, words in _BOUNDS.items() if name in schema]
    return " ".join([kind, *bounds])
