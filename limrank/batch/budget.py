"""What ends a run before its plan does: a token budget, or a target of kept rows.

The driver starts chunks in queue order while every limit allows it (:class:`TokenLimit`, :class:`RowTarget`), and
writes how many may start into a file of the run directory (:class:`ChunkScheduler`). A worker waits until its chunk may
start (:class:`StartGate`). Neither knows Ray.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limrank.batch.plan import Chunk, Plan
from limrank.batch.receipts import Receipt
from limrank.storage import Storage

_FILE = "allowance.json"
_POLL_S = 0.5
"""How often a worker whose chunk may not start yet reads the file."""

CHUNKS_PER_BUDGET = 40
"""A token budget is divided into at least so many chunks, so that the last ones overshoot it by little."""


@dataclass(frozen=True)
class Budget:
    """What ends a run, over all its sessions, before its plan does. None sets no limit.

    Which chunks have started by then depends on how fast each of them was, and may differ between runs. What is
    selected from a given set of rows does not.

    Args:
        tokens: the most that the run may take, prompt tokens included.
        kept: the number of kept rows that is enough. A row is kept if no filter within its unit rejects it.
        kept_a_unit: the most rows that a unit can keep.
        seed: of the order in which chunks start where ``kept`` may end the run. In order of cost, the run would
            keep only examples of costly units.
    """

    tokens: int | None = None
    kept: int | None = None
    kept_a_unit: int = 1
    seed: int = 0

    @property
    def is_limited(self) -> bool:
        return self.tokens is not None or self.kept is not None

    def order(self, pending: Sequence[Chunk], plan: Plan, committed: Sequence[Receipt]) -> list[Chunk]:
        """The chunks in the order in which they are handed out.

        Costly chunks come first, so that no worker is left with one at the end. Where ``kept`` may end the run,
        the retries of committed chunks come first and the rest in random order.
        """
        if self.kept is None:
            return sorted(pending, key=lambda chunk: (-chunk.cost, chunk.number))
        drawn = list(range(len(plan.chunks)))
        random.Random(f"{self.seed}/chunks").shuffle(drawn)
        done = {receipt.chunk for receipt in committed}
        return sorted(pending, key=lambda chunk: (chunk.number not in done, drawn[chunk.number]))

    def scheduler(
        self, storage: Storage, plan: Plan, queue: Sequence[Chunk], committed: Sequence[Receipt]
    ) -> ChunkScheduler:
        """The driver's side of this budget. ``queue`` is as :meth:`order` gives it."""
        limits: list[_Limit] = []
        if self.tokens is not None:
            limits.append(TokenLimit(self.tokens, {chunk.number: chunk.cost for chunk in plan.chunks}))
        if self.kept is not None:
            most = {chunk.number: chunk.units * self.kept_a_unit for chunk in plan.chunks}
            limits.append(RowTarget(self.kept, most))
        return ChunkScheduler(limits, storage, queue, committed)


UNLIMITED = Budget()


class _Limit:
    """An amount (of tokens, of kept rows), what committed chunks took of it, and what running chunks are expected to.

    expected(chunk) = rate × planned(chunk), and rate = spent / planned over the committed chunks. With n committed
    chunks the rate is at least 1 / (1 + n): one chunk that failed at once must not start all others.

    Args:
        planned: chunk → the most that it can take.
    """

    def __init__(self, amount: int, planned: Mapping[int, int]) -> None:
        self.amount = amount
        self.taken: dict[int, int] = {}
        self.running: dict[int, int] = {}
        self._planned = planned
        # Running sums over `taken`, over the plan of the chunks in it, and over `running`.
        self.spent = self._planned_of_taken = self.planned_running = 0

    def amount_of(self, receipt: Receipt) -> int:
        """What a committed chunk took, its earlier attempts included."""
        raise NotImplementedError

    def allows(self, chunk: Chunk) -> bool:
        """Whether a chunk may start now."""
        raise NotImplementedError

    def planned(self, chunk: Chunk) -> int:
        return self._planned[chunk.number]

    @property
    def rate(self) -> float:
        measured = self.spent / self._planned_of_taken if self._planned_of_taken else 0.0
        return max(measured, 1 / (1 + len(self.taken)))

    def commit(self, receipt: Receipt) -> None:
        self.planned_running -= self.running.pop(receipt.chunk, 0)
        # The receipt of a retry includes what the first attempt took.
        if receipt.chunk not in self.taken:
            self._planned_of_taken += self._planned[receipt.chunk]
        amount = self.amount_of(receipt)
        self.spent += amount - self.taken.get(receipt.chunk, 0)
        self.taken[receipt.chunk] = amount

    def start(self, chunk: Chunk) -> None:
        self.running[chunk.number] = self.planned(chunk)
        self.planned_running += self.running[chunk.number]


