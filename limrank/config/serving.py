"""``serving``: where a server listens, how many requests may wait, and what they may ask for."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
)

from limrank.config.base import (
    Section,
    fault,
)
from limrank.parsing import brief


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
        description="address to listen on. There is no authentication: anyone who reaches the address may use the "
        "server",
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
    modes: Modes | None = Field(
        default=None,
        description="scoring modes that a request may ask for, besides scoring.mode. Their chains have at most "
        "scoring.max_think_tokens. null: direct; []: none",
    )
    aliases: Aliases = Field(
        default=(),
        description="more names of the served model, for clients whose model name is fixed, such as [rerank-v3.5]",
    )
