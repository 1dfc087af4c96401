"""``serving``: where a server listens, and how many requests may wait."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
)

from limrank.config.base import (
    PathStr,
    Section,
    fault,
)
from limrank.uris import is_uri


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


def _local_file(path: str) -> str:
    if is_uri(path):
        raise fault("should be a local file, which lines are appended to")
    return path


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
        "with 503 and Retry-After. -1: no limit",
    )
    access_log: Annotated[PathStr, AfterValidator(_local_file)] | None = Field(
        default=None,
        description="file on the server's node that gets one line of JSON for each request: its id, status, pairs, tokens and "
        "time, and no text of it. null: no access log",
    )
