"""One worker process: engines on an event loop of their own, and the chunks that run on them.

Ray calls it, and nothing here knows Ray.
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

from limrank.batch.budget import StartGate
from limrank.batch.chunks import CRASHES_BEFORE_ISOLATION, ChunkRunner, Engines, Task, Worker
from limrank.batch.receipts import Receipt
from limrank.engines import EngineSource
from limrank.errors import EndpointError, EngineError, LimrankError, StorageError
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_POLL_S = 0.005
"""How often a waiting chunk checks whether the engines have capacity."""

_STEPS_TO_ENGINE = 5
"""Iterations of the event loop from a chunk's start until its first requests are in the engines."""


class ChunkWorker:
    """One engine actor.

    It returns an error that must end the job in place of a receipt. An exception would reach the driver as Ray's,
    after Ray's retries.

    Args:
        session: the driver's id.
        timeout_s: for the start of all engines.
        budgeted: a chunk waits until the driver lets it start (see ``budget.py``).
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
        self._gate = StartGate(storage) if budgeted else None
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
                "see this worker's log for what it waits for"
            )
        except Exception as error:
            self._fatal = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        answers = [self._answer(row["chunk"], row["position"]) for row in batch.to_pylist()]
        return pa.Table.from_pylist(answers, schema=_answer_schema())

    def _answer(self, number: int, position: int) -> dict[str, Any]:
        if self._fatal is not None:
            return _fatal(self._fatal)
        try:
            receipt = self._wait(self._run(number, position))
            return {"receipt": receipt.to_json() if receipt else None}
        except EndpointError as error:
            return _fatal(error)
        except EngineError as error:
            # A raised error would end the dataset. When the process ends, Ray starts another and
            # hands it the unfinished chunks. The recorded attempts bound how often this happens.
            logging.getLogger(__name__).error("engine lost, worker ends: %s", error)
            os._exit(70)
        except StorageError as error:
            return _fatal(error)
        except OSError as error:
            return _fatal(StorageError(f"run_dir {self._storage.root}: cannot be read: {error}"))
        except Exception as error:
            return _fatal(error)

    async def _run(self, number: int, position: int) -> Receipt | None:
        # Before admission: the budget may wait for a chunk that is admitted after this one.
        if self._gate and not await self._gate.may_start(position):
            return None
        if await self._runner.crashes(number) >= CRASHES_BEFORE_ISOLATION:
            async with self._admission.isolated():
                chunk = await self._runner.open(number)
                return chunk if isinstance(chunk, Receipt) else await self._runner.run(chunk, isolated=True)
        async with self._admission.shared() as admit_next:
            chunk = await self._runner.open(number)
            if isinstance(chunk, Receipt):
                return chunk
            running = asyncio.ensure_future(self._runner.run(chunk, isolated=False))
            for _ in range(_STEPS_TO_ENGINE):
                await asyncio.sleep(0)
            admit_next()
            return await running

    def _wait(self, coroutine: Awaitable[Any], timeout_s: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)


async def _open_all(sources: Mapping[str, EngineSource]) -> dict[str, Any]:
    # Roles of one model share one engine.
    opened: dict[EngineSource, Any] = {}
    for source in sources.values():
        if source not in opened:
            opened[source] = source.open()
    return {role: opened[source] for role, source in sources.items()}


class Admission:
    """Which chunks run. They are admitted one after the other, each as soon as every engine has fewer requests than it
    can run. The next requests are then there before an engine needs them, and no more are in flight (and lost in a
    crash) than keep the slowest engine full.

    An isolated chunk waits for the others to end and keeps new ones out, so that a crash is known to be its own.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = [(engine.limiter, engine.limits.in_flight) for engine in set(engines.values())]
        self._turn = asyncio.Lock()
        self._running = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[Any]:
        """Admit a chunk. Yields a function that admits the next one, to be called once this chunk's first requests
        are in the engines. The end of the chunk admits the next one too."""
        await self._turn.acquire()
        admitted = False

        def admit_next() -> None:
            nonlocal admitted
            if not admitted:
                admitted = True
                self._turn.release()

        try:
            while self._running and not self._has_capacity():
                await asyncio.sleep(_POLL_S)
            self._running += 1
            try:
                yield admit_next
            finally:
                self._running -= 1
        finally:
            admit_next()

    @asynccontextmanager
    async def isolated(self) -> AsyncIterator[None]:
        """Admit a chunk when all others have ended, and no other while it runs."""
        async with self._turn:
            while self._running:
                await asyncio.sleep(_POLL_S)
            yield

    def _has_capacity(self) -> bool:
        return all(limiter.requests < in_flight for limiter, in_flight in self._engines)


def _answer_schema() -> pa.Schema:
    """A receipt as JSON, or the error that ends the job. Neither where the budget did not let the chunk start."""
    import pyarrow as pa

    return pa.schema([("receipt", pa.string()), ("error_type", pa.string()), ("error", pa.string())])


def _fatal(error: Exception) -> dict[str, Any]:
    if isinstance(error, LimrankError):
        return {"error_type": type(error).__name__, "error": str(error)}
    return {"error_type": "RuntimeError", "error": f"{type(error).__name__}: {error}"}
