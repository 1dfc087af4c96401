"""How a client reaches a server: its address and headers, its errors, and when a request is tried again.

Nothing here waits or sends, so the synchronous and the asynchronous client share it.
"""

from __future__ import annotations

import math
import os
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import httpx

from limrank.engines.openai_answers import fault_of, quoted
from limrank.engines.retries import backoff_s, requested_wait
from limrank.errors import ApiStatusError, EndpointError, UserError, first_line
from limrank.parsing import brief, without_credentials
from limrank.serving.calls import Answer, Call, Value
from limrank.uris import is_secret_name, keep_secret, split_query
from limrank.version import __version__

if TYPE_CHECKING:
    from tenacity import RetryCallState

API_KEY = "LIMRANK_API_KEY"
"""The variable of the environment that holds the key of a server."""

CONNECT_S = 10.0
"""Time limit for a connection, and for an answer that needs no engine."""

NO_ANSWER = (httpx.HTTPError, httpx.InvalidURL, TimeoutError)
"""Errors of a request that ended without a whole answer."""


class UnansweredError(EndpointError):
    """A request ended without a whole answer. ``retryable``: another one may succeed."""

    retryable = True


def passes(status: int) -> bool:
    """Whether an error's status is one that passes by itself: a time-out, a full queue, a failing server."""
    return status in (408, 429) or status >= 500


# ---- where the server is -------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """Where a server is, and what each request to it carries.

    Args:
        name: what messages call it.
        base, params: its URL, and the query of each request.
        headers: of each request.
        secrets: values of the headers that no message may hold.
    """

    name: str
    base: str
    params: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def at(
        cls,
        base_url: str,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> Server:
        """A server by URL.

        Args:
            api_key: None: that of ``LIMRANK_API_KEY``, if there is one; empty: none.
            headers: further headers, which precede those of limrank.

        Raises:
            UserError: the key or a header cannot be sent.
        """
        base, params = split_query(base_url)
        variable, key = ("api_key", api_key) if api_key is not None else (API_KEY, os.environ.get(API_KEY, "").strip())
        if not isinstance(key, str) or not re.fullmatch(r"[!-~]*", key):
            # After a colon the message would pass for a secret itself.
            raise UserError(f"{variable} should be a text of visible ASCII characters, without blanks")
        given = _checked_headers(headers or {})
        secrets = {value: header for header, value in given.items() if value and is_secret_name(header)}
        own = {"User-Agent": f"limrank/{__version__}", "Accept": "application/json"}
        if key:
            own["Authorization"] = f"Bearer {key}"
            secrets[key] = API_KEY
        for secret, source in secrets.items():
            keep_secret(secret, source)
        replaced = {header.lower() for header in given}
        sent = {header: value for header, value in own.items() if header.lower() not in replaced} | given
        return cls(name or base, base, params, sent, tuple(secrets))

    @property
    def has_key(self) -> bool:
        return any(header.lower() == "authorization" for header in self.headers)

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, by its URL. A proxy that is set for the outside is not asked then."""
        host = httpx.URL(self.base).host
        try:
            address = ip_address(host)
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")
        return address.is_loopback or address.is_unspecified

    def quoted(self, text: str, limit: int = 300) -> str:
        """A text of the server on one line, clipped, without the key that it may quote."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return quoted(text, limit)


def checked_url(base_url: Any) -> str:
    """Raises UserError: it is no ``http://`` or ``https://`` URL with a host, or holds credentials."""
    fault = f"base_url {brief(base_url)}: should be http:// or https:// and a host, as in http://127.0.0.1:8000"
    if not isinstance(base_url, str):
        raise UserError(fault)
    without_credentials(base_url, "base_url")
    try:
        url = httpx.URL(base_url)
        port_fits = url.port is None or 0 < url.port < 1 << 16
    except (httpx.InvalidURL, UnicodeError):
        raise UserError(fault) from None
    if url.scheme not in ("http", "https") or not url.host or not port_fits:
        raise UserError(fault)
    return base_url


