"""The answers of endpoints as our own types, field by field.

Servers that call themselves OpenAI-compatible leave fields out, send null, or send another type.
A missing field that a result needs is a :class:`FaultError` with the provider's own words. Fields
that a result does not need (token counts, ids) never are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from limrank.parsing import clipped
from limrank.uris import redacted

_WORDS = 300
"""Characters of a provider's message that one of ours quotes."""

_MOST_TOKENS = 1 << 40
"""A larger number is not a token count."""

_ROUNDING = 1e-3
"""A log-probability may be this much above 0 by rounding."""

_BUSY = ("rate_limit", "rate limit", "ratelimit", "too_many_requests", "overloaded", "resource_exhausted")
_SERVER = ("server_error", "internal", "unavailable", "timeout", "timed out", "bad_gateway", "api_error")
_REFUSED = {
    401: ("authentication", "unauthorized", "unauthenticated", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_credits", "billing", "payment_required"),
    403: ("permission", "forbidden"),
    404: ("model_not_found", "not_found"),
}


class FaultError(Exception):
    """An error in place of an answer.

    Attributes:
        words: the provider's message.
        status: an HTTP status: the answer's own, or the one that its body stands for.
        param: the parameter that the provider names.
        code: the provider's code, in lower case.
        headers: the headers that the body quotes, if it does (OpenRouter).
    """

    def __init__(
        self,
        words: str,
        status: int,
        *,
        param: str | None = None,
        code: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(words)
        self.words = words
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}


UNKNOWN = ""
"""The ``stopped_by`` of an endpoint that does not say what ended its answer. No stop string is empty."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of an answer.

    ``stopped_by`` is the stop string or the id of the token that ended it, None for the model's own
    end, and :data:`UNKNOWN` where the endpoint does not say.
    """

    text: str
    finish_reason: str
    reasoning: str | None
    stopped_by: str | int | None = UNKNOWN


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts; 0 where an endpoint gives none."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0


# ---- errors --------------------------------------------------------------------------


def quoted(text: str, limit: int = _WORDS) -> str:
    """A provider's text on one line, clipped, without credentials."""
    return clipped(" ".join(redacted(text[: limit * 20]).split()), limit)


def fault_of(body: Any, status: int) -> FaultError:
    """The error in a body that came with an error's status, or in place of an answer."""
    if isinstance(body, list) and body and isinstance(body[0], dict) and "error" in body[0]:  # Google's
        body = body[0]
    source = body
    if isinstance(body, dict):
        error = body.get("error")
        source = error if error else next((body[key] for key in ("detail", "message", "errors") if body.get(key)), body)
    fields = {**body, **source} if isinstance(body, dict) and isinstance(source, dict) else body
    fields = fields if isinstance(fields, dict) else {}
    param, code = fields.get("param"), fields.get("code")
    kinds = " ".join(str(fields[key]) for key in ("code", "type", "status") if isinstance(fields.get(key), str)).lower()
    metadata = fields.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    return FaultError(
        quoted(_words(source)) or f"status {status}, without a word",
        _status(fields, kinds, status),
        param=param if isinstance(param, str) else None,
        code=code.lower() if isinstance(code, str) else kinds,
        headers={str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else None,
    )


def _words(source: Any) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, list):
        return "; ".join(_words(each) for each in source[:5])
    if not isinstance(source, dict):
        return "" if source is None else str(source)[:_WORDS]
    location = source.get("loc")
    prefix = f"{'.'.join(map(str, location))}: " if isinstance(location, list) else ""
    for key in ("message", "msg", "detail", "error", "reason", "code", "type"):
        if source.get(key):
            words = prefix + _words(source[key])
            raw = source["metadata"].get("raw") if isinstance(source.get("metadata"), dict) else None
            return f"{words}: {raw}" if isinstance(raw, str) and raw else words
    return str(source)[: _WORDS * 2] if source else ""


def _status(fields: dict[str, Any], kinds: str, status: int) -> int:
    """The HTTP status if it is an error's, else the status that the body names, else 500."""
    if status >= 400:
        return status
    for key in ("code", "status", "status_code", "error_code"):
        value = fields.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 400 <= value < 600:
            return int(value)
    for refused, names in _REFUSED.items():
        if any(name in kinds for name in names):
            return refused
    if any(name in kinds for name in _BUSY):
        return 429
    if any(name in kinds for name in _SERVER):
        return 500
    return 400 if any(name in kinds for name in ("invalid", "badrequest", "bad_request", "context_length")) else 500


def check_answer(body: Any) -> dict[str, Any]:
    """The body of an answer with status 200.

    Raises:
        FaultError: the body is an error.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        raise FaultError(f"an answer that is no JSON object: {quoted(str(body)[:_WORDS], 80)!r}", 500)
    if body.get("error") or body.get("object") == "error":
        raise fault_of(body, 200)
    if "choices" not in body and any(body.get(key) for key in ("detail", "message", "errors")):
        raise fault_of(body, 200)
    return body


# ---- text ----------------------------------------------------------------------------


def first_choice(body: dict[str, Any]) -> dict[str, Any]:
    """Raises FaultError where an answer has no choice, or the choice is an error."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise FaultError("an answer without choices", 500)
    if choice.get("error"):
        raise fault_of({"error": choice["error"]}, 200)
    return choice


def answer_of(body: dict[str, Any], *, chat: bool) -> Answer:
    """The text of an answer.

    Raises:
        FaultError: there is none, the model refused, or the endpoint filtered it.
    """
    choice = first_choice(body)
    reason = choice.get("finish_reason")
    if reason == "error":
        raise FaultError("the endpoint ended the answer with an error", 500)
    if reason == "content_filter":
        raise FaultError("the endpoint's content filter truncated the answer", 400)
    if not chat:
        return Answer(_text(choice.get("text"), "text"), _finish(reason), None, _stopped_by(choice))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise FaultError("an answer without a message", 500)
    content, reasoning = message.get("content"), _reasoning(message)
    refusal = message.get("refusal") or _parts(content, "refusal")
    if refusal and not _parts(content, "text"):
        raise FaultError(f"the model refused: {quoted(str(refusal))}", 400)
    if content is None and reasoning:
        content = ""
    return Answer(_text(content, "content"), _finish(reason), reasoning, _stopped_by(choice))


def piece_of(event: dict[str, Any], *, chat: bool) -> str:
    """The text that an event of a stream adds; may be empty.

    Raises:
        FaultError: the event is an error.
    """
    check_answer(event)
    if not event.get("choices"):
        return ""
    choice = first_choice(event)
    if choice.get("finish_reason") in ("error", "content_filter"):
        raise FaultError(f"the endpoint ended the answer with {choice['finish_reason']}", 500)
    holder = (choice.get("delta") or choice.get("message")) if chat else choice
    return _parts(holder.get("content" if chat else "text"), "text") if isinstance(holder, dict) else ""


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str | list):
        raise FaultError(f"an answer whose {name} is {'null' if value is None else type(value).__name__}", 500)
    return _parts(value, "text")


