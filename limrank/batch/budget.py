"""What ends a run before its plan does: its tokens are spent, or enough of its rows are kept. The
driver says how many of the chunks, in the order they are handed out, may begin; a worker waits
until its chunk is among them. No Ray here: what the two share is a file of the run directory.
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
_LOOK_S = 0.5
"""How often a worker whose chunk may not begin yet looks again."""

CHUNKS_A_BUDGET = 40
"""At least so many make up a budget, so that what the last ones take is little beside it."""


@dataclass(frozen=True)
class Bounds:
    """What ends a run, over all its sessions, before its plan does; None: that does not.

    Args:
        tokens: that the run may take, prompts' too.
        kept: rows that are enough, of those that their own unit's rows let stay. A unit has at
            most ``kept_a_unit``.
        seed: draws the order in which chunks begin where ``kept`` may end the run. By cost, as
            they go otherwise, the run would keep the examples of costly units alone.

    Which chunks have begun by the end depends on how fast each of them was, and so may differ
    from run to run: what is chosen of the rows that there are does not.
    """

    tokens: int | None = None
    kept: int | None = None
    kept_a_unit: int = 1
    seed: int = 0

    @property
    def any(self) -> bool:
        return self.tokens is not None or self.kept is not None

    def order(self, pending: Sequence[Chunk], plan: Plan, committed: Sequence[Receipt]) -> list[Chunk]:
        """The chunks in the order they are handed out: long ones first, so that no worker is left
        with one at the end; where the run may have enough before, first those whose failures
        are tried again, then as drawn."""
        if self.kept is None:
            return sorted(pending, key=lambda chunk: (-chunk.cost, chunk.number))
        drawn = list(range(len(plan.chunks)))
        random.Random(f"{self.seed}/chunks").shuffle(drawn)
        done = {receipt.chunk for receipt in committed}
        return sorted(pending, key=lambda chunk: (chunk.number not in done, drawn[chunk.number]))

    def budget(self, storage: Storage, plan: Plan, queue: Sequence[Chunk], committed: Sequence[Receipt]) -> Budget:
        limits: list[_Limit] = []
        if self.tokens is not None:
            limits.append(TokenLimit(self.tokens, {chunk.number: chunk.cost for chunk in plan.chunks}))
        if self.kept is not None:
            most = {chunk.number: chunk.units * self.kept_a_unit for chunk in plan.chunks}
            limits.append(Enough(self.kept, most))
        return Budget(limits, storage, queue, committed)


NO_BOUNDS = Bounds()


class _Limit:
    """An amount of something, what committed chunks took of it, and what those at work are
    expected to take: as much of their cost as the committed ones of theirs. That is known of no
    chunk before one is committed: until then a chunk is expected to take all of its cost; after
    the first half of that at least, after two a third, and so on: one chunk that failed at once
    must not let all the others begin.

    Args:
        costs: of each chunk, the most that is planned for it.
    """

    def __init__(self, amount: int, costs: Mapping[int, int]) -> None:
        self.amount = amount
        self.taken: dict[int, int] = {}
        self.at_work: dict[int, int] = {}
        self._costs = costs
        # Running sums: what was taken by what is committed and its cost, the cost of what is at work.
        self.spent = self._paid = self.expected = 0

    def of(self, receipt: Receipt) -> int:
        """What a committed chunk took, its earlier tries included."""
        raise NotImplementedError

    def allows(self, chunk: Chunk) -> bool:
        """Whether a chunk may begin now."""
        raise NotImplementedError

    def cost(self, chunk: Chunk) -> int:
        return self._costs[chunk.number]

    @property
    def rate(self) -> float:
        return max(self.spent / self._paid if self._paid else 0.0, 1 / (1 + len(self.taken)))

    def count(self, receipt: Receipt) -> None:
        self.expected -= self.at_work.pop(receipt.chunk, 0)
        # A chunk's second try counts what the first one took.
        if receipt.chunk not in self.taken:
            self._paid += self._costs[receipt.chunk]
        took = self.of(receipt)
        self.spent += took - self.taken.get(receipt.chunk, 0)
        self.taken[receipt.chunk] = took

    def begin(self, chunk: Chunk) -> None:
        self.at_work[chunk.number] = self.cost(chunk)
        self.expected += self.at_work[chunk.number]


class TokenLimit(_Limit):
    """A chunk may begin when what it is expected to take fits beside what was spent and what
    those at work are expected to take; the first begins whatever its plan says. What is spent
    is what committed chunks took: a chunk that a crash cut short tells nothing."""

    def of(self, receipt: Receipt) -> int:
        return receipt.tokens

    def allows(self, chunk: Chunk) -> bool:
        if self.spent >= self.amount:
            return False
        is_first = not self.taken and not self.at_work
        return is_first or self.spent + self.rate * (self.expected + self.cost(chunk)) <= self.amount


class Enough(_Limit):
    """A chunk may begin while what is kept, with what is expected of those at work, is not enough.
    Of a chunk whose failures are tried again nothing more is expected, and it always may."""

    def of(self, receipt: Receipt) -> int:
        return receipt.kept or 0

    def allows(self, chunk: Chunk) -> bool:
        return chunk.number in self.taken or self.spent + self.rate * self.expected < self.amount

    def cost(self, chunk: Chunk) -> int:
        return 0 if chunk.number in self.taken else self._costs[chunk.number]


class Budget:
    """The driver's side: a chunk may begin when those before it have begun and every limit allows it.

    Args:
        queue: the chunks that are to run, in the order they are handed out.
    """

    def __init__(
        self, limits: Sequence[_Limit], storage: Storage, queue: Sequence[Chunk], committed: Sequence[Receipt]
    ) -> None:
        self._limits = limits
        self._storage = storage
        self._queue = queue
        self._at_work: set[int] = set()
        self._begun = 0
        for receipt in committed:
            self._count(receipt)
        self._written: dict[str, Any] | None = None
        self._allow()

    @property
    def is_spent(self) -> bool:
        """Whether nothing that is left may begin."""
        return self._begun < len(self._queue) and not self._at_work

    def take(self, receipt: Receipt) -> None:
        self._at_work.discard(receipt.chunk)
        self._count(receipt)
        self._allow()

    def _count(self, receipt: Receipt) -> None:
        for limit in self._limits:
            limit.count(receipt)

    def _allow(self) -> None:
        while self._begun < len(self._queue):
            chunk = self._queue[self._begun]
            if not all(limit.allows(chunk) for limit in self._limits):
                break
            self._at_work.add(chunk.number)
            for limit in self._limits:
                limit.begin(chunk)
            self._begun += 1
        state = {"begin": self._begun, "closed": self.is_spent}
        if state != self._written:
            self._storage.write_text(_FILE, json.dumps(state))
            self._written = state


class Allowance:
    """A worker's side."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = asyncio.Lock()
        self._seen: dict[str, int | bool] = {"begin": 0, "closed": False}
        self._looked = float("-inf")

    async def may_begin(self, position: int) -> bool:
        """Returns once the chunk at this position of the queue may begin, or never will."""
        while True:
            async with self._lock:  # all that wait look once
                if position >= self._seen["begin"] and time.monotonic() - self._looked >= _LOOK_S:
                    self._seen = json.loads(await asyncio.to_thread(self._storage.read_text, _FILE))
                    self._looked = time.monotonic()
            if position < self._seen["begin"]:
                return True
            if self._seen["closed"]:
                return False
            await asyncio.sleep(_LOOK_S)
