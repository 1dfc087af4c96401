"""What an engine is: text in, text or label log-probabilities out.

An engine lives on one asyncio loop. Many requests may be in flight; the engine batches
them itself. What a request cost is recorded in the :func:`meter` around the caller, so
that costs can be told by unit of work however the requests overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, Required, TypedDict, Unpack, runtime_checkable

from limrank.errors import UserError
from limrank.records import Judgment, Query

Prompt = str | list[dict[str, str]] | list[int]
"""Text, chat messages (``[{"role": …, "content": …}]``) or token ids.

Token ids let a person's text be encoded without special tokens taking effect.
"""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that limrank uses."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def get_added_vocab(self) -> dict[str, int]: ...


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments of ``generate`` and ``stream``; :class:`Sampling` has their defaults."""

    max_tokens: Required[int]
    temperature: float
    top_p: float
    stop: Sequence[str]
    seed: int | None
    schema: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a text is sampled, with a value for every option: ``Sampling(**options)``.

    Attributes:
        max_tokens: the most tokens that are generated.
        temperature: 0 is greedy.
        top_p: share of the probability mass that is sampled from.
        stop: strings that end the text.
        seed: makes a sampled text repeatable; None: any.
        schema: a JSON schema that the text follows; None: free text.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What was written. ``finish_reason`` is ``stop`` (the model or a stop string ended
    it) or ``length`` (it ran into ``max_tokens``); the stop string is not in ``text``.
    ``reasoning`` is the chain of an endpoint that gives it apart from its answer.
    ``stop`` is the stop string that ended it; None where the model's own end did, or its length.
    ``ids`` are the tokens that the model wrote, those of the stop string included: text that is
    encoded again need not become the same ones. Empty where the engine does not tell."""

    text: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    reasoning: str | None = None
    stop: str | None = None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """``context``: longest prompt plus output in tokens; ``in_flight``: requests that run at a time."""

    context: int
    in_flight: int


class ResourceRequest(Protocol):
    """What stands in a replica: an engine that is not open yet, or a worker of training."""

    @property
    def holds_model(self) -> bool:
        """Whether the model lives in the replica, which then takes its resources."""

    @property
    def memory_bytes(self) -> int:
        """Main memory that it needs there, as far as is known before; without a GPU."""


class RemoteSource:
    """What a source says (see ``EngineSource``) whose engine runs elsewhere: opening it makes
    a client, which takes next to nothing of the worker's."""

    holds_model = False
    memory_bytes = 0
    startup_timeout_s = 600.0


DEFAULT_IN_FLIGHT = 256
"""Requests at a time, where neither the recipe nor the engine says how many."""


class RequestLimiter:
    """The requests that an engine has: ``async with limiter`` around each one lets so many
    run at a time and the others wait.

    ``requests`` counts both; ``busy_seconds`` is the time in which at least one ran.
    """

    def __init__(self, in_flight: int) -> None:
        self.requests = 0
        self._slots = asyncio.Semaphore(in_flight)
        self._running = 0
        self._busy = 0.0
        self._since = 0.0

    @property
    def busy_seconds(self) -> float:
        return self._busy + (time.monotonic() - self._since if self._running else 0.0)

    async def __aenter__(self) -> None:
        self.requests += 1
        try:
            await self._slots.acquire()
        except BaseException:
            self.requests -= 1
            raise
        if not self._running:
            self._since = time.monotonic()
        self._running += 1

    async def __aexit__(self, *exception: object) -> None:
        self._slots.release()
        self.requests -= 1
        self._running -= 1
        if not self._running:
            self._busy += time.monotonic() - self._since


