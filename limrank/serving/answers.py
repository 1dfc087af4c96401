"""What a client reads in a server's answers: typed results, from JSON that may come from another version.

A field that is unknown is ignored, and one that a result does not need (a token count, an id) never is a fault.
A result without its index, score or status is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limrank.engines.openai_answers import count_of, tokens_of
from limrank.records import Document, ScoreStatus

GivenDocument = str | Document | Mapping[str, Any]
"""A document to judge: a text, a ``Document``, or a mapping with a ``text`` and perhaps a ``title`` and an ``id``."""

_SCORED = (ScoreStatus.DIRECT, ScoreStatus.COMPLETE, ScoreStatus.FORCED)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of a whole request. ``cached_tokens`` are the prompt tokens that the prefix cache answered."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document at its rank.

    ``index`` is its 0-based position in the given documents, and ``doc_id`` the id that it was given with, else None.
    ``document`` is the given one; with ``return_documents`` it is the server's copy, as a ``Document``.
    ``relevance_score`` is in [0, 1], or None where ``status`` is failed or skipped and ``error`` says why. ``status`` is
    one of :class:`~limrank.records.ScoreStatus`, or another text from a newer server. ``raw_score`` is the score before
    calibration; None if the server does not calibrate. The token counts are those of the pair.
    """

    index: int
    document: GivenDocument
    relevance_score: float | None
    status: ScoreStatus | str
    truncated: bool = False
    reasoning: str | None = None
    error: str | None = None
    doc_id: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    raw_score: float | None = None


@dataclass(frozen=True, slots=True)
class RerankResponse:
    """The ranked documents, best first, and what they cost.

    ``request_id`` is the id by which the server's log knows the request; None where it gives none.
    """

    id: str
    model: str
    results: list[ScoredDocument]
    usage: TokenUsage
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model's card.

    ``scoring`` has what its scores depend on, such as the ``mode``. ``modes`` are those that a request may ask for,
    the default first, each with its longest chain in tokens; empty if the server does not say. ``root`` is the
    model's own name where ``id`` is another one for it.
    """

    id: str
    scoring: Mapping[str, Any]
    created: int = 0
    modes: Mapping[str, int] = field(default_factory=dict)
    root: str | None = None


class MalformedError(ValueError):
    """An answer lacks what it must have; the message says what."""


def read_rerank(body: Any, documents: Sequence[GivenDocument], request_id: str | None = None) -> RerankResponse:
    """A rerank answer.

    Args:
        documents: those of the request, in its order.

    Raises:
        MalformedError: there are no results, one is for no document of the request or comes twice, or one has no
            score of ours.
    """
    results = [_scored(result, place, documents) for place, result in enumerate(_list(body, "results"))]
    if len({result.index for result in results}) != len(results):
        raise MalformedError("two results for one document")
    tokens = tokens_of(body)
    usage = TokenUsage(tokens.prompt, tokens.generated, tokens.prompt + tokens.generated, tokens.cached)
    return RerankResponse(_text(body.get("id")) or "", _text(body.get("model")) or "", results, usage, request_id)


def read_scores(body: Any, count: int) -> list[float | None]:
    """The scores of a score answer, in the order of the documents; None where a pair failed.

    Raises:
        MalformedError: it does not have one score for each of ``count`` documents.
    """
    scores: dict[int, float | None] = {}
    for place, entry in enumerate(_list(body, "data")):
        where = f"data[{place}]"
        scores[_index(entry, where, count)] = _probability(_needed(entry, "score", where), f"{where}.score")
    if len(scores) != count or len(body["data"]) != count:
        raise MalformedError(f"{len(body['data'])} scores for {count} documents")
    return [scores[index] for index in range(count)]


def read_models(body: Any) -> list[ServedModel]:
    """The models of a list. Raises MalformedError: one has no id."""
    found = []
    for place, card in enumerate(_list(body, "data")):
        name = _needed(card, "id", f"data[{place}]")
        if not isinstance(name, str) or not name:
            raise MalformedError(f"data[{place}].id is no name")
        scoring, modes = _mapping(card, "scoring"), _mapping(card, "modes")
        longest = {mode: count_of(tokens) for mode, tokens in modes.items()}
        found.append(ServedModel(name, scoring, count_of(card.get("created")), longest, _text(card.get("root"))))
    return found


def given_id(document: GivenDocument) -> str | None:
    """The id that a document was given with."""
    found = document.get("id") if isinstance(document, Mapping) else getattr(document, "doc_id", None)
    return _text(found) or None


def _scored(result: Any, place: int, documents: Sequence[GivenDocument]) -> ScoredDocument:
    where = f"results[{place}]"
    index = _index(result, where, len(documents))
    status = _text(_needed(result, "status", where))
    score = _probability(_needed(result, "relevance_score", where), f"{where}.relevance_score")
    if not status:
        raise MalformedError(f"{where}.status is no text")
    if score is None and status in _SCORED:
        raise MalformedError(f"{where} is {status} and has no score")
    raw = _probability(result.get("raw_score"), f"{where}.raw_score")
    if raw is not None and score is None:
        raise MalformedError(f"{where} has a raw score and no score")
    given = documents[index]
    return ScoredDocument(
        index=index,
        document=_returned(result.get("document"), given),
        relevance_score=score,
        status=ScoreStatus(status) if status in list(ScoreStatus) else status,
        truncated=bool(result.get("truncated")),
        reasoning=_optional_text(result, "reasoning", where),
        error=_optional_text(result, "error", where),
        doc_id=given_id(given),
        prompt_tokens=count_of(result.get("prompt_tokens")),
        generated_tokens=count_of(result.get("generated_tokens")),
        raw_score=raw,
    )


def _returned(document: Any, given: GivenDocument) -> GivenDocument:
    """The server's copy of a document, where the answer has one."""
    if isinstance(document, str):
        document = {"text": document}
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        return given
    return Document(given_id(given) or given_id(document) or "", document["text"], _text(document.get("title")) or "")


def _mapping(entry: dict[str, Any], name: str) -> dict[str, Any]:
    found = entry.get(name)
    return found if isinstance(found, dict) else {}


def _list(body: Any, name: str) -> list[Any]:
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise MalformedError(f"there is no list of {name}")
    return found


def _needed(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise MalformedError(f"{where} has no {name}")
    return entry[name]


def _index(entry: Any, where: str, count: int) -> int:
    index = _needed(entry, "index", where)
    if type(index) is not int or not 0 <= index < count:
        raise MalformedError(f"{where} is for none of the {count} documents")
    return index


def _probability(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise MalformedError(f"{where} is no number from 0 to 1")
    return float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _optional_text(entry: dict[str, Any], name: str, where: str) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise MalformedError(f"{where}.{name} is no text")
    return value
