"""API keys: compared in constant time, and read again when their file changes. No message repeats a key."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path

from limrank.errors import UserError
from limrank.serving.errors import ApiError
from limrank.serving.key_sources import VARIABLE, hashed, keys_of_environment, keys_of_file
from limrank.serving.refusal import App, Receive, Scope, Send, has_body, header_values, refuse

KEY_STATE = "api_key"
"""The entry of a request's ``scope["state"]`` with the name of its key, for what runs outside of :class:`KeyCheck`."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/-/healthz", "/", "/page.css", "/page.js", "/docs"})
"""Paths without a key, for requests without a body: the probes of the server and of Ray Serve's proxy, the page, which
asks for a key itself, and the documentation."""

_LOOK_AGAIN_S = 1.0

_current: ContextVar[str | None] = ContextVar("limrank_api_key", default=None)


def current_key() -> str | None:
    """The name of the key of the request that runs here; None where the server asks for none."""
    return _current.get()


class KeyRing:
    """The keys of a server. The file is looked at again at most once a second, and read again where it has changed.
    A file that is faulty, or not on this machine, leaves the keys as they are.

    Args:
        fixed: name → hash of the keys that no file holds.
        of_file: name → hash of the file's keys, as the driver read them.
        file: the file; None for none.
    """

    def __init__(
        self, fixed: Mapping[str, str] | None = None, of_file: Mapping[str, str] | None = None, file: str | None = None
    ) -> None:
        self._fixed = dict(fixed or {})
        self._of_file = dict(of_file or {})
        self._file = file
        self._stamp: tuple[int, ...] | None = None
        self._looked = float("-inf")

    @classmethod
    def read(cls, file: str | None) -> KeyRing:
        """The keys of the environment and of a file.

        Raises:
            UserError: one of them is faulty, or both have a key of one name.
        """
        path = str(Path(file).expanduser().absolute()) if file else None
        fixed, of_file = keys_of_environment(os.environ.get(VARIABLE)), keys_of_file(path) if path else {}
        if double := sorted(fixed.keys() & of_file.keys()):
            raise UserError(f"serving.keys_file {path}: key {double[0]} is in {VARIABLE}, too")
        return cls(fixed, of_file, path)

    def __reduce__(self):
        return type(self), (self._fixed, self._of_file, self._file)

    @property
    def file(self) -> str | None:
        return self._file

    @property
    def names(self) -> list[str]:
        return sorted(self._fixed.keys() | self._of_file.keys())

    def name_of(self, key: str) -> str | None:
        """The name of a key; None for an unknown one. It takes as long for any key."""
        digest, found = hashed(key), None
        for name, known in (*self._fixed.items(), *self._of_file.items()):
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def look_again(self) -> None:
        """Read the file again if it has changed, at most once a second."""
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        try:
            state = Path(self._file).stat()
        except OSError:
            return  # another machine's file, or one that is being replaced
        stamp = (state.st_mtime_ns, state.st_size, state.st_ino, state.st_mode)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._of_file = keys_of_file(self._file)
        except UserError as error:
            logging.getLogger("ray.serve").error("the keys stay as they are: %s", error)


class KeyCheck:
    """Refuses requests without a valid key, where the server has keys. :func:`current_key` names it to the rest."""

    def __init__(self, app: App, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        self._ring.look_again()
        name = None
        is_open = scope["path"] in OPEN_PATHS and not has_body(scope)
        if self._ring.names and not is_open:
            presented = _presented(scope)
            # Each is compared, so that the time does not tell which one was right.
            name = next(filter(None, [self._ring.name_of(key) for key in presented]), None)
            if name is None:
                await refuse(scope, receive, send, _invalid() if presented else _missing())
                return
        token = _current.set(name)
        scope.setdefault("state", {})[KEY_STATE] = name
        try:
            await self._app(scope, receive, send)
        finally:
            _current.reset(token)


def _presented(scope: Scope) -> list[str]:
    """The keys of ``Authorization: Bearer KEY`` and ``X-API-Key: KEY``."""
    bearer = [value.split(None, 1) for value in header_values(scope, b"authorization")]
    keys = [parts[1].strip() for parts in bearer if len(parts) == 2 and parts[0].lower() == "bearer"]
    return [key for key in (*keys, *(value.strip() for value in header_values(scope, b"x-api-key"))) if key]


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _missing() -> ApiError:
    message = "this server asks for a key: Authorization: Bearer KEY"
    return ApiError(401, "missing_api_key", message, headers=_CHALLENGE)


def _invalid() -> ApiError:
    return ApiError(401, "invalid_api_key", "the key is not one of this server's", headers=_CHALLENGE)
