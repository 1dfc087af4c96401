"""Engines in Ray actors of their own, which other processes call.

One model then serves several stages or pools, and a unit goes from one model to the next
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

_RETRY_S = 1.0
"""Pause between two questions to a crashed host, whether Ray has restarted it."""


class EngineHost:
    """The actor's body. Its methods run on the actor's event loop, many at a time.

    A crashed engine cannot recover, so its process ends, too: callers see a dead actor, and
    Ray starts another one.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = None
        self._error: LimrankError | None = None
        try:
            self._engine = spec.open()
        except LimrankError as error:
            self._error = error  # raised by ready(): a constructor's error would come as Ray's

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
        # Nobody calls ready() of a host that Ray restarted. This error ends the process, and
        # Ray tries once more.
        if self._engine is None:
            raise EngineError(f"the engine did not open: {self._error}")
        return self._engine

    async def aclose(self) -> None:
        if self._engine is not None:
            await self._engine.aclose()


@dataclass(frozen=True)
class HostedEngineSource(RemoteSource):
    """Opens as a client of running hosts. ``limits`` are those of one host."""

    hosts: tuple[Any, ...]
    limits: Limits
    startup_timeout_s: float

    def open(self) -> HostedEngine:
        return HostedEngine(self.hosts, self.limits, self.startup_timeout_s)


class HostedEngine:
    """The client. A request goes to the host with the fewest requests. If the host crashes, the
    request is retried once: on another host, or on the same one after its restart.

    The client fetches the hosts' tokenizer when it opens, which takes seconds. If it fetched it
    later, the hosts would be idle until the first request."""

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
        """Does nothing: :func:`host_engine` ends the hosts."""

    async def _ask(self, method: str, *arguments: Any) -> Any:
        async with self.limiter:
            with self._host() as first:
                try:
                    return await _call(first, method, *arguments)
                except EngineError as error:
                    if not _actor_crashed(error):
                        raise
            with self._host(but=first) as other:
                if other is first:
                    await _wait_for_restart(other, self._startup_timeout_s)
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
    """Start engines in actors, wait until all are up, and end them on exit.

    Args:
        wanted: the resources of each actor (num_cpus, num_gpus).

    Raises:
        UserError: as ``open_engine``.
        EngineError: as ``open_engine``, or an engine was not up within ``engine.startup_timeout_s``.
    """
    import ray

    # The actor accepts all calls: they wait in the engine's queue, not in Ray's.
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
    """Wait until a host's engine is up. Returns its limits, tokenizer and dtype.

    Args:
        restarts: also wait for a crashed host, which Ray restarts. Every call fails until then.
    """
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
            if not restarts or not _actor_crashed(error) or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_S)


async def _wait_for_restart(host: Any, timeout_s: float) -> None:
    """Wait until a crashed host answers. Raises the EngineError of its crash after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            await _call(host, "ready")
            return
        except EngineError as error:
            if not _actor_crashed(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_RETRY_S)


async def _call(host: Any, method: str, *arguments: Any) -> Any:
    with _engine_errors():
        return await getattr(host, method).remote(*arguments)


def _actor_crashed(error: EngineError) -> bool:
    """Whether the host's process is gone. Otherwise the error is the engine's own."""
    from ray.exceptions import RayActorError

    return isinstance(error.__cause__, RayActorError)


def _end(host: Any) -> None:
    import ray

    # An error here does not matter: the host is killed next.
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
    """Turns Ray's errors into ours: the error that the host raised, or an EngineError for a crashed host."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayActorError as error:
        raise EngineError(f"the engine's actor crashed: {first_line(error)}") from error
    except RayTaskError as error:
        if isinstance(error.cause, LimrankError):
            raise error.cause from None
        raise