def _checked_headers(headers: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise UserError("headers: should be a mapping of names to values")
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
            raise UserError(f"headers: {brief(name)} is no name of a header")
        if not isinstance(value, str) or not re.fullmatch(r"(?:[!-~](?:[ -~]*[!-~])?)?", value):
            raise UserError(f"headers: the value of {name} should be printable ASCII text")
    return dict(headers)


# ---- what an answer says -------------------------------------------------------------


def result_of(call: Call[Value], answer: Answer, server: Server) -> Value:
    """What a call's answer says.

    Raises:
        ApiStatusError: it is an error.
        EndpointError: it is not an answer of ``limrank serve``.
    """
    if answer.status != 200 and not call.any_status:
        raise _status_error(call, answer, server)
    try:
        return call.read(answer)
    except (ValueError, UserError) as error:
        start = server.quoted(answer.content[:5000].decode(errors="replace"), 80)
        reason = server.quoted(first_line(error), 120)
        raise EndpointError(f"{server.name}: does not answer as `limrank serve`: {reason}: {start!r}") from error


def _status_error(call: Call[Any], answer: Answer, server: Server) -> ApiStatusError:
    status, request_id = answer.status, answer.request_id or call.request_id
    if 300 <= status < 400:
        # A redirect could send the key and the texts to another host, so none is followed.
        target = server.quoted(answer.headers.get("Location", "nowhere"))
        return ApiStatusError(
            server.name, status, f"a redirect to {target}: give the URL that answers", request_id=request_id
        )
    try:
        fault = fault_of(answer.json(), status)
        words, code, param = server.quoted(fault.words), fault.code or None, fault.param
    except UserError:
        words, code, param = server.quoted(answer.content[:5000].decode(errors="replace"), 80), None, None
    if status == 401 and not server.has_key:
        words += f"; set {API_KEY}, or give api_key"
    return ApiStatusError(
        server.name,
        status,
        words,
        code=code and server.quoted(code, 80),
        param=param and server.quoted(param, 80),
        request_id=request_id,
        retry_after_s=requested_wait(answer.headers),
    )


# ---- when to try again ---------------------------------------------------------------


class Attempts:
    """The attempts of one call, which begins now.

    Args:
        timeout_s: the time limit of all attempts together; None: none.
        max_retries: attempts after the first one.
        deadline_ms: the caller's deadline, after which no attempt begins. An answer may come later.
    """

    def __init__(self, timeout_s: float | None, max_retries: int, deadline_ms: int | None = None) -> None:
        self._began = time.monotonic()
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._max_retries = max_retries
        self._deadline_s = math.inf if deadline_ms is None else deadline_ms / 1000

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float | None:
        """The rest of the time limit, above 0; None: there is no limit."""
        return None if self._timeout_s == math.inf else max(self._timeout_s - self.elapsed_s, 0.001)

    @property
    def limits(self) -> httpx.Timeout:
        """Time limits of the next request's parts."""
        return httpx.Timeout(self.left_s, connect=min(self.left_s or CONNECT_S, CONNECT_S))

    def in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks of an answer. Raises TimeoutError: the time limit has passed, though each chunk came soon."""
        for chunk in chunks:
            if self.elapsed_s > self._timeout_s:
                raise TimeoutError
            yield chunk

    def policy(self) -> dict[str, Any]:
        """Tenacity's settings: which errors are retried, after which wait, and when no more."""
        return {"retry": self._is_retried, "wait": _wait_s, "stop": self._ends, "reraise": True}

    @contextmanager
    def sending(self, server: Server) -> Iterator[None]:
        """Turns the transport's errors into UnansweredError."""
        try:
            yield
        except NO_ANSWER as error:
            if self.elapsed_s >= self._timeout_s:
                reason = f"gave no answer within {self._timeout_s:g} s"
            elif isinstance(error, httpx.TimeoutException | TimeoutError):
                reason = f"gave no answer: {type(error).__name__}"
            else:
                reason = f"gave no answer: {server.quoted(first_line(error))}"
            unanswered = UnansweredError(f"{server.name}: {reason}")
            unanswered.retryable = not _is_refused_certificate(error)
            raise unanswered from error

    def _is_retried(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ApiStatusError):
            return passes(error.status)
        return isinstance(error, UnansweredError) and error.retryable

    def _ends(self, state: RetryCallState) -> bool:
        next_s = self.elapsed_s + state.upcoming_sleep
        return state.attempt_number > self._max_retries or next_s >= min(self._timeout_s, self._deadline_s)


def _wait_s(state: RetryCallState) -> float:
    """The wait that the server asks for, and a random one that doubles. Clients that were sent away together do not
    come back together."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, ApiStatusError) else None
    return (asked or 0.0) + backoff_s(state.attempt_number)


def _is_refused_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def checked_limits(timeout: Any, max_retries: Any) -> tuple[float | None, int]:
    """Raises UserError: one of them is out of range."""
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 1e9
    ):
        raise UserError(f"timeout: should be seconds above 0, or None for no limit (got {brief(timeout)})")
    if not isinstance(max_retries, int) or isinstance(max_retries, bool) or not 0 <= max_retries <= 1000:
        raise UserError(f"max_retries: should be a whole number from 0 to 1000 (got {brief(max_retries)})")
    return None if timeout is None else float(timeout), max_retries