class TokenLimit(_Limit):
    """Start a chunk if spent + expected(running) + expected(chunk) ≤ budget. The first chunk always starts.

    Only committed chunks count as spent: the tokens of a chunk that a crash ended are not known.
    """

    def amount_of(self, receipt: Receipt) -> int:
        return receipt.tokens

    def allows(self, chunk: Chunk) -> bool:
        if self.spent >= self.amount:
            return False
        is_first = not self.taken and not self.running
        return is_first or self.spent + self.rate * (self.planned_running + self.planned(chunk)) <= self.amount


class RowTarget(_Limit):
    """Start a chunk while kept + expected(running) < target. A retry always starts, and no more rows are expected of it."""

    def amount_of(self, receipt: Receipt) -> int:
        return receipt.kept or 0

    def allows(self, chunk: Chunk) -> bool:
        return chunk.number in self.taken or self.spent + self.rate * self.planned_running < self.amount

    def planned(self, chunk: Chunk) -> int:
        return 0 if chunk.number in self.taken else self._planned[chunk.number]


class ChunkScheduler:
    """The driver's side: a chunk may start when those before it have started and every limit allows it.

    Args:
        queue: the chunks that are to run, in the order in which they are handed out.
    """

    def __init__(
        self, limits: Sequence[_Limit], storage: Storage, queue: Sequence[Chunk], committed: Sequence[Receipt]
    ) -> None:
        self._limits = limits
        self._storage = storage
        self._queue = queue
        self._running: set[int] = set()
        self._started = 0
        self._written: dict[str, Any] | None = None
        for receipt in committed:
            self._count(receipt)
        self._start_chunks()

    @property
    def is_exhausted(self) -> bool:
        """Whether chunks are left and none of them may start any more."""
        return self._started < len(self._queue) and not self._running

    def commit(self, receipt: Receipt) -> None:
        """Count a committed chunk, and start those that it leaves the budget for."""
        self._running.discard(receipt.chunk)
        self._count(receipt)
        self._start_chunks()

    def _count(self, receipt: Receipt) -> None:
        for limit in self._limits:
            limit.commit(receipt)

    def _start_chunks(self) -> None:
        while self._started < len(self._queue):
            chunk = self._queue[self._started]
            if not all(limit.allows(chunk) for limit in self._limits):
                break
            self._running.add(chunk.number)
            for limit in self._limits:
                limit.start(chunk)
            self._started += 1
        state = {"begin": self._started, "closed": self.is_exhausted}
        if state != self._written:
            self._storage.write_text(_FILE, json.dumps(state))
            self._written = state


class StartGate:
    """The worker's side: it reads how many chunks of the queue may start."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = asyncio.Lock()
        self._state: dict[str, int | bool] = {"begin": 0, "closed": False}
        self._read_at = float("-inf")

    async def may_start(self, position: int) -> bool:
        """Wait until the chunk at this position of the queue may start (True), or never will (False)."""
        while True:
            async with self._lock:  # one read for all that wait
                if position >= self._state["begin"] and time.monotonic() - self._read_at >= _POLL_S:
                    self._state = json.loads(await asyncio.to_thread(self._storage.read_text, _FILE))
                    self._read_at = time.monotonic()
            if position < self._state["begin"]:
                return True
            if self._state["closed"]:
                return False
            await asyncio.sleep(_POLL_S)