@runtime_checkable
class Engine(Protocol):
    """One model that answers requests.

    One that knows what its model computes with has it as ``dtype`` (``bfloat16``).

    Every method raises RowError for what is the request's fault (prompt and
    ``max_tokens`` exceed the context, refused, no such label) and EngineError where the
    engine is dead. An endpoint decides itself whether it refuses a prompt that leaves too
    little room, or writes less and ends with ``length``.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def limiter(self) -> RequestLimiter: ...

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        """Complete a prompt, sampled as the :class:`SamplingOptions` say: ``generate(prompt, max_tokens=64)``."""

    def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        """The same text in pieces as they come; closing the iterator aborts the request."""

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        """log p(label | prompt) of the next token for labels of one token each, whole
        vocabulary normalised. A label that does not come back is a RowError, never a
        made-up number. A label of several tokens is a UserError; an endpoint, whose
        tokenizer need not be here, cannot tell the two apart and raises the RowError."""

    async def aclose(self) -> None: ...


@runtime_checkable
class Judge(Protocol):
    """What is asked for judgments instead of tokens, a query at a time: a reranker that
    runs elsewhere, with a model and a mode of its own. Its requests are queries."""

    @property
    def limits(self) -> Limits: ...

    @property
    def limiter(self) -> RequestLimiter: ...

    async def judge(self, query: Query, texts: Sequence[str]) -> list[Judgment]:
        """One judgment a text, in their order; its ``doc_id`` is empty.

        Raises:
            RowError: the query could not be asked.
            EndpointError: there is nobody to ask.
        """

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Usage:
    """Tokens that requests took. ``cached_prompt`` is the part of ``prompt`` that was
    answered from the prefix cache; ``steps`` has what was spent by what it was :func:`spent_on`."""

    requests: int = 0
    prompt: int = 0
    cached_prompt: int = 0
    generated: int = 0
    steps: dict[str, Usage] = field(default_factory=dict)

    def add(self, other: Usage) -> None:
        self.requests += other.requests
        self.prompt += other.prompt
        self.cached_prompt += other.cached_prompt
        self.generated += other.generated
        for name, usage in other.steps.items():
            self.steps.setdefault(name, Usage()).add(usage)


_meter: ContextVar[Usage | None] = ContextVar("limrank_usage", default=None)
_step: ContextVar[str | None] = ContextVar("limrank_step", default=None)


@contextlib.contextmanager
def meter() -> Iterator[Usage]:
    """Collects what the requests of the enclosed code cost, its child tasks included."""
    usage = Usage()
    token = _meter.set(usage)
    try:
        yield usage
    finally:
        _meter.reset(token)


@contextlib.contextmanager
def spent_on(name: str) -> Iterator[None]:
    """Names what the requests of the enclosed code are for, in the meter around it."""
    token = _step.set(name)
    try:
        yield
    finally:
        _step.reset(token)


def current_step() -> str | None:
    """What the request at hand is :func:`spent_on`."""
    return _step.get()


def record_usage(prompt: int, cached_prompt: int, generated: int) -> None:
    """Called by engines, once a request that was answered."""
    usage = _meter.get()
    if usage is not None:
        name = current_step()
        steps = {name: Usage(1, prompt, cached_prompt, generated)} if name else {}
        usage.add(Usage(1, prompt, cached_prompt, generated, steps))


def matched_stop(
    stop_reason: str | int | None, stop: Sequence[str], added: Callable[[], Mapping[str, int]]
) -> str | None:
    """The stop string that a server names as what ended its model: by itself, or by the id of its token.
    None for anything else: the model's own end, of which it may have several.

    Args:
        stop: what was asked to end it.
        added: the added tokens of the model's tokenizer, which is read for an id alone.
    """
    if isinstance(stop_reason, int) and stop:
        ids = added()
        return next((text for text in stop if ids.get(text) == stop_reason), None)
    return stop_reason if stop_reason in stop else None


def label_token_ids(tokenizer: Tokenizer, labels: Sequence[str]) -> list[int]:
    """The one token of each label in this tokenizer.

    Raises:
        UserError: a label is several tokens, so its probability is not one number.
    """
    ids = []
    for label in labels:
        encoded = tokenizer.encode(label, add_special_tokens=False)
        if len(encoded) != 1:
            raise UserError(
                f"label {label!r} is {len(encoded)} tokens in this model's tokenizer; a pointwise label must be one token"
            )
        ids.append(encoded[0])
    if len(set(ids)) != len(ids):
        raise UserError(f"labels {list(labels)} share a token in this model's tokenizer")
    return ids
