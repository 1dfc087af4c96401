"""What an engine is: text in, text or label log-probabilities out.

An engine lives on one asyncio loop. Many requests may be in flight; the engine batches
them itself. The :func:`meter` around a caller records what its requests cost, so that each
unit of work has its own costs even where requests overlap.
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
    """What a model wrote.

    Attributes:
        text: without the stop string.
        finish_reason: ``stop`` where the model or a stop string ended the text, ``length`` where
            ``max_tokens`` did.
        reasoning: the chain of an endpoint that returns it separately from its answer.
        stop: the stop string that ended the text; None for the model's own end and for ``length``.
        ids: the tokens that the model wrote, with those of the stop string. Encoding the text
            may give other tokens. Empty where the engine does not return them.
    """

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
    """What a replica holds: an engine that is not open yet, or a training worker."""

    @property
    def holds_model(self) -> bool:
        """Whether the replica loads the model, and so needs the model's resources."""

    @property
    def memory_bytes(self) -> int:
        """Main memory that it needs without a GPU, in bytes, as far as that is known in advance."""


class RemoteSource:
    """Base of an ``EngineSource`` whose engine runs in another process. Opening it makes a
    client, which needs almost no resources of the worker."""

    holds_model = False
    memory_bytes = 0
    startup_timeout_s = 600.0


DEFAULT_IN_FLIGHT = 256
"""Requests at a time where neither the recipe nor the engine sets a number."""


class RequestLimiter:
    """Limits how many requests of an engine run at a time: each runs inside ``async with limiter``.

    Attributes:
        requests: running and waiting ones.
        busy_seconds: the time in which at least one request ran.
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

    An engine that knows its model's dtype has it as the attribute ``dtype`` (``bfloat16``).

    Every method raises RowError for a fault of the request (prompt and ``max_tokens`` exceed
    the context, the engine refuses it, no such label), and EngineError where the engine has
    crashed. An endpoint decides whether it refuses a prompt that leaves less than
    ``max_tokens`` of its context, or writes less and ends with ``length``.
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
        """The text of ``generate`` in pieces as the model writes them. Closing the iterator aborts the request."""

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        """log p(label | prompt) of the next token, normalised over the whole vocabulary.

        Args:
            labels: of one token each.

        Raises:
            RowError: the engine returned no number for a label; none is made up.
            UserError: a label is several tokens. An endpoint raises the RowError for it, as it
                need not have the tokenizer here.
        """

    async def aclose(self) -> None: ...


@runtime_checkable
class Judge(Protocol):
    """A remote reranker with a model and a mode of its own. It returns judgments instead of
    tokens. Each of its requests is a query."""

    @property
    def limits(self) -> Limits: ...

    @property
    def limiter(self) -> RequestLimiter: ...

    async def judge(self, query: Query, texts: Sequence[str]) -> list[Judgment]:
        """One judgment for each text, in the order of the texts, with an empty ``doc_id``.

        Raises:
            RowError: the reranker failed this query.
            EndpointError: no reranker answers.
        """

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Usage:
    """Tokens of requests.

    Attributes:
        cached_prompt: the tokens of ``prompt`` that came from the prefix cache.
        steps: the usage of each step that was named by :func:`spent_on`.
    """

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
    """Collects the usage of the requests inside it, also of child tasks."""
    usage = Usage()
    token = _meter.set(usage)
    try:
        yield usage
    finally:
        _meter.reset(token)


@contextlib.contextmanager
def spent_on(name: str) -> Iterator[None]:
    """Names the step that the requests inside it are for, in the meter around them."""
    token = _step.set(name)
    try:
        yield
    finally:
        _step.reset(token)


def current_step() -> str | None:
    """The step of the current request, as named by :func:`spent_on`."""
    return _step.get()


def record_usage(prompt: int, cached_prompt: int, generated: int) -> None:
    """Adds an answered request to the meter. Engines call it once a request."""
    usage = _meter.get()
    if usage is not None:
        name = current_step()
        steps = {name: Usage(1, prompt, cached_prompt, generated)} if name else {}
        usage.add(Usage(1, prompt, cached_prompt, generated, steps))


def matched_stop(
    stop_reason: str | int | None, stop: Sequence[str], added: Callable[[], Mapping[str, int]]
) -> str | None:
    """The stop string that a server names as the end of a text; None for the model's own end.

    Args:
        stop_reason: the stop string, the id of its token, or one of the model's own end tokens.
        stop: the stop strings of the request.
        added: gives the added tokens of the model's tokenizer. It is called only for an id.
    """
    if isinstance(stop_reason, int) and stop:
        ids = added()
        return next((text for text in stop if ids.get(text) == stop_reason), None)
    return stop_reason if stop_reason in stop else None


def label_token_ids(tokenizer: Tokenizer, labels: Sequence[str]) -> list[int]:
    """The token of each label.

    Raises:
        UserError: a label is several tokens, so its probability is not one number; or two labels
            share a token.
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
