"""Who may use the server, and how much of it one request may take: limits, hosts, keys and rates in one place.

The same checks run twice. In Ray Serve's proxy they keep a body that is refused from being received at all
(:mod:`limrank.serving.proxy`). In the API's replica they hold for whatever reaches it, and name the request's key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from limrank.errors import UserError
from limrank.serving.hosts import HostCheck, Hosts, is_loopback
from limrank.serving.key_sources import VARIABLE
from limrank.serving.keys import KeyCheck, KeyRing
from limrank.serving.limits import BodyLimit, HeaderLimit, Limits
from limrank.serving.refusal import App, Receive, Scope, Send

if TYPE_CHECKING:
    from limrank.config import ServingConfig


@dataclass(frozen=True)
class Access:
    """What a server asks of its requests. The default is the limits alone.

    Attributes:
        pairs_per_minute: the rate limit of each key; None for none.
    """

    limits: Limits = field(default_factory=Limits)
    hosts: Hosts = field(default_factory=Hosts)
    keys: KeyRing = field(default_factory=KeyRing)
    pairs_per_minute: int | None = None

    @classmethod
    def of(cls, serving: ServingConfig, keys: KeyRing | None = None, *, insecure: bool = False) -> Access:
        """The access to a server of this config.

        Args:
            keys: the keys; None: those of the environment and of ``serving.keys_file``.
            insecure: an address that is not loopback needs no keys.

        Raises:
            UserError: the keys are faulty, or the address needs some.
        """
        keys = KeyRing.read(serving.keys_file) if keys is None else keys
        if not keys.names and not insecure and not is_loopback(serving.host):
            raise UserError(
                f"serving.host {serving.host}: anyone who reaches it could use the server: set API keys "
                f"({VARIABLE} or serving.keys_file), or give --insecure"
            )
        if serving.rate_limit_pairs_per_minute is not None and not keys.names:
            raise UserError(
                f"serving.rate_limit_pairs_per_minute is for each API key: set {VARIABLE} or serving.keys_file"
            )
        hosts = Hosts.of(serving.host, serving.allowed_hosts)
        return cls(Limits.of(serving), hosts, keys, serving.rate_limit_pairs_per_minute)

    def to_json(self) -> str:
        """The checks of the proxy. Keys are hashes."""
        _, (fixed, of_file, file) = self.keys.__reduce__()
        values = {
            "limits": asdict(self.limits),
            "hosts": {"checked": self.hosts.checked, "allowed": sorted(self.hosts.allowed)},
            "keys": {"fixed": fixed, "of_file": of_file, "file": file},
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Access:
        values = json.loads(text)
        hosts = Hosts(values["hosts"]["checked"], frozenset(values["hosts"]["allowed"]))
        return cls(Limits(**values["limits"]), hosts, KeyRing(**values["keys"]))


class Guard:
    """All checks before an application, the cheapest first: headers, host, key and body. The server has no
    WebSockets, so each is refused."""

    def __init__(self, app: App, access: Access) -> None:
        inside = BodyLimit(_without_sockets(app), access.limits)
        self._checked = HeaderLimit(HostCheck(KeyCheck(inside, access.keys), access.hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._checked(scope, receive, send)


def _without_sockets(app: App) -> App:
    async def http_only(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await app(scope, receive, send)

    return http_only
