"""Errors of requests, all in one JSON shape.

``{"error": {"message", "type", "param", "code"}}`` is the shape that OpenAI's clients read. ``param``
names the field at fault, and programs can switch on ``code``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RETRY_AFTER_S = 1


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


def overloaded() -> ApiError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(503, "overloaded", "too many requests are waiting; try again later", headers=headers)


def engine_unavailable() -> ApiError:
    return ApiError(503, "engine_unavailable", "the engine is not up, or crashed during this request; try again later")


def invalid_request(faults: Sequence[dict[str, Any]]) -> ApiError:
    """The first fault of a body, from pydantic's list (``errors()``).

    The message never repeats the value, which is a user's text.
    """
    fault = faults[0]
    kind = fault["type"]
    if kind == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {fault['ctx']['error']}")
    location = [str(name) for name in fault["loc"] if name != "body"]
    if not location:
        return ApiError(400, "invalid_body", "the body must be a JSON object")
    param = ".".join(location)
    message = "is needed" if kind == "missing" else fault["msg"][0].lower() + fault["msg"][1:]
    if kind == "too_many_documents":  # a limit, not a shape
        return ApiError(422, kind, f"{param}: {message} (serving.max_documents)", param=param)
    return ApiError(400, kind, f"{param}: {message}", param=param)
