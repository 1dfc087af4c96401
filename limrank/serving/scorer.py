"""The deployment that holds the engine: one replica for each of ``workers.replicas``."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from limrank.config import ScoringConfig
from limrank.engines import Engine, EngineSource
from limrank.engines.base import Usage, meter
from limrank.errors import EngineError, UserError
from limrank.records import Judgment, Query
from limrank.scoring import check_labels
from limrank.scoring.calibration import Calibration
from limrank.serving.network import listen_on_node_address
from limrank.serving.options import AS_RECIPE, ScoreOptions, Update, score_request, stream_request
from limrank.serving.scaling import PAIRS


class Scorer:
    """An engine replica. The engine's event loop runs in a thread of its own: opening an engine
    takes a minute, and Serve's loop must answer meanwhile."""

    async def __init__(
        self,
        source: EngineSource,
        scoring: ScoringConfig,
        seed: int,
        calibration: Calibration | None = None,
        *,
        strict: bool = False,
    ) -> None:
        listen_on_node_address()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine").start()
        self._scoring = scoring
        self._seed = seed
        self._calibration = calibration
        self._engine: Engine | None = None
        self._refused: UserError | None = None
        self._pairs = 0
        try:
            self._engine = await self._on_loop(_open(source, scoring))
        except UserError as error:
            if strict:  # the replicas of the version before stay
                raise
            # ready() raises it. An error here would make Serve retry, which cannot help.
            self._refused = error

    async def ready(self) -> None:
        """Raises UserError if the engine refused its settings."""
        if self._refused is not None:
            raise self._refused

    async def score(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> tuple[list[Judgment], Usage]:
        """Judgments in the order of the texts, and their usage. Cancelling it aborts the engine's requests."""
        try:
            with self._counted(len(texts)):
                return await self._on_loop(self._metered(query, texts, options))
        except EngineError as error:
            _end_replica(error)

    async def stream(
        self, query: Query, texts: Sequence[str], options: ScoreOptions = AS_RECIPE
    ) -> AsyncGenerator[tuple[Update, Usage], None]:
        """The judgments of :meth:`score` while they come in, each with the usage so far."""
        here = asyncio.get_running_loop()
        found: asyncio.Queue[tuple[Update, Usage] | None] = asyncio.Queue()

        async def find() -> None:
            with meter() as usage:
                updates = stream_request(
                    query, texts, options, self._engine, self._scoring, seed=self._seed, calibration=self._calibration
                )
                async with aclosing(updates):
                    async for update in updates:
                        here.call_soon_threadsafe(found.put_nowait, (update, replace(usage)))

        work = self._on_loop(find())
        work.add_done_callback(lambda _: found.put_nowait(None))
        try:
            with self._counted(len(texts)):
                while (item := await found.get()) is not None:
                    yield item
                await work
        except EngineError as error:
            _end_replica(error)
        finally:
            work.cancel()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for it, for :class:`~limrank.serving.scaling.PairsPolicy`."""
        return {PAIRS: float(self._pairs)}

    @contextmanager
    def _counted(self, pairs: int) -> Iterator[None]:
        self._pairs += pairs
        try:
            yield
        finally:
            self._pairs -= pairs

    async def _metered(self, query: Query, texts: Sequence[str], options: ScoreOptions) -> tuple[list[Judgment], Usage]:
        with meter() as usage:
            judgments = await score_request(
                query, texts, options, self._engine, self._scoring, seed=self._seed, calibration=self._calibration
            )
        return judgments, usage

    async def __del__(self) -> None:
        # Serve awaits it when it stops a replica.
        if self._engine is not None:
            await self._on_loop(self._engine.aclose())

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


def _end_replica(error: EngineError) -> NoReturn:
    """A crashed engine cannot recover, and a replica that fails at once would attract the requests of the busy ones.
    When its process ends, Serve starts another replica."""
    logging.getLogger("ray.serve").error("engine lost, replica ends: %s", error)
    os._exit(70)


async def _open(source: EngineSource, scoring: ScoringConfig) -> Engine:
    engine = source.open()
    check_labels(engine.tokenizer, scoring.labels)
    return engine
