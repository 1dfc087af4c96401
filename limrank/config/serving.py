"""``serving``: where a server listens, who may use it, how much it takes, and what requests may ask for."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
)

from limrank.config.base import (
    PathStr,
    Seconds,
    Section,
    fault,
)
from limrank.parsing import brief
from limrank.uris import is_uri

MAX_DOCUMENTS = 1000
"""The most documents in an HTTP request; also Cohere's recommended maximum."""


def _host(host: str) -> str:
    try:
        ip_address(host)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", host):
            raise fault("should be an address or a host's name, without a port: 127.0.0.1, 0.0.0.0, ::1") from None
    return host


def _queue(length: int) -> int:
    if not length:
        raise fault("should be above 0, or -1 for no limit")
    return length


def _allowed(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        _host(host)
    if len({host.lower() for host in hosts}) < len(hosts):
        raise fault("has a host twice")
    return hosts


def _local_file(path: str | None) -> str | None:
    if path and is_uri(path):
        raise fault("should be a local file")
    return path


def _once(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if values.count(value) > 1:
            raise fault(f"has {brief(value)} twice")
    return values


Modes = Annotated[tuple[Literal["direct", "think", "budget", "cascade"], ...], AfterValidator(_once)]
"""Scoring modes of a request."""

Aliases = Annotated[tuple[str, ...], Field(max_length=100), AfterValidator(_once)]
"""Names of a model."""


class ServingConfig(Section):
    host: Annotated[str, AfterValidator(_host)] = Field(
        default="127.0.0.1",
        description="address to listen on. An address that is not loopback needs API keys, or --insecure",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8000, description="port to listen on. 0: any free port")
    max_queued_requests: Annotated[int, AfterValidator(_queue)] = Field(
        default=256,
        ge=-1,
        description="requests that may wait, beyond those that the engines work on; the server answers any other request "
        "with 429 and Retry-After. -1: no limit",
    )
    max_queued_pairs: Annotated[int, AfterValidator(_queue)] = Field(
        default=10_000,
        ge=-1,
        description="(query, document) pairs of all requests that wait or run; the server answers a request that would "
        "exceed it with 429 and Retry-After. A larger request is taken where no other one is there. -1: no limit",
    )
    spread_pairs: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        default=100,
        description="pairs of a request that one engine scores, where several are up. A request with more is divided, "
        "except a cascade, which compares all its candidates. null: none is",
    )
    target_pairs_per_replica: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        default=None,
        description="pairs that wait or run, of each engine, above which the server starts another one, where "
        "workers.replicas is a range. null: twice what an engine keeps in flight (engine.max_in_flight)",
    )
    scale_down_after_s: Seconds = Field(
        default=300.0, description="seconds of less load after which the server ends an engine that it does not need"
    )
    modes: Modes | None = Field(
        default=None,
        description="scoring modes that a request may ask for, besides scoring.mode. Their chains have at most "
        "scoring.max_think_tokens. null: direct; []: none",
    )
    aliases: Aliases = Field(
        default=(),
        description="more names of the served model, for clients whose model name is fixed, such as [rerank-v3.5]",
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = Field(
        default=32 * 2**20, description="bytes of a request's body; a larger one is answered with 413"
    )
    receive_timeout_s: Seconds = Field(
        default=30.0,
        description="seconds in which a request's headers must arrive, and then its body; the server answers 408 and "
        "closes the connection",
    )
    max_documents: Annotated[int, Field(ge=1, le=MAX_DOCUMENTS)] = Field(
        default=MAX_DOCUMENTS, description="documents of a request; more are answered with 422"
    )
    max_document_chars: Annotated[int, Field(ge=1, le=2**30)] = Field(
        default=200_000,
        description="characters of a document. A longer one loses its end before it is tokenised, and its result is "
        "truncated",
    )
    max_query_chars: Annotated[int, Field(ge=1, le=2**30)] = Field(
        default=20_000,
        description="characters of a query and its instruction together; more are answered with 422",
    )
    allowed_hosts: Annotated[tuple[str, ...], AfterValidator(_allowed)] = Field(
        default=(),
        description="names and addresses, without a port, that a request's Host header may have besides loopback's. A "
        "server on loopback always checks the header, another one only if this is set",
    )
    keys_file: Annotated[PathStr | None, AfterValidator(_local_file)] = Field(
        default=None,
        description="file with API keys, one `name: sha256:HEX` or `name: KEY` a line. It is read again when it "
        "changes. Keys can also be in the environment, in LIMRANK_API_KEYS",
    )
    rate_limit_pairs_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        default=None,
        description="(query, document) pairs that each API key may have scored in a minute; more are answered with "
        "429 and Retry-After. null: any number",
    )
    access_log: Annotated[PathStr, AfterValidator(_local_file)] | None = Field(
        default=None,
        description="file on the server's node that gets one line of JSON for each request: its id, status, pairs, tokens and "
        "time, and no text of it. null: no access log",
    )
