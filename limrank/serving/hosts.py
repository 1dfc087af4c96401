"""The ``Host`` and ``Origin`` headers on a loopback server.

A web page can make its visitor's browser ask a loopback address, by its own name (DNS rebinding) or by the address
itself. A rebound request has the page's name in ``Host``, and the other one in ``Origin``, or it says
``Sec-Fetch-Site: cross-site``. Both are refused, so no page of elsewhere can use the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from limrank.serving.errors import ApiError
from limrank.serving.refusal import App, Receive, Scope, Send, header_values, refuse

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d{0,5})?")

_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104
"""What a server listens on, and no client should ask for."""


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own: 127.0.0.0/8, ::1, localhost."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


@dataclass(frozen=True)
class Hosts:
    """The accepted hosts.

    Attributes:
        checked: whether ``Host`` is checked at all.
        allowed: names and addresses, without a port, besides those of loopback.
    """

    checked: bool = False
    allowed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, host: str, allowed: Iterable[str]) -> Hosts:
        """Of a server that listens on ``host``. Elsewhere than on loopback it checks only where there are allowed
        hosts, and ``host`` itself is one of them."""
        names = frozenset(map(_written, allowed))
        own = frozenset() if host in _ALL_ADDRESSES or not names else {_written(host)}
        return cls(is_loopback(host) or bool(names), names | own)

    def accepts(self, header: str) -> bool:
        """Whether the value of a ``Host`` header names an accepted host, with any port."""
        found = _HOST.fullmatch(header.strip())
        if found is None:
            return False
        name = (found["v6"] or found["name"]).lower()
        return is_loopback(name) or _written(name) in self.allowed


def _written(host: str) -> str:
    """A host in the one way that hosts are compared: an IPv6 address may be written in several."""
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower().removesuffix(".")


class HostCheck:
    """Refuses requests whose ``Host`` is not accepted. A request has exactly one."""

    def __init__(self, app: App, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and self._hosts.checked:
            named = header_values(scope, b"host")
            if len(named) != 1 or not self._hosts.accepts(named[0]):
                await refuse(scope, receive, send, _not_allowed())
                return
            if self._from_elsewhere(scope):
                await refuse(scope, receive, send, _origin_not_allowed())
                return
        await self._app(scope, receive, send)

    def _from_elsewhere(self, scope: Scope) -> bool:
        """Whether a page of another site makes the request. A link to the page itself is none."""
        origins = [origin.partition("://")[2] for origin in header_values(scope, b"origin")]
        if any(not self._hosts.accepts(origin) for origin in origins):
            return True
        return scope["path"] != "/" and "cross-site" in header_values(scope, b"sec-fetch-site")


def _origin_not_allowed() -> ApiError:
    return ApiError(403, "origin_not_allowed", "a page of another site may not use this server")


def _not_allowed() -> ApiError:
    return ApiError(
        403,
        "host_not_allowed",
        "the Host header names neither a loopback address nor one of serving.allowed_hosts",
    )
