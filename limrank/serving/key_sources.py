"""Where API keys come from: the environment, or a file. They are kept as hashes.

A key is a random text that :func:`new_key` makes, so a plain SHA-256 is enough at rest: there is nothing to guess.
No message repeats a key, nor a line that may hold one.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable

from limrank.errors import UserError

VARIABLE = "LIMRANK_API_KEYS"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]{16,512}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LARGEST_FILE = 1 << 20
_MOST_KEYS = 500
"""Their hashes are in an environment variable of the proxy, which holds 128 KiB."""


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
