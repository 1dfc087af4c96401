"""An engine that lives in a Ray actor of its own and is called from other processes.

One model then serves several stages or pools; a unit flows from one model to the next
as soon as its step ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from limrank.engines import EngineSpec
from limrank.engines.base import Elsewhere, Generation, Limits, Prompt, Tokenizer, Traffic, Usage, meter, record_usage
from limrank.errors import EngineError, LimrankError, first_line

_LOOK_S = 1.0
"""How often a host that died is asked whether it is up again."""


class EngineHost:
    """The actor's body. Its methods run on the actor's event loop, many at a time.

    A dead engine stays dead, so the process ends with it: callers see a dead actor, and
    Ray starts another.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = None
        self._error: LimrankError | None = None
        try:
            self._engine = spec.open()
        except LimrankError as error:
            self._error = error  # told by ready(), in our words instead of Ray's

    async def ready(self) -> tuple[Limits, Tokenizer]:
        if self._error is not None:
            raise self._error
        return self._engine.limits, self._engine.tokenizer

    async def generate(self, prompt: Prompt, options: dict[str, Any]) -> Generation:
        with _ends_with_engine():
            return await self._engine.generate(prompt, **options)

    async def stream(self, prompt: Prompt, options: dict[str, Any]) -> AsyncIterator[str]:
        with _ends_with_engine():
            async for text in self._engine.stream(prompt, **options):
                yield text

    async def label_logprobs(self, prompt: Prompt, labels: list[str]) -> tuple[dict[str, float], Usage]:
        with _ends_with_engine(), meter() as usage:
            return await self._engine.label_logprobs(prompt, labels), usage

    async def aclose(self) -> None:
        if self._engine is not None:
            await self._engine.aclose()


@dataclass(frozen=True)
class HostedEngineSource(Elsewhere):
    """Opens as a client of a running host."""

    host: Any
    limits: Limits

    def open(self) -> HostedEngine:
        return HostedEngine(self.host, self.limits)


class HostedEngine:
    """The client. Its tokenizer is the host's, fetched as it opens: with its library it takes
    seconds, in which the host would wait for the first request."""

    def __init__(self, host: Any, limits: Limits) -> None:
        self._host = host
        self.tokenizer: Tokenizer = _wait_until_ready(host, Elsewhere.startup_timeout_s, restarts=True)[1]
        self.limits = limits
        self.traffic = Traffic(2 * limits.in_flight)

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Generation:
        options = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": list(stop),
            "seed": seed,
            "schema": schema,
        }
        generation = await self._ask(self._host.generate, prompt, options)
        record_usage(generation.prompt_tokens, generation.cached_tokens, generation.generated_tokens)
        return generation

    async def stream(
        self, prompt: Prompt, *, max_tokens: int, temperature: float = 0.0, top_p: float = 1.0, stop: Sequence[str] = ()
    ) -> AsyncIterator[str]:
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": list(stop)}
        with _engine_errors():
            async for reference in self._host.stream.options(num_returns="streaming").remote(prompt, options):
                yield await reference

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        logprobs, usage = await self._ask(self._host.label_logprobs, prompt, list(labels))
        record_usage(usage.prompt, usage.cached_prompt, usage.generated)
        return logprobs

    async def aclose(self) -> None:
        """Nothing: the host belongs to whoever started it."""

    async def _ask(self, method: Any, *arguments: Any) -> Any:
        async with self.traffic:
            with _engine_errors():
                return await method.remote(*arguments)


@contextmanager
def host_engine(spec: EngineSpec, wanted: dict[str, float]) -> Iterator[HostedEngineSource]:
    """Start an engine in an actor that takes ``wanted`` (num_cpus, num_gpus), and end it
    on the way out. Returns once the engine is up.

    Raises:
        UserError: as ``open_engine``.
        EngineError: as there, or it was not up within the engine's ``startup_timeout_s``.
    """
    import ray

    # Calls wait in the engine's queue, not in Ray's: the actor takes all of them.
    host = ray.remote(EngineHost).options(max_restarts=-1, max_concurrency=10_000, **wanted).remote(spec)
    try:
        limits, _ = _wait_until_ready(host, spec.startup_timeout_s, restarts=False)
        yield HostedEngineSource(host, limits)
    finally:
        _end(host)


def _wait_until_ready(host: Any, timeout_s: float, *, restarts: bool) -> tuple[Limits, Tokenizer]:
    """What the host says of its engine once that is up. With ``restarts`` one that died is
    waited for: Ray starts it again, and fails every call until then."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with _engine_errors():
                return ray.get(host.ready.remote(), timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            raise EngineError(f"the engine did not start within {timeout_s:g} s (engine.startup_timeout_s)") from None
        except EngineError as error:
            if not restarts or not isinstance(error.__cause__, RayActorError) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


def _end(host: Any) -> None:
    import ray

    # It is killed next, whatever state it is in.
    with suppress(Exception):
        ray.get(host.aclose.remote(), timeout=20)
    ray.kill(host)


@contextmanager
def _ends_with_engine() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        logging.getLogger(__name__).error("engine lost, host ends: %s", error)
        os._exit(70)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Ray's errors as ours: the host's own error as it was raised, a dead host as an EngineError."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayActorError as error:
        raise EngineError(f"the engine's actor died: {first_line(error)}") from error
    except RayTaskError as error:
        if isinstance(error.cause, LimrankError):
            raise error.cause from None
        raise
