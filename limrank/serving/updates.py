"""What a client reads in a streamed answer: the ranking so far, from events that say what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from limrank.engines.openai_answers import count_of
from limrank.errors import UserError
from limrank.parsing import parse_json
from limrank.serving.answers import MalformedError, RerankResponse
from limrank.serving.calls import Answer, Call, rerank_call
from limrank.serving.event_parser import Event, EventParser

EVENT_STREAM = "text/event-stream"

_SCORE = "relevance_score"
"""The one field whose null says something."""


class RerankOptions(TypedDict, total=False):
    """The keyword arguments of :meth:`limrank.Client.rerank`."""

    top_n: int | None
    instruction: str
    mode: str | None
    max_think_tokens: int | None
    return_reasoning: bool
    return_documents: bool
    min_score: float | None
    max_tokens_per_doc: int | None
    deadline_ms: int | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class RerankUpdate:
    """The ranking so far.

    Attributes:
        response: the whole ranking, best first; its ``usage`` is that of the last event that had one.
        changed: indices of the documents whose results are new, or differ from the update before.
        chains_finished, chains_wanted: documents whose chains have ended, and all that get one as far as is known.
        final: whether it is the last one, which is the answer of :meth:`limrank.Client.rerank`.
    """

    response: RerankResponse
    changed: tuple[int, ...]
    chains_finished: int = 0
    chains_wanted: int = 0
    final: bool = False


class StreamError(Exception):
    """An ``error`` event. ``answer`` is what the request would have been answered with before the stream began."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("the stream ended with an error")
        self.answer = answer


def stream_call(query: str, documents: Any, options: RerankOptions) -> Call[RerankResponse]:
    """See :meth:`limrank.Client.rerank_stream`. Raises UserError as :func:`~limrank.serving.calls.rerank_call` does."""
    unknown = options.keys() - RerankOptions.__annotations__.keys()
    if unknown:
        raise UserError(f"rerank_stream has no argument {min(unknown)}")
    call = rerank_call(query, documents, **options)
    object.__setattr__(call, "body", (call.body or {}) | {"stream": True})
    call.headers["Accept"] = f"{EVENT_STREAM}, application/json"
    return call


class UpdateReader:
    """The updates in the bytes of one answer.

    Args:
        call: reads a whole answer.
        headers: of the answer.
    """

    def __init__(self, call: Call[RerankResponse], headers: Mapping[str, str]) -> None:
        self._call = call
        self._headers = headers
        self._parser = EventParser()
        self._known: dict[int, dict[str, Any]] = {}
        self._whole: dict[str, Any] = {}
        self._finished = self._wanted = 0
        self.ended = False

    def feed(self, chunk: bytes) -> Iterator[RerankUpdate]:
        """The updates that a chunk completes. What follows the last one is left.

        Raises:
            StreamError: the server says that it failed.
            MalformedError, UserError, ValueError: this is no stream of ours.
        """
        for event in self._parser.feed(chunk):
            if self.ended:
                return
            update = self._update(event)
            if update is not None:
                yield update

    def _update(self, event: Event) -> RerankUpdate | None:
        if event.name not in ("scores", "ranking", "done", "error"):
            return None  # of a newer server
        body = parse_json(event.data.encode(), f"the event {event.name}", expect=dict)
        if event.name == "error":
            status = body.get("status")
            status = status if type(status) is int and 400 <= status < 600 else 500
            raise StreamError(Answer(status, self._headers, event.data.encode()))
        results = body.get("results")
        if not isinstance(results, list):
            raise MalformedError(f"the event {event.name} has no list of results")
        merged: dict[int, dict[str, Any]] = {}
        for result in results:
            index = result.get("index") if isinstance(result, dict) else None
            if type(index) is not int:
                raise MalformedError(f"the event {event.name} has a result without an index")
            if index in merged:
                raise MalformedError("two results for one document")
            before = self._known.get(index, {}) if event.name == "scores" else {}
            merged[index] = {
                name: value for name, value in (before | result).items() if value is not None or name == _SCORE
            }
        changed = tuple(index for index, result in merged.items() if self._known.get(index) != result)
        self._known |= merged
        if event.name == "scores":
            order = body.get("order")
            if not isinstance(order, list) or not all(type(each) is int and each in self._known for each in order):
                raise MalformedError("the event scores has no order of its results")
        else:
            order, self._whole = list(merged), body
        chains = body.get("chains")
        if isinstance(chains, dict):
            self._finished, self._wanted = count_of(chains.get("finished")), count_of(chains.get("wanted"))
        self.ended = event.name == "done"
        answer = self._whole | {"results": [self._known[index] for index in order]}
        response = self._call.read(_Parsed(200, self._headers, b"", answer))
        return RerankUpdate(response, changed, self._finished, self._wanted, self.ended)


@dataclass(frozen=True)
class _Parsed(Answer):
    """An answer whose JSON is there already."""

    body: Any = None

    def json(self) -> Any:
        return self.body
