"""Credentials in URLs and texts: refused in recipes, removed from messages and files.

A recipe's URL is stored in ``config.yaml`` and displayed in reports and messages, so one that holds a password, a
key or a token is refused. Texts of other programs (an endpoint, a store) are displayed without credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_HIDDEN = "***"

_SECRET_ENDS = (
    *("token", "tokens", "key", "keys", "secret", "password", "passwd", "passphrase", "pwd", "signature", "sig"),
    *("credential", "credentials", "auth", "authorization", "bearer", "sas", "jwt", "cookie"),
)
_SECRET_INFIXES = ("secret", "password", "passwd", "apikey", "accesskey", "credential", "authorization", "signature")
_SECRET_STARTS = ("xamz", "xgoog")
_SECRET_NAMES = {"code", "pass", "pw", "user", "username", "userinfo"}
_NOT_TOKENS = re.compile(r"(max|min|num|n|think|prompt|completion|generated|total|query|chain|passage|judge)tokens")

_FORMS = (
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"hf_[A-Za-z0-9]{20,}",
    r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}",
    r"xox[abprs]-[A-Za-z0-9-]{10,}",
    r"AIza[A-Za-z0-9_-]{30,}",
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
)
_KEY = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_FORMS)}|sk-(?:[a-z0-9]{{1,8}}-)*[A-Za-z0-9_]{{20,}})")
"""Text that is a key by its form, in any context."""

_LIKE_KEY = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}")

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):")
# Bounded, so that the time is linear in the length of the text.
_URL_IN_TEXT = re.compile(r"(?<![A-Za-z])[A-Za-z][A-Za-z0-9+.-]{0,15}:(?:/|\\/\\/|%3[Aa]%2[Ff]%2[Ff])[^\s\"'<>`]+")
_TRUNCATED_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+[^/?#\[\]:]+:(?!\d*(?:[/?#]|$))")
"""A URL that was truncated within the password: the text after the host is no port."""

_LOGIN_IN_TEXT = re.compile(r"(?<![\w.:/@-])[^\s\"'<>`/:@=(]{1,100}:[^\s\"'<>`/@]{1,200}@(?=[\w\[])")
_HEADER = re.compile(
    r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?)?\b(?P<kind>bearer|basic|aws4-hmac-sha256)(?P<gap>\s+|:\s*|%20|\+)"
    r"(?P<value>[A-Za-z0-9+/=._~-]{6,})"
)
_NAMED = re.compile(
    r"(?i)(?<![A-Za-z0-9])(?P<name>[\w.-]{0,40}?(?:api[_-]?key|key[_-]?id|access[_-]?key|secret(?:[_-]?key)?|token|password|passwd"
    r"|signature|credential|authorization|x-amz-[\w-]+))(?P<gap>\\*['\"]?\s*(?:=|:|%3[Dd])\s*\\*['\"]?)"
    r"(?P<value>[^\s\"'\\<>&,;{}()\[\]]{6,})"
)

_SECRET_VARIABLE = re.compile(r"(?i)(?:token|(?:^|_)key|apikey|secret|passw(?:or)?d|passphrase|access_key_id)$")
"""Narrower than :func:`is_secret_name`: $PWD is a folder, and $…_CREDENTIALS is often a file."""

_SHORTEST = 8
_known: dict[str, str] = {}


def is_uri(path: str) -> bool:
    """Whether a path names an object store (``s3://…``) instead of a local file."""
    return "://" in path


def split_query(url: str) -> tuple[str, list[tuple[str, str]]]:
    """A URL without its query and trailing slash, and the query's names and values."""
    split = urlsplit(url)
    base = split._replace(query="", fragment="", path=split.path.rstrip("/")).geturl()
    return base, parse_qsl(split.query, keep_blank_values=True)


# ---- refused in a value --------------------------------------------------------------


def credentials_in(value: str) -> str | None:
    """A description of the secret that a value holds, without the secret itself; None if it holds none.

    Secrets are

    - a user or password before the host, with or without a scheme,
    - a parameter of the query or the fragment with a secret name (``token``, ``api_key``, ``X-Amz-Signature``, …),
    - both of these percent-encoded, or in a URL that a parameter holds,
    - a key by its form (``AKIA…``),
    - the value of a secret variable of the environment.
    """
    text = value
    for _ in range(4):
        if found := _credentials(text):
            return found
        decoded = unquote(text)
        if decoded == text:
            break
        text = decoded
    if _KEY.search(value):
        return "what looks like a key"
    for name, secret in _secrets():
        if secret in value:
            return f"the value of ${name}"
    return None


def _credentials(text: str) -> str | None:
    if _has_login(text):
        return "a user or password before the host"
    marks = r"[?#&;]" if is_uri(text) else r"[?#]"
    for parameter in re.split(r"[&;]|" + marks, re.split(marks, text, maxsplit=1)[1]) if re.search(marks, text) else ():
        name, _, value = parameter.partition("=")
        if is_secret_name(name):
            return f"the parameter {unquote(name).strip()[:40]}"
        # Such as s3://…?endpoint_override=http://user:password@host
        if value and (inner := credentials_in(value)):
            return inner
    return None


def _has_login(text: str) -> bool:
    is_sentence = len(text.split()) > 1
    text = "".join(text.split()).replace("\\", "/")  # clients drop white space and convert backslashes
    scheme = _SCHEME.match(text)
    if not text.startswith("//") and (not scheme or (is_sentence and text[scheme.end() : scheme.end() + 1] != "/")):
        return False
    # With one slash, three or none, clients still find the host.
    rest = text[scheme.end() :] if scheme else text
    authority = re.split(r"[/?#]", rest.lstrip("/"), maxsplit=1)[0]
    if "@" in authority:
        return True
    # A password may hold a slash (AWS's do): the text before it is then not a host and port.
    port = authority.rpartition("]")[2].partition(":")[2]
    return bool(port) and not port.isdigit() and "@" in rest


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a parameter or a variable of this name holds a secret."""
    for _ in range(4):
        name = unquote(name)
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if _NOT_TOKENS.fullmatch(plain):
        return False
    return (
        plain in _SECRET_NAMES
        or plain.endswith(_SECRET_ENDS)
        or plain.startswith(_SECRET_STARTS)
        or any(infix in plain for infix in _SECRET_INFIXES)
    )


# ---- removed from texts --------------------------------------------------------------


def keep_secret(value: str | None, name: str = "API_KEY") -> None:
    """Register a secret for :func:`redacted` and :func:`without_secrets`: the value of a variable whose name does not
    mark it as secret."""
    if value and len(value) >= _SHORTEST:
        _known[value] = name


def without_secrets(text: str) -> str:
    """A text without the values of the environment's secret variables."""
    for _, secret in _secrets():
        for form in {secret, quote(secret, safe=""), quote(secret)}:
            text = text.replace(form, _HIDDEN)
    return text


def redacted(text: str) -> str:
    """A text of another program (an error, an answer) without possible credentials.

    These are credentials in URLs and in quoted headers, values after secret names, and secrets of the environment.
    """
    text = without_secrets(text)
    text = _HEADER.sub(lambda found: f"{found[1] or ''}{found['kind']}{found['gap']}{_HIDDEN}", text)
    text = _URL_IN_TEXT.sub(lambda found: _redacted_url(found[0]), text)
    text = _LOGIN_IN_TEXT.sub(f"{_HIDDEN}@", text)
    text = _NAMED.sub(_redacted_named, text)
    return _LIKE_KEY.sub(_HIDDEN, _KEY.sub(_HIDDEN, text))


def redacted_values(value: Any) -> Any:
    """A JSON value with every text :func:`redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(each) for each in value]
    return value


def _redacted_named(found: re.Match[str]) -> str:
    if found["value"].startswith(_HIDDEN) or found["value"].lower() in ("bearer", "basic"):
        return found[0]
    return f"{found['name']}{found['gap']}{_HIDDEN}"


def _redacted_url(url: str) -> str:
    """A URL without its login and without the values of secret parameters."""
    scheme, _, rest = url.partition(":")
    if "@" not in rest and _TRUNCATED_LOGIN.match(unquote(url.rstrip(":.,;)"))):
        return f"{scheme}://{_HIDDEN}"
    if _has_login(url) or _has_login(unquote(url)):
        if "@" not in rest:  # percent-encoded
            return f"{scheme}://{_HIDDEN}"
        # Up to the last @, since a password may hold one, or a slash.
        url = f"{scheme}://{_HIDDEN}@{rest.rpartition('@')[2]}"
    address, mark, query = _partition(url)
    if not mark:
        return url
    return address + mark + "".join(_parameters(query))


def _partition(url: str) -> tuple[str, str, str]:
    found = re.search(r"[?#]", url)
    return (url[: found.start()], found[0], url[found.end() :]) if found else (url, "", "")


def _parameters(query: str) -> Iterator[str]:
    for piece in re.split(r"([&;#?])", query):
        name, equals, value = piece.partition("=")
        secret = equals and (is_secret_name(name) or credentials_in(value))
        yield f"{name}={_HIDDEN}" if secret else piece


def _secrets() -> Iterator[tuple[str, str]]:
    """``(variable, secret)`` for the secrets that this process knows."""
    for secret, name in _known.items():
        yield name, secret
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name):
            yield name, value