def _parts(value: Any, kind: str) -> str:
    """The text of a content. Of a list of content parts, the text of those of one kind."""
    if isinstance(value, str):
        return value if kind == "text" else ""
    if not isinstance(value, list):
        return ""
    found = []
    for part in value:
        if isinstance(part, dict):
            if str(part.get("type", "text")).removeprefix("output_") == kind:
                text = part.get(kind, part.get("text"))
                found.append(text if isinstance(text, str) else _parts(text, "text"))
        elif isinstance(part, str) and kind == "text":
            found.append(part)
    return "".join(found)


def _reasoning(message: dict[str, Any]) -> str | None:
    """A chain that is separate from the content: DeepSeek's ``reasoning_content``, which vLLM has
    renamed to ``reasoning``, or Mistral's content parts of type ``thinking``."""
    for key in ("reasoning_content", "reasoning"):
        if isinstance(message.get(key), str) and message[key]:
            return message[key]
    return _parts(message.get("content"), "thinking") or None


def _stopped_by(choice: dict[str, Any]) -> str | int | None:
    """The stop string or the id of the token that ended an answer.

    vLLM sends it as ``stop_reason``, with null for the model's own end. SGLang sends it as
    ``matched_stop``, with the id of the model's own end token.
    """
    for name in ("stop_reason", "matched_stop"):
        value = choice.get(name, UNKNOWN)
        if value is None or (isinstance(value, str | int) and not isinstance(value, bool) and value != UNKNOWN):
            return value
    return UNKNOWN


