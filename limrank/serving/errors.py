"""Errors of requests, all in one JSON shape.

``{"error": {"message", "type", "param", "code"}}`` is the shape that OpenAI's clients read. ``param``
names the field at fault, and programs can switch on ``code``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

_NOT_FIELDS = ("body", "<string>", "<object>")
"""Names in pydantic's locations that no field has: the body, and which kind of document it read."""


RETRY_AFTER_S = 5
"""When a client may come back after a 503."""


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="the field at fault, such as documents.3")
    code: str = Field(description="a name that programs can switch on")


class ErrorBody(BaseModel):
    """Every error, whatever its status."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that ends with an HTTP status of 400 or more."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def unknown_model(asked: str, served: str) -> ApiError:
    return ApiError(404, "model_not_found", f"model {asked!r} is not served here; {served!r} is", param="model")


def mode_not_allowed(asked: str, allowed: Sequence[str]) -> ApiError:
    names = " or ".join(allowed)
    return ApiError(400, "mode_not_allowed", f"mode: {asked} is not offered here: take {names}", param="mode")


def chain_too_long(asked: int, mode: str, longest: int) -> ApiError:
    message = f"max_think_tokens: {asked} is more than the {longest} of {mode} here"
    return ApiError(400, "max_think_tokens_too_large", message, param="max_think_tokens")


def overloaded(what: str = "requests", retry_after_s: int = 1) -> ApiError:
    headers = {"Retry-After": str(retry_after_s)}
    return ApiError(429, "overloaded", f"too many {what} are waiting; try again later", headers=headers)


def deadline_exceeded() -> ApiError:
    return ApiError(504, "deadline_exceeded", "deadline_ms passed before any document had a score", param="deadline_ms")


def engine_unavailable() -> ApiError:
    message = "the engine is not up, or crashed during this request; try again later"
    return ApiError(503, "engine_unavailable", message, headers={"Retry-After": str(RETRY_AFTER_S)})


def server_unavailable() -> ApiError:
    message = "the server cannot answer now; try again later"
    return ApiError(503, "server_unavailable", message, headers={"Retry-After": str(RETRY_AFTER_S)})


def draining() -> ApiError:
    message = "the server is about to stop; try again later"
    headers = {"Retry-After": str(RETRY_AFTER_S), "connection": "close"}
    return ApiError(503, "draining", message, headers=headers)


def invalid_request(faults: Sequence[dict[str, Any]]) -> ApiError:
    """The first fault of a body, from pydantic's list (``errors()``).

    The message never repeats the value, which is a user's text.
    """
    fault = faults[0]
    kind = fault["type"]
    if kind == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {fault['ctx']['error']}")
    at = fault.get("ctx", {}).get("at", ())
    location = [str(name) for name in (*fault["loc"], *at) if name not in _NOT_FIELDS]
    if not location:
        return ApiError(400, "invalid_body", "the body must be a JSON object")
    param = ".".join(location)
    message = "is needed" if kind == "missing" else fault["msg"][0].lower() + fault["msg"][1:]
    if kind == "too_many_documents":  # a limit, not a shape
        return ApiError(422, kind, f"{param}: {message} (serving.max_documents)", param=param)
    return ApiError(400, kind, f"{param}: {message}", param=param)
