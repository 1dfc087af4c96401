"""A run's token budget over many workers. The driver says how many of the chunks, in the
order they are handed out, may begin; a worker waits until its chunk is among them. No Ray
here: what the two share is a file of the run directory.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

from limrank.plan import Chunk, Plan
from limrank.receipts import Receipt
from limrank.storage import Storage

_FILE = "allowance.json"
_LOOK_S = 0.5
"""How often a worker whose chunk may not begin yet looks again."""

CHUNKS_A_BUDGET = 40
"""At least so many make up a budget, so that what the last ones take is little beside it."""


class Budget:
    """The driver's side. A chunk may begin when what it is expected to take fits beside what
    was spent and what those at work are expected to take. That is known of no chunk before
    one is committed: the first begins whatever its plan says, and until then a chunk is
    expected to take as many tokens as it costs; after the first half of that at least, after
    two a third, and so on: one chunk that failed at once must not let all the others begin.

    What is spent is what committed chunks took: a chunk that a crash cut short tells nothing.

    Args:
        queue: the chunks that are to run, in the order they are handed out.
    """

    def __init__(
        self, tokens: int, storage: Storage, plan: Plan, queue: Sequence[Chunk], committed: Sequence[Receipt]
    ) -> None:
        self._tokens = tokens
        self._storage = storage
        self._queue = queue
        self._costs = {chunk.number: chunk.cost for chunk in plan.chunks}
        self._taken: dict[int, int] = {}
        self._at_work: set[int] = set()
        self._begun = 0
        # Running sums: tokens and cost of what is committed, cost of what is at work.
        self._spent = self._paid = self._expected = 0
        for receipt in committed:
            self._count(receipt)
        self._told: dict[str, int | bool] | None = None
        self._allow()

    @property
    def is_spent(self) -> bool:
        """Whether nothing that is left may begin."""
        return self._begun < len(self._queue) and not self._at_work

    def take(self, receipt: Receipt) -> None:
        self._count(receipt)
        if receipt.chunk in self._at_work:
            self._at_work.remove(receipt.chunk)
            self._expected -= self._costs[receipt.chunk]
        self._allow()

    def _count(self, receipt: Receipt) -> None:
        # A chunk's second try counts what the first one took.
        if receipt.chunk not in self._taken:
            self._paid += self._costs[receipt.chunk]
        self._spent += receipt.tokens - self._taken.get(receipt.chunk, 0)
        self._taken[receipt.chunk] = receipt.tokens

    def _allow(self) -> None:
        rate = max(self._spent / self._paid if self._paid else 0.0, 1 / (1 + len(self._taken)))
        while self._begun < len(self._queue) and self._spent < self._tokens:
            chunk = self._queue[self._begun]
            is_first = not self._taken and not self._at_work
            if self._spent + rate * (self._expected + chunk.cost) > self._tokens and not is_first:
                break
            self._at_work.add(chunk.number)
            self._expected += chunk.cost
            self._begun += 1
        told = {"begin": self._begun, "closed": self.is_spent}
        if told != self._told:
            self._storage.write_text(_FILE, json.dumps(told))
            self._told = told


class Allowance:
    """A worker's side."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = asyncio.Lock()
        self._seen: dict[str, int | bool] = {"begin": 0, "closed": False}
        self._looked = float("-inf")

    async def may_begin(self, place: int) -> bool:
        """Returns once the chunk at this place of the queue may begin, or never will."""
        while True:
            async with self._lock:  # all that wait look once
                if place >= self._seen["begin"] and time.monotonic() - self._looked >= _LOOK_S:
                    self._seen = json.loads(await asyncio.to_thread(self._storage.read_text, _FILE))
                    self._looked = time.monotonic()
            if place < self._seen["begin"]:
                return True
            if self._seen["closed"]:
                return False
            await asyncio.sleep(_LOOK_S)