def _finish(reason: Any) -> str:
    """A provider's finish reason by our names, ``stop`` and ``length``; another one stays as it is."""
    if not isinstance(reason, str) or reason.lower() in ("", "eos", "eos_token", "end_turn", "stop_sequence"):
        return "stop"
    return "length" if reason.lower() in ("length", "max_tokens") else reason.lower()


def tokens_of(body: dict[str, Any]) -> Tokens:
    """The counts of an answer's ``usage``."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Tokens()
    details = usage.get("prompt_tokens_details")
    cached = count_of(details.get("cached_tokens")) if isinstance(details, dict) else 0
    prompt = count_of(usage.get("prompt_tokens"))
    return Tokens(prompt, min(cached, prompt), count_of(usage.get("completion_tokens")))


def count_of(value: Any) -> int:
    """A token count; 0 for a value that is not one."""
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= _MOST_TOKENS else 0


def _number(value: Any) -> float | None:
    """A finite number, also one that is sent as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not re.fullmatch(
        r"\s*[+-]?\d{1,20}(\.\d{0,30})?([eE][+-]?\d{1,3})?\s*", value, re.ASCII
    ):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


# ---- log-probabilities ---------------------------------------------------------------


def top_logprobs(body: dict[str, Any]) -> dict[str, float]:
    """Log-probabilities of the first generated token, by token.

    Both shapes are read: that of chats (``content[0].top_logprobs``, a list of entries) and that
    of completions (``top_logprobs[0]``, a mapping). A value that is not a log-probability (null,
    NaN, above zero) is left out. Of several entries with one name the likeliest counts.
    """
    given = first_choice(body).get("logprobs")
    if not isinstance(given, dict):
        return {}
    content = given.get("content")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        first = content[0].get("top_logprobs")
    else:
        tops = given.get("top_logprobs")
        first = tops[0] if isinstance(tops, list) and tops else tops
    found: dict[str, float] = {}
    for name, value in _named(first):
        number = _number(value)
        if number is not None and number <= _ROUNDING:
            found[name] = max(found.get(name, -math.inf), min(number, 0.0))
    return found


def _named(first: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(first, dict):
        yield from first.items()
    for entry in first if isinstance(first, list) else ():
        if not isinstance(entry, dict):
            continue
        for name in (entry.get("token"), _decoded(entry.get("bytes"))):
            if isinstance(name, str):
                yield name, entry.get("logprob")


def _decoded(values: Any) -> str | None:
    """A token's bytes as text, for servers whose ``token`` is in the vocabulary's spelling (``Ġtrue``)."""
    try:
        return bytes(values).decode() if isinstance(values, list) and values else None
    except (ValueError, TypeError):
        return None


# ---- models --------------------------------------------------------------------------


def model_ids(body: Any) -> list[str]:
    """The names in a list of models: OpenAI's (``data``), Ollama's (``models``), or a bare list. Entries
    of another shape are left out."""
    entries = body
    if isinstance(body, dict):
        entries = next((body[key] for key in ("data", "models") if body.get(key)), [])
    if isinstance(entries, dict):
        entries = [entries] if any(key in entries for key in ("id", "name", "model")) else list(entries)
    found = []
    for entry in entries if isinstance(entries, list) else ():
        names = [entry.get(key) for key in ("id", "model", "name")] if isinstance(entry, dict) else [entry]
        found += [name for name in names if isinstance(name, str) and name]
    return list(dict.fromkeys(found))
