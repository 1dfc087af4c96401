"""The requests of a client: which call has which body, checked before it is sent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Generic, TypeVar

from limrank.errors import UserError
from limrank.parsing import brief, is_unicode, parse_json
from limrank.records import Document
from limrank.serving import request_ids
from limrank.serving.answers import (
    GivenDocument,
    RerankResponse,
    ServedModel,
    read_models,
    read_rerank,
    read_scores,
)

REQUEST_ID = "X-Request-Id"

Value = TypeVar("Value")

_LONGEST_ID = 200
"""Characters of an id that an answer gives."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """Raises UserError: the content is not JSON."""
        return parse_json(self.content, "the answer")

    @property
    def request_id(self) -> str | None:
        """The id by which the server knows the request."""
        given = self.headers.get(REQUEST_ID) or ""
        return given if 0 < len(given) <= _LONGEST_ID and given.isascii() and given.isprintable() else None


@dataclass(frozen=True)
class Call(Generic[Value]):
    """One call of the server's API, which may take several requests until it is answered.

    Args:
        read: what an answer says. It raises MalformedError or UserError where it is no answer of ours.
        body: the JSON body; None: the call has none.
        deadline_ms: the milliseconds after which the caller takes what there is; None: no deadline.
        any_status: whether ``read`` takes answers with an error's status too.
    """

    method: str
    path: str
    read: Callable[[Answer], Value]
    body: dict[str, Any] | None = None
    request_id: str | None = None
    deadline_ms: int | None = None
    any_status: bool = False
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        given = {} if self.body is None else {"Content-Type": "application/json"}
        object.__setattr__(self, "headers", given | ({REQUEST_ID: self.request_id} if self.request_id else {}))

    def content(self, elapsed_s: float) -> bytes | None:
        """The body of a request, so many seconds after the call began: the server is told of the rest of the deadline."""
        if self.body is None:
            return None
        body = self.body
        if self.deadline_ms is not None:
            body = body | {"deadline_ms": max(1, round(self.deadline_ms - elapsed_s * 1000))}
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def rerank_call(
    query: str,
    documents: Sequence[GivenDocument],
    *,
    model: str | None = None,
    top_n: int | None = None,
    instruction: str = "",
    mode: str | None = None,
    max_think_tokens: int | None = None,
    return_reasoning: bool = False,
    return_documents: bool = False,
    min_score: float | None = None,
    max_tokens_per_doc: int | None = None,
    deadline_ms: int | None = None,
    request_id: str | None = None,
) -> Call[RerankResponse]:
    """See :meth:`limrank.Client.rerank`.

    Raises:
        UserError: an argument is of another type, out of range, or not Unicode text.
    """
    given = _documents(documents)
    fields = {
        "model": _optional(_text, "model", model),
        "top_n": _optional(_count, "top_n", top_n),
        "instruction": _text("instruction", instruction) or None,
        "mode": _optional(_text, "mode", mode),
        "max_think_tokens": _optional(_count, "max_think_tokens", max_think_tokens),
        "return_reasoning": _flag("return_reasoning", return_reasoning) or None,
        "min_score": _optional(_share, "min_score", min_score),
        "max_tokens_per_doc": _optional(_count, "max_tokens_per_doc", max_tokens_per_doc),
    }
    body = {
        "query": _text("query", query),
        "documents": [_sent(document, place) for place, document in enumerate(given)],
        # The defaults of the API's two versions differ.
        "return_documents": _flag("return_documents", return_documents),
        # A server of another version may not know a field that was not asked for.
        **{name: value for name, value in fields.items() if value is not None},
    }
    return Call(
        "POST",
        "/v1/rerank",
        lambda answer: read_rerank(answer.json(), given, answer.request_id),
        body,
        request_id=_optional(_header, "request_id", request_id),
        deadline_ms=_optional(_count, "deadline_ms", deadline_ms),
    )


def score_call(query: str, documents: Sequence[GivenDocument], *, instruction: str = "") -> Call[list[float | None]]:
    """See :meth:`limrank.Client.score`. Raises UserError as :func:`rerank_call` does."""
    texts = [_contents(document, place) for place, document in enumerate(_documents(documents))]
    body = {"text_1": _text("query", query), "text_2": texts}
    if _text("instruction", instruction):
        body["instruction"] = instruction
    return Call("POST", "/v1/score", lambda answer: read_scores(answer.json(), len(texts)), body)


def models_call() -> Call[list[ServedModel]]:
    return Call("GET", "/v1/models", lambda answer: read_models(answer.json()))


def ready_call(path: str = "/readyz") -> Call[bool | None]:
    """Whether the server can score now; None where it does not know the path."""
    return Call("GET", path, lambda answer: None if answer.status == 404 else answer.status == 200, any_status=True)


# ---- checks --------------------------------------------------------------------------


def _documents(documents: Any) -> list[GivenDocument]:
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Sequence):
        raise UserError(f"documents: should be a list of texts, Documents or mappings (got {brief(documents)})")
    if not documents:
        raise UserError("documents: should not be empty")
    return list(documents)


def _sent(document: Any, place: int) -> str | dict[str, Any]:
    """A document as JSON. A ``Document``'s id stays here: the result's index finds it."""
    where = f"documents[{place}]"
    if isinstance(document, str):
        return _text(where, document)
    if isinstance(document, Document):
        text = _text(f"{where}.text", document.text)
        return {"text": text, "title": _text(f"{where}.title", document.title)} if document.title else text
    if not isinstance(document, Mapping):
        raise UserError(f"{where}: should be a text, a Document or a mapping (got {brief(document)})")
    try:
        json.dumps(plain := dict(document), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be sent as JSON: {brief(str(error))}") from None
    return plain


def _contents(document: Any, place: int) -> str:
    """The text of a document as a reranker reads it: title and text."""
    sent = _sent(document, place)
    if isinstance(sent, str):
        return sent
    text = _text(f"documents[{place}].text", sent.get("text"))
    return Document("", text, _text(f"documents[{place}].title", sent.get("title") or "")).contents


def _optional(check: Callable[[str, Any], Value], name: str, value: Any) -> Value | None:
    return None if value is None else check(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name}: should be a text (got {brief(value)})")
    if not is_unicode(value):
        raise UserError(f"{name}: is not valid Unicode text: it has half a surrogate pair")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name}: should be True or False (got {brief(value)})")
    return value


def _count(name: str, value: Any) -> int:
    # numpy's numbers too.
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) < 1 << 53:
        raise UserError(f"{name}: should be a whole number from 1 (got {brief(value)})")
    return int(value)


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= (share := _float(value)) <= 1:
        raise UserError(f"{name}: should be a number from 0 to 1 (got {brief(value)})")
    return share


def _float(value: Real) -> float:
    """A number as a float; infinite where no float holds it."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _header(name: str, value: Any) -> str:
    longest = request_ids.LONGEST  # the server replaces a longer one
    if not isinstance(value, str) or not re.fullmatch(rf"[!-~]{{1,{longest}}}", value):
        raise UserError(f"{name}: should be 1 to {longest} visible ASCII characters (got {brief(value)})")
    return value
