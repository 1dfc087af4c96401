"""The rate limit of a key, in pairs a minute: a token bucket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from limrank.serving.errors import ApiError
from limrank.serving.keys import current_key


class RateLimiter:
    """A bucket for each key holds the pairs of one minute, and fills evenly. A request that is larger than the bucket
    needs a full one and leaves it in debt, so no size is refused for ever.

    Args:
        pairs_per_minute: None for no limit.
        clock: seconds that never go back.
    """

    def __init__(self, pairs_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = pairs_per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # key → (pairs left, at this time)

    def take(self, pairs: int, key: str | None = None) -> None:
        """Take a request's pairs from the bucket of a key, by default the running request's. Without keys nothing
        is limited.

        Raises:
            ApiError: 429 with ``Retry-After`` where the bucket holds too few.
        """
        key = key or current_key()
        if self._most is None or key is None:
            return
        now = self._clock()
        left, since = self._buckets.get(key, (float(self._most), now))
        left = min(self._most, left + (now - since) * self._most / 60)
        needed = min(pairs, self._most)
        if left < needed:
            self._buckets[key] = left, now
            raise _rate_limited(self._most, math.ceil((needed - left) * 60 / self._most))
        self._buckets[key] = left - pairs, now


def _rate_limited(most: int, wait_s: int) -> ApiError:
    return ApiError(
        429,
        "rate_limited",
        f"this key may score {most} pairs a minute (serving.rate_limit_pairs_per_minute); try again in {wait_s} s",
        headers={"Retry-After": str(wait_s)},
    )
