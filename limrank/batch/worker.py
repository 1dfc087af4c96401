"""One worker process: engines on an event loop of their own, and the chunks at work on it.

Ray calls it, but nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from limrank.batch.budget import Allowance
from limrank.batch.chunks import CRASHES_BEFORE_ISOLATION, ChunkRunner, Engines, Task, Worker
from limrank.batch.receipts import Receipt
from limrank.engines import EngineSource
from limrank.errors import EndpointError, EngineError, LimrankError, StorageError
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_LOOK_S = 0.005
"""How often a chunk that waits for room in the engines looks again."""

_STEPS_TO_ENGINE = 5
"""Turns of the event loop from a chunk's start until its first requests are in the engines."""


class ChunkWorker:
    """One engine actor. An error that must end the job is handed back in a receipt's place:
    an exception here would come out as Ray's, after Ray's retries.

    ``budgeted``: a chunk waits until the driver lets it begin (see ``budget.py``).
    """

    def __init__(
        self,
        storage: Storage,
        task: Task,
        sources: Mapping[str, EngineSource],
        session: str,
        timeout_s: float,
        budgeted: bool = False,
    ) -> None:
        self._storage = storage
        self._allowance = Allowance(storage) if budgeted else None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engines").start()
        self._fatal: Exception | None = None
        started = time.monotonic()
        try:
            engines = self._wait(_open_all(sources), timeout_s)
            worker = Worker(session, startup_seconds=time.monotonic() - started)
            self._runner = ChunkRunner(storage, task, engines, worker)
            self._admission = Admission(engines)
        except TimeoutError:
            self._fatal = EngineError(
                f"the engine did not start within {timeout_s:g} s (engine.startup_timeout_s): raise it, or "
                "look into this worker's log for what it waits for"
            )
        except Exception as error:
            self._fatal = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        answers = [self._answer(row["chunk"], row["position"]) for row in batch.to_pylist()]
        return pa.Table.from_pylist(answers, schema=_wire())

    def _answer(self, number: int, position: int) -> dict[str, Any]:
        if self._fatal is not None:
            return _fatal(self._fatal)
        try:
            receipt = self._wait(self._run(number, position))
            return {"receipt": receipt.to_json() if receipt else None}
        except EndpointError as error:
            return _fatal(error)
        except EngineError as error:
            # A raised error would end the dataset, and a dead engine stays dead. With the
            # process gone Ray starts another and gives it the unfinished chunks; attempts
            # are on record, so this does not go on for ever.
            logging.getLogger(__name__).error("engine lost, worker ends: %s", error)
            os._exit(70)
        except StorageError as error:
            return _fatal(error)
        except OSError as error:
            return _fatal(StorageError(f"run_dir {self._storage.root}: cannot be read: {error}"))
        except Exception as error:
            return _fatal(error)

    async def _run(self, number: int, position: int) -> Receipt | None:
        # Outside of the door: what a chunk waits for may be the end of one that comes after it.
        if self._allowance and not await self._allowance.may_begin(position):
            return None
        if await self._runner.crashes(number) >= CRASHES_BEFORE_ISOLATION:
            async with self._admission.isolated():
                chunk = await self._runner.open(number)
                return chunk if isinstance(chunk, Receipt) else await self._runner.run(chunk, isolated=True)
        async with self._admission.shared() as under_way:
            chunk = await self._runner.open(number)
            if isinstance(chunk, Receipt):
                return chunk
            running = asyncio.ensure_future(self._runner.run(chunk, isolated=False))
            for _ in range(_STEPS_TO_ENGINE):
                await asyncio.sleep(0)
            under_way()
            return await running

    def _wait(self, coroutine: Awaitable[Any], timeout_s: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)


async def _open_all(sources: Mapping[str, EngineSource]) -> dict[str, Any]:
    # Roles that are played by one model share one engine.
    opened: dict[EngineSource, Any] = {}
    for source in sources.values():
        if source not in opened:
            opened[source] = source.open()
    return {role: opened[source] for role, source in sources.items()}


class Admission:
    """Which chunks are at work. They enter one after the other, each as soon as every engine
    has fewer requests than it can run: then the next requests are there before it needs
    them, and no more is in flight (and lost with a crash) than keeps the slowest one full.

    A chunk that must run alone waits for the others to end and keeps them out: what dies
    then is known to be its own fault.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = [(engine.limiter, engine.limits.in_flight) for engine in set(engines.values())]
        self._door = asyncio.Lock()
        self._running = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[Any]:
        """Gives a function to call once the chunk's first requests are under way; the next
        chunk enters then, or when this one ends."""
        await self._door.acquire()
        opened = False

        def under_way() -> None:
            nonlocal opened
            if not opened:
                opened = True
                self._door.release()

        try:
            while self._running and not self._has_capacity():
                await asyncio.sleep(_LOOK_S)
            self._running += 1
            try:
                yield under_way
            finally:
                self._running -= 1
        finally:
            under_way()

    @asynccontextmanager
    async def isolated(self) -> AsyncIterator[None]:
        async with self._door:
            while self._running:
                await asyncio.sleep(_LOOK_S)
            yield

    def _has_capacity(self) -> bool:
        return all(limiter.requests < runs for limiter, runs in self._engines)


def _wire() -> pa.Schema:
    """A receipt as it travels, or else the error that ends the job; neither, where the
    chunk was not begun."""
    import pyarrow as pa

    return pa.schema([("receipt", pa.string()), ("error_type", pa.string()), ("error", pa.string())])


def _fatal(error: Exception) -> dict[str, Any]:
    if isinstance(error, LimrankError):
        return {"error_type": type(error).__name__, "error": str(error)}
    return {"error_type": "RuntimeError", "error": f"{type(error).__name__}: {error}"}
