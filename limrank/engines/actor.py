"""Engines that live in Ray actors of their own and are called from other processes.

One model then serves several stages or pools; a unit flows from one model to the next
as soon as its step ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Unpack

from limrank.engines import EngineSpec
from limrank.engines.base import (
    Generation,
    Limits,
    Prompt,
    RemoteSource,
    RequestLimiter,
    SamplingOptions,
    Tokenizer,
    Usage,
    meter,
    record_usage,
)
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

    async def ready(self) -> tuple[Limits, Tokenizer, str | None]:
        if self._error is not None:
            raise self._error
        return self._engine.limits, self._engine.tokenizer, getattr(self._engine, "dtype", None)

    async def generate(self, prompt: Prompt, options: SamplingOptions) -> Generation:
        with _ends_with_engine():
            return await self._opened().generate(prompt, **options)

    async def stream(self, prompt: Prompt, options: SamplingOptions) -> AsyncIterator[str]:
        with _ends_with_engine():
            async for text in self._opened().stream(prompt, **options):
                yield text

    async def label_logprobs(self, prompt: Prompt, labels: list[str]) -> tuple[dict[str, float], Usage]:
        with _ends_with_engine(), meter() as usage:
            return await self._opened().label_logprobs(prompt, labels), usage

    def _opened(self) -> Any:
        # Of a host that Ray started again nobody asks first whether it is ready: with the
        # process gone Ray tries once more.
        if self._engine is None:
            raise EngineError(f"the engine did not open: {self._error}")
        return self._engine

    async def aclose(self) -> None:
        if self._engine is not None:
            await self._engine.aclose()


@dataclass(frozen=True)
class HostedEngineSource(RemoteSource):
    """Opens as a client of running hosts. ``limits`` are those of one."""

    hosts: tuple[Any, ...]
    limits: Limits
    startup_timeout_s: float

    def open(self) -> HostedEngine:
        return HostedEngine(self.hosts, self.limits, self.startup_timeout_s)


class HostedEngine:
    """The client. A request goes to the host that has the fewest of its own; one whose host
    dies goes to another, once, or where there is none to the same one when it is up again.

    Its tokenizer is the hosts', fetched as it opens: with its library it takes seconds, in
    which a host would wait for the first request."""

    def __init__(self, hosts: Sequence[Any], limits: Limits, startup_timeout_s: float) -> None:
        self._requests = dict.fromkeys(hosts, 0)
        self._startup_timeout_s = startup_timeout_s
        for host in hosts:
            _, self.tokenizer, self.dtype = _wait_until_ready(host, startup_timeout_s, restarts=True)
        self.limits = Limits(limits.context, len(hosts) * limits.in_flight)
        self.limiter = RequestLimiter(2 * self.limits.in_flight)

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        generation = await self._ask("generate", prompt, options)
        record_usage(generation.prompt_tokens, generation.cached_tokens, generation.generated_tokens)
        return generation

    async def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        with self._host() as host, _engine_errors():
            async for reference in host.stream.options(num_returns="streaming").remote(prompt, options):
                yield await reference

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        logprobs, usage = await self._ask("label_logprobs", prompt, list(labels))
        record_usage(usage.prompt, usage.cached_prompt, usage.generated)
        return logprobs

    async def aclose(self) -> None:
        """Nothing: the host belongs to whoever started it."""

    async def _ask(self, method: str, *arguments: Any) -> Any:
        async with self.limiter:
            with self._host() as first:
                try:
                    return await _call(first, method, *arguments)
                except EngineError as error:
                    if not _actor_died(error):
                        raise
            with self._host(but=first) as other:
                if other is first:
                    await _up_again(other, self._startup_timeout_s)
                return await _call(other, method, *arguments)

    @contextmanager
    def _host(self, but: Any = None) -> Iterator[Any]:
        others = [host for host in self._requests if host is not but]
        host = min(others, key=self._requests.__getitem__) if others else but
        self._requests[host] += 1
        try:
            yield host
        finally:
            self._requests[host] -= 1


@contextmanager
def host_engine(spec: EngineSpec, wanted: dict[str, Any], replicas: int = 1) -> Iterator[HostedEngineSource]:
    """Start engines, each in an actor that takes ``wanted`` (num_cpus, num_gpus), and end
    them on the way out. Returns once all are up.

    Raises:
        UserError: as ``open_engine``.
        EngineError: as there, or one was not up within the engine's ``startup_timeout_s``.
    """
    import ray

    # Calls wait in the engine's queue, not in Ray's: the actor takes all of them.
    actor = ray.remote(EngineHost).options(max_restarts=-1, max_concurrency=10_000, **wanted)
    hosts = tuple(actor.remote(spec) for _ in range(replicas))
    try:
        for host in hosts:
            limits, _, _ = _wait_until_ready(host, spec.startup_timeout_s, restarts=False)
        yield HostedEngineSource(hosts, limits, spec.startup_timeout_s)
    finally:
        for host in hosts:
            _end(host)


def _wait_until_ready(host: Any, timeout_s: float, *, restarts: bool) -> tuple[Limits, Tokenizer, str | None]:
    """What the host says of its engine once that is up. With ``restarts`` one that died is
    waited for: Ray starts it again, and fails every call until then."""
    import ray
    from ray.exceptions import GetTimeoutError

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with _engine_errors():
                return ray.get(host.ready.remote(), timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            raise EngineError(f"the engine did not start within {timeout_s:g} s (engine.startup_timeout_s)") from None
        except EngineError as error:
            if not restarts or not _actor_died(error) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


async def _up_again(host: Any, timeout_s: float) -> None:
    """Returns once a host that died answers again, or raises the EngineError of its death."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            await _call(host, "ready")
            return
        except EngineError as error:
            if not _actor_died(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_LOOK_S)


async def _call(host: Any, method: str, *arguments: Any) -> Any:
    with _engine_errors():
        return await getattr(host, method).remote(*arguments)


def _actor_died(error: EngineError) -> bool:
    """Whether it is the host that is gone; what an engine says of itself is another matter."""
    from ray.exceptions import RayActorError

    return isinstance(error.__cause__, RayActorError)


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
