"""Which requests are taken: limits on requests and pairs, and when a refused client may come back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limrank.serving.errors import overloaded

MEMORY_S = 10.0
"""Busy seconds after which a finished pair counts 1/e in the measured rate."""

LONGEST_WAIT_S = 60


class Admission:
    """Counts requests and their pairs from acceptance to answer.

    A request that would exceed a limit is refused, except one with more pairs than ``max_pairs`` while no other is
    there: it would never fit.

    Attributes:
        requests, pairs: accepted and not yet answered.

    Args:
        max_requests, max_pairs: None: any number.
        clock: seconds.
    """

    def __init__(
        self, max_requests: int | None, max_pairs: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.requests = 0
        self.pairs = 0
        self._max_requests = max_requests
        self._max_pairs = max_pairs
        self._clock = clock
        self._counted_at = clock()
        self._finished = 0.0
        self._busy_s = 0.0
        self._busy_in_all_s = 0.0

    @contextmanager
    def admitted(self, pairs: int) -> Iterator[None]:
        """Counts a request while the block runs.

        Raises:
            ApiError: it would exceed a limit (429, with ``Retry-After``).
        """
        if self._max_requests is not None and self.requests >= self._max_requests:
            raise overloaded("requests", self.retry_after_s())
        if self._max_pairs is not None and self.pairs and self.pairs + pairs > self._max_pairs:
            raise overloaded("pairs", self.retry_after_s())
        self._count()
        self.requests += 1
        self.pairs += pairs
        try:
            yield
        finally:
            self._count()
            self.requests -= 1
            self.pairs -= pairs

    def finished(self, pairs: int) -> None:
        """Records that so many pairs were scored."""
        self._count()
        self._finished += pairs

    @property
    def pairs_per_s(self) -> float | None:
        """Pairs that are finished in a busy second, of which the latest count most; None: nothing was measured."""
        self._count()
        return self._finished / self._busy_s if self._finished and self._busy_s else None

    def retry_after_s(self) -> int:
        """Whole seconds until the pairs that are there are finished, from 1 to :data:`LONGEST_WAIT_S`. Before the
        first pair is finished: as long as the server has been busy."""
        rate = self.pairs_per_s
        wait_s = self.pairs / rate if rate else self._busy_in_all_s
        return math.ceil(min(LONGEST_WAIT_S, max(1, wait_s)))

    def _count(self) -> None:
        """Adds the time since the last call to the busy seconds. Idle time does not count: a server that has
        nothing to do is not slow."""
        now = self._clock()
        passed, self._counted_at = now - self._counted_at, now
        if self.pairs:
            self._busy_in_all_s += passed
            kept = math.exp(-passed / MEMORY_S)
            self._finished *= kept
            self._busy_s = self._busy_s * kept + MEMORY_S * (1 - kept)
