"""One worker process: engines on an event loop of their own, chunks in threads beside it.

Ray calls it, but nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from limrank.chunks import DEATHS_BEFORE_ALONE, ChunkRunner, Receipt, Task
from limrank.engines import EngineSource
from limrank.errors import EngineError, LimrankError, UserError
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


class ChunkWorker:
    """One engine actor. An error that must end the job is handed back as a receipt: an
    exception here would come out as Ray's, after Ray's retries."""

    def __init__(self, storage: Storage, task: Task, sources: Mapping[str, EngineSource], session: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engines").start()
        self._turns = _Turns()
        self._fatal: LimrankError | None = None
        started = time.monotonic()
        try:
            engines = self._call(_open_all(sources))
            took = time.monotonic() - started
            self._runner = ChunkRunner(storage, task, engines, self._call, session=session, startup_seconds=took)
        except LimrankError as error:
            self._fatal = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_pylist([self._row(number) for number in batch["chunk"].to_pylist()], schema=_wire())

    def _row(self, number: int) -> dict[str, Any]:
        if self._fatal is not None:
            return _fatal_row(self._fatal)
        try:
            alone = self._runner.deaths(number) >= DEATHS_BEFORE_ALONE
            with self._turns.alone() if alone else self._turns.shared():
                receipt = self._runner.run(number, alone=alone)
        except EngineError as error:
            # A raised error would end the dataset, and a dead engine stays dead. With the
            # process gone Ray starts another and gives it the unfinished chunks; attempts
            # are on record, so this does not go on for ever.
            logging.getLogger(__name__).error("engine lost, worker ends: %s", error)
            os._exit(70)
        except (UserError, OSError) as error:
            return _fatal_row(error)
        return asdict(receipt)

    def _call(self, coroutine: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _open_all(sources: Mapping[str, EngineSource]) -> dict[str, Any]:
    # Roles that are played by one model share one engine.
    opened: dict[EngineSource, Any] = {}
    for source in sources.values():
        if source not in opened:
            opened[source] = source.open()
    return {role: opened[source] for role, source in sources.items()}


class _Turns:
    """Chunks run side by side, but one that must run alone waits for the others to end
    and keeps them out: what dies then is known to be its own fault."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._waiting_alone = 0

    @contextmanager
    def shared(self):
        with self._changed:
            self._changed.wait_for(lambda: self._running >= 0 and not self._waiting_alone)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self):
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: self._running == 0)
            self._waiting_alone -= 1
            self._running = -1
        try:
            yield
        finally:
            with self._changed:
                self._running = 0
                self._changed.notify_all()


def _wire() -> pa.Schema:
    """A receipt as it travels: the Receipt's fields, or else the error that ends the job."""
    import pyarrow as pa

    floats = ("began", "ended", "startup_seconds")
    return pa.schema(
        [(name, pa.float64() if name in floats else pa.int64()) for name in Receipt.__dataclass_fields__]
        + [("error_type", pa.string()), ("error", pa.string())]
    )


def _fatal_row(error: Exception) -> dict[str, Any]:
    return {"error_type": type(error).__name__, "error": str(error)}
