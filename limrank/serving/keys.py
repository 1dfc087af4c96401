"""API keys: read from the environment or a file, kept as hashes, compared in constant time.

A key is a random text that :func:`new_key` makes, so a plain SHA-256 is enough at rest: there is nothing to guess.
No message repeats a key, nor a line that may hold one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path

from limrank.errors import UserError
from limrank.serving.errors import ApiError
from limrank.serving.refusal import App, Receive, Scope, Send, header_values, refuse

VARIABLE = "LIMRANK_API_KEYS"

KEY_STATE = "api_key"
"""The entry of a request's ``scope["state"]`` with the name of its key, for what runs outside of :class:`KeyCheck`."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/-/healthz", "/", "/page.css", "/page.js"})
"""Paths without a key: the probes of the server and of Ray Serve's proxy, and the page, which asks for a key itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]{16,512}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LARGEST_FILE = 1 << 20
_MOST_KEYS = 500
"""Their hashes are in an environment variable of the proxy, which holds 128 KiB."""

_LOOK_AGAIN_S = 1.0

_current: ContextVar[str | None] = ContextVar("limrank_api_key", default=None)


def current_key() -> str | None:
    """The name of the key of the request that runs here; None where the server asks for none."""
    return _current.get()


def new_key() -> str:
    """A random key: 256 bits."""
    return f"lr-{secrets.token_urlsafe(32)}"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def file_line(name: str, key: str) -> str:
    """The line of a keys file.

    Raises:
        UserError: a key cannot have this name.
    """
    if not _NAME.fullmatch(name):
        raise UserError("a key's name has 1 to 64 letters, digits, dots, hyphens or underscores")
    return f"{name}: sha256:{hashed(key)}"


def keys_of_environment(value: str | None) -> dict[str, str]:
    """Name → hash of the keys in ``LIMRANK_API_KEYS``: ``name=key``, separated by commas or line ends.

    Raises:
        UserError: the variable is set and holds no key, or an entry is none.
    """
    if value is None:
        return {}
    entries = [entry.strip() for entry in re.split(r"[,\n]", value) if entry.strip()]
    numbered = ((f"{VARIABLE}: entry {number}", entry.partition("=")) for number, entry in enumerate(entries, 1))
    return _checked(VARIABLE, ((where, name, key, sign) for where, (name, sign, key) in numbered), "NAME=KEY")


def keys_of_file(path: str) -> dict[str, str]:
    """Name → hash of the keys in a file. Each line is ``name: sha256:HEX`` or ``name: KEY``; lines that start with
    ``#`` are comments.

    Raises:
        UserError: the file cannot be read, a line is no key, or other users may read plain keys or write the file.
    """
    where = f"serving.keys_file {path}"
    try:
        # Opening a pipe would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise UserError(f"{where}: is no file")
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{where}: is larger than {_LARGEST_FILE} bytes")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text") from None
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{where}: other users may write it, and so add keys: chmod go-w it")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    parts = [(f"{where}: line {number}", line.partition(":")) for number, line in numbered if line and line[0] != "#"]
    keys = _checked(where, ((at, name, key, sign) for at, (name, sign, key) in parts), "NAME: KEY")
    readable = state.st_mode & (stat.S_IRGRP | stat.S_IROTH)
    if readable and not all(_HASH.fullmatch(key.strip()) for _, (_, _, key) in parts):
        raise UserError(
            f"{where}: other users may read its keys: chmod 600 it, or write hashes, as `limrank keys new` prints them"
        )
    return keys


def _checked(source: str, entries: Iterable[tuple[str, str, str, str]], form: str) -> dict[str, str]:
    """Name → hash of entries (place, name, key or hash, separator)."""
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for where, name, key, sign in entries:
        name, key = name.strip(), key.strip()
        if not sign or not _NAME.fullmatch(name):
            raise UserError(f"{where}: should be {form}; a name has letters, digits, dots, hyphens or underscores")
        if digest := _HASH.fullmatch(key):
            value = digest[1].lower()
        elif key.startswith("sha256:") or not _KEY.fullmatch(key):
            raise UserError(f"{where}: a key has 16 to 512 visible ASCII characters, or is sha256: and 64 hex digits")
        else:
            value = hashed(key)
        if name in found:
            raise UserError(f"{where}: has the name of an earlier key")
        if value in places:
            raise UserError(f"{where}: is the same key as in {places[value]}")
        found[name], places[value] = value, where
    if not found:
        raise UserError(f"{source}: holds no key")
    if len(found) > _MOST_KEYS:
        raise UserError(f"{source}: holds {len(found)} keys; at most {_MOST_KEYS} are taken")
    return found


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
        if self._ring.names and scope["path"] not in OPEN_PATHS:
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
